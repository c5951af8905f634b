# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os

# Read when torch is loaded: as in the nodes, waiting threads leave the cores to who works.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

# Triton reads this when it is first imported, by whichever test that happens in.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

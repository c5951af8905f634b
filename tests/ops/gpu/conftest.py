# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _triton() -> None:
    pytest.importorskip("triton", reason="Triton is not installed; `pip install -e '.[gpu]'` brings it")


@pytest.fixture
def device() -> str:
    """Where the kernels run: Triton's interpreter takes tensors of the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel: efficient perception for cars and robots, from sensors to bird's-eye view."""

import os

__version__ = "0.1.0"

# Torch reads this once, at its first allocation: huge pages save a sixth of the segmentation's CPU time, most
# of it page faults of large, short-lived activations. A user's own choice stays.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# OpenMP threads spin for tens of milliseconds after each parallel loop, on a core that another node may
# need: on two busy cores a sweep took more than twice the processor time. 1000 turns are some ten
# microseconds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

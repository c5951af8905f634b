# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""An operator at every dispatch level of this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import torch

from kestrel.ops.backend import NATIVE
from kestrel.ops.packed_weight import int8_is_fast

ResultT = TypeVar("ResultT")

needs_int8 = pytest.mark.skipif(not int8_is_fast(), reason="the processor multiplies no bytes")
needs_kernels = pytest.mark.skipif(NATIVE is None, reason="compiled kernels are not installed")


def on_every_level(compute: Callable[[], ResultT]) -> dict[str, ResultT]:
    """Return what each level gives; that it does not depend on the number of threads is asserted."""
    assert NATIVE is not None
    before, threads = NATIVE.dispatch_level(), torch.get_num_threads()
    results = {}
    try:
        for level in NATIVE.available_levels():
            NATIVE.set_dispatch_level(level)
            for count in (1, 2, 3, 5):
                torch.set_num_threads(count)
                found = compute()
                torch.testing.assert_close(found, results.setdefault(level, found), rtol=0, atol=0)
    finally:
        NATIVE.set_dispatch_level(before)
        torch.set_num_threads(threads)
    assert results
    return results

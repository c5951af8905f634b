# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Start Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor


def launch(kernel: Any, grid: tuple[int, ...], *arguments: object, **constants: object) -> None:
    """Run one instance of the kernel per point of the grid, on the device of its first tensor.

    Tensors must be contiguous, or their strides must be among the arguments.
    """
    if 0 in grid:
        return
    tensor = next(each for each in arguments if isinstance(each, Tensor))
    with torch.cuda.device_of(tensor):  # type: ignore[no-untyped-call]
        kernel[grid](*arguments, **constants)


def block_of(size: int, *, least: int = 1, most: int = 128) -> int:
    """Return the power of two that covers ``size``, within limits that are powers of two."""
    return int(min(most, max(least, triton.next_power_of_2(size))))


def blocks(size: int, block: int) -> int:
    """Return how many blocks cover ``size``."""
    return -(-size // block)

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The class of the largest logit and its probability, in one pass over the logits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.launch import block_of, blocks, launch

_ROWS = 32


@triton.jit
def _most_likely(
    logits: tl.tensor,
    label: tl.tensor,
    probability: tl.tensor,
    rows: tl.tensor,
    classes: tl.tensor,
    block_rows: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    lane = tl.arange(0, block)
    there, known = row < rows, lane < classes
    place = logits + row[:, None] * classes + lane[None, :]
    value = tl.load(place, mask=there[:, None] & known[None, :], other=float("-inf"))
    best = tl.max(value, axis=1)
    # Where a logit is NaN, so is the sum.
    share = tl.where(known[None, :], tl.exp(value - best[:, None]), 0.0)
    first = tl.min(tl.where(value == best[:, None], lane[None, :], block - 1), axis=1)
    tl.store(label + row, first.to(tl.uint8), mask=there)
    tl.store(probability + row, 1.0 / tl.sum(share, axis=1), mask=there)


def most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Compute kestrel::most_likely."""
    logits, (rows, classes) = logits.contiguous(), logits.shape
    label = torch.empty(rows, dtype=torch.uint8, device=logits.device)
    probability = logits.new_empty(rows)
    sizes = {"block_rows": _ROWS, "block": block_of(classes, most=256)}
    launch(_most_likely, (blocks(rows, _ROWS),), logits, label, probability, rows, classes, **sizes)
    return label, probability

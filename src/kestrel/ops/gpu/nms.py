# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Suppression of boxes that come best first: one program goes down the ranking."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kestrel.ops.gpu.launch import block_of, launch


@triton.jit
def _greedy(
    drops: tl.tensor,
    kept: tl.tensor,
    boxes: tl.tensor,
    limit: tl.tensor,
    block: tl.constexpr,
) -> None:
    lane = tl.arange(0, block)
    inside = lane < boxes
    alive = inside
    count = tl.zeros((), tl.int32)
    for rank in range(boxes):
        mine = lane == rank
        stays = (tl.sum((alive & mine).to(tl.int32), 0) > 0) & (count < limit)
        count += stays.to(tl.int32)
        dropped = tl.load(drops + lane, mask=inside, other=0) != 0
        alive = alive & ~(stays & dropped & ~mine)
        tl.store(kept + rank, stays.to(tl.int8))
        drops += boxes


def greedy(close: Tensor, labels: Tensor, limit: int) -> Tensor:
    """Return the ranks that stay, where every one drops those of its label that are close to it.

    Args:
        close: (K, K) bool, whether a box would drop another.
        labels: (K,) int64.
        limit: number of ranks at most.
    """
    count = len(labels)
    drops = (close & (labels[:, None] == labels[None])).to(torch.int8)
    kept = torch.zeros(count, dtype=torch.int8, device=labels.device)
    block = block_of(count, most=1 << 20)
    launch(_greedy, (min(count, 1),), drops, kept, count, limit, block=block)
    return kept.nonzero().squeeze(1)

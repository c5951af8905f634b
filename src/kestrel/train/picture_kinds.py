# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the cells of a picture show, which the camera branch of Kestrel-Fusion learns beside all else.

Boxes and maps tell it little: there a picture only matters where its features happen to fall into a cell with
an object. BEVFormer v2 (Yang et al., CVPR 2023) adds a loss in the picture for the same reason.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.sim.semantics import Semantic
from kestrel.train import cache
from kestrel.types import UInt8Array

KINDS: Final = len(Semantic)

_IN_BACKGROUND: Final = (
    *(Semantic.VOID, Semantic.SKY, Semantic.ROAD, Semantic.SIDEWALK, Semantic.TERRAIN, Semantic.BUILDING),
    *(Semantic.VEGETATION, Semantic.OTHER_STRUCTURE, Semantic.OTHER_GROUND),
)
WEIGHT: Final = torch.tensor([1.0 if kind in _IN_BACKGROUND else 4.0 for kind in Semantic])
"""How much a cell of each kind counts: objects, paint and other small things more than large surfaces."""


def picture_shares(frame: cache.CachedFrame, number: int, config: FusionConfig) -> Tensor:
    """Return shares_of_kinds of picture ``number`` of a frame; NaN where nobody knows what it shows."""
    if not frame.has_semantics:
        return torch.full((KINDS, *config.feature_size), torch.nan)
    return shares_of_kinds(frame.semantic(number), config)


def shares_of_kinds(semantic: UInt8Array, config: FusionConfig) -> Tensor:
    """Return which share of each feature cell shows which kind of surface, (KINDS, h, w) float32.

    Args:
        semantic: (H, W) label image, values of Semantic.
        config: says how large a feature cell is.
    """
    h, w = config.feature_size
    height, width = semantic.shape
    cell = (np.arange(height) * h // height)[:, None] * w + np.arange(width) * w // width
    counts = np.bincount((semantic.astype(np.int64) * (h * w) + cell).ravel(), minlength=KINDS * h * w)
    return torch.from_numpy(counts.reshape(KINDS, h, w).astype(np.float32) * (h * w / semantic.size))


def told_pictures(shares: Tensor) -> Tensor:
    """Return of which of M pictures it is known what they show, (M,) bool."""
    return ~shares.isnan().flatten(1).any(1)


def kinds_loss(head: torch.nn.Module, context: Tensor, shares: Tensor) -> Tensor | None:
    """Return the cross-entropy of the kinds that ``head`` tells from context features.

    Args:
        head: from (M, C, h, w) to logits (M, KINDS, h, w).
        context: of M pictures.
        shares: as of shares_of_kinds, (M, KINDS, h, w).

    Returns:
        None where no picture is known to show anything.
    """
    told = told_pictures(shares)
    if not bool(told.any()):
        return None
    shown = context if bool(told.all()) else context[told]
    return F.cross_entropy(head(shown), shares[told], weight=WEIGHT)

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The Lovasz-Softmax loss, a surrogate of the intersection over union (Berman et al., CVPR 2018)."""

from __future__ import annotations

import torch
from torch import Tensor


def lovasz_gradient(sorted_truth: Tensor) -> Tensor:
    """Return the gradient of the Lovasz extension of the Jaccard loss (algorithm 1 of the paper).

    sorted_truth: (P,) float, 1 for points of the class, in the order of falling errors.
    """
    total = sorted_truth.sum()
    intersection = total - sorted_truth.cumsum(0)
    union = total + (1 - sorted_truth).cumsum(0)
    jaccard = 1 - intersection / union
    return torch.cat((jaccard[:1], jaccard[1:] - jaccard[:-1]))


def lovasz_softmax(probability: Tensor, label: Tensor) -> Tensor:
    """Return the mean loss over the classes that are present.

    Args:
        probability: (P, C), rows sum to 1.
        label: (P,) int64.
    """
    losses = []
    for index in torch.unique(label).tolist():
        truth = (label == index).float()
        errors, order = (truth - probability[:, index]).abs().sort(descending=True)
        losses.append(errors @ lovasz_gradient(truth[order]))
    return torch.stack(losses).mean() if losses else probability.sum() * 0

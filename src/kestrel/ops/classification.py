# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The class of the largest logit and its probability."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from kestrel.errors import InputError, describe
from kestrel.ops.backend import call, native_for, triton_for
from kestrel.ops.operator import operator

MOST_CLASSES: Final = 256


def most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the likeliest class of each row and its probability, as softmax and its maximum; no gradients.

    Args:
        logits: (N, C) float32, 1 to 256 classes.

    Returns:
        label (N,) uint8, the first of equal ones, and probability (N,) float32. Where a logit is NaN the
        probability is, and the label means nothing.

    Raises:
        InputError: another shape or type.
    """
    if logits.ndim != 2 or not 1 <= logits.shape[1] <= MOST_CLASSES or logits.dtype != torch.float32:
        expected, found = f"float32 (N, 1 to {MOST_CLASSES})", f"{logits.dtype} {tuple(logits.shape)}"
        raise InputError(describe("logits", expected=expected, found=found))
    label, probability = torch.ops.kestrel.most_likely(logits)
    return label, probability


@operator("most_likely")
def _most_likely(logits: Tensor) -> tuple[Tensor, Tensor]:
    native = native_for(logits)
    if native is None:
        return most_likely_reference(logits)
    label = torch.empty(len(logits), dtype=torch.uint8, device="cpu")
    probability = logits.new_empty(len(logits))
    call(native.most_likely, logits, *logits.shape, label, probability, torch.get_num_threads())
    return label, probability


@_most_likely.register_cuda
def most_likely_cuda(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the operator on a GPU: in Triton where it is installed."""
    if not triton_for(logits):
        return most_likely_reference(logits)
    from kestrel.ops.gpu import classification as gpu

    return gpu.most_likely(logits)


@_most_likely.register_fake
def _(logits: Tensor) -> tuple[Tensor, Tensor]:
    rows = logits.shape[:1]
    return logits.new_empty(rows, dtype=torch.uint8), logits.new_empty(rows)


def most_likely_reference(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same in torch."""
    best = logits.max(1)  # not of the softmax, in which logits that are close are rounded to one
    return best.indices.to(torch.uint8), 1 / (logits - best.values[:, None]).exp().sum(1)

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Modules quantized to int8 by NNCF; imported only where the extra ``int8`` is installed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import nncf
import numpy as np
from torch import Tensor, nn

from kestrel.engine.openvino import convert


def quantize(
    module: nn.Module,
    examples: Sequence[Sequence[Tensor]],
    *,
    dynamic_batch: bool = False,
) -> Any:
    """Return the module as an openvino.Model that computes in int8.

    Weights have a scale for each channel, activations one for each tensor, from the smallest and the largest
    value in the examples.

    Args:
        module: in evaluation mode.
        examples: its inputs, all of one size but for the first dimension.
        dynamic_batch: whether the size of the first dimension changes from call to call.
    """
    model = convert(module, examples[0])
    shapes = [[-1 if dynamic_batch else len(each), *each.shape[1:]] for each in examples[0]]
    model.reshape(dict(zip(model.inputs, shapes, strict=True)))
    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(sys.stderr):  # where its progress bars belong
        return nncf.quantize(
            model,
            nncf.Dataset(examples, _arrays),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(examples),
        )


def _arrays(example: Sequence[Tensor]) -> dict[int, Any]:
    return {place: np.ascontiguousarray(each.numpy()) for place, each in enumerate(example)}

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Functions as operators of torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from kestrel.ops.operator import operator
from kestrel.ops.sparse_conv import _sparse_conv

SCRIPT = """
import sys
import torch
from kestrel.models.kestrel_seg import KestrelSeg
from kestrel.ops import circle_nms, rotated_iou

points = torch.rand(500, 4) * 20 - 10
with torch.inference_mode():
    KestrelSeg().eval()(points, torch.zeros(500, dtype=torch.long))
rotated_iou(torch.rand(3, 5), torch.rand(2, 5))
circle_nms(torch.rand(3, 2), torch.rand(3), 1.0)
print(*(name for name in ("torch._dynamo", "sympy", "triton") if name in sys.modules))
"""


def test_running_a_network_imports_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == ""


def test_an_operator_without_gradient_says_so_when_it_is_asked_for_one() -> None:
    boxes = torch.rand(2, 5, requires_grad=True)

    with pytest.raises(RuntimeError, match="kestrel::rotated_iou passes no gradient on"):
        torch.ops.kestrel.rotated_iou(boxes, torch.rand(3, 5)).sum().backward()


def test_an_operator_is_called_like_its_function() -> None:
    gather = torch.zeros(1, 2, dtype=torch.int32)
    features, weight = torch.ones(1, 2), torch.ones(1, 2, 3)

    out = _sparse_conv(features, weight, bias=None, residual=None, gather=gather, inverse=None, relu=True)

    assert torch.equal(out, torch.full((2, 3), 2.0))


def test_a_name_is_given_once() -> None:
    with pytest.raises(RuntimeError, match="sparse_conv"):

        @operator("sparse_conv")
        def again(x: torch.Tensor) -> torch.Tensor:
            return x.clone()

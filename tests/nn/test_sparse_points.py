# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch

from kestrel.nn.sparse_points import PointTransform


@torch.no_grad()
def test_a_folded_point_transform_follows_its_weights_and_its_norm() -> None:
    torch.manual_seed(0)
    layer, features = PointTransform(5, 16).eval(), torch.randn(40, 5)
    for changed in (None, layer[0].weight, layer[0].bias, layer[1].running_var, layer[1].weight):
        if changed is not None:
            changed.mul_(3.0)
        expected = torch.relu(layer[1](layer[0](features)))
        torch.testing.assert_close(layer(features), expected)

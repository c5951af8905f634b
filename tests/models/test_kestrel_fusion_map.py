# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The map of all frames, corrected."""

from __future__ import annotations

import torch

from kestrel.models.kestrel_fusion_map import MapRefiner
from kestrel.models.kestrel_fusion_types import FusionConfig

CONFIG = FusionConfig()


def evidence(batch: int = 2, cells: int = 32) -> torch.Tensor:
    return torch.randn(batch, 2 * CONFIG.num_layers + 2, cells, cells)


def test_untrained_it_leaves_the_average_as_it_is() -> None:
    seen = evidence()
    assert torch.equal(MapRefiner(CONFIG).eval()(seen), seen[:, 6:12])


def test_it_learns_from_all_that_is_known_of_a_cell_and_of_those_around() -> None:
    torch.manual_seed(0)
    refiner = MapRefiner(CONFIG).eval()
    torch.nn.init.normal_(refiner.answer.weight)
    seen = evidence(1).requires_grad_()
    refiner(seen)[0, 0, 16, 16].backward()
    assert seen.grad is not None
    reach = seen.grad[0].abs().amax((1, 2))
    assert (reach > 0).all(), "of every channel"
    around = (seen.grad[0].abs().amax(0) > 0).nonzero()
    assert (around.amax(0) - around.amin(0) >= 14).all(), "of cells 3.5 m away on all sides"

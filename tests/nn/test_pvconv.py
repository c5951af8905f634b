# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kestrel.errors import InputError
from kestrel.models.pvcnn import PVCNN
from kestrel.nn.pvconv import GridPositions, PVConv, through_grid


def clouds(count: int = 50, channels: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    positions = torch.randn(2, 3, count, generator=generator) * torch.tensor([4.0, 2.0, 1.0])[:, None] + 7
    return torch.randn(2, channels, count, generator=generator), positions


def in_grid(positions: Tensor, resolution: int) -> Tensor:
    """Section 4.1 in its own words: to the centre, into the unit sphere, into [0, 1], into the grid."""
    centred = positions - positions.mean(2, keepdim=True)
    unit = centred / centred.norm(dim=1).amax(1)[:, None, None]
    return ((unit + 1) / 2 * resolution).clamp(0, resolution - 1)


@pytest.mark.parametrize("resolution", [1, 4, 9])
def test_grid_holds_the_mean_of_its_points_and_is_read_between_its_cells(resolution: int) -> None:
    features, positions = clouds()
    grids: list[Tensor] = []

    def keep(grid: Tensor) -> Tensor:
        grids.append(grid)
        return grid

    read = through_grid(features, GridPositions.of(positions, resolution), _Call(keep))
    place = in_grid(positions, resolution)
    wanted = torch.zeros(2, 5, resolution, resolution, resolution)
    for b in range(2):
        cells = place[b].round().long().T
        for cell in cells.unique(dim=0):
            inside = (cells == cell).all(1)
            wanted[(b, slice(None), *cell)] = features[b][:, inside].mean(1)
    torch.testing.assert_close(grids[0], wanted)
    # grid_sample wants z, y, x in -1..1 from the first to the last cell.
    at = place.transpose(1, 2).flip(2) / max(resolution - 1, 1) * 2 - 1
    sampled = F.grid_sample(wanted, at[:, :, None, None], align_corners=True)[..., 0, 0]
    torch.testing.assert_close(read, sampled, rtol=1e-4, atol=1e-5)


def test_points_that_coincide_are_in_the_middle_of_the_grid() -> None:
    places = GridPositions.of(torch.full((1, 3, 4), 5.0), 4)
    assert places.cell.tolist() == [2 * 16 + 2 * 4 + 2] * 4


def test_cloud_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match="shape"):
        GridPositions.of(torch.zeros(2, 10, 3), 4)


def test_both_branches_learn() -> None:
    features, positions = clouds()
    torch.manual_seed(0)
    layer = PVConv(5, 32, 6, with_se=True)
    out = layer(features.requires_grad_(), GridPositions.of(positions, 6))
    out.square().sum().backward()
    assert out.shape == (2, 32, 50)
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in layer.parameters())
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def layer(*shape: int) -> dict[str, tuple[int, ...]]:
    return {"weight": shape, "bias": shape[:1]}


def norm(channels: int) -> dict[str, tuple[int, ...]]:
    names = ("weight", "bias", "running_mean", "running_var")
    return {**dict.fromkeys(names, (channels,)), "num_batches_tracked": ()}


def released(width: float) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the S3DIS release, of points with nine values and 13 classes, as its code says."""
    narrow, middle, wide = int(width * 64), int(width * 128), int(width * 1024)
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for number, (inputs, outputs) in enumerate(((9, narrow), *[(narrow, narrow)] * 2, (narrow, middle))):
        name = f"point_features.{number}"
        layers[f"{name}.voxel_layers.0"] = layer(outputs, inputs, 3, 3, 3)
        layers[f"{name}.voxel_layers.1"] = norm(outputs)
        layers[f"{name}.voxel_layers.3"] = layer(outputs, outputs, 3, 3, 3)
        layers[f"{name}.voxel_layers.4"] = norm(outputs)
        layers[f"{name}.point_features.layers.0"] = layer(outputs, inputs, 1)
        layers[f"{name}.point_features.layers.1"] = norm(outputs)
    cloud, seen = int(width * 256), 3 * narrow + middle + wide + middle
    for name, kernel, inputs, outputs in (
        ("point_features.4.layers.", (1,), middle, wide),
        ("cloud_features.0.", (), wide, cloud),
        ("cloud_features.1.", (), cloud, middle),
        ("classifier.0.layers.", (1,), seen, int(width * 512)),
        ("classifier.2.layers.", (1,), int(width * 512), cloud),
    ):
        layers[f"{name}0"] = layer(outputs, inputs, *kernel)
        layers[f"{name}1"] = norm(outputs)
    layers["classifier.4"] = layer(13, cloud, 1)
    return {f"{name}.{key}": shape for name, keys in layers.items() for key, shape in keys.items()}


@pytest.mark.parametrize("width", [0.125, 0.25, 1.0, 1.5])
def test_network_has_the_names_and_sizes_of_the_release(width: float) -> None:
    shapes = {name: tuple(value.shape) for name, value in PVCNN(13, width=width).state_dict().items()}
    assert shapes == released(width)


@torch.no_grad()
def test_clouds_of_a_batch_do_not_see_each_other_and_order_does_not_matter() -> None:
    torch.manual_seed(0)
    network = PVCNN(6, in_channels=4, width=0.125, resolution=0.25).eval()
    features, positions = clouds(channels=1)
    points = torch.cat((positions, features), 1)
    together = network(points)
    torch.testing.assert_close(together[1:], network(points[1:]), rtol=1e-4, atol=1e-5)
    order = torch.randperm(50)
    torch.testing.assert_close(network(points[:, :, order]), together[:, :, order], rtol=1e-4, atol=1e-5)


class _Call(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

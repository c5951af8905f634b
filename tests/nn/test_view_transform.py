# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Lift and splat: geometry, missing cameras, augmentation, depth pictures."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from kestrel.errors import ModelError
from kestrel.nn.camera_geometry import CameraGeometry, depth_images, frustum_points, frustum_rays
from kestrel.nn.view_transform import DepthLSSTransform, LSSTransform, cells_of
from kestrel.ops.bev_pool import bev_cells

FORWARD = torch.tensor([[0.0, 0, 1, 0.5], [-1, 0, 0, 0], [0, -1, 0, 1.2], [0, 0, 0, 1]])
"""A camera that looks along x, half a metre ahead of the origin and 1.2 m up."""


def cameras(batch: int = 1, count: int = 2) -> CameraGeometry:
    poses = FORWARD.repeat(batch, count, 1, 1)
    if count > 1:
        poses[:, 1] = torch.diag(torch.tensor([-1.0, -1, 1, 1])) @ FORWARD
    intrinsics = torch.tensor([[50.0, 0, 32], [0, 50, 16], [0, 0, 1]]).repeat(batch, count, 1, 1)
    return CameraGeometry.from_calibration(poses, intrinsics)


def transform(kind: type[LSSTransform] = LSSTransform, downsample: int = 1) -> LSSTransform:
    torch.manual_seed(0)
    bound = (-8.0, 8.0, 1.0)
    return kind(6, 4, (32, 64), (4, 8), bound, bound, (-5.0, 5.0, 10.0), (1.0, 8.0, 1.0), downsample).eval()


def test_middle_pixel_lies_on_the_optical_axis() -> None:
    frustum = torch.tensor([32.0, 16.0, 3.0]).view(1, 1, 1, 3)
    found = frustum_points(frustum, cameras()).view(2, 3)
    torch.testing.assert_close(found, torch.tensor([[3.5, 0, 1.2], [-3.5, 0, 1.2]]))


def test_resizing_the_picture_moves_no_point() -> None:
    frustum = torch.tensor([[10.0, 5.0, 3.0], [50.0, 30.0, 6.0]]).view(2, 1, 1, 3)
    plain = cameras()
    half = torch.diag(torch.tensor([0.5, 0.5, 1, 1]))
    half[:2, 3] = torch.tensor([-3.0, -2.0])
    resized = dataclasses.replace(plain, image_augmentation=half.expand(1, 2, 4, 4))
    seen = frustum.clone()
    seen[..., :2] = frustum[..., :2] * 0.5 - torch.tensor([3.0, 2.0])
    torch.testing.assert_close(frustum_points(seen, resized), frustum_points(frustum, plain))


def test_cloud_augmentation_turns_the_map_with_the_cloud() -> None:
    turn = torch.tensor([[0.0, -1, 0, 2], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    frustum = torch.tensor([32.0, 16.0, 3.0]).view(1, 1, 1, 3)
    augmented = dataclasses.replace(cameras(), cloud_augmentation=turn[None])
    found = frustum_points(frustum, augmented).view(2, 3)
    torch.testing.assert_close(found[0], torch.tensor([2.0, 3.5, 1.2]))


def test_rays_lead_to_the_points_of_the_frustum() -> None:
    turn = torch.tensor([[0.0, -1, 0, 2], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    resize = torch.eye(4).repeat(1, 2, 1, 1)
    resize[..., :2, :2] = torch.tensor([[0.5, 0.1], [-0.1, 0.5]])
    resize[..., :2, 3] = torch.tensor([3.0, -5.0])
    both = dataclasses.replace(cameras(), cloud_augmentation=turn[None], image_augmentation=resize)
    frustum = transform().frustum
    rays, origins = frustum_rays(frustum, both)
    points = origins[:, :, None, None, None] + rays[:, :, None] * frustum[:, 0, 0, 2].view(1, 1, -1, 1, 1, 1)
    torch.testing.assert_close(points, frustum_points(frustum, both))


def test_number_of_cells_is_truncated() -> None:
    assert cells_of((-54.0, 54.0, 0.3)) == 360
    assert cells_of((0.0, 1.0, 0.3)) == 3


def test_forward_camera_fills_the_front_of_the_map() -> None:
    network = transform()
    with torch.no_grad():
        bev = network(torch.randn(1, 1, 6, 4, 8), cameras(count=1))
    assert bev.shape == (1, 4, 16, 16)
    filled = bev.abs().sum(dim=1)[0] > 0
    assert filled[9:].any()
    assert not filled[:8].any()


def test_camera_that_took_no_part_changes_nothing() -> None:
    network, features = transform(), torch.randn(1, 2, 6, 4, 8)
    both = cameras()
    only_first = dataclasses.replace(both, present=torch.tensor([[True, False]]))
    with torch.no_grad():
        expected = network(features[:, :1], cameras(count=1))
        found = network(features, only_first)
    torch.testing.assert_close(found, expected)


def test_index_of_the_calibration_can_be_kept() -> None:
    network, features = transform(downsample=2), torch.randn(2, 2, 6, 4, 8)
    index = network.index(cameras(batch=2))
    with torch.no_grad():
        assert torch.equal(
            network(features, cameras(batch=2), index=index), network(features, cameras(batch=2))
        )


def test_map_is_what_the_outer_product_gives() -> None:
    network, features = transform(), torch.randn(1, 2, 6, 4, 8)
    with torch.no_grad():
        depth, context = network.lift(features, cameras())
        assert torch.allclose(depth.sum(dim=1), torch.ones(2, 4, 8))
        bev = network(features, cameras())
    lower = network.bx - network.dx / 2
    cells = bev_cells(network.points(cameras()), lower, network.dx, network.grid_shape)[0]
    points = depth[:, :, None] * context[:, None]
    inside = points.movedim(2, -1)[cells >= 0]
    torch.testing.assert_close(bev.sum(dim=(0, 2, 3)), inside.sum(dim=0))


def depth_at(points: Tensor) -> Tensor:
    return depth_images([points], cameras(count=1), (32, 64))[0, 0, 0]


def test_depth_picture_holds_the_distance_along_the_axis() -> None:
    image = depth_at(torch.tensor([[4.5, 0.0, 1.2], [4.5, 0.8, 1.2]]))
    assert image[16, 32] == pytest.approx(4.0)
    assert image[16, 22] == pytest.approx(4.0)
    assert image.count_nonzero() == 2


def test_nearest_point_of_a_pixel_wins() -> None:
    image = depth_at(torch.tensor([[8.5, 0.0, 1.2], [4.5, 0.0, 1.2], [6.5, 0.0, 1.2]]))
    assert image[16, 32] == pytest.approx(4.0)


def test_points_behind_or_beside_the_camera_leave_no_trace() -> None:
    assert not depth_at(torch.tensor([[-4.0, 0.3, 1.0], [1.0, 5.0, 1.0]])).any()


def test_depth_aware_transform_sees_the_cloud_and_works_without_one() -> None:
    network, features = transform(DepthLSSTransform, downsample=2), torch.randn(1, 2, 6, 4, 8)
    cloud = torch.rand(200, 4) * torch.tensor([6.0, 4, 2, 1]) + torch.tensor([1.0, -2, 0, 0])
    with torch.no_grad():
        without = network(features, cameras())
        seen = network(features, cameras(), [cloud])
    assert without.shape == seen.shape == (1, 4, 8, 8)
    assert not torch.allclose(without, seen)


@pytest.mark.parametrize("kind", [LSSTransform, DepthLSSTransform])
def test_gradients_reach_every_parameter_and_the_features(kind: type[LSSTransform]) -> None:
    network = transform(kind, downsample=2).train()
    features = torch.randn(1, 2, 6, 4, 8, requires_grad=True)
    network(features, cameras(), [torch.rand(50, 4) + 2]).square().sum().backward()
    assert features.grad is not None
    assert all(value.grad is not None for value in network.parameters())


def test_depths_and_places_are_exact_under_autocast() -> None:
    """Steps of bfloat16 are 0.25 m from 32 m on, and its probabilities do not add up to 1."""
    network, features = transform(DepthLSSTransform), torch.randn(1, 2, 6, 4, 8)
    assert isinstance(network, DepthLSSTransform)
    both = cameras()
    cloud = torch.rand(200, 4) * torch.tensor([60.0, 40, 2, 1]) + torch.tensor([1.0, -20, 0, 0])
    with torch.no_grad():
        pictures = network.depth_images(features, both, [cloud])
        wanted = network.depth_features(pictures)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(network.depth_images(features.bfloat16(), both, [cloud]), pictures)
            assert torch.equal(network.depth_features(pictures), wanted)
            runs = network.index(both).runs
            depth, _ = network.lift(features, both, [cloud])
    assert pictures.max() > 32
    assert torch.equal(runs, network.index(both).runs)
    torch.testing.assert_close(depth.sum(dim=1), torch.ones(2, 4, 8), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"dx": [0.5, 1.0, 10.0]},
            r"dx of the weights: expected \[1\.0, 1\.0, 10\.0\].*found \[0\.5, 1\.0, 10\.0\]",
        ),
        ({"bx": [-7.0, -7.5, 0.0]}, r"bx .*expected \[-7\.5, -7\.5, 0\.0\].*found \[-7\.0, -7\.5, 0\.0\]"),
        ({"nx": [16, 16, 2]}, r"nx .*expected \[16, 16, 1\].*found \[16, 16, 2\]"),
    ],
)
def test_weights_of_another_grid_are_refused(changed: dict[str, Any], message: str) -> None:
    network = transform()
    state = {**network.state_dict(), **{name: torch.tensor(value) for name, value in changed.items()}}
    with pytest.raises(ModelError, match=message):
        network.load_state_dict(state)


def test_weights_of_another_frustum_are_refused() -> None:
    network = transform()
    state = network.state_dict()
    other = state["frustum"].clone()
    other[3, 1, 7, 2] += 0.5
    with pytest.raises(ModelError, match=r"frustum at point 111 .*\[63\.0, 10\.\d+, 4\.0\].*found .*4\.5\]"):
        network.load_state_dict({**state, "frustum": other})


def test_constants_may_have_been_stored_in_half_precision() -> None:
    network = transform()
    state = network.state_dict()
    halves = {name: state[name].half().float() for name in ("dx", "bx", "frustum")}
    assert not torch.equal(halves["frustum"], state["frustum"])
    network.load_state_dict({**state, **halves})

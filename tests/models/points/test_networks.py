# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from kestrel.errors import InputError, ModelError
from kestrel.models.minkunet import MinkUNet, scaled_channels
from kestrel.models.sparse_encoder import SparseEncoder
from kestrel.models.spvcnn import SPVCNN
from kestrel.models.spvnas import SPVNAS
from kestrel.nn.sparse import SparseTensor, keep_packed_alone
from kestrel.ops import coordinate_set

SMALL = (8, 8, 12, 16, 24, 24, 16, 12, 12)


def cloud(count: int, seed: int = 0, batch: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    xyz = torch.rand(count, 3, generator=generator) * torch.tensor([40.0, 40.0, 8.0]) - 10
    positions = torch.cat((torch.full((count, 1), float(batch)), xyz), dim=1)
    return positions, torch.rand(count, 4, generator=generator)


def network(kind: type[MinkUNet]) -> MinkUNet:
    """A small network whose batch norms have seen data."""
    torch.manual_seed(0)
    built = kind(5, channels=SMALL, pres=1.0, vres=1.0).train()
    with torch.no_grad():
        built(*cloud(800, seed=9))
    return built.eval()


@pytest.mark.parametrize("cr", [(1.0, 21.778), (0.64, 8.794), (0.5, 5.449)])
def test_widths_give_the_published_number_of_parameters(cr):
    built = SPVCNN(19, channels=scaled_channels(cr[0]))
    assert sum(parameter.numel() for parameter in built.parameters()) / 1e6 == pytest.approx(cr[1], abs=5e-4)


@pytest.mark.parametrize("kind", [MinkUNet, SPVCNN])
@torch.no_grad()
def test_the_order_of_the_points_does_not_matter(kind):
    built, (positions, features) = network(kind), cloud(700)
    order = torch.randperm(700, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        built(positions[order], features[order]), built(positions, features)[order], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("kind", [MinkUNet, SPVCNN])
@torch.no_grad()
def test_clouds_of_a_batch_do_not_see_each_other(kind):
    built = network(kind)
    first, second = cloud(300, seed=1), cloud(400, seed=2, batch=1)
    together = built(torch.cat((first[0], second[0])), torch.cat((first[1], second[1])))
    alone = torch.cat((built(*first), built(*second)))
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [MinkUNet, SPVCNN])
@torch.no_grad()
def test_an_empty_cloud_has_no_labels(kind):
    assert network(kind)(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 5)


@torch.no_grad()
def test_one_point_is_enough():
    assert network(SPVCNN)(*cloud(1)).isfinite().all()


def test_batch_norm_inside_the_kernels_equals_batch_norm_after_them():
    built, (positions, features) = network(SPVCNN), cloud(500)
    with torch.no_grad():
        fused = built(positions, features)
    separate = built(positions, features).detach()
    torch.testing.assert_close(fused, separate, atol=1e-4, rtol=1e-4)


def test_folded_weights_follow_the_parameters():
    built, points = network(SPVCNN), cloud(200)
    with torch.no_grad():
        before = built(*points)
        built.stage1[1].net[0].kernel.mul_(1.5)
        changed = built(*points)
        built.stage1[1].net[0].kernel.div_(1.5)
        built.stage2[1].net[1].running_var.mul_(4)
        changed_norm = built(*points)
    assert not torch.allclose(before, changed)
    assert not torch.allclose(before, changed_norm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_packed_weights_alone_answer_alike_and_nothing_else(dtype):
    built, (positions, features) = network(SPVCNN).to(dtype), cloud(300)
    features = features.to(dtype)
    before = built(positions, features)
    keep_packed_alone(built, dtype)
    assert torch.equal(built(positions, features), before)
    assert not any("kernel" in key for key in built.state_dict())
    other = torch.float32 if dtype == torch.bfloat16 else torch.bfloat16
    with pytest.raises(InputError, match="keeps its packed weights alone"):
        built.to(other)(positions, features.to(other))


@torch.no_grad()
def test_packed_weights_alone_are_those_of_sparse_convolutions_whatever_else_a_network_has():
    camera = nn.Module()
    camera.stages = nn.ModuleList()  # as a Swin has them
    whole = nn.ModuleDict({"camera": camera, "lidar": network(SPVCNN)})
    keep_packed_alone(whole)
    assert not any("kernel" in key for key in whole.state_dict())


def test_packed_weights_alone_pass_no_gradient_on():
    built, (positions, features) = network(SPVCNN), cloud(50)
    keep_packed_alone(built)
    with pytest.raises(InputError, match="expected no gradients"):
        built(positions, features)


def labels(positions: torch.Tensor) -> torch.Tensor:
    """Three classes by place: low, high, and high beyond a plane."""
    return (positions[:, 3] > -6).long() * (1 + (positions[:, 1] > 10).long())


def train(built: SPVCNN, steps: int) -> list[float]:
    """Learn the labels of one cloud; return the losses."""
    positions, features = cloud(600)
    optimizer = torch.optim.Adam(built.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(built(positions, features), labels(positions))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_training_reaches_every_parameter_and_lowers_the_loss():
    torch.manual_seed(0)
    built = SPVCNN(3, channels=SMALL, pres=1.0, vres=1.0, dropout=0.0)
    losses = train(built, 8)
    assert losses[-1] < 0.6 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters())


def test_bfloat16_gives_the_classes_of_single_precision():
    torch.manual_seed(0)
    built = SPVCNN(3, channels=SMALL, pres=1.0, vres=1.0, dropout=0.0)
    train(built, 40)
    positions, features = cloud(600)
    with torch.no_grad():
        exact = built.eval()(positions, features)
        rough = built.bfloat16()(positions, features.bfloat16())
    assert rough.dtype == torch.bfloat16
    assert (rough.argmax(1) == exact.argmax(1)).float().mean() > 0.98
    assert (rough - exact).norm() / exact.norm() < 0.03


def test_widths_of_the_wrong_number_are_named():
    with pytest.raises(ModelError, match="channels"):
        SPVCNN(5, channels=(8, 8))


def test_a_net_config_without_an_entry_names_it():
    with pytest.raises(ModelError, match="output_channels"):
        SPVNAS({}, 19)
    with pytest.raises(ModelError, match=r"downsample\.0\.transition"):
        SPVNAS({"output_channels": [8] * 9}, 19)


def test_features_that_do_not_fit_the_voxels_are_refused():
    voxels, _ = coordinate_set(torch.zeros(1, 4, dtype=torch.int64))
    with pytest.raises(InputError, match="voxel features"):
        SparseTensor(torch.zeros(2, 3), voxels)


@torch.no_grad()
def test_the_encoder_fills_the_cells_below_its_voxels_and_no_others():
    torch.manual_seed(0)
    encoder = SparseEncoder(5, (64, 48, 41)).eval()
    indices = torch.tensor([[0, 8, 8, 20], [1, 60, 40, 3]])
    bev = encoder(torch.rand(2, 5) + 1, indices, 2)
    assert bev.shape == (2, 256, 8, 6)
    occupied = (bev != 0).any(1)
    assert occupied[0, :4, :4].any()
    assert not occupied[0, 4:].any()
    assert not occupied[1, :5].any()


@torch.no_grad()
def test_the_encoder_of_no_voxels_is_an_empty_map():
    encoder = SparseEncoder(5, (32, 32, 41)).eval()
    bev = encoder(torch.zeros(0, 5), torch.zeros(0, 4, dtype=torch.int64), 1)
    assert bev.shape == (1, 256, 4, 4)
    assert not bev.any()


@torch.no_grad()
def test_an_encoder_gives_the_same_map_from_its_packed_weights_alone():
    encoder = SparseEncoder(5, (32, 32, 41)).eval()
    indices = torch.randint(0, 32, (200, 4), generator=torch.Generator().manual_seed(2))
    indices[:, 0] = 0
    voxels = indices.unique(dim=0)
    features = torch.rand(len(voxels), 5, generator=torch.Generator().manual_seed(3))
    before = encoder(features, voxels, 1)
    keep_packed_alone(encoder)
    assert torch.equal(encoder(features, voxels, 1), before)
    assert not any("weight" in key for key, value in encoder.state_dict().items() if value.ndim > 1)

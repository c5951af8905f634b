# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.pipelines.box_decoder import DecodedBoxes, boxes_from_regression
from kestrel.pipelines.fusion_frame import camera_rays
from kestrel.train import cache
from kestrel.train.detection_score import DetectionScore
from kestrel.train.fusion_augmentation import augment_pictures, augment_points, augment_view
from kestrel.train.fusion_data import (
    CamerasAlone,
    FrameSource,
    depth_bins,
    draw_past,
    in_view,
    without_lidar,
)
from kestrel.train.fusion_loss import (
    box_loss,
    center_targets,
    covered_cells,
    focal_loss,
    fusion_loss,
    regression_target,
    velocity_loss,
)
from kestrel.train.fusion_sample import FusionSample, collate, collate_earlier
from kestrel.train.lovasz import lovasz_softmax
from kestrel.types import Calibration
from tests.train.conftest import make_cached_frame

CONFIG = FusionConfig()


@pytest.fixture
def sample(data: Path) -> FusionSample:
    return FrameSource(cache.frame_files(data / "train"), CONFIG, with_cameras=True)[0]


def test_points_boxes_rays_and_map_turn_together(sample: FusionSample) -> None:
    box = sample.boxes[0]
    on_box = torch.cat((box[:3], torch.zeros(2)))[None]
    marked = torch.zeros(6, 200, 200)
    cell = ((box[:2] + 50) / 0.5).floor().long()
    marked[0, cell[0] - 1 : cell[0] + 2, cell[1] - 1 : cell[1] + 2] = 1
    ray = (box[:3] - sample.origins[0]).expand(sample.rays.shape)
    marked_sample = replace(sample, points=on_box, map_truth=marked, rays=ray)
    for seed in range(5):
        turned = augment_view(marked_sample, CONFIG, torch.Generator().manual_seed(seed))
        place = turned.boxes[0, :3]
        torch.testing.assert_close(turned.points[0, :3], place)
        torch.testing.assert_close(turned.origins[0] + turned.rays[0, 0, 0], place)
        x, y = ((place[:2] + 50) / 0.5).floor().long().tolist()
        assert turned.map_truth[0, x, y] == 1
        heading = torch.stack((turned.boxes[0, 6].cos(), turned.boxes[0, 6].sin()))
        speed = turned.boxes[0, 7:9]
        before = torch.dot(torch.stack((box[6].cos(), box[6].sin())), box[7:9]) / box[7:9].norm()
        assert torch.dot(heading, speed) / speed.norm() == pytest.approx(float(before), abs=1e-4)


def test_the_map_is_unknown_where_the_truth_does_not_reach(sample: FusionSample) -> None:
    turned = augment_view(sample, CONFIG, torch.Generator().manual_seed(1)).map_truth
    assert turned.isnan().any()
    assert not turned[:, 60:140, 60:140].isnan().any()


def test_earlier_pictures_are_changed_like_those_that_follow(data: Path) -> None:
    source = FrameSource(cache.frame_files(data / "train"), CONFIG, with_cameras=True)
    plain = source[1]
    assert tuple(plain.earlier.shape) == (1, 2, 3, 128, 352)
    assert torch.equal(plain.earlier[0], source[0].pictures)
    assert len(source[0].earlier) == 0
    same = replace(plain, earlier=plain.pictures[None])
    mirrored = 0
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        changed = augment_pictures(
            augment_view(augment_points(same, generator), CONFIG, generator), generator
        )
        assert torch.equal(changed.earlier[0], changed.pictures)
        turned = not torch.equal(changed.depth, plain.depth)
        mirrored += turned
        expected = plain.pictures.flip(-1) if turned else plain.pictures
        together = torch.stack((changed.pictures.float().flatten(), expected.float().flatten()))
        assert torch.corrcoef(together)[0, 1] > 0.3
        # What was to the left of the camera is on the other side of its axis once it is mirrored.
        left, right = changed.rays[0, 8, 0, :2], changed.rays[0, 8, -1, :2]
        assert left[0] * right[1] - left[1] * right[0] < 0
    assert 0 < mirrored < 8


def test_samples_look_back_on_none_to_two_and_a_batch_says_on_how_many(data: Path) -> None:
    assert {draw_past(torch.Generator().manual_seed(seed)) for seed in range(30)} == {0, 1, 2}
    first, second = (torch.full((count, 2, 3, 4, 5), 51 * count, dtype=torch.uint8) for count in (2, 1))
    batch = collate_earlier([first, second, second[:0, :1]])
    assert batch.known.int().tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    torch.testing.assert_close(
        batch.images[:, :, 0, 0, 0], torch.tensor([[0.4, 0.4, 0, 0, 0], [0.4, 0.4, 0.2, 0.2, 0]])
    )
    assert collate_earlier([first[:0]]).known.shape == (0, 2)


def test_of_the_cameras_alone_there_are_frames_with_pictures_only(data: Path, tmp_path: Path) -> None:
    blind = tmp_path / "frame_0000.npz"
    cache.write(blind, make_cached_frame(7, cameras=0))
    (tmp_path / cache.DONE).write_text('{"frame_hz": 2.0}')
    source = FrameSource([blind, *cache.frame_files(data / "train")], CONFIG, with_cameras=True)
    alone = CamerasAlone(source)
    assert (len(source), len(alone)) == (3, 2)
    assert torch.equal(alone[0].pictures, source[1].pictures)
    assert not len(alone[0].points)
    assert not alone[0].has_lidar
    assert source[1].has_lidar


def test_cameras_alone_are_not_asked_for_what_is_beside_their_views(sample: FusionSample) -> None:
    places = torch.tensor([[20.0, 0], [20, 11], [20, -11], [20, 15], [20, -15], [-20, 0]])
    seen = in_view(places, sample.rays, sample.origins, 50.0)
    assert seen.tolist() == [True, True, True, False, False, False]
    assert not in_view(places, sample.rays[:0], sample.origins[:0], 50.0).any()
    asked = replace(at(sample, (10.0, 3.0), (-20.0, 8.0)), vehicle=torch.zeros(2))
    alone = without_lidar(asked, CONFIG)
    assert alone.box_points.tolist() == [9, 0]
    for seed in range(8):
        turned = augment_view(asked, CONFIG, torch.Generator().manual_seed(seed))
        assert without_lidar(turned, CONFIG).box_points.tolist() == [9, 0]


@pytest.mark.parametrize("turned", ["upright", "on its side", "upside down", "upwards", "mirrored"])
def test_what_is_in_view_does_not_depend_on_how_a_camera_is_turned(turned: str) -> None:
    aside, down = torch.meshgrid(torch.linspace(-0.5, 0.5, 5), torch.linspace(-0.5, 0.5, 5), indexing="xy")
    rays = torch.stack((torch.ones_like(aside), -aside, -down), -1)[None]
    if turned == "on its side":
        rays = torch.stack((rays[..., 0], rays[..., 2], -rays[..., 1]), -1)
    elif turned == "upside down":
        rays = rays * torch.tensor([1.0, -1.0, -1.0])
    elif turned == "upwards":
        rays = rays @ torch.tensor([[0.94, 0, 0.34], [0, 1.0, 0], [-0.34, 0, 0.94]])
    elif turned == "mirrored":
        rays = rays.flip(2) * torch.tensor([1.0, -1.0, 1.0])
    places = torch.tensor([[20.0, 9], [20, -9], [20, 16], [20, -16], [-20, 0]])
    assert in_view(places, rays, torch.zeros(1, 3), 200.0).tolist() == [True, True, False, False, False]


def test_cameras_alone_are_not_asked_for_what_is_beyond_their_depths(sample: FusionSample) -> None:
    """The depth bins of a wide camera, in which things look far away, end nearer to it."""
    first, step, count = CONFIG.depth
    last = first + step * (count - 0.5)
    ahead = sample.rays[:1] / sample.rays[0, ..., 0].mean()
    for scale in (0.5, 1.0):
        asked = replace(
            at(sample, (last * scale - 1, 0.0), (last * scale + 1, 0.0)),
            rays=ahead * scale,
            origins=torch.zeros(1, 3),
            vehicle=torch.zeros(2),
        )
        assert without_lidar(asked, CONFIG).box_points.tolist() == [9, 0]


def test_of_a_picture_of_more_than_180_degrees_only_what_is_behind_is_beside_its_view() -> None:
    bearings = torch.deg2rad(torch.linspace(100, -100, 9))
    rays = torch.stack((bearings.cos(), bearings.sin(), torch.zeros(9)), -1)[None, None]
    places = torch.tensor([[20.0, 0], [-1, 20], [-1, -20], [-20, 20], [-20, -20], [-20, 0]])
    assert in_view(places, rays, torch.zeros(1, 3), 200.0).tolist() == [True, True, True, False, False, False]


def test_depth_bins_hold_the_nearest_point() -> None:
    base_from_camera = np.eye(4)
    base_from_camera[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    calibration = Calibration(
        np.array([[256.0, 0, 176], [0, 256, 64], [0, 0, 1]]), 352, 128, base_from_camera
    )
    points = np.array([[10.2, 0, 0], [30, 0, 0], [-5, 0, 0], [10, 50, 0]], np.float32)
    depth = depth_bins(points, calibration, CONFIG)
    assert depth[8, 22] == round((10.2 - 1.5) / 1.0)
    assert (depth >= 0).sum() == 1


def test_through_a_longer_lens_things_look_nearer_in_rays_and_depth_alike() -> None:
    """What the network is taught to see at a depth is put where it is."""
    base_from_camera = np.eye(4)
    base_from_camera[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    point = np.array([[20.0, 0, 0]], np.float32)
    for focal, looks in ((128.0, 40.0), (200.0, 25.6), (256.0, 20.0), (512.0, 10.0)):
        matrix = np.array([[focal, 0, 175.5], [0, focal, 63.5], [0, 0, 1]])
        calibration = Calibration(matrix, 352, 128, base_from_camera)
        depth = depth_bins(point, calibration, CONFIG)
        assert depth.max() == int(looks - 1.5 + 0.5)
        rays, origin = camera_rays(calibration, CONFIG)
        ahead = rays[7:9, 21:23].mean((0, 1)) * looks + origin
        np.testing.assert_allclose(ahead, point[0], atol=1e-4)


def test_samples_depend_on_the_generator_alone(data: Path) -> None:
    source = FrameSource(cache.frame_files(data / "train"), CONFIG, with_cameras=True)
    first, again, other = (source.draw(torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first.points, again.points)
    assert first.points.shape != other.points.shape or not torch.equal(first.points, other.points)


def test_sensors_are_left_out_but_never_all(data: Path) -> None:
    source = FrameSource(cache.frame_files(data / "train"), CONFIG, with_cameras=True)
    drawn = [source.draw(torch.Generator().manual_seed(seed)) for seed in range(40)]
    kinds = {(len(sample.pictures), sample.has_lidar) for sample in drawn}
    assert {(2, True), (2, False), (0, True)} <= kinds
    assert (0, False) not in kinds
    assert all(len(sample.points) == 0 for sample in drawn if not sample.has_lidar)


def test_any_of_eight_cameras_may_be_all_that_is_there(tmp_path: Path) -> None:
    cache.write(tmp_path / "frame_0000.npz", make_cached_frame(3, cameras=8))
    (tmp_path / cache.DONE).write_text('{"frame_hz": 2.0}')
    source = FrameSource([tmp_path / "frame_0000.npz"], CONFIG, with_cameras=True)
    generator = torch.Generator().manual_seed(0)
    drawn = [source._sensors(8, generator) for _ in range(4000)]
    assert {len(cameras) for cameras, _ in drawn} == set(range(9))
    assert {tuple(cameras) for cameras, _ in drawn if len(cameras) == 1} == {(camera,) for camera in range(8)}
    assert all(lidar for cameras, lidar in drawn if not cameras)
    assert len(source[0].pictures) == 8


def test_unseen_boxes_are_neither_object_nor_background(sample: FusionSample) -> None:
    target = center_targets(sample, CONFIG)
    assert target.row.unique().tolist() == [0]
    (cell,) = target.cell[target.near == 1]
    assert target.heatmap[0, cell[0], cell[1]] == 1
    assert target.heatmap[8].sum() == 0
    unseen = ((sample.boxes[1, :2] + 51.2) / 0.8).floor().long()
    assert target.weight[unseen[0], unseen[1]] == 0
    assert target.weight[cell[0], cell[1]] == 1
    nothing = center_targets(replace(sample, box_points=torch.zeros(len(sample.boxes))), CONFIG)
    assert nothing.heatmap.sum() == 0
    assert nothing.cell.shape == (0, 2)


def at(sample: FusionSample, *places: tuple[float, float], label: int = 8) -> FusionSample:
    """Return the sample with one seen object of a class at each of these places."""
    boxes = torch.tensor([[*place, 0.9, 0.6, 0.5, 1.8, 0.3, 1.0, 0.5] for place in places])
    count = len(places)
    return replace(
        sample, boxes=boxes, box_label=torch.full((count,), label), box_points=torch.full((count,), 9)
    )


def test_a_box_is_answered_alike_at_all_cells_around_its_middle(sample: FusionSample) -> None:
    shown = at(sample, (10.39, 3.6), (51.1, -51.1))
    target = center_targets(shown, CONFIG)
    assert [int((target.row == row).sum()) for row in range(2)] == [9, 4]
    raw = regression_target(shown.boxes[target.row], target.cell, CONFIG)
    raw = torch.cat((raw, shown.boxes[target.row, 7:9]), 1)
    boxes = boxes_from_regression(raw, target.cell, CONFIG.cell_size, CONFIG.extent)
    torch.testing.assert_close(boxes, shown.boxes[target.row], atol=1e-4, rtol=1e-4)
    # The middle lies by the border to the next cell, which is nearly as good a place to be found at.
    x, y = target.cell[(target.near == 1) & (target.row == 0)][0].tolist()
    beside = (target.cell == torch.tensor([x + 1, y])).all(1)
    assert target.near[beside] > 0.6
    assert target.heatmap[8, x + 1, y] > 0.6
    assert target.heatmap[8, x - 1, y] < 0.1


def test_a_cell_between_two_objects_of_a_class_answers_for_the_nearer_one(sample: FusionSample) -> None:
    shown = at(sample, (10.0, 2.8), (11.9, 2.8))
    target = center_targets(shown, CONFIG)
    middles = (target.cell + 0.5) * CONFIG.cell_size - CONFIG.extent
    away = torch.cdist(middles, shown.boxes[:, :2])
    assert torch.equal(away.argmin(1), target.row)
    assert len(target.cell.unique(dim=0)) == len(target.cell)


def test_the_loss_of_boxes_is_none_where_they_are_right_and_less_far_from_the_middle(
    sample: FusionSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = KestrelFusion(CONFIG)
    batch = collate([at(sample, (10.0, 2.8), (-30.0, 5.0))])
    output = network(batch.inputs)
    target = center_targets(batch.samples[0], CONFIG)
    wrong = torch.zeros(len(target.row))

    def answer(features: torch.Tensor, frame: torch.Tensor, cell: torch.Tensor, label: torch.Tensor) -> Any:
        right = regression_target(batch.samples[0].boxes[target.row], cell, CONFIG)
        return torch.cat((right + wrong[:, None], torch.zeros(len(right), 2)), 1)

    def loss() -> float:
        found = box_loss(output, batch, [target], network)
        assert found is not None
        return float(found)

    monkeypatch.setattr(network.regression, "forward", answer)
    assert loss() == pytest.approx(0, abs=1e-4)
    middle = target.near == 1
    wrong = middle.float()
    at_middles = loss()
    wrong = (~middle).float()
    assert loss() == pytest.approx(at_middles * float(target.near[~middle].sum()) / 2, rel=1e-3)
    assert box_loss(output, batch, [center_targets(at(sample, (60.0, 0.0)), CONFIG)], network) is None


def test_a_box_with_points_covers_the_cells_in_it_and_at_least_its_middle(sample: FusionSample) -> None:
    boxes = sample.boxes.repeat(2, 1)
    boxes[1, :2] = torch.tensor([10.3, 3.1])
    boxes[1, 3:5] = 0.3
    boxes[2, :7] = torch.tensor([-20.4, 20.4, 0.8, 8.0, 1.0, 2.0, torch.pi / 2])
    boxes[3, :2] = torch.tensor([100.0, 0])
    shown = replace(sample, boxes=boxes, box_points=torch.tensor([0, 1, 9, 5]))
    cell, row = covered_cells(shown, CONFIG)
    middles = (cell + 0.5) * CONFIG.cell_size - CONFIG.extent
    assert row.unique().tolist() == [1, 2]
    assert [76, 67] in cell[row == 1].tolist()
    assert (row == 1).sum() <= 2
    long = middles[row == 2] - boxes[2, :2]
    assert 10 <= len(long) <= 20
    assert (long[:, 0].abs() <= 0.57).all()
    assert (long[:, 1].abs() <= 4).all()


def test_the_loss_of_velocities_is_none_where_they_are_right_and_counts_all_cells(
    sample: FusionSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = KestrelFusion(CONFIG)
    batch = collate([sample])
    output = network(batch.inputs)
    cell, row = covered_cells(sample, CONFIG)
    told = []

    def answer(features: torch.Tensor, frame: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        told.append(cells)
        return sample.boxes[row, 7:9] + wrong

    monkeypatch.setattr(network.regression, "velocities", answer)
    wrong = torch.zeros(2)
    assert velocity_loss(output, batch, network) == 0
    wrong = torch.tensor([3.0, 0])
    assert velocity_loss(output, batch, network) == pytest.approx(3 - 0.25)
    assert torch.equal(told[0], cell)
    unseen = collate([replace(sample, box_points=torch.zeros(len(sample.boxes)))])
    assert velocity_loss(output, unseen, network) is None


def test_a_right_heatmap_costs_less_than_a_wrong_one(sample: FusionSample) -> None:
    target = center_targets(sample, CONFIG)
    right = torch.logit(target.heatmap.clamp(0.01, 0.99))
    cost = focal_loss(right, target.heatmap, target.weight)
    assert cost < 0.2 * focal_loss(-right, target.heatmap, target.weight)


def test_a_frame_is_answered_alone_as_in_a_batch_with_other_sensors(sample: FusionSample) -> None:
    network = KestrelFusion(CONFIG).eval()
    blind = replace(
        sample, **{name: getattr(sample, name)[:0] for name in ("pictures", "rays", "origins", "depth")}
    )
    blind = replace(blind, earlier=sample.earlier[:, :0])
    deaf = replace(sample, points=sample.points[:0], has_lidar=False)
    frames = [blind, sample, deaf]
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.bias.uniform_(0.1, 0.5)  # as training leaves it, so that nothing is not answered by zero
        together = network(collate(frames).inputs)
        for number, frame in enumerate(frames):
            alone = network(collate([frame]).inputs)
            for name in ("heatmap", "map_logits"):
                wanted = getattr(alone, name)[0]
                torch.testing.assert_close(getattr(together, name)[number], wanted, atol=1e-4, rtol=1e-4)


def test_every_part_of_the_network_but_those_of_later_stages_gets_a_gradient(data: Path) -> None:
    source = FrameSource(cache.frame_files(data / "train"), CONFIG, with_cameras=True)
    network = KestrelFusion(CONFIG)
    batch = collate([source[0], source[1]])
    parts = fusion_loss(network(batch.inputs), batch, network)
    assert set(parts) == {"heatmap", "boxes", "velocity", "map", "depth"}
    torch.stack(list(parts.values())).sum().backward()
    idle = {name.split(".")[0] for name, value in network.named_parameters() if value.grad is None}
    assert idle == {"map_refiner", "motion"}


def test_average_precision_rewards_rank_and_place() -> None:
    truth = torch.tensor([[10.0, 0, 0, 4, 2, 1.5, 0, 0, 0], [20.0, 5, 0, 4, 2, 1.5, 0, 0, 0]])
    label, points = torch.zeros(2, dtype=torch.int64), torch.tensor([5, 5])

    def area(places: list[tuple[float, float]]) -> float:
        values = torch.zeros(len(places), 9)
        values[:, :2] = torch.tensor(places)
        score = DetectionScore(1)
        ranks = torch.linspace(0.9, 0.5, len(places))
        score.add(
            DecodedBoxes(values, torch.zeros(len(places), dtype=torch.int64), ranks), truth, label, points
        )
        return score.average_precision()[0]

    assert area([(10, 0), (20, 5)]) == pytest.approx(1)
    assert area([(10, 0), (30, 0), (20, 5)]) < 1
    assert area([(10, 0), (10, 0)]) < 0.6
    assert area([(13, 0), (23, 5)]) == 0


def test_lovasz_falls_as_the_overlap_grows() -> None:
    label = torch.tensor([0, 0, 1, 1])
    right = torch.eye(2)[label]
    half = torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]])
    assert lovasz_softmax(right, label) == pytest.approx(0)
    # Jaccard loss of {0}: 1 of 2 points found; of {1}: 2 of 3.
    assert lovasz_softmax(half, label) == pytest.approx((1 / 2 + 1 / 3) / 2)

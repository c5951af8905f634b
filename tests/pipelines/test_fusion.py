# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.errors import InputError, ModelError
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import EarlierPictures, FusionConfig, FusionOutput
from kestrel.pipelines import FusionDetector
from kestrel.pipelines.box_decoder import boxes_from_regression, first_boxes, without_neighbours
from kestrel.pipelines.fusion_frame import camera_rays, distance_scale, stack_sweeps
from kestrel.sim.rig import load_rig
from kestrel.types import Float32Array, SensorFrame
from kestrel.weights import load, save
from tests.pipelines.conftest import make_calibration, make_frame, make_image


@pytest.fixture(scope="module")
def detector() -> FusionDetector:
    return FusionDetector.untrained(seed=1, score_threshold=0.0)


@pytest.mark.parametrize(("lidar", "cameras"), [(True, 2), (True, 0), (False, 2), (True, 1)])
def test_any_set_of_sensors_gives_boxes_and_map(detector: FusionDetector, lidar: bool, cameras: int) -> None:
    frame = make_frame(lidar=lidar, cameras=cameras)
    boxes, layers = detector.detect(frame)
    assert len(boxes) > 0
    assert (boxes.size > 0).all()
    assert boxes.class_names == DETECTION_CLASSES
    assert (np.diff(boxes.score) <= 0).all()
    assert layers.layer_names == MAP_LAYERS
    assert layers.probability.shape == (6, 200, 200)
    assert layers.lower == (-50, -50)
    assert (boxes.stamp_ns, layers.frame_id) == (frame.stamp_ns, "base_link")


def test_each_sensor_has_a_say(detector: FusionDetector) -> None:
    answers = [
        detector.detect(make_frame(lidar=lidar, cameras=cameras))[1].probability
        for lidar, cameras in ((True, 2), (True, 1), (True, 0), (False, 2))
    ]
    for first in range(4):
        for second in range(first):
            assert (answers[first] != answers[second]).any()


def test_earlier_sweeps_have_a_say(detector: FusionDetector) -> None:
    frame = make_frame(cameras=0)
    assert detector.sweeps == 2
    alone = detector.detect(replace(frame, sweeps=()))[1].probability
    assert (detector.detect(frame)[1].probability != alone).any()


def with_empty_sweep(frame: SensorFrame) -> SensorFrame:
    """Return the frame with a sweep without points, and its earlier sweeps."""
    assert frame.cloud is not None
    return replace(frame, cloud=replace(frame.cloud, points=np.zeros((0, 4), np.float32)))


def test_beside_pictures_a_sweep_without_points_is_a_missing_lidar() -> None:
    detector = FusionDetector.untrained(seed=1, score_threshold=0.0)
    frame = seen_at(make_frame(cameras=1), 0.0, 0)
    answers = []
    for each in (with_empty_sweep(frame), replace(frame, cloud=None, sweeps=()), frame):
        detector.reset()
        boxes, layers = detector.detect(each)
        detector.reset()
        answers.append((boxes.center, layers.probability, detector.map_evidence(each).numpy()))
    for empty, missing, seen in zip(*answers, strict=True):
        np.testing.assert_array_equal(empty, missing)
        assert not np.array_equal(empty, seen)


def test_a_sweep_without_points_is_answered_where_there_are_no_pictures(detector: FusionDetector) -> None:
    frame = with_empty_sweep(make_frame(cameras=0))
    assert detector.inputs(frame).has_lidar.tolist() == [True]
    assert detector.detect(frame)[1].layer_names == MAP_LAYERS


def test_the_same_frame_gives_the_same_answer(detector: FusionDetector) -> None:
    first, second = detector.detect(make_frame()), detector.detect(make_frame())
    assert (first[0].center == second[0].center).all()
    assert (first[1].probability == second[1].probability).all()


def moved_on(frame: SensorFrame, by_ns: int) -> SensorFrame:
    """Return the frame with all its stamps later."""
    later = {name: replace(image, stamp_ns=image.stamp_ns + by_ns) for name, image in frame.images.items()}
    return replace(frame, stamp_ns=frame.stamp_ns + by_ns, images=later)


def test_pictures_look_back_on_those_of_half_a_second_before() -> None:
    detector = FusionDetector.untrained(seed=1, score_threshold=0.0)
    frame, other = make_frame(lidar=False, cameras=2), make_frame(lidar=False, cameras=1)
    other = replace(other, images={"camera0": make_image(seed=9)})
    alone = detector.detect(frame)[1].probability
    answers = []
    for earlier, hop_ns in ((frame, 500_000_000), (other, 500_000_000), (other, 900_000_000)):
        detector.reset()
        detector.detect(earlier)
        answers.append(detector.detect(moved_on(frame, hop_ns))[1].probability)
    assert (answers[0] != alone).any()
    assert (answers[1] != answers[0]).any()
    assert (answers[2] == alone).all()
    detector.picture_memory = False
    detector.reset()
    detector.detect(frame)
    assert (detector.detect(moved_on(frame, 500_000_000))[1].probability == alone).all()


def test_what_is_remembered_is_what_the_training_computes() -> None:
    detector = FusionDetector.untrained(seed=1, score_threshold=0.0, engine="eager")
    frames = [moved_on(make_frame(lidar=False, cameras=2), hop * 500_000_000) for hop in range(3)]
    pictures = []
    for frame in frames[:2]:
        pictures.append(detector.inputs(frame).images)
        detector.detect(frame)
    earlier = EarlierPictures(torch.stack(pictures), torch.ones(2, 2, dtype=torch.bool))
    found, wanted = detector.inputs(frames[2]).past, detector.network.camera.remember(earlier)
    assert len(found) == len(wanted) == 10
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_a_picture_without_earlier_ones_has_the_state_of_a_start() -> None:
    camera = KestrelFusion().eval().camera
    images = torch.rand(2, 3, 3, 128, 352)
    known = torch.tensor([[False, True, False], [False, True, True]])
    state = camera.remember(EarlierPictures(images, known))
    assert len(state) == 10
    assert all((each[0] == 0).all() for each in state)
    both = camera.remember(EarlierPictures(images[:, 1:2], known[:, 1:2]))
    newest = camera.remember(EarlierPictures(images[1:, 2:], known[1:, 2:]))
    for each, first, second in zip(state, both, newest, strict=True):
        torch.testing.assert_close(each[1:2], first)
        torch.testing.assert_close(each[2:], second)


def test_without_a_hop_every_picture_stands_alone() -> None:
    camera = KestrelFusion(FusionConfig(hop_s=0)).eval().camera
    assert camera.no_past(3) == ()
    assert len(camera(torch.rand(2, 3, 128, 352))) == 2
    assert camera.remember(EarlierPictures(torch.rand(1, 2, 3, 128, 352), torch.ones(1, 2) > 0)) == ()


def seen_at(frame: SensorFrame, x: float, by_ns: int) -> SensorFrame:
    """Return the frame later, and seen by a vehicle whose place is known."""
    pose = np.eye(4)
    pose[0, 3] = x
    return replace(moved_on(frame, by_ns), fixed_from_reference=pose)


def test_the_map_is_that_of_all_frames_that_know_where_the_vehicle_was() -> None:
    detector = FusionDetector.untrained(seed=1, score_threshold=0.0)
    detector.network.map_head.answer.weight.mul_(20)
    before, frame = make_frame(cameras=0), moved_on(make_frame(cameras=0), 500_000_000)
    assert before.cloud is not None
    before = replace(before, cloud=replace(before.cloud, points=-before.cloud.points.clip(max=0)), sweeps=())

    def answer(*frames: SensorFrame) -> Float32Array:
        detector.reset()
        return [detector.detect(each)[1].probability for each in frames][-1]

    alone = answer(frame)
    still, moved = (seen_at(frame, x, 0) for x in (0.0, 4.0))
    first = seen_at(before, 0.0, 0)
    np.testing.assert_allclose(answer(still), alone, atol=1e-3)
    assert np.abs(answer(first, still) - alone).max() > 0.02
    assert np.abs(answer(first, still) - answer(first, moved)).max() > 0.02
    assert (answer(first, frame) == alone).all(), "where nobody knows the place each frame stands alone"
    answer(first)  # and forgotten
    np.testing.assert_allclose(answer(still), alone, atol=1e-3)
    detector.map_memory = False
    assert (answer(first, still) == alone).all()


def test_what_the_training_of_maps_sees_is_what_the_map_is_made_from() -> None:
    one, other = (FusionDetector.untrained(seed=1, score_threshold=0.0) for _ in range(2))
    for step in range(3):
        frame = seen_at(make_frame(), 3.0 * step, 500_000_000 * step)
        evidence, found = one.map_evidence(frame), other.detect(frame)[1].probability
    assert evidence.shape == (2 * len(MAP_LAYERS) + 2, 200, 200)
    # Untrained, the last step changes nothing of what it is told.
    np.testing.assert_allclose(evidence[len(MAP_LAYERS) : -2].sigmoid().numpy(), found, atol=1e-5)


def test_the_score_threshold_drops_boxes() -> None:
    assert len(FusionDetector.untrained(seed=1, score_threshold=0.999).detect(make_frame())[0]) == 0


def test_a_picture_of_another_size_than_calibrated_is_refused(detector: FusionDetector) -> None:
    frame = make_frame(cameras=1)
    calibration = replace(frame.calibrations["camera0"], width=1600, height=900)
    with pytest.raises(InputError, match=r"camera0.*1600x900.*704x256"):
        detector.detect(replace(frame, calibrations={"camera0": calibration}))


def test_non_finite_output_is_a_model_error() -> None:
    broken = FusionDetector.untrained()
    broken.network.map_head.answer.bias.fill_(torch.nan)  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="not finite"):
        broken.detect(make_frame())
    later = moved_on(make_frame(), 500_000_000)
    past = broken.inputs(later).past
    assert len(past) == 10
    assert all((each == 0).all() for each in past), "nothing of it is remembered"


def test_a_broken_map_does_not_come_back_with_the_next() -> None:
    detector = FusionDetector.untrained(engine="eager")
    bias = detector.network.map_head.answer.bias
    assert bias is not None
    detector.detect(seen_at(make_frame(), 0, 0))
    bias.fill_(torch.nan)
    with pytest.raises(ModelError, match="map"):
        detector.detect(seen_at(make_frame(), 1, 100_000_000))
    bias.fill_(0)
    assert np.isfinite(detector.detect(seen_at(make_frame(), 2, 200_000_000))[1].probability).all()


def test_rays_meet_the_ground_where_the_pixel_looks() -> None:
    config = FusionConfig()
    calibration = make_calibration()
    rays, origin = camera_rays(calibration, config)
    row, column = 12, 30
    camera_from_base = np.linalg.inv(calibration.reference_from_camera)
    place = origin + rays[row, column] * 7.0 / distance_scale(calibration, config)
    optical = camera_from_base[:3, :3] @ place + camera_from_base[:3, 3]
    pixel = calibration.camera_matrix @ optical / optical[2]
    assert optical[2] == pytest.approx(7.0, abs=1e-4)
    assert pixel[:2] == pytest.approx([(column + 0.5) * 16 - 0.5, (row + 0.5) * 16 - 0.5], abs=1e-2)


@pytest.mark.parametrize(("width", "height"), [(1600, 900), (1242, 375)])
def test_pictures_of_other_shapes_are_cut_as_in_training(
    detector: FusionDetector, width: int, height: int
) -> None:
    """A rig of the simulator delivers the same cut: its camera at the size of the network."""
    spec = load_rig("nuscenes" if width == 1600 else "kitti").cameras[0]
    whole, cut = spec.calibration((width, height)), spec.calibration((352, 128))
    frame = make_frame(lidar=False, cameras=1)
    random = np.random.default_rng(0)
    coarse = random.integers(0, 255, (height // 25, width // 25, 3), dtype=np.uint8)
    picture = np.repeat(np.repeat(coarse, 26, 0), 26, 1)[:height, :width].copy()
    image = replace(frame.images["camera0"], data=picture)
    inputs = detector.inputs(replace(frame, images={"camera0": image}, calibrations={"camera0": whole}))
    expected, origin = camera_rays(cut, detector.network.config)
    np.testing.assert_allclose(inputs.rays[0].numpy(), expected, atol=2e-3)
    np.testing.assert_allclose(inputs.origins[0].numpy(), origin, atol=1e-6)
    bottom = picture[-1, width // 2] / 255
    np.testing.assert_allclose(inputs.images[0, :, -1, 176].numpy(), bottom, atol=0.02)


def test_rays_follow_lens_distortion() -> None:
    straight = make_calibration()
    bent = replace(straight, distortion_model="plumb_bob", distortion=np.array([-0.3, 0.1, 0.0, 0.0, 0.0]))
    difference = np.abs(camera_rays(bent, FusionConfig())[0] - camera_rays(straight, FusionConfig())[0])
    assert difference[0, 0].max() > 0.01
    assert difference[8, 22].max() < 1e-3


def test_a_new_calibration_is_not_answered_from_the_cache(detector: FusionDetector) -> None:
    frame = make_frame(lidar=False, cameras=1)
    turned = replace(frame, calibrations={"camera0": make_calibration(yaw=0.5)})
    assert (detector.detect(frame)[1].probability != detector.detect(turned)[1].probability).any()


def test_regression_is_the_inverse_of_the_target() -> None:
    from kestrel.train.fusion_loss import regression_target

    boxes = torch.tensor([[3.3, -7.1, 0.8, 4.5, 1.9, 1.6, 2.5, 3.0, -1.0]])
    cell = ((boxes[:, :2] + 51.2) / 0.8).floor().long()
    raw = torch.cat((regression_target(boxes, cell, FusionConfig()), boxes[:, 7:9]), 1)
    torch.testing.assert_close(boxes_from_regression(raw, cell, 0.8, 51.2), boxes, atol=1e-4, rtol=1e-4)


def test_a_yaw_whose_sense_is_uncertain_still_has_its_axis() -> None:
    from kestrel.train.fusion_loss import regression_target

    yaw = torch.linspace(-3.1, 3.1, 25)
    boxes = torch.zeros(25, 9)
    boxes[:, 3:6], boxes[:, 6] = 1.0, yaw
    cell = torch.full((25, 2), 64)
    raw = torch.cat((regression_target(boxes, cell, FusionConfig()), boxes[:, 7:9]), 1)
    raw[:, 6:8] = 0.1 * raw[:, 6:8] + torch.tensor([0.02, -0.02])
    found = boxes_from_regression(raw, cell, 0.8, 51.2)[:, 6]
    torch.testing.assert_close(found, yaw, atol=1e-4, rtol=0)
    raw[:, 6:8] *= -1
    opposite = boxes_from_regression(raw, cell, 0.8, 51.2)[:, 6]
    torch.testing.assert_close(torch.cos(opposite - yaw), torch.full((25,), -1.0), atol=1e-4, rtol=0)


def test_of_boxes_of_a_class_that_are_too_close_the_best_stays() -> None:
    places = torch.tensor([[0.0, 0], [1, 0], [1, 0], [3, 0]])
    car, pedestrian = 0, DETECTION_CLASSES.index("pedestrian")
    label, score = torch.tensor([car, car, pedestrian, car]), torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert without_neighbours(places, label, score).tolist() == [0, 2, 3]
    assert without_neighbours(places[:0], label[:0], score[:0]).tolist() == []


def test_objects_side_by_side_in_neighbouring_cells_are_both_found() -> None:
    """Two bicycles that lean 0.75 m apart: the middle of one is in a cell beside a higher one."""
    from kestrel.train.fusion_loss import regression_target

    bicycle = DETECTION_CLASSES.index("bicycle")
    boxes = torch.tensor(
        [[10.1, 3.3, 0.5, 1.7, 0.6, 1.1, 1.5, 0, 0], [10.1, 4.05, 0.5, 1.7, 0.6, 1.1, 1.5, 0, 0]]
    )
    config = FusionConfig()

    def regression(
        features: torch.Tensor, frame: torch.Tensor, cell: torch.Tensor, label: torch.Tensor
    ) -> torch.Tensor:
        middle = (cell + 0.5) * config.cell_size - config.extent
        nearest = boxes[torch.cdist(middle, boxes[:, :2]).argmin(1)]
        return torch.cat((regression_target(nearest, cell, config), nearest[:, 7:9]), 1)

    heatmap = torch.full((1, config.num_classes, 128, 128), -10.0)
    heatmap[0, bicycle, 75:78, 67:70] = torch.tensor([[0.1, 0.4, 0.0], [0.5, 2.0, 1.5], [0.2, 0.3, 0.1]])
    output = FusionOutput(heatmap, torch.zeros(1, 1, 128, 128), heatmap, None, ())
    stand_in = cast(KestrelFusion, SimpleNamespace(config=config, regression=regression))
    found = first_boxes(output, stand_in, 0.1)
    assert found.label.tolist() == [bicycle, bicycle]
    torch.testing.assert_close(found.values[found.values[:, 1].argsort()], boxes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.score, torch.tensor([2.0, 1.5]).sigmoid())


def test_sweeps_are_stacked_with_their_ages() -> None:
    frame = make_frame(cameras=0)
    assert frame.cloud is not None
    older = replace(frame.cloud, stamp_ns=frame.stamp_ns - 50_000_000, points=2 * frame.cloud.points[:7])
    stacked = stack_sweeps(replace(frame, sweeps=(older, frame.cloud)), 1)
    assert (stacked[:-7, :4] == frame.cloud.points).all()
    assert (stacked[-7:, :4] == older.points).all()
    assert stacked[:, 4] == pytest.approx([0] * len(frame.cloud) + [0.05] * 7)


def test_engines_change_neither_boxes_nor_map(detector: FusionDetector) -> None:
    frame = make_frame()
    with torch.inference_mode():
        inputs = detector.inputs(frame)
        wanted, found = detector.network(inputs), detector.engine(inputs)
        torch.testing.assert_close(found.heatmap, wanted.heatmap, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.map_logits, wanted.map_logits, rtol=1e-3, atol=1e-3)
    plain = FusionDetector.untrained(seed=1, score_threshold=0.0, engine="eager").detect(frame)
    boxes, layers = detector.detect(frame)
    assert np.abs(layers.probability - plain[1].probability).max() < 1e-3
    count = min(len(boxes), 50)
    np.testing.assert_allclose(boxes.score[:count], plain[0].score[:count], atol=1e-4)


def test_a_camera_that_drops_out_needs_no_new_engine(detector: FusionDetector) -> None:
    detector.detect(make_frame(cameras=2))
    engine = detector.engine._camera
    alone = detector.detect(make_frame(cameras=1))[1].probability
    assert detector.engine._camera is engine
    plain = FusionDetector.untrained(seed=1, score_threshold=0.0, engine="eager")
    assert np.abs(plain.detect(make_frame(cameras=1))[1].probability - alone).max() < 1e-3


def test_cameras_of_one_frame_are_not_answered_from_the_index_of_two() -> None:
    detector = FusionDetector.untrained(seed=1, engine="eager")
    with torch.inference_mode():
        together = detector.inputs(make_frame(lidar=False, cameras=2))
        apart = replace(
            together, image_batch=torch.tensor([0, 1]), has_lidar=torch.zeros(2, dtype=torch.bool)
        )
        detector.engine(together)
        found, wanted = detector.engine(apart), detector.network(apart)
    torch.testing.assert_close(found.map_logits, wanted.map_logits, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("focal_px", [None, [175.0, 280.0]])
def test_weights_of_before_all_cameras_had_one_lens_are_refused(tmp_path: Path, focal_px: object) -> None:
    state, manifest = load("kestrel-fusion")
    config = {name: value for name, value in manifest.config.items() if name != "focal_px"}
    older = config if focal_px is None else config | {"focal_px": focal_px}
    save(tmp_path / "old.safetensors", state, replace(manifest, config=older))
    with pytest.raises(ModelError, match=r"focal_px of .*old.safetensors: expected the one of all cameras"):
        FusionDetector(tmp_path / "old.safetensors")

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a score says is lost without sensors, by detectors of which it is known what they lose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from kestrel.classes import ATTRIBUTES, DETECTION_CLASSES, MAP_LAYERS
from kestrel.cli import build_app
from kestrel.errors import ConfigError, InputError
from kestrel.sim.rig import load_rig
from kestrel.train import cache, score, score_memory
from kestrel.train.fusion_score import Answers, Drive, score_fusion, score_rounded, score_without_sensors
from kestrel.train.sensor_cases import CAMERAS, LIDAR, RING, Without, camera_names, sensor_frame
from kestrel.types import BevMap, Boxes3D, SensorFrame
from kestrel.weights import Manifest, read_manifest, save
from tests.train.conftest import make_cached_frame

SECTORS = np.radians([0, 55, 110, 180, 250, 305])
"""Where the cameras of RING look; a car stands 12 m before each."""


def ring_frame(order: list[str]) -> cache.CachedFrame:
    """Return a frame of the nuScenes rig whose cameras come in this order, with a car before each."""
    rig = {camera.name: camera for camera in load_rig("nuscenes").cameras}
    boxes = np.zeros((6, 9), np.float32)
    boxes[:, 0], boxes[:, 1] = 12 * np.cos(SECTORS), 12 * np.sin(SECTORS)
    boxes[:, 3:6] = (4.5, 1.9, 1.6)
    return replace(
        make_cached_frame(cameras=6),
        boxes=boxes,
        box_label=np.zeros(6, np.int64),
        box_points=np.full(6, 9),
        box_attribute=np.full(6, ATTRIBUTES.index("vehicle.parked")),
        base_from_camera=np.stack([rig[name].base_from_camera for name in order]),
    )


def write_drive(folder: Path, frames: list[cache.CachedFrame], rig: str, weather: str) -> Path:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        cache.write(folder / f"frame_{number:04d}.npz", frame)
    cache.finish(folder, {"rig": rig, "weather": weather, "frame_hz": 2.0, "format": cache.FORMAT})
    return folder.parent


@pytest.fixture
def drives(tmp_path: Path) -> Path:
    """A drive with six cameras, whose order changes from frame to frame, and one with two."""
    orders = [list(RING), list(reversed(RING))]
    write_drive(tmp_path / "test" / "six", [ring_frame(order) for order in orders], "nuscenes", "rain")
    return write_drive(tmp_path / "test" / "two", [make_cached_frame()], "kitti", "day")


class SectorDetector:
    """Finds the car before each camera that is in the frame; without LiDAR nothing; the map is empty."""

    def __init__(self) -> None:
        self.seen: list[tuple[frozenset[str], bool]] = []
        self.stamps_ms: list[int] = []

    def __call__(self, frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
        self.seen.append((frozenset(frame.images), frame.cloud is not None))
        self.stamps_ms.append(frame.stamp_ns // 1_000_000)
        assert {image.stamp_ns for image in frame.images.values()} <= {frame.stamp_ns}
        found = [place for place, name in enumerate(RING) if name in frame.images and frame.cloud is not None]
        count = len(found)
        center = np.stack((12 * np.cos(SECTORS[found]), 12 * np.sin(SECTORS[found]), np.zeros(count)), 1)
        boxes = Boxes3D(
            center=center.astype(np.float32),
            size=np.tile(np.array([4.5, 1.9, 1.6], np.float32), (count, 1)),
            yaw=np.zeros(count, np.float32),
            velocity=np.zeros((count, 2), np.float32),
            label=np.zeros(count, np.int64),
            score=np.ones(count, np.float32),
            class_names=DETECTION_CLASSES,
            frame_id="base_link",
            stamp_ns=frame.stamp_ns,
        )
        empty = np.zeros((len(MAP_LAYERS), 200, 200), np.float32)
        return boxes, BevMap(empty, MAP_LAYERS, (-50.0, -50.0), 0.5, "base_link", frame.stamp_ns)


def test_cameras_are_known_by_where_they_look_in_whatever_order_they_come() -> None:
    order = ["back", "front_right", "front", "back_left", "front_left", "back_right"]
    cached = ring_frame(order)
    assert camera_names(cached) == tuple(order)
    frame = sensor_frame(cached, 0)
    assert list(frame.images) == list(RING)
    for number, name in enumerate(order):
        np.testing.assert_array_equal(frame.images[name].data, cached.picture(number))
        np.testing.assert_array_equal(
            frame.calibrations[name].reference_from_camera, cached.base_from_camera[number]
        )


@pytest.mark.parametrize("turned_deg", [-20, -0.2, 0, 0.2, 20])
def test_the_camera_that_looks_ahead_the_most_is_the_first(turned_deg: float) -> None:
    cached = ring_frame(list(RING))
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", turned_deg, degrees=True).as_matrix()
    assert camera_names(replace(cached, base_from_camera=turn @ cached.base_from_camera)) == RING


def test_cameras_of_drawn_rigs_are_named_by_where_they_look() -> None:
    rigs = [load_rig(f"drawn:{seed}") for seed in range(60)]
    six = [rig for rig in rigs if len(rig.cameras) == len(RING)]
    # They are drawn front first, then the next one to the left, to the right, and so on.
    order = ("front", "front_left", "front_right", "back_left", "back_right", "back")
    for rig in six:
        poses = np.stack([camera.base_from_camera for camera in rig.cameras])
        assert camera_names(replace(make_cached_frame(cameras=6), base_from_camera=poses)) == order
    assert len(six) > 3


def test_a_camera_is_where_it_was_when_it_took_its_picture() -> None:
    cached = ring_frame(list(RING))
    ahead = np.eye(4)
    ahead[0, 3] = 0.4  # what the vehicle drove on until then
    moved = sensor_frame(replace(cached, base_from_picture=np.tile(ahead, (6, 1, 1))), 0)
    still = sensor_frame(cached, 0).calibrations
    assert list(still) == list(RING)
    for name, calibration in still.items():
        shift = moved.calibrations[name].reference_from_camera - calibration.reference_from_camera
        np.testing.assert_allclose(shift, ahead - np.eye(4), atol=1e-12)


def test_a_frame_lacks_the_sensors_that_are_left_out_and_no_other() -> None:
    cached = ring_frame(list(RING))
    assert set(sensor_frame(cached, 0, Without.of("back")).images) == set(RING) - {"back"}
    blind = sensor_frame(cached, 2, Without.of(CAMERAS))
    assert blind.modality == "lidar"
    assert len(blind.sweeps) == 2
    assert sensor_frame(cached, 2, Without.of(LIDAR)).modality == "camera"


def test_what_each_failure_costs_is_what_the_lost_sensors_saw(drives: Path) -> None:
    values = score_without_sensors(Answers(SectorDetector(), sweeps=0), drives)
    share = {"1 of 6 cameras": 5 / 6, "3 of 6 cameras": 1 / 2}
    share |= dict.fromkeys(("all cameras", "LiDAR", "LiDAR, later"), 0)
    assert values["sensors_out/none/mAP"] == pytest.approx(1)
    for case, left in share.items():
        # AP ends at the recall that is reached; recalls of up to a tenth do not count.
        expected = (np.floor(100 * left) - 10) / 90 if left else 0
        assert values[f"sensors_out/{case}/mAP"] == pytest.approx(expected, abs=0.01), case
        lost = 100 * (1 - values[f"sensors_out/{case}/mAP"])
        assert values[f"sensors_out/{case}/mAP_lost"] == pytest.approx(lost), case


def test_what_fails_later_is_there_before_and_only_frames_after_it_are_scored(drives: Path) -> None:
    detector = SectorDetector()
    answers = Answers(detector, sweeps=0)
    (six,) = (drive for drive in Drive.below(drives) if drive.has_ring())
    (frame,) = answers.to([six], Without.of(LIDAR, later=True))
    assert [lidar for _, lidar in detector.seen] == [True, False]
    assert len(frame.found) == 0
    (frame,) = answers.to([six], Without(later=True))
    assert [lidar for _, lidar in detector.seen[2:]] == [True, True]
    assert len(frame.found) == 6


def test_every_camera_fails_in_turn_and_the_worst_is_named(drives: Path) -> None:
    detector = SectorDetector()

    def nothing_without_back(frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
        boxes, layers = detector(frame)
        return (
            (boxes, layers)
            if "back" in frame.images
            else detector(replace(frame, images={}, calibrations={}))
        )

    values = score_without_sensors(Answers(nothing_without_back, sweeps=0), drives)
    assert values["sensors_out/1 of 6 cameras/back/mAP"] == 0
    assert values["sensors_out/1 of 6 cameras/front/mAP"] > 0.8
    assert values["sensors_out/1 of 6 cameras/mAP_lost_most"] == pytest.approx(100)
    everything = frozenset(RING)
    singles = {everything - {name} for name in RING}
    halves = {frozenset(RING[2:5]), frozenset((*RING[:2], RING[5]))}
    assert {cameras for cameras, lidar in detector.seen if lidar} == singles | halves | {
        everything,
        frozenset(),
    }
    assert (everything, False) in detector.seen


def test_frames_come_in_the_order_of_a_drive_and_time_starts_anew_with_each(drives: Path) -> None:
    detector = SectorDetector()
    score_fusion(Answers(detector, sweeps=0), drives, ("camera+lidar", "lidar"))
    assert detector.stamps_ms == [1000, 1500, 1000] * 2


def test_drives_without_six_cameras_say_nothing_of_a_lost_one(tmp_path: Path) -> None:
    folder = write_drive(tmp_path / "test" / "two", [make_cached_frame()], "kitti", "day")
    with pytest.raises(InputError, match="six cameras"):
        score_without_sensors(Answers(SectorDetector(), sweeps=0), folder)


def test_scores_are_told_by_weather_and_rig_and_each_answer_is_asked_for_once(drives: Path) -> None:
    detector = SectorDetector()
    values = score_fusion(Answers(detector, sweeps=0), drives, ("camera+lidar",))
    assert values["camera+lidar/weather/rain/mAP"] == values["camera+lidar/rig/nuscenes/mAP"]
    assert values["camera+lidar/weather/rain/mAP"] == pytest.approx(1)
    assert values["camera+lidar/weather/day/mAP"] == 0  # of the two cameras none is known to the detector
    assert 0 < values["camera+lidar/mAP"] < 1
    assert len(detector.seen) == 3


def test_the_command_prints_figures_and_the_manifest_keeps_them(
    drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.safetensors"
    save(path, {}, Manifest("small", "KestrelFusion", {}, ()))

    class Detector:
        sweeps = 0

        def __init__(self, weights: str, score_threshold: float, **how: object) -> None:
            assert weights == str(path)
            self.detect = SectorDetector()
            made.append(how)

    made: list[dict[str, object]] = []
    monkeypatch.setattr(score, "FusionDetector", Detector)
    monkeypatch.setattr(score, "int8_is_fast", lambda: True)
    monkeypatch.setattr(score_memory, "why_not_split", lambda *_: None)
    arguments = ["train", "score", "--weights", str(path), "--data", str(drives.parent), "--split", "test"]
    result = CliRunner().invoke(build_app(), [*arguments, "--sensors-out", "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["figures"]
    kept = read_manifest(path).metrics
    assert kept == {name: figure["value"] for name, figure in figures.items()}
    assert figures["test/sensors_out/LiDAR/mAP_lost"]["unit"] == "points"
    assert figures["test/camera+lidar/range/10-20 m/mAP"]["unit"] == "AP"
    assert {"test/lidar/ap/car", "test/camera+lidar/weather/rain/NDS"} <= kept.keys()
    exact = {"precision": "float32"}
    without = [{**exact, "map_memory": False}, {**exact, "picture_memory": False}]
    assert made == [exact, *without, {"precision": "int8"}]
    assert kept["test/camera/without picture memory/mAVE"] == kept["test/camera/mAVE"]
    assert figures["test/without map memory/map_miou"]["unit"] == "IoU"
    assert kept["test/int8/mAP"] == kept["test/camera+lidar/mAP"]


def test_what_cannot_lose_sensors_is_refused(drives: Path) -> None:
    with pytest.raises(ConfigError, match="sensors out"):
        score.score(score.BASELINE, drives, "test", sensors_out=True)


def test_what_rougher_arithmetic_costs_is_said_in_points(drives: Path) -> None:
    exact, detector = SectorDetector(), SectorDetector()

    def rough(frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
        seen = {name: image for name, image in frame.images.items() if name != "back"}
        calibrations = {name: frame.calibrations[name] for name in seen}
        return detector(replace(frame, images=seen, calibrations=calibrations))

    answers = Answers(exact, sweeps=0), Answers(rough, sweeps=0)
    values = score_rounded(*answers, "bfloat16", drives, 1)
    assert values["bfloat16/frames"] == len(exact.seen) == 2  # of the first drive alone
    assert values["float32/mAP"] == pytest.approx(1)
    assert values["bfloat16/mAP_lost"] == pytest.approx(100 * (1 - values["bfloat16/mAP"]))
    assert 10 < values["bfloat16/mAP_lost"] < 30


def test_precision_is_scored_with_what_was_asked_for(
    drives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "small.safetensors"
    save(path, {}, Manifest("small", "KestrelFusion", {}, ()))
    made = []

    class Detector:
        sweeps = 0

        def __init__(self, weights: Path, score_threshold: float, **how: object) -> None:
            made.append(how)
            self.detect = SectorDetector()

    monkeypatch.setattr(score, "FusionDetector", Detector)
    values = score.score_precision(path, drives, "test", 1)
    exact = {"engine": "eager", "precision": "float32"}
    assert made == [exact, {"precision": "bfloat16"}]
    assert values["test/bfloat16/mAP_lost"] == 0
    assert values["test/bfloat16/drives"] == 1
    made.clear()
    int8 = score.score_int8(path, tmp_path, drives, "test")
    models = {"engine": "int8", "int8": tmp_path, "precision": "float32"}
    assert made == [exact, models]
    assert int8["test/int8/mAP_lost"] == 0
    assert int8["test/int8/frames"] > values["test/bfloat16/frames"]  # of all drives


def test_drives_without_key_frames_are_left_out_and_nothing_else_is_refused(drives: Path) -> None:
    write_drive(drives / "video", [], "nuscenes", "fog")
    found = score_fusion(Answers(SectorDetector(), sweeps=0), drives, ("camera+lidar",))
    assert "camera+lidar/mAP" in found
    assert not [name for name in found if "fog" in name]
    score_without_sensors(Answers(SectorDetector(), sweeps=0), drives)
    videos = write_drive(drives.parent / "train_video" / "video", [], "nuscenes", "fog")
    with pytest.raises(InputError, match="train_video: expected drives with key frames, found 1 without"):
        score_fusion(Answers(SectorDetector(), sweeps=0), videos, ("camera+lidar",))

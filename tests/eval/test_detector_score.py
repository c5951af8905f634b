# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Weights scored on recordings without ROS, and the command that does it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.cli import build_app
from kestrel.data.bag import BagReader, BagWriter
from kestrel.errors import ConfigError, InputError
from kestrel.eval.detector_score import DetectorScore
from kestrel.eval.recording import read_recording
from kestrel.pipelines import load_detector
from kestrel.types import BevMap, Boxes3D, SensorFrame
from tests.data.nuscenes_data_set import (
    START_US,
    VERSION,
    DataSet,
    ego,
)
from tests.data.nuscenes_map_file import PLACE, MapFile, square
from tests.eval.made_recording import boxes
from tests.eval.made_recording import write as write_drive
from tests.eval.stand import Stand, add_cycle_at_a_rack, imported, knowing, values
from tests.pipelines.test_bevfusion import detector as untrained
from tests.pipelines.test_bevfusion import write_weights
from tests.train.recordings import Drive


def test_who_answers_the_truth_has_all_points_and_a_frame_without_sensors_is_missed(bag: Path) -> None:
    score = DetectorScore(knowing(bag))
    score.add(bag)
    found = values(score)
    assert found["detection/frames"] == 3
    assert found["detection/mAP"] == pytest.approx(1)
    assert found["detection/of ten classes/mAP"] == pytest.approx(0.3)
    assert found["detection/translation_error"] == pytest.approx(0, abs=1e-6)
    assert found["detection/attribute_error"] == pytest.approx(0.5), "the pedestrian's is not known"
    assert found["detection/NDS"] == pytest.approx(0.95)

    shorter = bag.with_name("shorter.mcap")
    with BagWriter(shorter) as writer:
        for message in BagReader(bag).messages():
            if not (message.topic == "/lidar/points" and message.log_time_ns > START_US * 1000):
                writer.write_raw(message.topic, message.msgtype, message.log_time_ns, message.raw)
    lidar = DetectorScore(knowing(bag), ["lidar"])
    lidar.add(shorter)
    assert values(lidar)["detection/frames"] == 3
    assert values(lidar)["detection/mAP"] < 0.5


def test_cycles_at_racks_count_neither_way(data_set: DataSet, tmp_path: Path) -> None:
    add_cycle_at_a_rack(data_set)
    bag = imported(data_set, tmp_path / "bag")
    truth = read_recording(bag).truth.objects
    assert all("bicycle" in [DETECTION_CLASSES[label] for label in boxes.label] for boxes in truth.values())
    blind = Stand(lambda stamp: truth[stamp].chosen(truth[stamp].label != DETECTION_CLASSES.index("bicycle")))
    for detector in (blind, knowing(bag)):
        score = DetectorScore(detector)
        score.add(bag)
        assert values(score)["detection/mAP"] == pytest.approx(1)
        assert "detection/bicycle/AP" not in values(score)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(build_app(), ["eval", *map(str, arguments)])


@pytest.mark.parametrize(("sensors", "used"), [("camera+lidar", "cl"), ("lidar", "l"), ("camera", "c")])
def test_command_scores_a_converted_detector(bag: Path, tmp_path: Path, sensors: str, used: str) -> None:
    write_weights(tmp_path / "det.safetensors", "det", sensors)
    results = tmp_path / "results.json"
    result = run(bag, "--weights", tmp_path / "det.safetensors", "--results", results, "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["figures"]
    assert figures["detection/frames"]["value"] == 3
    assert {
        "detection/mAP",
        "detection/NDS",
        "detection/car/AP",
        "detection/velocity_error",
    } <= figures.keys()
    content = json.loads(results.read_text())
    assert (content["meta"]["use_camera"], content["meta"]["use_lidar"]) == ("c" in used, "l" in used)
    assert all(content["results"].values()), "of untrained weights every box counts, however unsure"


def test_command_scores_what_a_network_answers_without_one_of_its_sensors(
    data_set: DataSet, tmp_path: Path
) -> None:
    near = np.random.default_rng(0).uniform((-6, -6, -3, 0, 0), (6, 6, 1, 255, 31), (400, 5))
    for path in data_set.root.rglob("*.pcd.bin"):
        near.astype(np.float32).tofile(path)
    bag = imported(data_set, tmp_path / "bag")
    write_weights(tmp_path / "det.safetensors", "det", "camera+lidar")
    answers = []
    for sensors in ("all", "camera"):
        results = tmp_path / f"{sensors}.json"
        options = ("--weights", tmp_path / "det.safetensors", "--sensors", sensors, "--results", results)
        assert run(bag, *options).exit_code == 0
        answers.append(json.loads(results.read_text()))
    assert answers[1]["meta"]["use_lidar"] is False
    assert answers[0]["results"] != answers[1]["results"]


def test_command_scores_kestrel_fusion(bag: Path) -> None:
    result = run(bag, "--weights", "kestrel-fusion", "--sensors", "lidar", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["figures"]["detection/frames"]["value"] == 3


def test_command_scores_a_converted_segmentation_at_the_best_threshold(tmp_path: Path) -> None:
    drive = write_drive(tmp_path / "drive.mcap", sweeps=2)
    write_weights(tmp_path / "seg.safetensors", "seg", "lidar")
    result = run(drive, "--weights", tmp_path / "seg.safetensors", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["figures"]
    assert figures["map/frames"]["value"] == 2
    assert not [name for name in figures if name.startswith("detection")]
    detector = load_detector(tmp_path / "seg.safetensors", 0.0, precision="float32")
    stand = DetectorScore(detector)
    stand.add(drive)
    expected = values(stand)
    assert figures["map/mIoU_best"]["value"] == pytest.approx(expected["map/mIoU_best"])
    assert figures["map/drivable_area/best"]["value"] >= figures["map/drivable_area"]["value"]


def test_command_scores_a_converted_segmentation_on_nuscenes_with_its_map_expansion(
    data_set: DataSet, tmp_path: Path
) -> None:
    made, place = MapFile(), ego(0.5)
    made.area("drivable_area", square(place[0], place[1], 40))
    made.write(data_set.root)
    (data_set.root / VERSION / "log.json").write_text(json.dumps([{"token": "log", "location": PLACE}]))
    bag = imported(data_set, tmp_path / "bag")
    write_weights(tmp_path / "seg.safetensors", "seg", "camera+lidar")
    result = run(bag, "--weights", tmp_path / "seg.safetensors", "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["figures"]
    assert figures["map/frames"]["value"] == 3
    assert 0 <= figures["map/mIoU_best"]["value"] == figures["map/drivable_area/best"]["value"]
    assert "map/walkway" not in figures, "of which the map has none"


def test_released_segmentation_is_scored_on_the_cells_on_which_it_answers(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, place = MapFile(), ego(0.5)
    made.area("walkway", square(place[0] + 10, place[1] + 5, 7))
    made.write(data_set.root)
    (data_set.root / VERSION / "log.json").write_text(json.dumps([{"token": "log", "location": PLACE}]))
    bag = imported(data_set, tmp_path / "bag")
    truth = read_recording(bag).truth
    network = untrained("seg", "lidar")
    found = []
    for maps in (truth.lidar_maps, truth.maps):
        answers = {stamp: (boxes(stamp, []), bev) for stamp, bev in maps.items()}
        monkeypatch.setattr(network, "detect", lambda frame, answers=answers: answers[frame.stamp_ns])
        score = DetectorScore(network)
        score.add(bag)
        found.append(values(score)["map/walkway"])
    assert found[0] == pytest.approx(1, abs=1e-6)
    assert found[1] < 0.995, "the cells about base_link are others"


def test_segmentation_without_a_true_map_is_refused(bag: Path, tmp_path: Path) -> None:
    write_weights(tmp_path / "seg.safetensors", "seg", "lidar")
    with pytest.raises(
        InputError, match=r"truth in .*: expected /truth/map/\.\.\. of all layers, found none"
    ):
        DetectorScore(load_detector(tmp_path / "seg.safetensors")).add(bag)
    result = run(bag, "--weights", tmp_path / "seg.safetensors", "--results", tmp_path / "r.json")
    assert isinstance(result.exception, ConfigError)
    assert "answer with boxes" in str(result.exception)


def test_sensors_that_a_network_has_not_are_refused(bag: Path, tmp_path: Path) -> None:
    write_weights(tmp_path / "det.safetensors", "det", "lidar")
    detector = load_detector(tmp_path / "det.safetensors")
    with pytest.raises(InputError, match=r"sensors of the network: expected \['camera'\], found \['lidar'\]"):
        DetectorScore(detector, ["camera"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--results", "r.json"], "--results: expected --weights beside it"),
        (["--sensors", "lidar"], "--sensors: expected --weights beside it"),
        (["--device", "cuda"], "--device: expected --weights beside it"),
        (["--weights", "kestrel-fusion", "--baseline"], "--baseline: expected one without --weights"),
        (["--weights", "kestrel-seg"], "expected a BEVFusion or KestrelFusion, found KestrelSeg"),
        (["other.mcap"], "recordings: expected one, or --weights to score, found 2"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, options: list[str], text: str) -> None:
    result = run(write_drive(tmp_path / "drive.mcap"), *options)
    assert isinstance(result.exception, ConfigError)
    assert text in str(result.exception)


@pytest.fixture
def unanswered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No recording is answered."""

    def answered(*_: Any) -> None:
        raise AssertionError("answered a recording")

    monkeypatch.setattr(DetectorScore, "add", answered)


@pytest.mark.usefixtures("unanswered")
def test_a_place_that_no_results_can_be_written_to_is_found_before_the_first_frame(
    bag: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for results in (tmp_path, tmp_path / "file" / "r.json"):
        result = run(bag, "--weights", "kestrel-fusion", "--results", results)
        assert isinstance(result.exception, InputError)
        assert "--results: expected a file that can be written, found" in str(result.exception)
    assert not [*tmp_path.glob("*.part")]


@pytest.mark.usefixtures("unanswered")
def test_a_recording_that_is_not_there_or_damaged_is_found_before_the_first_is_answered(
    bag: Path, tmp_path: Path
) -> None:
    whole = write_drive(tmp_path / "whole.mcap")
    (tmp_path / "damaged.mcap").write_bytes(whole.read_bytes()[:-200])
    for name in ("none.mcap", "damaged.mcap"):
        result = run(bag, whole, tmp_path / name, "--weights", "kestrel-fusion")
        assert isinstance(result.exception, InputError)
        assert name in str(result.exception)


def test_the_score_is_printed_even_if_the_results_cannot_be_written_in_the_end(
    bag: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise InputError("no space left")

    monkeypatch.setattr(DetectorScore, "write_results", full)
    options = (
        "--weights",
        "kestrel-fusion",
        "--sensors",
        "lidar",
        "--results",
        tmp_path / "r.json",
        "--json",
    )
    result = run(bag, *options)
    assert isinstance(result.exception, InputError)
    assert json.loads(result.stdout)["figures"]["detection/frames"]["value"] == 3


def test_layers_of_the_map_are_all_scored(tmp_path: Path) -> None:
    drive = write_drive(tmp_path / "drive.mcap", sweeps=2)
    truth = read_recording(drive).truth.maps

    class Mapper(Stand):
        classes, layers = (), MAP_LAYERS

        def detect(self, frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
            return super().detect(frame)[0], truth[frame.stamp_ns]

    any_boxes = next(iter(read_recording(drive).truth.objects.values()))
    score = DetectorScore(Mapper(lambda stamp: any_boxes))
    score.add(drive)
    found = values(score)
    assert found["map/mIoU"] == found["map/mIoU_best"] == pytest.approx(1, abs=1e-6)
    assert "detection/mAP" not in found


def test_what_did_not_take_part_in_all_moments_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = frozenset(("front", number) for number in range(4, 12))
    cameras = {"front": 0, "back": 0, "side": 0}
    drive = Drive(cameras=cameras, lost=lost, without=("/camera/side/camera_info",))
    bag = drive.write(tmp_path / "drive.bag")
    score = DetectorScore(knowing(bag))
    score.add(bag)
    assert f"{bag}: left out, without /camera/NAME/camera_info: side\n" in capsys.readouterr().err
    # In the fifth sweep the picture of the fourth counts, 0.1 s before.
    told = "sensors that took part in fewer than all 12 moments: front in 5, side in 0"
    assert score.missing_sensors() == told

    lidar = DetectorScore(knowing(bag), ["lidar"])
    lidar.add(bag)
    assert capsys.readouterr().err.strip() == ""
    assert lidar.missing_sensors() is None

    score.add(Drive().write(tmp_path / "alone.bag"))
    told = score.missing_sensors()
    assert told is not None
    assert told.startswith("sensors that took part in fewer than all 24 moments: ")
    assert {*told.split(": ")[1].split(", ")} == {"front in 5", "side in 0", "back in 12", "cameras in 0"}


def test_the_command_says_after_the_score_which_sensors_were_missing(tmp_path: Path) -> None:
    bag = Drive(cameras={"front": 0}, without=("/camera/front/camera_info",)).write(tmp_path / "drive.bag")
    write_weights(tmp_path / "det.safetensors", "det", "camera+lidar")
    result = run(bag, "--weights", tmp_path / "det.safetensors", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["figures"]["detection/frames"]["value"] == 12
    assert result.stderr.count("without /camera/NAME/camera_info: front") == 1
    assert result.stderr.rstrip().endswith("took part in fewer than all 12 moments: front in 0")

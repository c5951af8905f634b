# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Result files for nuscenes-devkit: what is in them, and what the devkit says of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kestrel.bench.detection_metric import find_devkit
from kestrel.data.bag import BagReader, BagWriter
from kestrel.errors import CalibrationError, InputError
from kestrel.eval.detector_score import DetectorScore
from kestrel.eval.recording import read_recording
from kestrel.types import Boxes3D
from tests.data.nuscenes_data_set import (
    DataSet,
    car,
)
from tests.eval.stand import Stand, add_cycle_at_a_rack, imported, knowing, values


def results_of(detector: Any, bags: Sequence[Path], path: Path) -> dict[str, Any]:
    score = DetectorScore(detector, results=True)
    for bag in bags:
        score.add(bag)
    score.write_results(path)
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def test_result_file_of_the_truth_is_what_the_data_set_annotates(
    bag: Path, data_set: DataSet, tmp_path: Path
) -> None:
    content = results_of(knowing(bag), [bag], tmp_path / "results.json")
    assert content["meta"] == {
        "use_camera": True,
        "use_lidar": True,
        "use_radar": False,
        "use_map": False,
        "use_external": False,
    }
    assert sorted(content["results"]) == ["a0", "a1", "a2"]
    names = {"car": "car", "walker": "pedestrian", "fence": "barrier"}
    for token, found in content["results"].items():
        annotated = [
            row
            for row in data_set.tables["sample_annotation"]
            if row["sample_token"] == token and row["instance_token"] in names
        ]
        assert len(found) == len(annotated)
        by_name = {entry["detection_name"]: entry for entry in found}
        for row in annotated:
            entry = by_name[names[row["instance_token"]]]
            assert entry["sample_token"] == token
            np.testing.assert_allclose(entry["translation"], row["translation"], atol=1e-4)
            np.testing.assert_allclose(entry["size"], row["size"], rtol=1e-6)
            assert abs(np.dot(entry["rotation"], row["rotation"])) == pytest.approx(1, abs=1e-6)
    moving = next(each for each in content["results"]["a1"] if each["detection_name"] == "car")
    (x0, y0), (x2, y2) = car(0), car(1)
    np.testing.assert_allclose(moving["velocity"], [x2 - x0, y2 - y0], atol=1e-4)
    assert moving["attribute_name"] == "vehicle.moving"
    fence = next(each for each in content["results"]["a1"] if each["detection_name"] == "barrier")
    assert fence["attribute_name"] == ""


def test_samples_in_which_nothing_was_found_are_in_the_result_file(bag: Path, tmp_path: Path) -> None:
    truth = next(iter(read_recording(bag).truth.objects.values()))
    nothing = Stand(lambda stamp: replace(truth.chosen(np.zeros(len(truth), bool)), stamp_ns=stamp))
    content = results_of(nothing, [bag], tmp_path / "results.json")
    assert content["results"] == {"a0": [], "a1": [], "a2": []}


def test_devkit_scores_the_result_file_as_kestrel_scores_the_recording(
    data_set: DataSet, tmp_path: Path
) -> None:
    """From the tables of the data set on, with all that the benchmark leaves out."""
    python = find_devkit()
    if python is None:
        pytest.skip("no nuscenes-devkit: `make devkit`")
    add_cycle_at_a_rack(data_set)
    data_set.row("sample_annotation", "car2")["num_lidar_pts"] = 0
    data_set.row("sample_annotation", "walker2").update(num_lidar_pts=0, num_radar_pts=1)
    data_set.write("sample_annotation")
    bag = imported(data_set, tmp_path / "bag")
    truth, random = read_recording(bag).truth.objects, np.random.default_rng(0)

    def nearly(stamp: int) -> Boxes3D:
        real = truth[stamp]
        return replace(
            real,
            center=real.center + random.normal(0, 0.5, real.center.shape).astype(np.float32),
            size=real.size * np.float32(1.2),
            yaw=real.yaw + np.float32(0.3),
            velocity=np.nan_to_num(real.velocity) + np.float32(0.4),
            score=random.uniform(0.1, 1, len(real)).astype(np.float32),
            attribute=None,
        )

    score = DetectorScore(Stand(nearly), results=True)
    score.add(bag)
    score.write_results(tmp_path / "results.json")
    worker = Path(__file__).with_name("devkit_scene.py")
    command = [python, worker, data_set.root, tmp_path / "results.json"]
    run = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    theirs, ours = json.loads(run.stdout.splitlines()[-1]), values(score)
    assert ours["detection/of ten classes/mAP"] == pytest.approx(theirs["mean_ap"], abs=1e-6)
    assert ours["detection/of ten classes/NDS"] == pytest.approx(theirs["nd_score"], abs=1e-6)
    assert 0 < theirs["mean_ap"] < 0.3
    for name in ("car", "pedestrian", "barrier"):
        assert ours[f"detection/{name}/AP"] == pytest.approx(theirs["mean_dist_aps"][name], abs=1e-6)
    errors = [theirs["label_tp_errors"][name]["trans_err"] for name in ("car", "pedestrian", "barrier")]
    assert ours["detection/translation_error"] == pytest.approx(np.mean(errors), abs=1e-6)


def test_several_scenes_are_scored_as_one_and_have_one_result_file(
    bag: Path, data_set: DataSet, tmp_path: Path
) -> None:
    data_set.tables["sample_annotation"].append(
        {
            **data_set.row("sample_annotation", "car0"),
            "token": "x",
            "sample_token": "b0",
            "prev": "",
            "next": "",
        }
    )
    data_set.write("sample_annotation")
    other = imported(data_set, tmp_path / "other", "scene-0103")
    truths = {**read_recording(bag).truth.objects, **read_recording(other).truth.objects}
    detector = Stand(lambda stamp: truths[stamp])
    content = results_of(detector, [bag, other], tmp_path / "results.json")
    assert sorted(content["results"]) == ["a0", "a1", "a2", "b0"]
    with pytest.raises(InputError, match="expected no sample of another recording, found a0"):
        results_of(detector, [bag, bag], tmp_path / "results.json")


def test_result_file_of_a_recording_that_does_not_know_its_samples_is_refused(
    bag: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain.mcap"
    with BagWriter(plain) as writer:
        for message in BagReader(bag).messages():
            if message.topic != "/truth/samples":
                writer.write_raw(message.topic, message.msgtype, message.log_time_ns, message.raw)
    with pytest.raises(
        InputError, match=r"samples of nuScenes .*plain.mcap: expected those that `kestrel import"
    ):
        results_of(knowing(bag), [plain], tmp_path / "results.json")
    score = DetectorScore(knowing(bag))
    score.add(plain)
    assert values(score)["detection/mAP"] == pytest.approx(1), "scores need no samples"
    assert "detection/NDS" not in values(score), "of attributes nothing is known"


def test_without_the_place_of_odom_on_the_map_there_is_no_result_file(bag: Path, tmp_path: Path) -> None:
    lost = tmp_path / "lost.mcap"
    with BagWriter(lost) as writer:
        for message in BagReader(bag).messages():
            decoded = message.decode()
            if message.topic == "/tf_static":
                decoded.transforms = decoded.transforms[1:]
            writer.write(message.topic, decoded, message.log_time_ns)
    with pytest.raises(CalibrationError, match="transform map <- base_link: expected frame 'map' on /tf"):
        results_of(knowing(bag), [lost], tmp_path / "results.json")

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Classes of points on SemanticKITTI and nuScenes lidarseg score as these benchmarks count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from kestrel.classes import IGNORE, POINT_CLASSES, SEMANTIC_KITTI_CLASSES
from kestrel.cli import build_app
from kestrel.data.labelled_scan import LabelledScan
from kestrel.errors import ConfigError, InputError, ModelError
from kestrel.pipelines import ReleasedSegmenter
from kestrel.train import benchmark_score
from kestrel.train.benchmark_score import (
    judging_of,
    lidarseg_benchmark,
    score_benchmark,
    semantickitti_benchmark,
)
from kestrel.types import PointLabels
from kestrel.weights import Manifest, save
from tests.data.labelled_folders import lidarseg_folder, semantickitti_sweep
from tests.data.nuscenes_data_set import VERSION
from tests.pipelines.test_released_segmenter import weights_file

KITTI, LIDARSEG = SEMANTIC_KITTI_CLASSES, POINT_CLASSES
CAR, ROAD, PERSON = (KITTI.index(name) for name in ("car", "road", "person"))


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a network of some classes answer sweep by sweep."""

    def answer(classes: tuple[str, ...], *labels: list[int]) -> None:
        left = iter(labels)

        def next_answer(scan: LabelledScan) -> np.ndarray:
            return np.array(next(left), np.uint8)

        monkeypatch.setattr(benchmark_score, "labeller", lambda *_: (classes, next_answer))

    return answer


def test_a_perfect_answer_scores_one(tmp_path: Path, answered: Callable[..., None]) -> None:
    semantickitti_sweep(tmp_path, [10, 252, 40, 30], 0)
    semantickitti_sweep(tmp_path, [40, 40], 1)
    answered(KITTI, [CAR, CAR, ROAD, PERSON], [ROAD, ROAD])
    found = score_benchmark("any", semantickitti_benchmark(tmp_path))
    assert found.figures == {
        "semantickitti/scans": 2,
        "semantickitti/points": 6,
        "semantickitti/point_miou": 1,
        "semantickitti/labels of spvnas/point_miou": 1,
        "semantickitti/iou/car": 1,
        "semantickitti/iou/person": 1,
        "semantickitti/iou/road": 1,
    }
    assert found.left_out == ()
    assert found.unseen == tuple(name for name in KITTI if name not in ("car", "road", "person"))


def test_confusion_is_counted_over_all_sweeps(tmp_path: Path, answered: Callable[..., None]) -> None:
    semantickitti_sweep(tmp_path, [10, 10, 10, 40], 0)
    semantickitti_sweep(tmp_path, [40, 40], 1)
    answered(KITTI, [CAR, CAR, ROAD, ROAD], [ROAD, CAR])
    figures = score_benchmark("any", semantickitti_benchmark(tmp_path)).figures
    # Cars: 2 hit, 1 missed, 1 wrong. Road: 2 hit, 1 missed, 1 wrong. By sweep the mean would be another.
    assert figures["semantickitti/iou/car"] == figures["semantickitti/iou/road"] == 0.5
    assert figures["semantickitti/point_miou"] == 0.5


def test_points_without_a_class_do_not_count(tmp_path: Path, answered: Callable[..., None]) -> None:
    semantickitti_sweep(tmp_path, [10, 0, 1, 52, 99])
    answered(KITTI, [CAR, CAR, CAR, ROAD, PERSON])
    figures = score_benchmark("any", semantickitti_benchmark(tmp_path)).figures
    assert (figures["semantickitti/points"], figures["semantickitti/point_miou"]) == (1, 1)


def test_the_map_is_that_of_the_benchmark_and_that_of_spvnas_stands_beside(
    tmp_path: Path, answered: Callable[..., None]
) -> None:
    semantickitti_sweep(tmp_path, [40, 60, 10, 13])  # lane markings are road, a bus is another vehicle
    answered(KITTI, [ROAD, CAR, CAR, CAR])
    figures = score_benchmark("any", semantickitti_benchmark(tmp_path)).figures
    assert figures["semantickitti/iou/road"] == 0.5
    assert figures["semantickitti/iou/car"] == pytest.approx(1 / 3, abs=1e-4)
    assert figures["semantickitti/iou/other-vehicle"] == 0
    assert figures["semantickitti/labels of spvnas/point_miou"] == 1


def test_lidarseg_is_scored_in_its_sixteen_classes(tmp_path: Path, answered: Callable[..., None]) -> None:
    lidarseg_folder(tmp_path, [17, 17, 17, 24, 31, 0])  # three cars, road, the vehicle itself, noise
    car, road = LIDARSEG.index("car"), LIDARSEG.index("driveable_surface")
    answered(LIDARSEG, [car, car, road, road, road, car])
    figures = score_benchmark("any", lidarseg_benchmark(tmp_path, VERSION, ["scene-0103"])).figures
    assert figures == {
        "lidarseg/scans": 1,
        "lidarseg/points": 4,
        "lidarseg/point_miou": pytest.approx((2 / 3 + 1 / 2) / 2, abs=1e-4),
        "lidarseg/iou/car": pytest.approx(2 / 3, abs=1e-4),
        "lidarseg/iou/driveable_surface": 0.5,
    }


def test_kestrel_seg_is_judged_on_semantickitti_where_its_classes_have_a_counterpart(
    tmp_path: Path, answered: Callable[..., None]
) -> None:
    semantickitti_sweep(tmp_path, [40, 44, 80, 20, 10])
    road, manmade, bus = (LIDARSEG.index(name) for name in ("driveable_surface", "manmade", "bus"))
    answered(LIDARSEG, [road, road, manmade, bus, IGNORE])
    found = score_benchmark("any", semantickitti_benchmark(tmp_path))
    assert found.left_out == ("other-vehicle",)
    assert found.figures == {
        "semantickitti in common classes/scans": 1,
        "semantickitti in common classes/points": 4,
        "semantickitti in common classes/point_miou": pytest.approx(2 / 3, abs=1e-4),
        "semantickitti in common classes/iou/car": 0,
        "semantickitti in common classes/iou/driveable_surface": 1,
        "semantickitti in common classes/iou/manmade": 1,
    }
    assert "bicycle" in found.unseen
    assert "bus" not in found.unseen  # it cannot be there


def test_classes_of_semantickitti_on_lidarseg_leave_out_what_they_have_not(
    tmp_path: Path, answered: Callable[..., None]
) -> None:
    lidarseg_folder(tmp_path, [17, 24, 28, 16, 9, 12])
    parking, pole, other = (KITTI.index(name) for name in ("parking", "pole", "other-vehicle"))
    answered(KITTI, [CAR, parking, pole, other, pole, pole])
    found = score_benchmark("any", lidarseg_benchmark(tmp_path, VERSION, ["scene-0103"]))
    assert found.left_out == ("barrier", "bus", "construction_vehicle", "traffic_cone", "trailer")
    assert found.figures["lidarseg in common classes/points"] == 3
    assert found.figures["lidarseg in common classes/point_miou"] == 1


def test_classes_that_are_the_same_are_compared_as_they_are() -> None:
    judging = judging_of(KITTI, KITTI)
    assert (judging.of_truth == np.arange(256)).all()
    assert (judging.of_answer == np.arange(256)).all()


def test_fewer_sweeps_are_spread_over_all(tmp_path: Path) -> None:
    for number in range(9):
        semantickitti_sweep(tmp_path, [10], number)
    for count, expected in ((3, [0, 4, 8]), (9, list(range(9))), (50, list(range(9)))):
        scans = semantickitti_benchmark(tmp_path, scans=count).scans
        assert [int(files.sweep.stem) for files in scans] == expected


def invoke(*options: str) -> Result:
    return CliRunner().invoke(build_app(), ["train", "score", *options], catch_exceptions=False)


@pytest.mark.parametrize(("option", "number"), [("--semantickitti", 19), ("--lidarseg", 16)])
def test_the_command_scores_a_converted_network_as_json(tmp_path: Path, option: str, number: int) -> None:
    weights = weights_file(tmp_path, outputs=number)
    semantickitti_sweep(tmp_path, [10, 40, 0])
    lidarseg_folder(tmp_path, [17, 24, 0, 24, 24, 24])
    chosen = (
        ["--nuscenes-version", VERSION, "--scene", "scene-0061"] if number == 16 else ["--sequence", "08"]
    )
    result = invoke("--weights", str(weights), option, str(tmp_path), *chosen, "--json")
    figures = json.loads(result.stdout)["figures"]
    name, scans = option.removeprefix("--"), 3 if number == 16 else 1
    assert figures[f"{name}/scans"] == {"value": scans, "unit": "scans", "ratio": None, "against": None}
    assert figures[f"{name}/points"]["value"] == (15 if number == 16 else 2)
    assert 0 <= figures[f"{name}/point_miou"]["value"] <= 1
    assert "no points, not in the mean: " in result.stderr


@pytest.mark.parametrize("weights", ["kestrel-seg", "baseline"])
def test_the_command_says_which_classes_have_no_counterpart(tmp_path: Path, weights: str) -> None:
    semantickitti_sweep(tmp_path, [40] * 50)
    result = invoke("--weights", weights, "--semantickitti", str(tmp_path))
    assert f"not comparable with the classes of {weights}: other-vehicle" in result.stderr
    assert "iou/driveable_surface" in result.stdout


def test_kestrel_seg_sees_the_ground_at_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    semantickitti_sweep(tmp_path, [40] * 5)
    seen: list[float] = []

    def classes(points: np.ndarray) -> np.ndarray:
        seen.extend(points[:, 2].tolist())
        return np.zeros(len(points), np.uint8)

    monkeypatch.setattr(benchmark_score.baseline, "point_classes", classes)
    score_benchmark("baseline", semantickitti_benchmark(tmp_path))
    np.testing.assert_allclose(seen, 0.03, atol=1e-6)


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    folder = semantickitti_sweep(tmp_path, [10, 40])
    (folder / "labels" / "000000.label").write_bytes(b"abc")
    with pytest.raises(InputError, match=r"000000\.label: expected 2 labels of 4 bytes.*, found 3 bytes"):
        invoke("--weights", "baseline", "--semantickitti", str(tmp_path))


def test_a_sweep_that_a_network_cannot_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_finite(*_: object) -> PointLabels:
        raise ModelError("output of SPVCNN: expected finite values, found 1 of 38 not finite")

    semantickitti_sweep(tmp_path, [10, 40])
    monkeypatch.setattr(ReleasedSegmenter, "segment", not_finite)
    with pytest.raises(ModelError, match=r"sweep .*000000\.bin: output of SPVCNN: expected finite"):
        invoke("--weights", str(weights_file(tmp_path)), "--semantickitti", str(tmp_path))


def test_networks_that_label_no_points_are_refused(tmp_path: Path) -> None:
    semantickitti_sweep(tmp_path, [10])
    save(tmp_path / "w.safetensors", {}, Manifest(name="w", network="KestrelVideo", config={}, classes=()))
    with pytest.raises(ConfigError, match=r"expected one of KestrelSeg, SPVCNN, .*found KestrelVideo"):
        invoke("--weights", str(tmp_path / "w.safetensors"), "--semantickitti", str(tmp_path))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--semantickitti", "a", "--split", "test"], "--semantickitti or --split, what to score on"),
        (["--semantickitti", "a", "--lidarseg", "b"], "found --semantickitti and --lidarseg"),
        (["--lidarseg", "a", "--sensors-out"], "found --lidarseg and --sensors-out"),
        (["--lidarseg", "a", "--sequence", "08"], "--sequence: expected --semantickitti with it"),
        (["--semantickitti", "a", "--scene", "b"], "--scene: expected --lidarseg with it"),
        (["--split", "test", "--device", "cuda"], "--device: expected --semantickitti or --lidarseg with it"),
        (["--split", "test", "--scans", "3"], "--scans: expected --semantickitti or --lidarseg with it"),
    ],
)
def test_options_of_which_one_would_not_be_heeded_are_refused(options: list[str], found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        invoke(*options)

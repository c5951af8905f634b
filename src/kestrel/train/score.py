# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores weights, or the trivial baseline, on cached drives with the metrics of `kestrel eval`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from kestrel.classes import EVENTS, POINT_CLASSES
from kestrel.errors import ConfigError, InputError, describe
from kestrel.eval import baseline
from kestrel.eval.overlap import PointConfusion
from kestrel.ops import int8_is_fast
from kestrel.pipelines import FusionDetector, PointSegmenter, VideoUnderstanding
from kestrel.report import Figure
from kestrel.train import cache, drive_file
from kestrel.train.box_transfer import THRESHOLDS, score_detections
from kestrel.train.drive_file import Holds
from kestrel.train.fusion_score import (
    SENSORS,
    Answers,
    Drive,
    score_all_sensors,
    score_cameras_alone,
    score_fusion,
    score_rounded,
    score_without_sensors,
)
from kestrel.train.progress import track
from kestrel.train.transfer import score_points
from kestrel.types import BevMap, Boxes3D, Image, PointCloud, SensorFrame, UInt8Array
from kestrel.weights import load

BASE: Final = "base_link"
BASELINE: Final = "baseline"
"""Stands for the trivial baseline where the name of weights is asked for."""

SCORE_THRESHOLD: Final = 0.05
"""Boxes below it do not enter the average precision."""

UNITS: Final = {
    **dict.fromkeys(("ap", "ap2m", "mAP", "mAP_2m"), "AP"),
    **dict.fromkeys(("iou", "map_miou", "map_miou_best", "point_miou"), "IoU"),
    "NDS": "NDS",
    "drives": "drives",
    "frames": "frames",
    "sweeps": "sweeps",
    "scans": "scans",
    "points": "points",
    "found": "sweeps",
    "false_per_sweep": "boxes per sweep",
    "mATE": "m",
    "mASE": "1 - IoU",
    "mAOE": "rad",
    "mAVE": "m/s",
}
"""Unit of a figure by a part of its name; what no part names is a share."""

Labeller = Callable[[PointCloud], UInt8Array]


def score(weights: str | Path, folder: Path, split: str, *, sensors_out: bool = False) -> dict[str, float]:
    """Return the scores of weights on the drives below ``folder``, and how many these are.

    Args:
        weights: name of shipped weights or path, or BASELINE.
        folder: finished drives of one split.
        split: its name, with which the figures begin.
        sensors_out: also say what is lost where cameras or the LiDAR are out (Kestrel-Fusion).

    Raises:
        ConfigError: weights of a network that has no score, or none with sensors out.
        InputError: there are no drives, or with ``sensors_out`` none with six cameras.
    """
    network = BASELINE if weights == BASELINE else load(weights)[1].network
    if sensors_out and network != "KestrelFusion":
        expected = "a KestrelFusion, which answers from any sensors"
        raise ConfigError(describe("network to score with sensors out", expected=expected, found=network))
    if sensors_out and not any(drive.has_ring() for drive in Drive.below(folder)):
        expected = "a drive with six cameras, to leave some of them out (--sensors-out)"
        raise InputError(describe(str(folder), expected=expected, found="none"))
    if network == BASELINE:
        found = score_baseline(folder)
    else:
        found = _score_network(weights, network, folder, sensors_out=sensors_out)
    return _rounded(split, {"drives": float(len(cache.finished_drives(folder))), **found})


def _rounded(split: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{split}/{name}": round(value, 4) for name, value in values.items()}


def score_precision(weights: str | Path, folder: Path, split: str, drives: int) -> dict[str, float]:
    """Return the scores of a Kestrel-Fusion in bfloat16 against eager float32.

    Args:
        weights: name of shipped weights or path.
        folder: finished drives of one split.
        split: its name, with which the figures begin.
        drives: the first so many are looked at; a CPU without bfloat16 takes ten times as long as in float32.

    Raises:
        ModelError: the weights are not those of a Kestrel-Fusion.
    """
    exact = FusionDetector(weights, score_threshold=SCORE_THRESHOLD, engine="eager", precision="float32")
    rough = FusionDetector(weights, score_threshold=SCORE_THRESHOLD, precision="bfloat16")
    return _rounded(split, score_rounded(_answers(exact), _answers(rough), "bfloat16", folder, drives))


def score_int8(weights: str | Path, models: Path, folder: Path, split: str) -> dict[str, float]:
    """Return the scores of a Kestrel-Fusion with parts in int8, by one calibration, against eager float32.

    Args:
        weights: name of shipped weights or path.
        models: folder made by `kestrel calibrate`; not from the drives below ``folder``.
        folder: finished drives of one split.
        split: its name, with which the figures begin.

    Raises:
        ModelError: the weights are not those of a Kestrel-Fusion, or the models not of these weights.
    """
    exact = FusionDetector(weights, score_threshold=SCORE_THRESHOLD, engine="eager", precision="float32")
    rough = FusionDetector(
        weights, score_threshold=SCORE_THRESHOLD, engine="int8", int8=models, precision="float32"
    )
    found = score_rounded(_answers(exact), _answers(rough), "int8", folder, None)
    return _rounded(split, found)


def _answers(detector: FusionDetector) -> Answers:
    return Answers(detector.detect, detector.sweeps)


def as_figures(values: Mapping[str, float]) -> dict[str, Figure]:
    """Return scores with their units."""
    return {name: Figure(value, _unit(name)) for name, value in values.items()}


def _unit(name: str) -> str:
    parts = name.split("/")
    if parts[-1].endswith(("_lost", "_lost_most")):
        return "points"
    return next((UNITS[part] for part in parts if part in UNITS), "share")


def score_bag(weights: str | Path, bag: Path) -> dict[str, float]:
    """Return how well points or boxes of recorded sweeps are found, judged by true boxes.

    Args:
        weights: name of shipped weights of a Kestrel-Seg or Kestrel-Fusion or path, or BASELINE.
        bag: sweeps with boxes as truth, such as `kestrel import kitti-tracking` writes.

    Raises:
        ConfigError: weights of another network.
    """
    network = BASELINE if weights == BASELINE else load(weights)[1].network
    if network == BASELINE:
        points = score_points(lambda cloud: baseline.point_classes(cloud.points), bag)
        return points | score_detections(_baseline_detect, bag)
    if network == "KestrelSeg":
        segmenter = PointSegmenter(weights, precision="float32")
        return score_points(lambda cloud: segmenter.segment(cloud).label, bag)
    if network == "KestrelFusion":
        detector = FusionDetector(weights, score_threshold=THRESHOLDS[0], precision="float32")
        return score_detections(detector.detect, bag)
    expected = "KestrelFusion or KestrelSeg (`kestrel eval --weights` scores a BEVFusion)"
    raise ConfigError(describe("network to score on a bag", expected=expected, found=network))


def _score_network(weights: str | Path, network: str, folder: Path, *, sensors_out: bool) -> dict[str, float]:
    if network == "KestrelSeg":
        segmenter = PointSegmenter(weights, precision="float32")
        values = score_segmentation(lambda cloud: segmenter.segment(cloud).label, folder)
        if int8_is_fast():
            quick = PointSegmenter(weights, precision="int8")
            rough = score_segmentation(lambda cloud: quick.segment(cloud).label, folder)
            values["int8/point_miou"] = rough["point_miou"]
        return values
    if network == "KestrelFusion":
        answers = _answers(FusionDetector(weights, score_threshold=SCORE_THRESHOLD, precision="float32"))
        values = score_fusion(answers, folder, tuple(SENSORS))
        forgetful = FusionDetector(
            weights, score_threshold=SCORE_THRESHOLD, precision="float32", map_memory=False
        )
        alone = score_all_sensors(_answers(forgetful), folder)
        if "map_miou" in alone:
            values["without map memory/map_miou"] = alone["map_miou"]
        unaware = FusionDetector(
            weights, score_threshold=SCORE_THRESHOLD, precision="float32", picture_memory=False
        )
        for name, value in score_cameras_alone(_answers(unaware), folder).items():
            values[f"camera/without picture memory/{name}"] = value
        if int8_is_fast():
            in_bytes = FusionDetector(weights, score_threshold=SCORE_THRESHOLD, precision="int8")
            rough = score_all_sensors(_answers(in_bytes), folder)
            values |= {f"int8/{name}": value for name, value in rough.items()}
        return values | score_without_sensors(answers, folder) if sensors_out else values
    if network == "KestrelVideo":
        return score_video(weights, folder)
    expected = "KestrelFusion, KestrelSeg or KestrelVideo"
    raise ConfigError(describe("network to score", expected=expected, found=network))


def score_baseline(folder: Path) -> dict[str, float]:
    """Return the scores of the rules in kestrel.eval.baseline, which see the LiDAR alone."""
    points: dict[str, float] = {}
    if Holds.POINT_CLASSES in drive_file.held([folder]):
        points = score_segmentation(lambda cloud: baseline.point_classes(cloud.points), folder)
    return points | score_fusion(Answers(_baseline_detect, sweeps=0), folder, ("lidar",))


def _baseline_detect(frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
    assert frame.cloud is not None
    boxes = baseline.boxes(frame.cloud.points[:, :3], frame.stamp_ns)
    return boxes, baseline.straight_road(frame.stamp_ns)


def score_segmentation(labels_of: Labeller, folder: Path) -> dict[str, float]:
    """Return the mean IoU of points over all drives, per rig and per class."""
    total = PointConfusion(len(POINT_CLASSES))
    by_rig: dict[str, PointConfusion] = {}
    drives = Drive.below(folder, Holds.POINT_CLASSES)
    frames = [(drive.rig, path) for drive in drives for path in drive.files]
    for rig, path in track(frames, "points"):
        frame = cache.read(cache.CachedFrame, path)
        cloud = PointCloud(np.ascontiguousarray(frame.cloud(0)[:, :4]), 0, BASE)
        answer = labels_of(cloud)
        total.add(frame.label, answer)
        by_rig.setdefault(rig, PointConfusion(len(POINT_CLASSES))).add(frame.label, answer)
    values = {"point_miou": total.mean_iou()}
    values.update({f"point_miou/{rig}": confusion.mean_iou() for rig, confusion in by_rig.items()})
    pairs = zip(POINT_CLASSES, total.iou(), strict=True)
    return values | {f"iou/{name}": float(iou) for name, iou in pairs if not np.isnan(iou)}


def score_video(weights: str | Path, folder: Path) -> dict[str, float]:
    """Return the share of pictures whose event is named right, and that of always naming the commonest."""
    video = VideoUnderstanding(weights)
    confusion = np.zeros((len(EVENTS), len(EVENTS)), np.int64)
    for drive in track(cache.finished_drives(folder), "events"):
        video.reset()
        cached = cache.read(cache.CachedVideo, drive / "video.npz")
        for index, stamp in enumerate(cached.stamp_ns.tolist()):
            answer = video.step(Image(cached.picture(index), stamp, "front"))
            confusion[cached.event[index], int(answer.probability.argmax())] += 1
    count = confusion.sum(1)
    accuracy, majority = confusion.trace() / count.sum(), count.max() / count.sum()
    recall = {
        f"recall/{name}": confusion[index, index] / count[index]
        for index, name in enumerate(EVENTS)
        if count[index]
    }
    balanced = float(np.mean(list(recall.values())))
    return {"accuracy": accuracy, "majority": majority, "balanced_accuracy": balanced, **recall}

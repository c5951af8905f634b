# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores weights, or the trivial baseline, on cached drives with the metrics of `kestrel eval`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from rich.progress import track

from kestrel.classes import DETECTION_CLASSES, EVENTS, MAP_LAYERS, POINT_CLASSES
from kestrel.errors import ConfigError, describe
from kestrel.eval import baseline, detection
from kestrel.eval.overlap import MapOverlap, PointConfusion
from kestrel.pipelines import FusionDetector, PointSegmenter, VideoUnderstanding
from kestrel.train import cache
from kestrel.train.transfer import score_boxes
from kestrel.types import BevMap, Boxes3D, Calibration, Image, PointCloud, SensorFrame, UInt8Array
from kestrel.weights import load, remember

BASE: Final = "base_link"
BASELINE: Final = "baseline"
"""Stands for the trivial baseline where the name of weights is asked for."""

SENSORS: Final = ("camera+lidar", "lidar", "camera")
"""With all sensors, with the LiDAR alone, with the cameras alone."""

Labeller = Callable[[PointCloud], UInt8Array]
Detector = Callable[[SensorFrame], tuple[Boxes3D, BevMap]]


def score(weights: str | Path, folder: Path, split: str) -> dict[str, float]:
    """Score weights on the drives below ``folder`` and write the figures into their manifest.

    Args:
        weights: name of shipped weights or path, or BASELINE (which has no manifest).
        folder: finished drives of one split.
        split: its name, with which the figures begin.

    Raises:
        ConfigError: weights of a network that has no score.
    """
    found = score_baseline(folder) if weights == BASELINE else _score_network(weights, folder)
    figures = {f"{split}/{name}": round(value, 4) for name, value in found.items()}
    if weights != BASELINE:
        remember(weights, figures)
    return figures


def score_bag(weights: str | Path, bag: Path) -> dict[str, float]:
    """Return how weights of a Kestrel-Seg, or BASELINE, label points inside and outside of true boxes.

    Args:
        weights: name of shipped weights or path, or BASELINE.
        bag: sweeps with boxes as truth, such as `kestrel import kitti-tracking` writes.
    """
    if weights == BASELINE:
        return score_boxes(lambda cloud: baseline.point_classes(cloud.points), bag)
    segmenter = PointSegmenter(weights)
    return score_boxes(lambda cloud: segmenter.segment(cloud).label, bag)


def _score_network(weights: str | Path, folder: Path) -> dict[str, float]:
    _, manifest = load(weights)
    if manifest.network == "KestrelSeg":
        segmenter = PointSegmenter(weights)
        return score_segmentation(lambda cloud: segmenter.segment(cloud).label, folder)
    if manifest.network == "KestrelFusion":
        detector = FusionDetector(weights, score_threshold=0.05)
        return score_fusion(detector.detect, folder, SENSORS, detector.sweeps)
    if manifest.network == "KestrelVideo":
        return score_video(weights, folder)
    expected = ["KestrelFusion", "KestrelSeg", "KestrelVideo"]
    raise ConfigError(describe("network to score", expected=expected, found=manifest.network))


def score_baseline(folder: Path) -> dict[str, float]:
    """Return the scores of the rules in kestrel.eval.baseline, which see the LiDAR alone."""

    def detect(frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
        assert frame.cloud is not None
        boxes = baseline.boxes(frame.cloud.points[:, :3], frame.stamp_ns)
        return boxes, baseline.straight_road(frame.stamp_ns)

    points = score_segmentation(lambda cloud: baseline.point_classes(cloud.points), folder)
    return points | score_fusion(detect, folder, ("lidar",), sweeps=0)


def score_segmentation(labels_of: Labeller, folder: Path) -> dict[str, float]:
    """Return the mean IoU of points over all drives, per rig and per class."""
    total = PointConfusion(len(POINT_CLASSES))
    by_rig: dict[str, PointConfusion] = {}
    for path in track(cache.frame_files(folder), "points"):
        frame = cache.read(cache.CachedFrame, path)
        cloud = PointCloud(np.ascontiguousarray(frame.cloud(0)[:, :4]), 0, BASE)
        answer = labels_of(cloud)
        total.add(frame.label, answer)
        rig = "nuscenes" if len(frame.matrices) > 1 else "kitti"
        by_rig.setdefault(rig, PointConfusion(len(POINT_CLASSES))).add(frame.label, answer)
    values = {"point_miou": total.mean_iou()}
    values.update({f"point_miou/{rig}": confusion.mean_iou() for rig, confusion in by_rig.items()})
    pairs = zip(POINT_CLASSES, total.iou(), strict=True)
    return values | {f"iou/{name}": float(iou) for name, iou in pairs if not np.isnan(iou)}


def score_fusion(
    detect: Detector, folder: Path, modalities: tuple[str, ...], sweeps: int
) -> dict[str, float]:
    """Return AP and map IoU with each choice of sensors (SENSORS) and so many earlier sweeps."""
    values: dict[str, float] = {}
    for sensors in modalities:
        truth, found = [], []
        overlap = MapOverlap(len(MAP_LAYERS))
        for path in track(cache.frame_files(folder), sensors):
            cached = cache.read(cache.CachedFrame, path)
            boxes, layers = detect(sensor_frame(cached, sensors, sweeps))
            truth.append(_truth(cached))
            found.append(boxes)
            cells = layers.probability.shape[1]
            overlap.add(layers.probability, cached.map_truth(len(MAP_LAYERS), cells) > 0)
        scores = detection.evaluate(
            detection.BoxTable.from_frames(truth), detection.BoxTable.from_frames(found)
        )
        values |= {f"{sensors}/{key}": value for key, value in _named(scores, overlap).items()}
    return values


def _named(scores: detection.DetectionScores, overlap: MapOverlap) -> dict[str, float]:
    there = scores.truth_count > 0
    near = detection.DISTANCES_M.index(detection.TRUE_POSITIVE_DISTANCE_M)
    layers = overlap.iou_at(0.5)
    values = {
        "mAP": float(scores.average_precision[there].mean()),
        "mAP_2m": float(scores.average_precision[there, near].mean()),
        "map_miou": float(np.nanmean(np.where(overlap.truth_count > 0, layers, np.nan))),
    }
    values |= {
        f"ap2m/{name}": float(scores.average_precision[index, near])
        for index, name in enumerate(DETECTION_CLASSES)
        if there[index]
    }
    return values | {f"iou/{name}": float(iou) for name, iou in zip(MAP_LAYERS, layers, strict=True)}


def sensor_frame(cached: cache.CachedFrame, sensors: str, sweeps: int) -> SensorFrame:
    """Return a cached key frame as a node would hand it over, with ``camera``, ``lidar`` or both."""
    clouds = []
    for index in range(1 + sweeps):
        mine = cached.sweep == index
        points = np.ascontiguousarray(cached.cloud()[mine, :4])
        clouds.append(PointCloud(points, 10**9 - round(float(cached.ages[index]) * 1e9), BASE))
    images, calibrations = {}, {}
    for number in range(len(cached.matrices) if "camera" in sensors else 0):
        picture = cached.picture(number)
        name = f"camera{number}"
        images[name] = Image(picture, 10**9, name)
        calibrations[name] = Calibration(
            cached.matrices[number], picture.shape[1], picture.shape[0], cached.base_from_camera[number]
        )
    with_lidar = "lidar" in sensors
    return SensorFrame(
        stamp_ns=10**9,
        frame_id=BASE,
        cloud=clouds[0] if with_lidar else None,
        images=images,
        calibrations=calibrations,
        sweeps=tuple(clouds[1:]) if with_lidar else (),
    )


def _truth(cached: cache.CachedFrame) -> Boxes3D:
    return Boxes3D(
        center=np.ascontiguousarray(cached.boxes[:, :3]),
        size=np.ascontiguousarray(cached.boxes[:, 3:6]),
        yaw=np.ascontiguousarray(cached.boxes[:, 6]),
        velocity=np.ascontiguousarray(cached.boxes[:, 7:9]),
        label=cached.box_label,
        score=np.ones(len(cached.boxes), np.float32),
        class_names=DETECTION_CLASSES,
        frame_id=BASE,
        stamp_ns=10**9,
        num_points=cached.box_points,
    )


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

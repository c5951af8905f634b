# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the metrics on the parity fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from kestrel.eval import detection
from kestrel.eval.overlap import MapOverlap, PointConfusion
from tests.parity.fixture import Runner


def boxes(inputs: dict[str, np.ndarray], side: str) -> detection.BoxTable:
    width, length, height = inputs[f"{side}.size_wlh"].T.astype(np.float64)
    count = len(width)
    return detection.BoxTable(
        sample=inputs[f"{side}.sample"].astype(np.int64),
        label=inputs[f"{side}.class"].astype(np.int64),
        center=inputs[f"{side}.center"].astype(np.float64),
        size=np.stack([length, width, height], 1),
        yaw=inputs[f"{side}.yaw"].astype(np.float64),
        velocity=inputs[f"{side}.velocity"].astype(np.float64),
        score=inputs.get(f"{side}.score", np.ones(count)).astype(np.float64),
        num_points=inputs.get(f"{side}.num_pts", np.full(count, -1)).astype(np.int64),
        attribute=inputs[f"{side}.attribute"].astype(np.int64),
    )


def nuscenes(fixture: Any) -> Iterator[tuple[str, Any]]:
    config = fixture.manifest["config"]
    assert config["dist_ths"] == list(detection.DISTANCES_M)
    scores = detection.evaluate(
        boxes(fixture.inputs, "gt"),
        boxes(fixture.inputs, "pred"),
        class_names=config["class order"],
        ranges=config["class_range"],
    )
    yield "kept_gt", scores.truth_count.sum()
    yield "kept_pred", scores.prediction_count.sum()
    yield "ap", scores.average_precision
    yield "tp_errors", scores.errors
    yield "mean_dist_aps", scores.average_precision.mean(1)
    yield "mean_tp_errors", scores.mean_errors
    yield "mAP", scores.mean_average_precision
    yield "NDS", scores.nuscenes_detection_score


def map_iou(fixture: Any) -> Iterator[tuple[str, Any]]:
    config = fixture.manifest["config"]
    overlap = MapOverlap(len(config["classes"]), config["thresholds"])
    for probability, target in zip(fixture.inputs["probability"], fixture.inputs["target"], strict=True):
        overlap.add(probability, target.astype(bool))
    yield "iou", overlap.iou()
    yield "iou_max", overlap.best_iou()
    yield "mean", overlap.best_iou().mean()


def point_iou(fixture: Any) -> Iterator[tuple[str, Any]]:
    config = fixture.manifest["config"]
    confusion = PointConfusion(config["num_classes"], ignore=config["ignore"])
    for predicted, target in zip(fixture.inputs["pred"], fixture.inputs["target"], strict=True):
        confusion.add(target, predicted)
    yield "iou", confusion.iou(without_truth=1.0)
    yield "miou", confusion.mean_iou(without_truth=1.0)


RUNNERS: dict[str, Runner] = {
    r"nuScenes detection metrics.*": nuscenes,
    r"BEV map IoU.*": map_iou,
    r"mean IoU.*": point_iou,
}

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Scores boxes with nuscenes-devkit: runs in the devkit's own environment, in which there is no Kestrel.

Reads the path of an .npz file (tables `truth` and `predicted`, see detection_metric.py) from the command line
and prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp
from nuscenes.eval.detection.config import config_factory
from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES, TP_METRICS
from nuscenes.eval.detection.data_classes import DetectionBox, DetectionMetrics
from pyquaternion import Quaternion

UNDEFINED = {
    "traffic_cone": ("attr_err", "vel_err", "orient_err"),
    "barrier": ("attr_err", "vel_err"),
}
"""As in the devkit's evaluation, where it is written into the loop."""


def main(path: str) -> None:
    """Score and print."""
    content = np.load(path)
    names = [str(name) for name in content["class_names"]]
    config = config_factory("detection_cvpr_2019")
    truth = _boxes(content, "truth", names, config.class_range)
    predicted = _boxes(content, "predicted", names, config.class_range)
    started = time.perf_counter()
    metrics = DetectionMetrics(config)
    for name in names:
        for distance in config.dist_ths:
            data = accumulate(truth, predicted, name, config.dist_fcn_callable, distance)
            metrics.add_label_ap(name, distance, calc_ap(data, config.min_recall, config.min_precision))
            if distance == config.dist_th_tp:
                for metric in TP_METRICS:
                    undefined = metric in UNDEFINED.get(name, ())
                    error = np.nan if undefined else calc_tp(data, config.min_recall, metric)
                    metrics.add_label_tp(name, metric, error)
    seconds = time.perf_counter() - started
    precision = [[metrics.get_label_ap(name, distance) for distance in config.dist_ths] for name in names]
    errors = [[metrics.get_label_tp(name, metric) for metric in TP_METRICS] for name in names]
    print(
        json.dumps(
            {
                "precision": precision,
                "errors": errors,
                "mean_ap": metrics.mean_ap,
                "nd_score": metrics.nd_score,
                "seconds": seconds,
            }
        )
    )


def _boxes(content: Any, table: str, names: list[str], reach: dict[str, float]) -> Any:
    """Return the boxes that count, by frame; a frame without any is there too."""
    rows = {key.split("/")[1]: content[key] for key in content.files if key.startswith(f"{table}/")}
    boxes = EvalBoxes()
    for number in range(int(content["frames"])):
        boxes.add_boxes(str(number), [])
    for row in range(len(rows["sample"])):
        name = names[rows["label"][row]]
        length, width, height = rows["size"][row]
        attribute = rows["attribute"][row]
        box = DetectionBox(
            sample_token=str(rows["sample"][row]),
            translation=tuple(rows["center"][row]),
            size=(width, length, height),
            rotation=tuple(Quaternion(axis=(0, 0, 1), radians=rows["yaw"][row])),
            velocity=tuple(rows["velocity"][row]),
            ego_translation=tuple(rows["center"][row]),
            num_pts=int(rows["num_points"][row]),
            detection_name=name,
            detection_score=-1.0 if table == "truth" else float(rows["score"][row]),
            attribute_name=ATTRIBUTE_NAMES[attribute] if attribute >= 0 else "",
        )
        if box.ego_dist < reach[name] and box.num_pts != 0:
            boxes.add_boxes(box.sample_token, [box])
    return boxes


if __name__ == "__main__":
    main(sys.argv[1])

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Boxes as a result file of the nuScenes detection task, which nuscenes-devkit scores.

The format is that of https://www.nuscenes.org/object-detection (results format): boxes in the frame of the
map, sizes as width, length, height, rotations as quaternions w, x, y, z, velocities in metres a second.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.spatial.transform import Rotation

from kestrel.classes import ATTRIBUTES, DETECTION_CLASSES, NO_ATTRIBUTE
from kestrel.eval.detection import BoxTable
from kestrel.files import write_whole
from kestrel.types import Boxes3D, Float64Array

MOST_BOXES: Final = 500
"""Of a sample; the devkit refuses more."""

Entries = list[dict[str, Any]]


def sample_results(token: str, boxes: Boxes3D, map_from_base: Float64Array) -> Entries:
    """Return the entries of one sample, the surest first and no more than MOST_BOXES.

    Networks name no attributes; a box has that of its class and speed (kestrel.eval.detection).

    Args:
        token: of the sample.
        boxes: in base_link.
        map_from_base: (4, 4) where the vehicle is on the map.
    """
    table = BoxTable.from_frames([boxes]).with_attributes()
    table = table.take(np.argsort(-table.score, kind="stable")[:MOST_BOXES])
    rotation = Rotation.from_matrix(map_from_base[:3, :3])
    center = rotation.apply(table.center) + map_from_base[:3, 3]
    velocity = rotation.apply(np.pad(table.velocity, ((0, 0), (0, 1))))
    turns = rotation * Rotation.from_rotvec(np.pad(table.yaw[:, None], ((0, 0), (2, 0))))
    x, y, z, w = turns.as_quat(canonical=True).reshape(-1, 4).T
    columns = (
        *(center, table.size[:, [1, 0, 2]], np.stack((w, x, y, z), 1), velocity[:, :2]),
        *(table.label, table.score, table.attribute),
    )
    return [
        {
            "sample_token": token,
            "translation": place,
            "size": size,
            "rotation": turn,
            "velocity": speed,
            "detection_name": DETECTION_CLASSES[label],
            "detection_score": score,
            "attribute_name": "" if attribute == NO_ATTRIBUTE else ATTRIBUTES[attribute],
        }
        for place, size, turn, speed, label, score, attribute in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


def write_results(path: Path, results: Mapping[str, Entries], sensors: Collection[str]) -> None:
    """Write a result file.

    Args:
        path: .json file to write; another in its place is replaced.
        results: of sample_results, by token; also of samples in which nothing was found.
        sensors: "camera" and "lidar", whichever the network has used.

    Raises:
        InputError: it cannot be written.
    """
    meta = {f"use_{sensor}": sensor in sensors for sensor in ("camera", "lidar", "radar", "map", "external")}
    write_whole(path, json.dumps({"meta": meta, "results": dict(results)}).encode())

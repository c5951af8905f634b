# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Made-up folders of the layouts of SemanticKITTI and nuScenes lidarseg."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from kestrel.label_maps import LIDARSEG_CATEGORIES
from tests.data.nuscenes_data_set import VERSION, DataSet

INSTANCE = 7 << 16
"""What the upper half of a label of SemanticKITTI may hold."""

SWEEP_POINTS = 6
"""Of every sweep of DataSet."""


def semantickitti_sweep(root: Path, labels: list[int], number: int = 0, sequence: str = "08") -> Path:
    """Write points in a row ahead, a metre apart, with these labels; return the sequence."""
    folder = root / "sequences" / sequence
    for part in ("velodyne", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    ahead = np.arange(len(labels), dtype=np.float32) + 5
    points = np.stack([ahead, ahead / 8, ahead * 0 - 1.7, ahead / 100], 1)
    points.tofile(folder / "velodyne" / f"{number:06d}.bin")
    (np.array(labels, np.uint32) | INSTANCE).tofile(folder / "labels" / f"{number:06d}.label")
    return folder


def lidarseg_folder(root: Path, labels: list[int]) -> DataSet:
    """Write a tiny nuScenes whose key frames all have these labels."""
    data_set = DataSet(root)
    data_set.tables["category"] = [
        {"token": f"k {index}", "name": name, "index": index}
        for index, name in enumerate(LIDARSEG_CATEGORIES)
    ]
    data_set.write("category")
    folder = root / "lidarseg" / VERSION
    folder.mkdir(parents=True)
    rows = []
    for row in data_set.tables["sample_data"]:
        if row["is_key_frame"] and "LIDAR_TOP" in row["filename"]:
            name = f"lidarseg/{VERSION}/{row['token']}_lidarseg.bin"
            np.array(labels, np.uint8).tofile(root / name)
            rows.append({"token": f"l {row['token']}", "filename": name, "sample_data_token": row["token"]})
    (root / VERSION / "lidarseg.json").write_text(json.dumps(rows))
    return data_set

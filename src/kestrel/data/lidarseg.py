# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""nuScenes lidarseg as it is distributed: a label for every point of the LiDAR's key frames.

Fong et al., Panoptic nuScenes, RA-L 2022. The archive of the labels adds ``lidarseg/VERSION``, and to the
folder of the tables ``lidarseg.json`` and a ``category.json`` whose rows have an ``index``.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from kestrel.data.labelled_scan import LabelledScan, ScanFiles, check_known, read_raw_labels
from kestrel.data.nuscenes import NUSCENES_FROM_LIDAR, read_sweep
from kestrel.data.nuscenes_tables import Row, reference, table_rows
from kestrel.data.trajectory import pose_matrix
from kestrel.errors import InputError, describe
from kestrel.label_maps import LIDARSEG_CATEGORIES
from kestrel.types import Float64Array

_VALIDATION: Final = (
    *((3, 3), (12, 18), (35, 36), (38, 39), (92, 110), (221, 221), (268, 278), (329, 332), (344, 346)),
    *((519, 524), (552, 565), (625, 627), (629, 630), (632, 638), (770, 771), (775, 775), (777, 778)),
    *((780, 784), (794, 800), (802, 802), (904, 917), (919, 931), (962, 963), (966, 969), (971, 972)),
    (1059, 1073),
)

VALIDATION: Final[dict[str, frozenset[str]]] = {
    "v1.0-trainval": frozenset(
        f"scene-{number:04d}" for first, last in _VALIDATION for number in range(first, last + 1)
    ),
    "v1.0-mini": frozenset(("scene-0103", "scene-0916")),
}
"""The scenes on which validation scores are given, by version."""

SCENES_SHOWN: Final = 10

_LABEL: Final = np.dtype("u1")


def scan_files(folder: Path, version: str, scenes: Collection[str] | None = None) -> list[ScanFiles]:
    """Return the files of all labelled sweeps of some scenes, scene by scene and by stamp.

    Args:
        folder: the one that holds ``samples`` and ``lidarseg``.
        version: folder of the tables, such as v1.0-mini.
        scenes: names; by default those of VALIDATION, or all of a version that is not there.

    Raises:
        InputError: a table is missing or damaged, its labels are not those of lidarseg, a scene is not there,
            or has a key frame without labels.
    """
    tables = folder / version
    _check_categories(tables / "category.json")
    names = {row["token"]: row["name"] for row in table_rows(tables, "scene")}
    wanted = VALIDATION.get(version, frozenset(names.values())) if scenes is None else frozenset(scenes)
    _check_scenes(tables / "scene.json", set(names.values()), wanted)
    scene_of = {row["token"]: names.get(row["scene_token"]) for row in table_rows(tables, "sample")}
    labels = {
        row["sample_data_token"]: row["filename"]
        for row in _rows(tables / "lidarseg.json", {"sample_data_token": str, "filename": str})
    }
    samples = {token for token, name in scene_of.items() if name in wanted}
    # Pictures are key frames, too; which rows are sweeps is told by the labels, which sweeps alone have.
    sweeps = {
        row["sample_token"]: row
        for row in table_rows(tables, "sample_data")
        if row["token"] in labels and row["sample_token"] in samples
    }
    if len(sweeps) < len(samples):
        expected = f"labels for each of the {len(samples)} key frames of the scenes"
        raise InputError(describe(str(tables / "lidarseg.json"), expected=expected, found=len(sweeps)))
    mounts = _mounts(tables, {row["calibrated_sensor_token"] for row in sweeps.values()})
    ordered = sorted(sweeps.values(), key=lambda row: (scene_of[row["sample_token"]], row["timestamp"]))
    return [_files(folder, row, labels, mounts) for row in ordered]


def _files(
    folder: Path, row: Row, labels: Mapping[str, str], mounts: Mapping[str, Float64Array]
) -> ScanFiles:
    mount = mounts[row["calibrated_sensor_token"]]
    return ScanFiles(folder / row["filename"], folder / labels[row["token"]], mount, row["timestamp"] * 1000)


def read_scan(files: ScanFiles) -> LabelledScan:
    """Return a sweep, x ahead and y left, with its labels.

    Raises:
        InputError: a file is missing, has the wrong size or holds what it must not.
    """
    cloud = read_sweep(files.sweep, files.stamp_ns)
    raw = read_raw_labels(files.labels, _LABEL, len(cloud))
    check_known(files.labels, raw, range(len(LIDARSEG_CATEGORIES)))
    return LabelledScan(cloud, raw, files.base_from_lidar)


def _check_categories(path: Path) -> None:
    """Raise InputError where the labels do not mean what they mean in lidarseg."""
    rows = _rows(path, {"name": str})
    if not all(isinstance(row.get("index"), int) for row in rows):
        expected = "rows with an index, as in the category.json of the archive of lidarseg"
        raise InputError(describe(str(path), expected=expected, found="that of nuScenes without lidarseg"))
    found = {row["index"]: row["name"] for row in rows}
    for index, name in enumerate(LIDARSEG_CATEGORIES):
        if found.get(index) != name:
            raise InputError(describe(str(path), expected=f"{name} at index {index}", found=found.get(index)))


def _check_scenes(path: Path, there: set[str], wanted: Collection[str]) -> None:
    missing = sorted(set(wanted) - there)
    if missing or not wanted:
        expected = _shortened(missing) if missing else "at least one scene"
        raise InputError(describe(str(path), expected=expected, found=_shortened(sorted(there))))


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - SCENES_SHOWN} more" if len(names) > SCENES_SHOWN else ""
    return ", ".join(names[:SCENES_SHOWN]) + more or "none"


def _rows(path: Path, types: Mapping[str, type]) -> list[dict[str, Any]]:
    """Return the rows of one of the small tables that lidarseg brings."""
    expected = f"a JSON list of rows with {', '.join(types)}"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(describe(str(path), expected=expected, found="no such file")) from None
    except (OSError, ValueError) as error:
        raise InputError(describe(str(path), expected=expected, found=error)) from error
    if not isinstance(rows, list):
        raise InputError(describe(str(path), expected=expected, found=type(rows).__name__))
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), types[key]) for key in types):
            raise InputError(describe(f"row {number} of {path}", expected=expected, found=row))
    return rows


def _mounts(tables: Path, tokens: Collection[str]) -> dict[str, Float64Array]:
    """Return base_link from the LiDAR, x ahead and y left, by token of its calibration."""
    rows = {row["token"]: row for row in table_rows(tables, "calibrated_sensor") if row["token"] in tokens}
    return {token: _mount(reference(rows, token, tables, "calibrated_sensor"), tables) for token in tokens}


def _mount(row: Row, tables: Path) -> Float64Array:
    try:
        numbers = np.array([*row["translation"], *row["rotation"]], np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.shape != (7,) or not np.isfinite(numbers).all() or abs(np.linalg.norm(numbers[3:]) - 1) > 0.01:
        name = f"{row['token']} in {tables / 'calibrated_sensor.json'}"
        found = f"{row['translation']}, {row['rotation']}"
        raise InputError(describe(name, expected="a translation and a unit quaternion", found=found))
    x, y, z, qw, qx, qy, qz = (numbers / [1, 1, 1, *[np.linalg.norm(numbers[3:])] * 4]).tolist()
    base_from_nuscenes = pose_matrix((x, y, z), (qx, qy, qz, qw))
    return np.asarray(base_from_nuscenes @ NUSCENES_FROM_LIDAR)

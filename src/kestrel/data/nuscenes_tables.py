# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The tables of nuScenes, as far as one scene needs them: who measured what, when and where, and the boxes.

The schema is that of nuScenes v1.0. Rotations are stored as w, x, y, z; stamps are microseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import ijson
import numpy as np

from kestrel.data.trajectory import pose_matrix
from kestrel.errors import InputError, describe
from kestrel.types import Float64Array

LIDAR: Final = "LIDAR_TOP"
TABLES: Final = {
    "scene": ("token", "name"),
    "log": ("token", "location"),
    "sample": ("token", "timestamp", "scene_token"),
    "sensor": ("token", "channel", "modality"),
    "calibrated_sensor": ("token", "sensor_token", "translation", "rotation", "camera_intrinsic"),
    "sample_data": (
        *("token", "sample_token", "ego_pose_token", "calibrated_sensor_token", "timestamp"),
        *("is_key_frame", "filename", "width", "height"),
    ),
    "ego_pose": ("token", "timestamp", "translation", "rotation"),
    "sample_annotation": (
        *("token", "sample_token", "instance_token", "attribute_tokens", "translation", "size", "rotation"),
        *("num_lidar_pts", "num_radar_pts", "prev", "next"),
    ),
    "instance": ("token", "category_token"),
    "category": ("token", "name"),
    "attribute": ("token", "name"),
}
"""The fields that are read of every table."""

TYPES: Final[dict[str, type]] = {
    **dict.fromkeys(("timestamp", "width", "height", "num_lidar_pts", "num_radar_pts"), int),
    **dict.fromkeys(("translation", "rotation", "size", "camera_intrinsic", "attribute_tokens"), list),
    "is_key_frame": bool,
}
"""Types of fields; all others are texts."""

BEGINNING: Final = 64
"""Bytes in which a list must begin."""

NAMES_SHOWN: Final = 10
"""Of what there is instead of what was looked for."""

Row = dict[str, Any]
T = TypeVar("T")


class Mount(NamedTuple):
    """Where a sensor is on the vehicle, and the (3, 3) matrix of a camera in pixels."""

    base_from_sensor: Float64Array
    camera_matrix: Float64Array | None


class Measurement(NamedTuple):
    """One file of a sensor: a sweep, or a picture of ``size`` (width, height) in pixels.

    key: token of the sample of which it is the key frame, or None.
    """

    stamp_ns: int
    channel: str
    path: Path
    key: str | None
    pose: str
    size: tuple[int, int]


class EgoPose(NamedTuple):
    """Where the vehicle was on the map."""

    stamp_ns: int
    global_from_base: Float64Array


class Annotation(NamedTuple):
    """One box of one sample on the map; ``size`` is length, width, height.

    num_points: of LiDAR and radar together; the benchmark does not count a box without any.
    previous, next: tokens of the same instance's boxes in the samples around it, or empty.
    """

    sample: str
    instance: str
    category: str
    attributes: tuple[str, ...]
    global_from_box: Float64Array
    size: Float64Array
    num_points: int
    previous: str
    next: str


@dataclass(frozen=True)
class SceneRecord:
    """One scene of nuScenes.

    log: token of the log that it is of; ``location`` tells where that was.
    mounts: of the LiDAR and the cameras, by channel. measurements: of those sensors, by stamp.
    poses: by token, of all sweeps, and of the first picture where that comes before them.
    samples: stamps in nanoseconds, by token.
    annotations: by token; empty where the data set has none, as in its test part.
    """

    folder: Path
    log: str
    mounts: Mapping[str, Mount]
    measurements: tuple[Measurement, ...]
    poses: Mapping[str, EgoPose]
    samples: Mapping[str, int]
    annotations: Mapping[str, Annotation]


def read_scene(root: Path, version: str, name: str | None) -> SceneRecord:
    """Read one scene; every table is read once, and only the rows of the scene are kept.

    Args:
        root: folder with the folder of the tables.
        version: name of that, such as v1.0-mini.
        name: of the scene, or None for the first one.

    Raises:
        InputError: a table is missing or is not what it should be, or there is no such scene.
    """
    folder = root / version
    if not folder.is_dir():
        there = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
        raise InputError(describe("tables of nuScenes", expected=f"folder {folder}", found=_shortened(there)))
    scene = _chosen_scene(folder, name)
    rows = [row for row in table_rows(folder, "sample") if row["scene_token"] == scene["token"]]
    if not rows:
        expected = f"samples of {scene['name']}"
        raise InputError(describe(str(_path(folder, "sample")), expected=expected, found="none"))
    samples = {row["token"]: row["timestamp"] * 1000 for row in rows}
    mounts, measurements = _measurements(root, folder, samples)
    sweeps = [item for item in measurements if item.channel == LIDAR]
    keys = len({item.key for item in sweeps} & samples.keys())
    if keys < len(samples):
        expected = f"a {LIDAR} key frame for each of the {len(samples)} samples of {scene['name']}"
        raise InputError(describe(str(_path(folder, "sample_data")), expected=expected, found=keys))
    annotations = _annotations(folder, samples)
    poses = _poses(folder, [*measurements[:1], *sweeps])
    log = str(scene.get("log_token", ""))
    return SceneRecord(folder, log, mounts, measurements, poses, samples, annotations)


def location(record: SceneRecord) -> str:
    """Return the name of the place where a scene was driven, such as singapore-onenorth.

    Raises:
        InputError: the table of logs is missing or is not what it should be.
    """
    logs = {row["token"]: str(row["location"]) for row in table_rows(record.folder, "log")}
    return reference(logs, record.log, record.folder, "log")


def table_rows(folder: Path, name: str) -> Iterator[Row]:
    """Yield the rows of a table; it is never in memory as a whole.

    Raises:
        InputError: it is missing, is no list of rows, or a row lacks a field.
    """
    path, types = _path(folder, name), {field: TYPES.get(field, str) for field in TABLES[name]}
    if not path.is_file():
        raise InputError(describe(str(path), expected="a JSON list", found="no such file"))
    try:
        with path.open("rb") as stream:
            beginning = stream.read(BEGINNING).lstrip()
            if not beginning.startswith(b"["):  # of anything else there are no items, in silence
                found = "an object" if beginning.startswith(b"{") else beginning or "nothing"
                raise InputError(describe(str(path), expected="a JSON list", found=found))
            stream.seek(0)
            for number, row in enumerate(ijson.items(stream, "item", use_float=True)):
                yield _checked(row, types, f"row {number} of {path}")
    except ijson.JSONError as error:
        found = str(error).partition("\n")[0]
        raise InputError(describe(str(path), expected="a complete JSON list", found=found)) from error


def _checked(row: Any, types: Mapping[str, type], name: str) -> Row:
    if not isinstance(row, dict) or not all(isinstance(row.get(key), types[key]) for key in types):
        expected = ", ".join(f"{key} ({kind.__name__})" for key, kind in types.items())
        fields = row.items() if isinstance(row, dict) else [("no object", row)]
        found = ", ".join(f"{key} ({type(value).__name__})" for key, value in fields)
        raise InputError(describe(name, expected=expected, found=found))
    return row


def reference(rows: Mapping[str, T], token: str, folder: Path, name: str) -> T:
    """Return the row of a table to which another one points.

    Raises:
        InputError: there is none.
    """
    if not isinstance(token, str) or token not in rows:  # of lists of tokens the items are not checked
        raise InputError(
            describe(str(_path(folder, name)), expected=f"a row with token {token}", found="none")
        )
    return rows[token]


def _path(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _chosen_scene(folder: Path, name: str | None) -> Row:
    scenes = list(table_rows(folder, "scene"))
    chosen = [row for row in scenes if name is None or row["name"] == name]
    if not chosen:
        expected = "at least one" if name is None else name
        names = _shortened([row["name"] for row in scenes])
        raise InputError(describe(f"scene in {_path(folder, 'scene')}", expected=expected, found=names))
    return chosen[0]


def _measurements(
    root: Path, folder: Path, samples: Mapping[str, int]
) -> tuple[dict[str, Mount], tuple[Measurement, ...]]:
    """Return what LiDAR and cameras measured in a scene, and where they are."""
    sensors = {row["token"]: row for row in table_rows(folder, "sensor")}
    calibrations = {row["token"]: row for row in table_rows(folder, "calibrated_sensor")}
    used: dict[str, Row] = {}
    measurements = []
    for row in table_rows(folder, "sample_data"):
        if row["sample_token"] not in samples:
            continue
        calibration = reference(calibrations, row["calibrated_sensor_token"], folder, "calibrated_sensor")
        sensor = reference(sensors, calibration["sensor_token"], folder, "sensor")
        channel = sensor["channel"]
        if channel != LIDAR and sensor["modality"] != "camera":
            continue
        if used.setdefault(channel, calibration) is not calibration:
            found = f"{used[channel]['token']} and {calibration['token']}"
            name = f"calibrated_sensor_token of {channel} in {_path(folder, 'sample_data')}"
            raise InputError(describe(name, expected="the same in the whole scene", found=found))
        key = row["sample_token"] if row["is_key_frame"] else None
        size = (row["width"], row["height"])
        stamp, path = row["timestamp"] * 1000, root / row["filename"]
        measurements.append(Measurement(stamp, channel, path, key, row["ego_pose_token"], size))
    path = _path(folder, "calibrated_sensor")
    mounts = {
        channel: Mount(
            _pose(row, path), None if channel == LIDAR else _numbers(row, "camera_intrinsic", (3, 3), path)
        )
        for channel, row in sorted(used.items())
    }
    return mounts, tuple(sorted(measurements, key=lambda item: (item.stamp_ns, item.channel)))


def _poses(folder: Path, measurements: Iterable[Measurement]) -> dict[str, EgoPose]:
    wanted = {item.pose for item in measurements}
    path = _path(folder, "ego_pose")
    rows = (row for row in table_rows(folder, "ego_pose") if row["token"] in wanted)
    poses = {row["token"]: EgoPose(row["timestamp"] * 1000, _pose(row, path)) for row in rows}
    for token in sorted(wanted):
        reference(poses, token, folder, "ego_pose")
    return poses


def _annotations(folder: Path, samples: Mapping[str, int]) -> dict[str, Annotation]:
    rows = [row for row in table_rows(folder, "sample_annotation") if row["sample_token"] in samples]
    wanted = {row["instance_token"] for row in rows}
    instances = {row["token"]: row for row in table_rows(folder, "instance") if row["token"] in wanted}
    categories = {row["token"]: row["name"] for row in table_rows(folder, "category")}
    attributes = {row["token"]: row["name"] for row in table_rows(folder, "attribute")}
    path = _path(folder, "sample_annotation")
    annotations = {}
    for row in rows:
        instance = reference(instances, row["instance_token"], folder, "instance")
        width, length, height = _numbers(row, "size", (3,), path)
        annotations[row["token"]] = Annotation(
            row["sample_token"],
            row["instance_token"],
            reference(categories, instance["category_token"], folder, "category"),
            tuple(reference(attributes, token, folder, "attribute") for token in row["attribute_tokens"]),
            _pose(row, path),
            np.array([length, width, height]),
            row["num_lidar_pts"] + row["num_radar_pts"],
            row["prev"],
            row["next"],
        )
    return annotations


def _pose(row: Row, path: Path) -> Float64Array:
    x, y, z = _numbers(row, "translation", (3,), path).tolist()
    rotation = _numbers(row, "rotation", (4,), path)
    length = float(np.linalg.norm(rotation))
    if abs(length - 1) > 0.01:
        name = f"rotation of {row['token']} in {path}"
        raise InputError(describe(name, expected="a unit quaternion", found=row["rotation"]))
    qw, qx, qy, qz = (rotation / length).tolist()
    return pose_matrix((x, y, z), (qx, qy, qz, qw))


def _numbers(row: Row, field: str, shape: tuple[int, ...], path: Path) -> Float64Array:
    try:
        values = np.array(row[field], np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.shape != shape or not np.isfinite(values).all():
        expected = f"{' x '.join(map(str, shape))} finite numbers"
        raise InputError(
            describe(f"{field} of {row['token']} in {path}", expected=expected, found=row[field])
        )
    return values


def _shortened(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more or "none"

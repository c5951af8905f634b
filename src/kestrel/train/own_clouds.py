# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Labelled clouds from elsewhere as training data of Kestrel-Seg."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from kestrel.classes import IGNORE, POINT_CLASSES, SEMANTIC_KITTI_CLASSES
from kestrel.data.bag import BAG
from kestrel.data.labelled_scan import ScanFiles
from kestrel.data.semantickitti import is_sequence, read_scan, sequence_files
from kestrel.errors import InputError, describe
from kestrel.label_maps import OFFICIAL_RAW_LABELS, POINT_CLASS_OF_KITTI, class_of_raw
from kestrel.train import cache
from kestrel.train.drive_file import Holds
from kestrel.train.imported_drive import imported_drive, write_drive
from kestrel.train.progress import track
from kestrel.types import Float32Array, UInt8Array

FRAME_HZ: Final = 1.0
"""Of imported key frames: nothing is known of how they follow each other, and nothing uses it."""


def import_clouds(source: Path, data: Path, split: str) -> Path:
    """Write the clouds of a folder as one drive of a split; return it. It appears whole or not at all.

    Args:
        source: the folder of a sequence of SemanticKITTI, or of .npz files. ``points`` (N, 4): x ahead, y
            left, z up from the road below the vehicle in metres, intensity 0..1. ``label`` (N,): index into
            POINT_CLASSES, IGNORE where it has none.
        data: folder of the splits.
        split: a split of frames with LiDAR, for training, validation or test.

    Raises:
        ConfigError: no such split.
        InputError: there are no clouds, one is malformed, or the drive is there already.
    """
    drive = imported_drive(data, split, source.resolve().name)
    source_name = f"labelled clouds of {source.resolve().name}"
    clouds: Iterator[tuple[Float32Array, UInt8Array]]
    if is_sequence(source):
        source_name = f"SemanticKITTI {source.resolve().name}"
        clouds = map(scan_cloud, track(sequence_files(source), "sweeps"))
    elif files := sorted(source.glob("*.npz")):
        clouds = map(read_cloud, track(files, "clouds"))
    else:
        clouds_of = "a folder of .npz files (labelled clouds), a sequence of SemanticKITTI"
        expected = f"{clouds_of} or a recording ({BAG})"
        raise InputError(describe(str(source), expected=expected, found="none"))
    frames = ((number, packed(*cloud)) for number, cloud in enumerate(clouds))
    told = {"frame_hz": FRAME_HZ, "sensors": "lidar", "truth": [Holds.POINT_CLASSES]}
    write_drive(drive, frames, {"source": source_name, **told})
    return drive


def read_cloud(path: Path) -> tuple[Float32Array, UInt8Array]:
    """Return points (N, 4) and their labels (N,), those within REACH_M, which key frames hold.

    Raises:
        InputError: the file is damaged, or an array is missing or holds what is not allowed.
    """
    try:
        with np.load(path) as stored:
            points, label = np.asarray(stored["points"]), np.asarray(stored["label"])
    except cache.UNREADABLE as error:
        expected = "a .npz file of points and label"
        raise InputError(describe(str(path), expected=expected, found=error)) from error
    if points.ndim != 2 or points.shape[1] != 4 or not len(points) or points.dtype.kind not in "fiu":
        found = f"{points.shape} of {points.dtype}"
        raise InputError(describe(f"{path} points", expected="numbers (N, 4), N > 0", found=found))
    if label.shape != points.shape[:1] or label.dtype.kind not in "iu":
        found = f"{label.shape} of {label.dtype}"
        raise InputError(describe(f"{path} label", expected=f"integers ({len(points)},)", found=found))
    if not np.isfinite(points).all():
        raise InputError(describe(f"{path} points", expected="finite numbers", found="NaN or Inf"))
    intensity = points[:, 3]
    if intensity.min() < 0 or intensity.max() > 1:
        found = f"{intensity.min():g} to {intensity.max():g}"
        raise InputError(describe(f"{path} intensity", expected="0 to 1", found=found))
    unknown = np.unique(label[((label < 0) | (label >= len(POINT_CLASSES))) & (label != IGNORE)])
    if len(unknown):
        expected = f"0 to {len(POINT_CLASSES) - 1}, or {IGNORE} for no class"
        raise InputError(describe(f"{path} label", expected=expected, found=unknown[:3].tolist()))
    return _within_reach(path, points, label)


def scan_cloud(files: ScanFiles) -> tuple[Float32Array, UInt8Array]:
    """Return the same of a sweep of SemanticKITTI; other-vehicle has no class here.

    Raises:
        InputError: see kestrel.data.semantickitti.read_scan.
    """
    scan = read_scan(files)
    classes = class_of_raw(scan.raw_label, OFFICIAL_RAW_LABELS, SEMANTIC_KITTI_CLASSES)
    return _within_reach(files.sweep, scan.in_base().points, POINT_CLASS_OF_KITTI[classes])


def _within_reach(path: Path, points: NDArray[Any], label: NDArray[Any]) -> tuple[Float32Array, UInt8Array]:
    near = np.abs(points[:, :3]).max(1) < cache.REACH_M
    if not near.any():
        expected = f"some within {cache.REACH_M:g} m"
        raise InputError(describe(f"{path} points", expected=expected, found="none"))
    return points[near].astype(np.float32), label[near].astype(np.uint8)


def packed(points: Float32Array, label: UInt8Array) -> cache.CachedFrame:
    """Return a cloud as a key frame of one sweep, which knows of no boxes, map or pictures.

    Its map has no cell: zeros would say that there is no road.
    """
    bytes_, ids = np.zeros(0, np.uint8), np.zeros(0, np.int64)
    places, intensity = cache.pack_points(points)
    return cache.CachedFrame(
        points=places,
        intensity=intensity,
        sweep=np.zeros(len(points), np.uint8),
        ages=np.zeros(1, np.float32),
        label=label,
        boxes=np.zeros((0, 9), np.float32),
        box_label=ids,
        box_points=ids,
        box_attribute=ids,
        map_bits=bytes_,
        pictures=bytes_,
        picture_ends=ids,
        semantics=bytes_,
        semantic_ends=ids,
        matrices=np.zeros((0, 3, 3)),
        base_from_camera=np.zeros((0, 4, 4)),
        base_from_picture=np.zeros((0, 4, 4)),
        odom_from_base=np.eye(4),
    )

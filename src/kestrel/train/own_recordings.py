# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Recordings with true boxes as training data of Kestrel-Fusion.

What the truth does not tell is not made up: there is no class of any point, no label image and mostly no map.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from kestrel.classes import DETECTION_CLASSES, IGNORE, NO_ATTRIBUTE
from kestrel.data.damaged_bag import KINDS
from kestrel.data.rig_parameters import ALL_THERE_IS, RigParameters
from kestrel.data.undistorter import Undistorter
from kestrel.errors import ConfigError, InputError, KestrelError, describe
from kestrel.eval.recorded_frames import undistorted
from kestrel.eval.recording import BASE_FRAME
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.road_view import road_view
from kestrel.train import cache
from kestrel.train.drive_file import Holds
from kestrel.train.imported_drive import imported_drive, write_drive
from kestrel.train.key_stamps import FRAME_HZ
from kestrel.train.recorded_moments import Moment, RecordedMoments
from kestrel.types import BevMap, Boxes3D, Calibration, Float32Array, Float64Array, Image, UInt8Array

BAG_FILES: Final = ("metadata.yaml", *(f"*{kind}" for kind in KINDS))
"""What a folder has that is a recording."""


def is_recording(source: Path) -> bool:
    """Return whether a path is that of a recording, and not of labelled clouds."""
    return source.is_file() or any(any(source.glob(pattern)) for pattern in BAG_FILES)


def import_recording(
    source: Path,
    data: Path,
    split: str,
    classes: Sequence[str] | None = None,
    rig: RigParameters = ALL_THERE_IS,
) -> Path:
    """Write the key frames of a recording as one drive of a split; return it.

    It appears whole or not at all. What is left out is said on standard error.

    Args:
        source: a rosbag2 folder, .mcap or .db3 file with /lidar/points and, of the same stamps,
            /truth/objects and perhaps /truth/map/LAYER.
        data: folder of the splits.
        split: a split of frames with LiDAR, for training, validation or test.
        classes: those of DETECTION_CLASSES that were labelled wherever they were; None: all that a box has.
        rig: what the fusion node is told of the sensors.

    Raises:
        ConfigError: no such split or class.
        InputError: the recording cannot be used, or the drive is there already.
    """
    unknown = sorted(set(classes or ()) - set(DETECTION_CLASSES))
    if unknown:
        expected = f"some of {', '.join(DETECTION_CLASSES)}"
        raise ConfigError(describe("--classes", expected=expected, found=", ".join(unknown)))
    name = source.resolve()
    drive = imported_drive(data, split, name.stem if name.suffix in (*KINDS, ".bag") else name.name)
    with _named(source), Console(stderr=True).status(f"reading {source}"):
        moments = RecordedMoments(source, rig)
        labelled, told = _summary(moments, classes)
    _say(moments)
    write_drive(drive, _frames(moments, labelled, source), {"source": f"recording {name.name}", **told})
    return drive


@contextmanager
def _named(source: Path) -> Iterator[None]:
    """Name the recording in errors about what it holds."""
    try:
        yield
    except KestrelError as error:
        expected = "a recording with sweeps, true boxes and calibrations"
        raise InputError(describe(str(source), expected=expected, found=error)) from error


def _frames(
    moments: RecordedMoments, labelled: NDArray[np.bool_], source: Path
) -> Iterator[tuple[int, cache.CachedFrame]]:
    with _named(source):
        for moment in moments.read():
            yield moment.number, packed(moment, labelled)


def _summary(
    moments: RecordedMoments, classes: Sequence[str] | None
) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """Return the labelled classes, and what ``drive.json`` says.

    Raises:
        InputError: there is no box or no key frame to learn from.
    """
    boxes = [_objects(truth) for truth in moments.truth.values()]
    found = {DETECTION_CLASSES[label] for each in boxes for label in each.label.tolist()}
    if not found:
        expected = f"boxes of {', '.join(DETECTION_CLASSES)}"
        raise InputError(describe("/truth/objects", expected=expected, found="none"))
    labelled = np.isin(DETECTION_CLASSES, sorted({*found, *(classes or ())}))
    if not moments.wanted:
        expected = "key frames with a picture of every camera within 0.1 s"
        missing = ", ".join(sorted(moments.without_picture))
        raise InputError(describe("pictures", expected=expected, found=f"none of {missing} in time"))
    truth = [Holds.BOXES, *([Holds.MAPS] if moments.has_maps else [])]
    if any(np.isfinite(each.velocity).all(1).any() for each in boxes):
        truth.append(Holds.VELOCITIES)
    stamps = [wanted.stamp_ns for wanted in moments.wanted]
    return labelled, {
        "seconds": (stamps[-1] - stamps[0]) * 1e-9,
        "frame_hz": FRAME_HZ,
        "sweep_s": FusionConfig.sweep_s,
        "sensors": "cameras" if moments.cameras else "lidar",
        "truth": truth,
    }


def _say(moments: RecordedMoments) -> None:
    """Say on standard error what is left out of a recording."""
    if moments.without_picture:
        missing = ", ".join(f"{count} of {name}" for name, count in sorted(moments.without_picture.items()))
        print(f"key frames without a picture of every camera are left out: {missing}", file=sys.stderr)
    if moments.without_pose:
        share = f"{moments.without_pose} of {len(moments.wanted)} key frames have no earlier sweeps"
        print(f"where the vehicle was is not known: {share}", file=sys.stderr)
    if moments.without_sweep:
        share = f"{moments.without_sweep} of {len(moments.truth)}"
        print(f"true boxes without a sweep of their stamp are left out: {share}", file=sys.stderr)
    if 0 < moments.without_map < len(moments.wanted):
        share = f"{moments.without_map} of {len(moments.wanted)}"
        print(f"maps are left out: {share} key frames have none", file=sys.stderr)
    if moments.other_truth:
        others = ", ".join(moments.other_truth)
        print(f"of the truth only boxes and maps are imported, not: {others}", file=sys.stderr)


def packed(moment: Moment, labelled_classes: NDArray[np.bool_]) -> cache.CachedFrame:
    """Return a key frame.

    Args:
        moment: what the recording has of it.
        labelled_classes: (classes,) bool, as of CachedFrame.
    """
    now = moment.sweeps[0]
    clouds = [cloud.points[np.abs(cloud.points[:, :3]).max(1) < cache.REACH_M] for cloud in moment.sweeps]
    points, intensity = cache.pack_points(np.concatenate(clouds))
    boxes, unknown = _objects(moment.truth), _table(_regions(moment.truth))
    racks = np.array(moment.racks, np.float32).reshape(-1, 7)
    shown = [rectified(image, calibration) for image, calibration in moment.pictures.values()]
    jpeg, jpeg_ends = cache.encode([picture for picture, _ in shown], ".jpg")
    return cache.CachedFrame(
        points=points,
        intensity=intensity,
        sweep=np.repeat(np.arange(len(clouds), dtype=np.uint8), [len(cloud) for cloud in clouds]),
        ages=np.array([(now.stamp_ns - cloud.stamp_ns) * 1e-9 for cloud in moment.sweeps], np.float32),
        label=np.full(len(clouds[0]), IGNORE, np.uint8),
        boxes=np.concatenate((_table(boxes), boxes.velocity), 1),
        box_label=boxes.label,
        box_points=boxes.contain(clouds[0][:, :3]).sum(1),
        box_attribute=boxes.attribute if boxes.attribute is not None else np.full(len(boxes), NO_ATTRIBUTE),
        map_bits=np.zeros(0, np.uint8) if moment.bev_map is None else map_bits(moment.bev_map),
        pictures=jpeg,
        picture_ends=jpeg_ends,
        semantics=np.zeros(0, np.uint8),
        semantic_ends=np.zeros(0, np.int64),
        matrices=_stack([calibration.camera_matrix for _, calibration in shown], (3, 3)),
        base_from_camera=_stack([calibration.reference_from_camera for _, calibration in shown], (4, 4)),
        base_from_picture=_stack(list(moment.base_from_picture.values()), (4, 4)),
        odom_from_base=np.full((4, 4), np.nan) if moment.odom_from_base is None else moment.odom_from_base,
        unlabelled=np.concatenate((unknown, racks)),
        labelled_classes=labelled_classes,
    )


def map_bits(bev_map: BevMap) -> UInt8Array:
    """Return the cells of a map as of CachedFrame.

    Raises:
        InputError: they are not those of Kestrel-Fusion.
    """
    reach, step, layers = FusionConfig.map_extent, FusionConfig.map_resolution, FusionConfig.num_layers
    cells = round(2 * reach / step)
    grid = bev_map.frame_id, bev_map.probability.shape, *np.round((*bev_map.lower, bev_map.resolution), 4)
    if grid != (BASE_FRAME, (layers, cells, cells), -reach, -reach, step):
        size = f"{layers} layers of {cells} x {cells} cells of {step:g} m"
        expected = f"{size} from -{reach:g} m on in {BASE_FRAME}"
        raise InputError(describe("/truth/map", expected=expected, found=grid))
    return np.packbits(bev_map.probability > 0.5)


def rectified(image: Image, calibration: Calibration) -> tuple[UInt8Array, Calibration]:
    """Return a picture (h, w, 3) as the cache holds it, without lens distortion, and its calibration."""
    clean, plain = undistorted(image, calibration, Undistorter(capacity=1))
    height, width = FusionConfig.image_size
    picture, kept = road_view(clean.data, plain, FusionConfig.image_size)
    scale = np.array([width / kept.width, height / kept.height])
    smaller = kept.camera_matrix.copy()
    smaller[:2] *= scale[:, None]
    smaller[:2, 2] += scale / 2 - 0.5  # the middle of the first pixel is at 0 in both
    return picture, replace(kept, camera_matrix=smaller, width=width, height=height)


def _objects(truth: Boxes3D) -> Boxes3D:
    """Return the boxes of classes that Kestrel-Fusion knows."""
    return truth.chosen(truth.label < len(DETECTION_CLASSES))


def _regions(truth: Boxes3D) -> Boxes3D:
    """Return the boxes of which it cannot learn what is in them: regions without labels, other classes."""
    return truth.chosen(truth.label >= len(DETECTION_CLASSES))


def _table(boxes: Boxes3D) -> Float32Array:
    return np.concatenate((boxes.center, boxes.size, boxes.yaw[:, None]), 1)


def _stack(matrices: list[Float64Array], shape: tuple[int, int]) -> Float64Array:
    return np.array(matrices, np.float64).reshape(-1, *shape)

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One nuScenes keyframe as a bag: six cameras and a LiDAR that see the same moment again and again.

Caesar et al., nuScenes: A multimodal dataset for autonomous driving, CVPR 2020. Its LiDAR frame has x to the
right and y ahead; clouds and boxes are turned to x ahead and y left here. Its ego frame is ``base_link``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np

from kestrel.classes import DETECTION_CLASSES
from kestrel.data import messages
from kestrel.data.perception_messages import objects_message
from kestrel.data.sensor_messages import camera_info_message, cloud_message, stored_image
from kestrel.errors import InputError, describe
from kestrel.types import Boxes3D, Calibration, Float64Array, PointCloud

NUSCENES_FROM_LIDAR: Final = np.array(
    [[0.0, -1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]
)
"""From axes x ahead, y left to those of the nuScenes LiDAR: x right, y ahead."""
POINT_BYTES: Final = 20
MOST_RINGS: Final = np.iinfo(np.uint16).max
"""Of a point of a sweep: five float32."""


def keyframe_messages(folder: Path, *, repeat: int, rate_hz: float) -> Iterator[tuple[int, str, Any]]:
    """Yield log time, topic and message of a keyframe repeated ``repeat`` times at ``rate_hz``.

    The vehicle stands still (odom -> base_link does not change), and so does all else: velocities in the
    truth are unknown. On its way from picture to sweep it moved by decimetres: cameras stand where they were.

    Raises:
        InputError: part of the keyframe is missing.
    """
    path = folder / "frame.json"
    if not path.exists():
        raise InputError(describe("nuScenes keyframe", expected=path, found="no such file"))
    content = json.loads(path.read_text())
    frame = content["frame"]
    start = round(frame["timestamp"] * 1e6) * 1000
    base_from_nuscenes = np.array(frame["lidar_points"]["lidar2ego"])
    cloud = read_sweep(folder / frame["lidar_points"]["lidar_path"], start)
    cameras = {camera_name(key): entry for key, entry in frame["images"].items()}
    pictures = {name: read_picture(folder / entry["img_path"]) for name, entry in cameras.items()}
    calibrations = {
        name: _calibration(entry, pictures[name], base_from_nuscenes) for name, entry in cameras.items()
    }
    mounts = {"lidar": base_from_nuscenes @ NUSCENES_FROM_LIDAR}
    mounts |= {f"camera_{name}_optical": item.reference_from_camera for name, item in calibrations.items()}
    categories = {index: name for name, index in content["metainfo"]["categories"].items()}
    offsets = {
        name: round((entry["timestamp"] - frame["timestamp"]) * 1e6) * 1000 for name, entry in cameras.items()
    }
    first = start + min((0, *offsets.values()))
    static = [messages.transform_message(mount, "base_link", child, first) for child, mount in mounts.items()]
    yield first, "/tf_static", messages.tf_message(static)
    for index in range(repeat):
        stamp = start + round(index * 1e9 / rate_hz)
        for name in sorted(cameras, key=lambda key: offsets[key]):
            at = stamp + offsets[name]
            for topic, message in picture_messages(pictures[name][0], calibrations[name], name, at):
                yield at, topic, message
        still = messages.transform_message(np.eye(4), "odom", "base_link", stamp)
        yield stamp, "/tf", messages.tf_message([still])
        yield stamp, "/odometry", messages.odometry_message(np.eye(4), stamp)
        sweep = PointCloud(cloud.points, stamp, "lidar", cloud.ring)
        yield stamp, "/lidar/points", cloud_message(sweep)
        yield (
            stamp,
            "/truth/objects",
            objects_message(_boxes(frame["instances"], categories, base_from_nuscenes, stamp)),
        )


def camera_name(channel: str) -> str:
    """Return what a camera of nuScenes is called here: CAM_FRONT_LEFT is front_left."""
    return channel.removeprefix("CAM_").lower()


def picture_messages(
    data: bytes, calibration: Calibration, name: str, stamp_ns: int
) -> Iterator[tuple[str, Any]]:
    """Yield topic and message of a picture of a camera (a JPEG file as it is) and of its calibration."""
    optical = f"camera_{name}_optical"
    yield f"/camera/{name}/camera_info", camera_info_message(calibration, stamp_ns, optical)
    yield f"/camera/{name}/image/compressed", stored_image(data, stamp_ns, optical)


def read_sweep(path: Path, stamp_ns: int) -> PointCloud:
    """Return the sweep with x ahead and y left; columns of the file: x, y, z, intensity 0..255, ring.

    Raises:
        InputError: there is no such file, or it does not hold whole points of finite numbers and rings.
    """
    if not path.exists():
        raise InputError(describe("nuScenes sweep", expected=path, found="no such file"))
    data = path.read_bytes()
    if not data or len(data) % POINT_BYTES:
        expected = f"points of {POINT_BYTES} bytes"
        raise InputError(describe(f"sweep {path}", expected=expected, found=f"{len(data)} bytes"))
    columns = np.frombuffer(data, "<f4").astype(np.float32).reshape(-1, 5)
    if not np.isfinite(columns).all():
        raise InputError(describe(f"sweep {path}", expected="finite numbers", found="NaN or Inf"))
    x, y, z, intensity, ring = columns.T
    if not ((ring >= 0) & (ring <= MOST_RINGS)).all():
        found = f"{ring.min():g} to {ring.max():g}"
        raise InputError(describe(f"rings of sweep {path}", expected=f"0 to {MOST_RINGS}", found=found))
    points = np.stack([y, -x, z, intensity / np.float32(255)], 1)
    return PointCloud(points, stamp_ns, "lidar", ring.astype(np.uint16))


def read_picture(path: Path) -> tuple[bytes, int, int]:
    """Return the JPEG with its width and height.

    Raises:
        InputError: there is no such file, or it is no picture.
    """
    if not path.exists():
        raise InputError(describe("nuScenes picture", expected=path, found="no such file"))
    data = path.read_bytes()
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    if decoded is None:
        raise InputError(describe(f"picture {path}", expected="a JPEG", found=f"{len(data)} bytes"))
    return data, decoded.shape[1], decoded.shape[0]


def _calibration(
    entry: dict[str, Any], picture: tuple[bytes, int, int], base_from_nuscenes: Float64Array
) -> Calibration:
    """Return where the camera was, when it took the picture, as of the vehicle at the stamp of the sweep."""
    _, width, height = picture
    base_from_camera = base_from_nuscenes @ np.linalg.inv(np.array(entry["lidar2cam"]))
    return Calibration(np.array(entry["cam2img"]), width, height, base_from_camera)


def _boxes(
    instances: list[dict[str, Any]],
    categories: dict[int, str],
    base_from_nuscenes: Float64Array,
    stamp_ns: int,
) -> Boxes3D:
    """Return the boxes of the keyframe in base_link; those of other categories are left out."""
    known = [item for item in instances if categories.get(item["bbox_label_3d"]) in DETECTION_CLASSES]
    values = np.array([item["bbox_3d"] for item in known], np.float64).reshape(-1, 7)
    center = values[:, :3] @ base_from_nuscenes[:3, :3].T + base_from_nuscenes[:3, 3]
    turn = np.arctan2(base_from_nuscenes[1, 0], base_from_nuscenes[0, 0])
    yaw = (values[:, 6] + turn + np.pi) % (2 * np.pi) - np.pi
    return Boxes3D(
        center=center.astype(np.float32),
        size=values[:, 3:6].astype(np.float32),
        yaw=yaw.astype(np.float32),
        velocity=np.full((len(known), 2), np.nan, np.float32),
        label=np.array(
            [DETECTION_CLASSES.index(categories[item["bbox_label_3d"]]) for item in known], np.int64
        ),
        score=np.ones(len(known), np.float32),
        class_names=DETECTION_CLASSES,
        frame_id="base_link",
        stamp_ns=stamp_ns,
        num_points=np.array([item["num_lidar_pts"] for item in known], np.int64),
    )

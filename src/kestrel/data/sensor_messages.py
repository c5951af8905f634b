# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Clouds, images and calibrations as ROS messages.

They are read by `kestrel.data.cloud_reader`, `picture_reader` and `camera_info`.
"""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from kestrel.data.cloud_layout import DATATYPES
from kestrel.data.messages import header, new
from kestrel.errors import InputError, describe
from kestrel.types import Calibration, PointCloud, UInt8Array

PNG_SIGNATURE: Final = b"\x89PNG"

_FIELD_CODES: Final = {np.dtype(name): code for code, name in DATATYPES.items()}
_CLOUD_FIELDS: Final = {"x": "<f4", "y": "<f4", "z": "<f4", "intensity": "<f4", "ring": "<u2", "time": "<f4"}


def packed_cloud(points: NDArray[Any], stamp_ns: int, frame_id: str) -> Any:
    """Return the sensor_msgs/PointCloud2 of a (N,) structured array, with its fields."""
    dtype = points.dtype
    assert dtype.names is not None
    assert dtype.fields is not None
    fields = [
        new(
            "sensor_msgs/msg/PointField",
            name=name,
            offset=dtype.fields[name][1],
            datatype=_FIELD_CODES[dtype.fields[name][0].newbyteorder("=")],
            count=1,
        )
        for name in dtype.names
    ]
    return new(
        "sensor_msgs/msg/PointCloud2",
        header=header(stamp_ns, frame_id),
        height=1,
        width=len(points),
        fields=fields,
        is_bigendian=False,
        point_step=dtype.itemsize,
        row_step=dtype.itemsize * len(points),
        data=np.frombuffer(points.tobytes(), np.uint8),
        is_dense=True,
    )


def cloud_message(cloud: PointCloud) -> Any:
    """Return a packed PointCloud2 with x y z intensity, and ring and time where the cloud has them."""
    columns = dict(zip(("x", "y", "z", "intensity"), cloud.points.T, strict=True))
    columns |= {} if cloud.ring is None else {"ring": cloud.ring}
    columns |= {} if cloud.time_s is None else {"time": cloud.time_s}
    points = np.zeros(len(cloud), [(name, _CLOUD_FIELDS[name]) for name in columns])
    for name, values in columns.items():
        points[name] = values
    return packed_cloud(points, cloud.stamp_ns, cloud.frame_id)


def compressed_image(picture: NDArray[Any], stamp_ns: int, frame_id: str, *, jpeg_quality: int | None) -> Any:
    """Return a CompressedImage of an RGB or grey uint8 picture: JPEG, or PNG if ``jpeg_quality`` is None."""
    fast_png = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    options = fast_png if jpeg_quality is None else [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
    suffix = ".png" if jpeg_quality is None else ".jpg"
    stored = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR) if picture.ndim == 3 else picture
    done, data = cv2.imencode(suffix, stored, options)
    if not done:
        raise InputError(describe("picture", expected="one that OpenCV can encode", found=picture.shape))
    return new(
        "sensor_msgs/msg/CompressedImage",
        header=header(stamp_ns, frame_id),
        format="png" if jpeg_quality is None else "jpeg",
        data=data.reshape(-1),
    )


def stored_image(data: bytes, stamp_ns: int, frame_id: str) -> Any:
    """Return the CompressedImage of a JPEG or PNG file as it is."""
    return new(
        "sensor_msgs/msg/CompressedImage",
        header=header(stamp_ns, frame_id),
        format="png" if data.startswith(PNG_SIGNATURE) else "jpeg",
        data=np.frombuffer(data, np.uint8),
    )


def grey_from_message(message: Any) -> UInt8Array:
    """Return the (H, W) uint8 values of a grey CompressedImage, for one of semantic ids."""
    try:
        decoded = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # where there are no bytes
        decoded = None
    if decoded is None or decoded.ndim != 2:
        raise InputError(describe("semantic image", expected="a grey PNG", found=message.format))
    return np.asarray(decoded, np.uint8)


def label_image(compressed: Any) -> Any:
    """Return the mono8 Image of a grey CompressedImage, with its header."""
    values = grey_from_message(compressed)
    return new(
        "sensor_msgs/msg/Image",
        header=compressed.header,
        height=values.shape[0],
        width=values.shape[1],
        encoding="mono8",
        is_bigendian=0,
        step=values.shape[1],
        data=values.reshape(-1),
    )


_ROS_DISTORTION: Final = {"none": "plumb_bob"}


def camera_info_message(calibration: Calibration, stamp_ns: int, frame_id: str) -> Any:
    """Return a sensor_msgs/CameraInfo; where the camera stands goes through TF."""
    matrix = calibration.camera_matrix
    without_lens = calibration.distortion_model == "none"
    return new(
        "sensor_msgs/msg/CameraInfo",
        header=header(stamp_ns, frame_id),
        height=calibration.height,
        width=calibration.width,
        distortion_model=_ROS_DISTORTION.get(calibration.distortion_model, calibration.distortion_model),
        d=np.zeros(5) if without_lens else np.asarray(calibration.distortion, np.float64),
        k=matrix.reshape(-1).astype(np.float64),
        r=np.eye(3).reshape(-1),
        p=np.hstack([matrix, np.zeros((3, 1))]).reshape(-1).astype(np.float64),
        binning_x=0,
        binning_y=0,
        roi=new(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        ),
    )

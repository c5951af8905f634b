# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Clouds, images and calibrations as ROS messages and back.

The readers take rclpy messages as well as those of `kestrel.data.bag`: the fields are the same.
"""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from kestrel.data.messages import header, new, stamp_of
from kestrel.errors import InputError, describe
from kestrel.types import Calibration, Float64Array, Image, PointCloud, UInt8Array

POINT_FIELD_TYPES: Final = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""Numpy type of each sensor_msgs/PointField datatype."""

PNG_SIGNATURE: Final = b"\x89PNG"

_FIELD_CODES: Final = {np.dtype(name): code for code, name in POINT_FIELD_TYPES.items()}
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


def cloud_fields(message: Any) -> NDArray[Any]:
    """Return the points of a PointCloud2 as a (N,) structured array over its buffer, whatever its layout.

    Raises:
        InputError: fields have no known type or do not fit into a point, or points are missing.
    """
    for field in message.fields:
        if field.datatype not in POINT_FIELD_TYPES:
            expected = f"a datatype of {min(POINT_FIELD_TYPES)} to {max(POINT_FIELD_TYPES)}"
            raise InputError(describe(f"cloud field {field.name}", expected=expected, found=field.datatype))
    order = ">" if message.is_bigendian else "<"
    formats = [
        (order + POINT_FIELD_TYPES[field.datatype], (field.count,) if field.count > 1 else ())
        for field in message.fields
    ]
    try:
        dtype = np.dtype(
            {
                "names": [field.name for field in message.fields],
                "formats": formats,
                "offsets": [field.offset for field in message.fields],
                "itemsize": message.point_step,
            }
        )
    except ValueError as error:
        expected = f"fields of different names within {message.point_step} bytes a point"
        raise InputError(describe("cloud fields", expected=expected, found=error)) from error
    data = np.frombuffer(message.data, np.uint8)
    row = message.width * message.point_step
    if message.height > 1 and message.row_step < row:
        raise InputError(
            describe("row_step of the cloud", expected=f"at least {row}", found=message.row_step)
        )
    wanted = message.height * message.row_step if message.height > 1 else row
    if message.point_step == 0 or len(data) < wanted:
        raise InputError(describe("cloud data", expected=f"{wanted} bytes", found=len(data)))
    if message.height > 1:
        rows = data[:wanted].reshape(message.height, message.row_step)
        data = np.ascontiguousarray(rows[:, :row]).reshape(-1)
    return data[: message.height * row].view(dtype)


def cloud_from_message(message: Any) -> PointCloud:
    """Return the cloud of a PointCloud2; points that are not finite are left out.

    As in the nodes intensity 1 is the largest number of an integer type, or 1, where others are clipped, and
    rings that are no integers are left out.
    """
    fields = cloud_fields(message)
    names = fields.dtype.names or ()
    if not {"x", "y", "z"} <= set(names):
        raise InputError(describe("cloud fields", expected="x, y, z", found=list(names)))
    for name in ("x", "y", "z", "intensity", "ring", "time"):
        if name in names and fields.dtype[name].shape:
            found = f"{fields.dtype[name].shape[0]} of them"
            raise InputError(describe(f"cloud field {name}", expected="one number a point", found=found))
    points = np.zeros((len(fields), 4), np.float32)
    for column, name in enumerate(("x", "y", "z", "intensity")):
        if name in names:
            points[:, column] = fields[name]
    counted = "ring" in names and fields.dtype["ring"].kind in "iu"
    ring = fields["ring"].astype(np.uint16) if counted else None
    time_s = fields["time"].astype(np.float32) if "time" in names else None
    finite = np.isfinite(points)
    if not finite.all():
        kept = finite.all(1)
        points = points[kept]
        ring = None if ring is None else ring[kept]
        time_s = None if time_s is None else time_s[kept]
    if "intensity" in names:
        kind = fields.dtype["intensity"]
        points[:, 3] = (points[:, 3] / (np.iinfo(kind).max if kind.kind in "iu" else 1)).clip(0, 1)
    return PointCloud(points, stamp_of(message), message.header.frame_id, ring, time_s)


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


def image_from_message(message: Any) -> Image:
    """Return the RGB picture of a CompressedImage or of a plain Image (rgb8, bgr8, mono8, ...)."""
    if hasattr(message, "encoding"):
        from rosbags.image import ImageError, message_to_cvimage

        try:
            picture = message_to_cvimage(message, "rgb8")
        # Too few bytes are one of the first three; OpenCV's own: no pixels, or half a pair of YUV 4:2:2.
        except (ImageError, TypeError, ValueError, cv2.error) as error:
            size = f"{message.encoding} of {message.width}x{message.height} in {len(message.data)} bytes"
            raise InputError(describe("image", expected="a known encoding, complete", found=size)) from error
    else:
        decoded = _decoded(message, cv2.IMREAD_COLOR)
        if decoded is None:
            raise InputError(describe("compressed image", expected="a JPEG or PNG", found=message.format))
        picture = cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    return Image(np.ascontiguousarray(picture), stamp_of(message), message.header.frame_id)


def _decoded(message: Any, flags: int) -> NDArray[Any] | None:
    """Return the picture of a CompressedImage, None if it is none; OpenCV raises where there are no bytes."""
    try:
        return cv2.imdecode(np.frombuffer(message.data, np.uint8), flags)
    except cv2.error:
        return None


def grey_from_message(message: Any) -> UInt8Array:
    """Return the (H, W) uint8 values of a grey CompressedImage, for one of semantic ids."""
    decoded = _decoded(message, cv2.IMREAD_UNCHANGED)
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


def calibration_from_message(message: Any, reference_from_camera: Float64Array) -> Calibration:
    """Return the calibration of a CameraInfo whose camera stands at ``reference_from_camera``."""
    model = message.distortion_model or "none"
    distortion = np.asarray(message.d, np.float64)
    if model == "plumb_bob" and not distortion.any():
        model, distortion = "none", np.zeros(0)
    matrix = np.asarray(message.k, np.float64).reshape(3, 3)
    return Calibration(matrix, message.width, message.height, reference_from_camera, model, distortion)

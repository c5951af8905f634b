# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Messages that arrive at nodes."""

from __future__ import annotations

import cv2
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField, RegionOfInterest

from kestrel.data.camera_info import read_camera_info
from kestrel.data.cloud_reader import read_cloud
from kestrel.data.picture_reader import read_image, read_labels
from kestrel.data.transform_buffer import TransformBuffer
from kestrel.data.undistorter import Undistorter
from kestrel.errors import CalibrationError, InputError
from tests.fuzz.cases import answer, cases, damaged
from tests.ros.messages import cloud_of, fill, header, picture

SIZES = st.integers(0, 40) | st.integers(0, 2**32 - 1)
NUMBERS = st.floats() | st.floats(-10, 10) | st.sampled_from([0.0, 1.0, 50.0, 1e308, -1e308, 5e-324])
FIELDS = st.builds(
    PointField,
    name=st.sampled_from(["x", "y", "z", "intensity", "ring", "time", "t", "timestamp", "", "rgb", "é"]),
    offset=SIZES,
    datatype=st.integers(0, 12),
    count=st.integers(0, 3) | st.integers(0, 2**32 - 1),
)


@cases(30)
@given(
    fields=st.lists(FIELDS, max_size=6),
    height=SIZES,
    width=SIZES,
    point_step=SIZES,
    row_step=SIZES,
    data=st.binary(max_size=400),
    big=st.booleans(),
)
def test_no_cloud_raises_anything_but_an_input_error(
    fields: list[PointField], height: int, width: int, point_step: int, row_step: int, data: bytes, big: bool
) -> None:
    message = PointCloud2(
        height=height, width=width, fields=fields, is_bigendian=big, point_step=point_step, row_step=row_step
    )
    fill(message, data)
    decoded = answer(lambda: read_cloud(message), InputError)
    assert decoded is None or decoded.total == width * height


@cases(20)
@given(
    kind=st.sampled_from(["<f4", "<f8", ">f4"]),
    time=st.sampled_from(["f4", "f8", "u4", "i4", "u1"]),
    count=st.integers(1, 8),
    data=st.data(),
)
def test_no_content_of_a_well_formed_cloud_raises(
    kind: str, time: str, count: int, data: st.DataObject
) -> None:
    names = ("x", "y", "z", "intensity")
    layout = np.dtype([*((name, kind) for name in names), ("time", kind[0] + time)])
    raw = data.draw(st.binary(min_size=layout.itemsize * count, max_size=layout.itemsize * count))
    decoded = read_cloud(cloud_of(np.frombuffer(raw, layout)))
    assert len(decoded.cloud) + decoded.invalid + decoded.far == count
    assert np.isfinite(decoded.cloud.points).all()


@cases(20)
@given(
    encoding=st.sampled_from(
        ["rgb8", "bgr8", "mono8", "8UC1", "bayer_rggb8", "yuv422", "yuyv", "rgba8", "16UC1", "nonsense"]
    ),
    height=st.integers(0, 6) | st.integers(0, 2**32 - 1),
    width=st.integers(0, 6) | st.integers(0, 2**32 - 1),
    step=SIZES,
    size=st.integers(0, 200),
    exact=st.booleans(),
)
def test_no_image_raises_anything_but_an_input_error(
    encoding: str, height: int, width: int, step: int, size: int, exact: bool
) -> None:
    message = Image(encoding=encoding, height=height, width=width, step=step)
    fill(message, bytes(min(height * step, 4000) if exact else size))
    image = answer(lambda: read_image(message), InputError)
    assert image is None or image.data.shape == (height, width, 3)
    labels = answer(lambda: read_labels(message), InputError)
    assert labels is None or labels.shape == (height, width)


FILES = [
    cv2.imencode(kind, part)[1].tobytes()
    for kind in (".jpg", ".png", ".webp", ".bmp")
    for part in (picture(16, 16), picture(9, 33)[..., 0])
]


@cases(20)
@given(data=damaged(FILES))
def test_no_file_of_a_picture_raises_anything_but_an_input_error(data: bytes) -> None:
    message = CompressedImage(format="jpeg")
    fill(message, data)
    image = answer(lambda: read_image(message), InputError)
    assert image is None or image.data.ndim == 3


def mostly(usual: st.SearchStrategy[object], other: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Draw what is usual five times of six, so that what is checked later is reached as well."""
    return st.integers(0, 5).flatmap(lambda number: usual if number else other)


def numbers(usual: list[float]) -> st.SearchStrategy[object]:
    return mostly(st.just(usual), st.lists(NUMBERS, min_size=len(usual), max_size=len(usual)))


@cases(20)
@given(
    model=mostly(
        st.sampled_from(["", "none", "plumb_bob", "rational_polynomial", "equidistant", "fisheye"]),
        st.text(max_size=5),
    ),
    width=mostly(st.integers(1, 9), SIZES),
    height=mostly(st.integers(1, 9), SIZES),
    coefficients=st.lists(st.floats(-1, 1), max_size=8) | st.lists(NUMBERS, max_size=15),
    k=numbers([50.0, 0, 4, 0, 50, 3, 0, 0, 1]) | st.lists(NUMBERS, min_size=9, max_size=9),
    r=numbers(list(np.eye(3).reshape(-1))),
    p=numbers([50.0, 0, 4, 0, 0, 50, 3, 0, 0, 0, 1, 0]),
    binning=mostly(st.integers(0, 1), SIZES),
    region=mostly(st.just(RegionOfInterest()), st.builds(RegionOfInterest, width=SIZES, x_offset=SIZES)),
    frame=st.sampled_from(["camera", "camera", "camera", ""]),
    rectified=st.booleans(),
)
def test_no_camera_info_raises_anything_but_a_calibration_error(
    model: str, width: int, height: int, coefficients: list[float], k: list[float], r: list[float],
    p: list[float], binning: int, region: RegionOfInterest, frame: str, rectified: bool,
) -> None:  # fmt: skip
    info = CameraInfo(
        header=header(0, frame), width=width, height=height, distortion_model=model, d=coefficients,
        k=k, r=r, p=p, binning_x=binning, roi=region,
    )  # fmt: skip
    intrinsics = answer(lambda: read_camera_info("front", info, rectified=rectified), CalibrationError)
    if intrinsics is None or width > 64 or height > 64:
        return
    picture_of_it = np.zeros((height, width, 3), np.uint8)
    answer(lambda: intrinsics.calibration(np.eye(4)), CalibrationError, InputError)
    undistorted = answer(lambda: Undistorter()("front", picture_of_it, intrinsics), CalibrationError)
    assert undistorted is None or undistorted.shape == picture_of_it.shape


FRAMES = st.sampled_from(["map", "odom", "base_link", "lidar", "/lidar", "camera", ""])
STAMPS = st.integers(0, 40).map(lambda tick: 10**18 + tick * 10**8) | st.sampled_from([-1, 0, 2**62])
TURNS = st.sampled_from(
    [(0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 1.0, 0.0), (0.5, 0.5, 0.5, 0.5), (0.0, 0.0, 0.0, -1.0)]
)
TRANSFORMS = st.tuples(
    FRAMES,
    FRAMES,
    STAMPS,
    st.tuples(NUMBERS, NUMBERS, NUMBERS),
    TURNS | st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS),
    st.booleans(),
)


@cases(20)
@given(said=st.lists(TRANSFORMS, max_size=12), asked=st.lists(st.tuples(FRAMES, FRAMES, STAMPS), max_size=6))
def test_no_transform_raises_anything_but_a_calibration_error(
    said: list[tuple[str, str, int, tuple[float, float, float], tuple[float, float, float, float], bool]],
    asked: list[tuple[str, str, int]],
) -> None:
    buffer = TransformBuffer()
    for parent, child, stamp, shift, turn, static in said:
        buffer.add(parent, child, stamp, shift, turn, static=static)
    for target, source, stamp in asked:
        pose = answer(lambda t=target, s=source, at=stamp: buffer.lookup(t, s, at), CalibrationError)
        if pose is not None:
            assert np.isfinite(pose).all()
            np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6)

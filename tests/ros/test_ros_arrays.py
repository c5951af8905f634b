# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The seam between messages and arrays."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, PointCloud2
from std_msgs.msg import Header

from kestrel.data.cloud_layout import structured
from kestrel.data.cloud_reader import read_cloud
from kestrel.data.picture_reader import read_image, read_labels
from kestrel.errors import InputError
from kestrel_nodes.ros_arrays import cloud_message, image_message
from tests.ros.messages import START_NS, cloud, cloud_of, fill, header, jpeg, picture, raw_image

XYZ = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]


def filled(layout: list[Any] | dict[str, Any], count: int = 5) -> NDArray[np.void]:
    """Return points x = 0, 1, ..; y = -x; z = 2 in ``layout``, all other fields 0."""
    table = np.zeros(count, np.dtype(layout))
    table["x"], table["y"], table["z"] = np.arange(count), -np.arange(count), 2.0
    return table


# Clouds: layouts.

LAYOUTS: dict[str, tuple[Any, str | None, float, float]] = {
    "xyzi float32": ([*XYZ, ("intensity", "<f4")], "intensity", 0.25, 0.25),
    "xyzi uint8": ([*XYZ, ("intensity", "u1")], "intensity", 51, 0.2),
    "xyzi uint16": ([*XYZ, ("intensity", "<u2")], "intensity", 13107, 0.2),
    "xyzirc": ([*XYZ, ("intensity", "u1"), ("return_type", "u1"), ("channel", "<u2")], "intensity", 51, 0.2),
    "xyzircaedt": (
        [
            *XYZ, ("intensity", "u1"), ("return_type", "u1"), ("channel", "<u2"),
            ("azimuth", "<f4"), ("elevation", "<f4"), ("distance", "<f4"), ("time_stamp", "<u4"),
        ],
        "intensity", 51, 0.2,
    ),
    "xyzirt packed 22": (
        [*XYZ, ("intensity", "<f4"), ("ring", "<u2"), ("time", "<f4")], "intensity", 0.5, 0.5,
    ),
    "ouster": (
        {
            "names": ["x", "y", "z", "intensity", "t", "reflectivity", "ring", "ambient", "range"],
            "formats": ["<f4", "<f4", "<f4", "<f4", "<u4", "<u2", "u1", "<u2", "<u4"],
            "offsets": [0, 4, 8, 16, 20, 24, 26, 28, 32],
            "itemsize": 48,
        },
        "intensity", 1.0, 1.0,
    ),
    "reflectivity": ([*XYZ, ("reflectivity", "u1")], "reflectivity", 255, 1.0),
    "float64": ([("x", "<f8"), ("y", "<f8"), ("z", "<f8"), ("intensity", "<f8")], "intensity", 0.5, 0.5),
    "big endian": ([("x", ">f4"), ("y", ">f4"), ("z", ">f4"), ("intensity", ">f4")], "intensity", 0.5, 0.5),
    "no intensity": (XYZ, None, 0.0, 0.0),
    "fields in another order": ([("intensity", "<f4"), *reversed(XYZ)], "intensity", 0.5, 0.5),
    "with a list field": ([*XYZ, ("intensity", "<f4"), ("normal", "<f4", (3,))], "intensity", 0.5, 0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_coordinates_and_intensity_are_read_from_any_layout(name: str) -> None:
    layout, field, value, expected = LAYOUTS[name]
    table = filled(layout)
    if field is not None:
        table[field] = value
    decoded = read_cloud(cloud_of(table, 40, "top"))
    points = decoded.cloud.points
    assert points[:, :3].tolist() == [[i, -i, 2] for i in range(5)]
    assert points[:, 3] == pytest.approx(np.full(5, expected), abs=1e-6)
    assert (decoded.cloud.frame_id, decoded.cloud.stamp_ns) == ("top", START_NS + 40_000_000)
    assert bool(decoded.notes) is (field is None)


def test_an_organised_cloud_with_padded_rows_is_read_row_by_row() -> None:
    table = filled([*XYZ, ("intensity", "<f4")], 6).reshape(2, 3)
    message = cloud_of(table)
    row = message.row_step
    padded = b"".join(bytes(message.data)[i * row : (i + 1) * row] + b"\xff" * 5 for i in range(2))
    message.row_step = row + 5
    fill(message, padded)
    assert read_cloud(message).cloud.points[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_intensity_beyond_its_maximum_is_clipped_and_said() -> None:
    table = filled([*XYZ, ("intensity", "<f4")], 2)
    table["intensity"] = [30.0, 120.0]
    message = cloud_of(table)
    decoded = read_cloud(message)
    assert decoded.cloud.points[:, 3].tolist() == [1.0, 1.0]
    assert "intensity_max" in decoded.notes[0]
    scaled = read_cloud(message, intensity_max=240.0)
    assert scaled.cloud.points[:, 3].tolist() == [0.125, 0.5]
    assert scaled.notes == ()


@pytest.mark.parametrize(
    ("name", "kind", "unit"),
    [
        ("time", "<f4", 1.0),
        ("timestamp", "<f8", 1.0),
        ("t", "<u4", 1e9),
        ("time_stamp", "<u4", 1e9),
        ("offset_time", "<u4", 1e9),
    ],
)
def test_relative_times_become_seconds(name: str, kind: str, unit: float) -> None:
    table = filled([*XYZ, (name, kind)], 3)
    table[name] = np.array([0.0, 0.03, 0.06]) * unit
    time_s = read_cloud(cloud_of(table)).cloud.time_s
    assert time_s == pytest.approx([0.0, 0.03, 0.06], abs=1e-7)


@pytest.mark.parametrize("unit", [1e-9, 1.0])
def test_absolute_times_are_made_relative_to_the_stamp(unit: float) -> None:
    table = filled([*XYZ, ("timestamp", "<f8")], 2)
    table["timestamp"] = (START_NS + np.array([0, 50_000_000])) * unit
    time_s = read_cloud(cloud_of(table)).cloud.time_s
    assert time_s == pytest.approx([0.0, 0.05], abs=1e-6)


def test_a_time_that_is_none_is_not_used_and_said() -> None:
    table = filled([*XYZ, ("intensity", "<f4"), ("time", "<f4")], 2)
    table["time"] = 12345.0
    decoded = read_cloud(cloud_of(table))
    assert decoded.cloud.time_s is None
    assert "not a time near the stamp" in decoded.notes[0]


def test_the_beam_index_is_read() -> None:
    table = filled([*XYZ, ("ring", "<u2")], 3)
    table["ring"] = [3, 1, 2]
    ring = read_cloud(cloud_of(table)).cloud.ring
    assert ring is not None
    assert ring.tolist() == [3, 1, 2]


def test_unusable_points_are_counted_by_kind_and_the_others_keep_their_index() -> None:
    nan, inf = float("nan"), float("inf")
    rows = [[nan, 0, 0, 0], [1, 0, 0, 0], [0, -inf, 0, 0], [1e30, 0, 0, 0], [2, 0, 0, nan], [3, 0, 0, 0]]
    decoded = read_cloud(cloud(rows))
    assert decoded.kept.tolist() == [1, 5]
    assert decoded.cloud.points[:, 0].tolist() == [1, 3]
    assert (decoded.total, decoded.invalid, decoded.far) == (6, 3, 1)


def test_a_float64_beyond_float32_is_unusable_not_a_warning() -> None:
    table = filled([("x", "<f8"), ("y", "<f8"), ("z", "<f8")], 2)
    table["x"][0] = 1e300
    assert read_cloud(cloud_of(table)).kept.tolist() == [1]


def test_points_beyond_the_capacity_are_left_out_evenly() -> None:
    decoded = read_cloud(cloud([[float(i), 0, 0, 0] for i in range(1000)]), capacity=11)
    assert decoded.clipped == 989
    assert np.abs(np.diff(decoded.kept) - 100).max() <= 1


def test_an_empty_cloud_needs_no_fields() -> None:
    assert len(read_cloud(PointCloud2(header=header(0))).cloud) == 0


# Clouds out.


def test_a_written_cloud_reads_back() -> None:
    x = np.arange(4, dtype=np.float32)
    class_id = np.array([0, 3, 255, 16], np.uint8)
    message = cloud_message([("x", x), ("y", x), ("z", x), ("class_id", class_id)], Header(frame_id="lidar"))
    assert (message.point_step, message.row_step, message.width) == (13, 52, 4)
    assert structured(message)["class_id"].tolist() == [0, 3, 255, 16]
    assert read_cloud(message).cloud.points[:, 0].tolist() == [0, 1, 2, 3]


# Images.


BT601 = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
"""RGB in 0..1 to Y, Cb, Cr in 8 bits without offset (ITU-R BT.601)."""


def encoded_pictures() -> dict[str, NDArray[np.uint8]]:
    rgb = picture()
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    opaque = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    rggb = np.empty(rgb.shape[:2], np.uint8)
    rggb[0::2, 0::2], rggb[0::2, 1::2] = rgb[0::2, 0::2, 0], rgb[0::2, 1::2, 1]
    rggb[1::2, 0::2], rggb[1::2, 1::2] = rgb[1::2, 0::2, 1], rgb[1::2, 1::2, 2]
    yuv = rgb / 255.0 @ BT601.T + [16, 128, 128]
    chroma = np.where(np.arange(yuv.shape[1]) % 2 == 0, yuv[..., 1], np.roll(yuv[..., 2], 1, axis=1))
    return {
        "rgb8": rgb,
        "bgr8": np.ascontiguousarray(rgb[..., ::-1]),
        "rgba8": np.concatenate([rgb, opaque], axis=2),
        "bgra8": np.concatenate([rgb[..., ::-1], opaque], axis=2),
        "mono8": np.asarray(grey, np.uint8),
        "bayer_rggb8": rggb,
        "uyvy": np.stack([chroma, yuv[..., 0]], axis=-1).astype(np.uint8),
        "yuv422": np.stack([chroma, yuv[..., 0]], axis=-1).astype(np.uint8),
        "yuyv": np.stack([yuv[..., 0], chroma], axis=-1).astype(np.uint8),
        "yuv422_yuy2": np.stack([yuv[..., 0], chroma], axis=-1).astype(np.uint8),
    }


@pytest.mark.parametrize("encoding", sorted(encoded_pictures()))
@pytest.mark.parametrize("padding", [0, 7])
def test_every_encoding_is_read_as_rgb_with_and_without_padding(encoding: str, padding: int) -> None:
    data = encoded_pictures()[encoding]
    message = raw_image(data, encoding)
    if padding:
        rows = data.reshape(data.shape[0], -1)
        message.step = rows.shape[1] + padding
        fill(message, np.pad(rows, ((0, 0), (0, padding)), constant_values=77).tobytes())
    read = read_image(message).data.astype(int)
    expected = picture().astype(int)
    if encoding == "mono8":
        expected = np.repeat(data.astype(int)[..., None], 3, axis=2)
    exact = encoding[:3] in ("rgb", "bgr", "mon")
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(read - expected)[inner].max() <= (0 if exact else 20)


def test_a_jpeg_is_read_as_rgb() -> None:
    assert np.abs(read_image(jpeg()).data.astype(int) - picture()).mean() < 4


def test_a_grey_png_is_read_as_rgb() -> None:
    message = CompressedImage(header=header(0), format="png")
    fill(message, cv2.imencode(".png", picture()[..., 0])[1].tobytes())
    assert (read_image(message).data == picture()[..., :1]).all()


@pytest.mark.parametrize("encoding", ["8UC3", "16UC1", "32FC1", "mono16", "bgr16", "", "nv12", "RGB8"])
def test_an_encoding_that_does_not_say_what_the_bytes_mean_is_refused(encoding: str) -> None:
    with pytest.raises(InputError, match="image encoding"):
        read_image(raw_image(picture(), encoding))


def test_a_file_cut_at_any_place_is_refused() -> None:
    for kind in (".jpg", ".png"):
        whole = cv2.imencode(kind, picture())[1].tobytes()
        for length in range(0, len(whole) - 8, 37):
            message = CompressedImage(header=header(0))
            fill(message, whole[:length])
            with pytest.raises(InputError):
                read_image(message)


def test_written_images_read_back() -> None:
    message = image_message(picture(), header(0))
    assert (read_image(message).data == picture()).all()
    labels = picture()[..., 0].copy()
    assert (read_labels(image_message(labels, header(0))) == labels).all()


def test_a_colour_image_is_no_label_image() -> None:
    with pytest.raises(InputError, match="label image encoding"):
        read_labels(image_message(picture(), header(0)))

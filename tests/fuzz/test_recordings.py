# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Recordings: bytes of messages, what is read of them, and the files that hold them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin, Writer

from kestrel.classes import DETECTION_CLASSES
from kestrel.data import messages
from kestrel.data.bag import BagReader, BagWriter, deserialize, serialize, typestore
from kestrel.data.camera_info import read_camera_info
from kestrel.data.cloud_reader import read_cloud
from kestrel.data.perception_messages import boxes_from_message
from kestrel.data.picture_reader import read_image
from kestrel.data.sensor_messages import (
    camera_info_message,
    compressed_image,
    grey_from_message,
    label_image,
    packed_cloud,
)
from kestrel.errors import CalibrationError, InputError
from kestrel.types import Calibration
from tests.fuzz.cases import answer, cases, damaged

STAMP = 1_700_000_000_123_456_789
PICTURE = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
TABLE = np.zeros(5, [(name, "<f4") for name in ("x", "y", "z", "intensity", "time")] + [("ring", "<u2")])
MATRIX = np.array([[40.0, 0, 4], [0, 40, 4], [0, 0, 1]])


def read_grey(message: Any) -> Any:
    return grey_from_message(message), label_image(message)


def perceived() -> Any:
    at = messages.pose((1.0, 2.0, 0.5), messages.yaw_quaternion(0.3))
    zeros, unknown = messages.vector3(0, 0, 0), np.zeros(36)
    still = messages.new("geometry_msgs/msg/Twist", linear=zeros, angular=zeros)
    return messages.new(
        "kestrel_msgs/msg/PerceivedObject",
        class_id="car",
        score=0.5,
        track_id=3,
        num_points=7,
        size=messages.vector3(4, 2, 1),
        pose=messages.new("geometry_msgs/msg/PoseWithCovariance", pose=at, covariance=unknown),
        twist=messages.new("geometry_msgs/msg/TwistWithCovariance", twist=still, covariance=unknown),
    )


CALIBRATION = Calibration(MATRIX, 9, 8, np.eye(4))
GOOD: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "cloud": (packed_cloud(TABLE, STAMP, "lidar"), read_cloud),
    "jpeg": (compressed_image(PICTURE, STAMP, "front", jpeg_quality=90), read_image),
    "png": (compressed_image(PICTURE[..., 0], STAMP, "front", jpeg_quality=None), read_grey),
    "image": (
        label_image(compressed_image(PICTURE[..., 0], STAMP, "front", jpeg_quality=None)),
        read_image,
    ),
    "camera_info": (
        camera_info_message(CALIBRATION, STAMP, "front"),
        lambda message: read_camera_info("front", message).calibration(np.eye(4)),
    ),
    "tf": (
        messages.tf_message([messages.transform_message(np.eye(4), "odom", "base_link", STAMP)]),
        lambda message: [messages.transform_from_message(item.transform) for item in message.transforms],
    ),
    "scores": (
        messages.classification_message({"car": 0.5, "bus": 0.2}, STAMP, "front"),
        messages.best_class,
    ),
}
RAW = {name: (serialize(message), message.__msgtype__, read) for name, (message, read) in GOOD.items()}


def objects() -> bytes:
    fields = {"header": messages.header(STAMP, "base_link"), "objects": [perceived(), perceived()]}
    kind = typestore().types["kestrel_msgs/msg/PerceivedObjects"]
    empty = {"modality": "", "sensors_used": [], "sensors_missing": []}
    names = [name for name in kind.__dataclass_fields__ if name != "__msgtype__"]
    return serialize(kind(**{name: fields.get(name, empty.get(name)) for name in names}))


OBJECTS = objects()


@cases(24)
@given(name=st.sampled_from(sorted(RAW)), data=st.data())
def test_no_bytes_of_a_message_raise_anything_but_an_input_error(name: str, data: st.DataObject) -> None:
    good, msgtype, read = RAW[name]
    raw = data.draw(damaged([good]) | st.binary(max_size=200))
    message = answer(lambda: deserialize(raw, msgtype, topic="/topic"), InputError)
    answer(lambda: messages.source_of(msgtype, raw), InputError)
    if message is not None:
        answer(lambda: read(message), InputError, CalibrationError)


@cases(6)
@given(data=st.data())
def test_no_bytes_of_objects_raise_anything_but_an_input_error(data: st.DataObject) -> None:
    msgtype = "kestrel_msgs/msg/PerceivedObjects"
    raw = data.draw(damaged([OBJECTS]))
    message = answer(lambda: deserialize(raw, msgtype, topic="/objects"), InputError)
    if message is not None:
        answer(lambda: boxes_from_message(message, DETECTION_CLASSES), InputError)


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a small recording of each kind."""
    folder = tmp_path_factory.mktemp("bags")
    made = {}
    for name, compress in (("plain.mcap", False), ("zstd.mcap", True)):
        with BagWriter(folder / name, compress=compress) as bag:
            for number in range(6):
                for topic, (message, _) in GOOD.items():
                    bag.write(f"/{topic}", message, STAMP + number)
        made[name] = folder / name
    with Writer(folder / "sqlite", version=9, storage_plugin=StoragePlugin.SQLITE3) as bag:
        topic = bag.add_connection("/tf", "tf2_msgs/msg/TFMessage", typestore=typestore())
        for number in range(40):
            bag.write(topic, STAMP + number, RAW["tf"][0])
    return made | {"file.db3": folder / "sqlite" / "sqlite.db3", "folder": folder / "sqlite"}


def read_all(path: Path) -> int:
    """Read whatever is there; return how many messages."""
    reader = BagReader(path)
    found = list(reader.messages())
    for message in found:
        answer(message.decode, InputError)
    reader.raise_if_damaged()
    return len(found)


@cases(6)
@given(name=st.sampled_from(["plain.mcap", "zstd.mcap", "file.db3"]), data=st.data())
def test_no_file_of_a_recording_raises_anything_but_an_input_error(
    bags: dict[str, Path], name: str, data: st.DataObject
) -> None:
    path = bags[name].with_name(f"damaged{bags[name].suffix}")
    path.write_bytes(data.draw(damaged([bags[name].read_bytes()])))
    answer(lambda: read_all(path), InputError)


@cases(2)
@given(data=st.data())
def test_no_metadata_of_a_recording_raise_anything_but_an_input_error(
    bags: dict[str, Path], data: st.DataObject
) -> None:
    folder = bags["folder"].with_name("damaged")
    shutil.copytree(bags["folder"], folder, dirs_exist_ok=True)
    (folder / "metadata.yaml").write_bytes(
        data.draw(damaged([(bags["folder"] / "metadata.yaml").read_bytes()]))
    )
    answer(lambda: read_all(folder), InputError)

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which cameras a recording has, and what they show around a moment, is the same to all who read it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from kestrel.data import messages
from kestrel.data.bag import BagReader, BagWriter
from kestrel.data.recorded_sensors import RecordedCameras, camera_infos, picture_topics
from kestrel.data.recorded_transforms import RecordedTransforms
from kestrel.eval.recorded_frames import RecordedFrames
from kestrel.eval.recording import read_recording
from kestrel.eval.scene import Scene
from kestrel.pipelines.detector import Detector
from kestrel.train.recorded_moments import RecordedMoments
from tests.train.recordings import START, STEP, Drive, base_from_camera, odom_from_base

RING = {"front": 40_000_000, "back": -20_000_000}
BOTH = frozenset(("lidar", "camera"))
LIKE_FUSION = cast(Detector, SimpleNamespace(sweeps=2, sweep_s=0.2, remove_close_m=0.0))


def cameras(stamps: dict[str, list[int]]) -> RecordedCameras:
    """Return the cameras of a recording that knows the lens of the front one; nothing of it is read."""
    return RecordedCameras(stamps, {"front": None}, cast(RecordedTransforms, None))


def test_of_a_camera_with_two_kinds_of_pictures_the_compressed_ones_count() -> None:
    raw, compressed, info = (f"/camera/front/{kind}" for kind in ("image", "image/compressed", "camera_info"))
    side = "/camera/side/image"
    for order in ((raw, compressed, info, side), (side, compressed, raw, "/lidar/points")):
        assert picture_topics(order) == {"front": compressed, "side": side}
    assert picture_topics((info,)) == {}


def test_cameras_without_a_calibration_are_told_apart() -> None:
    found = cameras({"/camera/side/image": [1], "/camera/front/image": [1]})
    assert found.topics == {"front": "/camera/front/image"}
    assert found.uncalibrated == {"side": "/camera/side/image"}


def test_a_moment_has_the_picture_that_is_told_else_the_nearest_in_time() -> None:
    topic, now = "/camera/front/image", 10 * STEP
    found = cameras({topic: [now + 90_000_000, now - 60_000_000, now - 3 * STEP]})
    assert found.keys(now) == {"front": (topic, now - 60_000_000)}
    assert found.keys(now, {"front": now + 90_000_000}) == {"front": (topic, now + 90_000_000)}
    assert found.keys(now, {"front": now + 1}) == {"front": (topic, now - 60_000_000)}
    assert found.keys(now, {"front": now - 3 * STEP}) == {}
    assert found.keys(now + 5 * STEP) == {}


def test_a_picture_knows_where_its_camera_was(tmp_path: Path) -> None:
    reader = BagReader(Drive(cameras=RING).write(tmp_path / "drive.bag"))
    found = RecordedCameras(
        {"/camera/front/image/compressed": [START]}, camera_infos(reader), RecordedTransforms(reader)
    )
    stamp, taken = START + 5 * STEP, START + 5 * STEP + RING["front"]
    message = next(
        each for each in reader.messages(["/camera/front/image/compressed"]) if each.log_time_ns == taken
    )
    picture = found.picture("front", message, stamp)
    moved = np.linalg.inv(odom_from_base(stamp)) @ odom_from_base(taken)
    np.testing.assert_allclose(picture.mounted.reference_from_camera, base_from_camera())
    np.testing.assert_allclose(picture.base_from_then, moved, atol=1e-9)
    np.testing.assert_allclose(
        picture.calibration.reference_from_camera, moved @ base_from_camera(), atol=1e-9
    )


@pytest.mark.parametrize("raw_as_well", [False, True])
def test_scores_training_and_pictures_see_the_same_cameras_at_the_same_moment(
    tmp_path: Path, raw_as_well: bool
) -> None:
    recording = Drive(cameras=RING).write(tmp_path / "drive.bag")
    if raw_as_well:
        recording = with_raw_pictures(recording, tmp_path / "both.bag")
    moments = RecordedMoments(recording)
    learned = list(moments.read())
    assert len(learned) == 3
    frames = RecordedFrames(
        read_recording(recording), [each.stamp_ns for each in moments.wanted], LIKE_FUSION, BOTH
    )
    assert sorted(Scene(recording).cameras) == sorted(moments.cameras) == sorted(RING)
    for moment, frame in zip(learned, frames, strict=True):
        assert moment.pictures.keys() == frame.images.keys() == RING.keys()
        for name, (image, mounted) in moment.pictures.items():
            assert image.stamp_ns == frame.images[name].stamp_ns == frame.stamp_ns + RING[name]
            assert (image.data == frame.images[name].data).all()
            expected = moment.base_from_picture[name] @ mounted.reference_from_camera
            assert (frame.calibrations[name].reference_from_camera == expected).all()
        assert len(moment.sweeps) == 1 + len(frame.sweeps)
        assert frame.cloud is not None
        for one, other in zip(moment.sweeps, (frame.cloud, *frame.sweeps), strict=True):
            assert (one.points == other.points).all()


def with_raw_pictures(recording: Path, out: Path) -> Path:
    """Copy a recording, with another picture that is not compressed beside each of the front camera."""
    with BagWriter(out) as bag:
        for message in BagReader(recording).messages():
            bag.write_raw(message.topic, message.msgtype, message.log_time_ns, message.raw)
            if message.topic == "/camera/front/image/compressed":
                bag.write("/camera/front/image", raw_image(message.decode()), message.log_time_ns)
    return out


def raw_image(compressed: Any) -> Any:
    return messages.new(
        "sensor_msgs/msg/Image",
        header=compressed.header,
        height=2,
        width=2,
        encoding="mono8",
        is_bigendian=0,
        step=2,
        data=np.zeros(4, np.uint8),
    )

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Writing a simulated drive, with its truth, as a rosbag2 folder.

Every message is logged when a driver could have delivered it: a sweep at its end, all else at its stamp.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

from kestrel.data import messages
from kestrel.data.bag import BagWriter, serialize
from kestrel.data.perception_messages import map_messages, objects_message
from kestrel.data.sensor_messages import camera_info_message, cloud_message, compressed_image, packed_cloud
from kestrel.files import appearing
from kestrel.sim.rig import Rig
from kestrel.sim.samples import EPOCH_NS, CameraSample, ImuSample, LidarSample, OdometrySample, Sample
from kestrel.sim.semantics import POINT_CLASS_TABLE

JPEG_QUALITY: Final = 92

TRUTH_LAYOUT: Final = np.dtype([("class_id", "u1"), ("semantic", "u1"), ("instance", "<u2")])
"""Packed truth of each point: classes.POINT_CLASSES index (255: none), Semantic, track id (0: none)."""


class Entry(NamedTuple):
    """One message: when it is logged, and its CDR bytes."""

    log_time_ns: int
    topic: str
    msgtype: str
    raw: bytes


class Encoded(NamedTuple):
    """The messages of one sample; ``sweep``: it is one of the LiDAR."""

    stamp_ns: int
    sweep: bool
    entries: tuple[Entry, ...]


def write_drive(
    samples: Iterable[Encoded],
    folder: str | Path,
    *,
    rig: Rig,
    progress: Callable[[Encoded], None] | None = None,
) -> None:
    """Write ``samples`` as a bag; the folder appears only once it is complete.

    Args:
        samples: In the order of their stamps.
        folder: To make; must not exist.
        rig: Where the sensors sit, for /tf_static.
        progress: Called with every sample before it is written.

    Raises:
        InputError: ``folder`` exists.
    """
    with appearing(Path(folder), "output folder") as unfinished, BagWriter(unfinished) as bag:
        for entry in _in_log_order(samples, rig, progress):
            bag.write_raw(entry.topic, entry.msgtype, entry.log_time_ns, entry.raw)


def encode(sample: Sample, rig: Rig) -> Encoded:
    """Return the messages of ``sample``; the LiDAR rate of ``rig`` says when a sweep ends."""
    log_time_ns = sample.stamp_ns
    if isinstance(sample, LidarSample):
        log_time_ns += round(1e9 / rig.lidar.hz)
        topics = _lidar_messages(sample)
    elif isinstance(sample, CameraSample):
        topics = _camera_messages(sample)
    elif isinstance(sample, OdometrySample):
        topics = _odometry_messages(sample)
    else:
        assert isinstance(sample, ImuSample)
        topics = {"/imu": _imu_message(sample)}
    entries = tuple(_entry(log_time_ns, topic, message) for topic, message in topics.items())
    return Encoded(sample.stamp_ns, isinstance(sample, LidarSample), entries)


def _in_log_order(
    samples: Iterable[Encoded], rig: Rig, progress: Callable[[Encoded], None] | None
) -> Iterator[Entry]:
    """Yield entries by log time; none is logged before the stamp of its sample."""
    yield _entry(EPOCH_NS, "/tf_static", _static_transforms(rig))
    order = count()
    waiting: list[tuple[int, int, Entry]] = []
    for sample in samples:
        if progress is not None:
            progress(sample)
        while waiting and waiting[0][0] < sample.stamp_ns:
            yield heapq.heappop(waiting)[-1]
        for entry in sample.entries:
            heapq.heappush(waiting, (entry.log_time_ns, next(order), entry))
    while waiting:
        yield heapq.heappop(waiting)[-1]


def _entry(log_time_ns: int, topic: str, message: Any) -> Entry:
    return Entry(log_time_ns, topic, message.__msgtype__, serialize(message))


def _static_transforms(rig: Rig) -> Any:
    mounts = {"lidar": rig.lidar.base_from_lidar, "imu": rig.base_from_imu}
    for camera in rig.cameras:
        mounts[f"camera_{camera.name}_optical"] = camera.base_from_camera
    return messages.tf_message(
        [messages.transform_message(mount, "base_link", frame, EPOCH_NS) for frame, mount in mounts.items()]
    )


def _lidar_messages(sample: LidarSample) -> dict[str, Any]:
    records = np.empty(len(sample.semantic), TRUTH_LAYOUT)
    records["class_id"] = POINT_CLASS_TABLE[sample.semantic]
    records["semantic"], records["instance"] = sample.semantic, sample.instance
    return {
        "/lidar/points": cloud_message(sample.cloud),
        "/truth/points": packed_cloud(records, sample.stamp_ns, sample.cloud.frame_id),
        "/truth/objects": objects_message(sample.truth, modality="camera+lidar"),
        **{f"/truth/map/{layer}": grid for layer, grid in map_messages(sample.bev_map).items()},
    }


def _camera_messages(sample: CameraSample) -> dict[str, Any]:
    at, name = (sample.stamp_ns, sample.image.frame_id), sample.name
    topics = {
        f"/camera/{name}/camera_info": camera_info_message(sample.calibration, *at),
        f"/camera/{name}/image/compressed": compressed_image(
            sample.image.data, *at, jpeg_quality=JPEG_QUALITY
        ),
        f"/truth/camera/{name}/semantics": compressed_image(sample.semantic, *at, jpeg_quality=None),
    }
    if sample.event is not None:
        topics["/truth/event"] = messages.classification_message({sample.event: 1.0}, *at)
    return topics


def _odometry_messages(sample: OdometrySample) -> dict[str, Any]:
    stamp_ns, motion = sample.stamp_ns, sample.odom_from_base
    return {
        "/tf": messages.tf_message([messages.transform_message(motion, "odom", "base_link", stamp_ns)]),
        "/odometry": messages.odometry_message(
            motion, stamp_ns, linear=sample.velocity, angular=sample.angular_velocity
        ),
    }


def _imu_message(sample: ImuSample) -> Any:
    return messages.imu_message(
        sample.stamp_ns,
        angular_velocity=sample.angular_velocity,
        linear_acceleration=sample.linear_acceleration,
        orientation=messages.quaternion(Rotation.from_quat(sample.orientation).as_matrix()),
    )

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Recordings and frames of which is known what they show."""

import numpy as np
from typer.testing import CliRunner

from kestrel.classes import DETECTION_CLASSES
from kestrel.cli import build_app
from kestrel.data import messages, perception_messages, sensor_messages
from kestrel.data.bag import BagWriter
from kestrel.eval.scene import Frame
from kestrel.types import Boxes3D, Calibration, PointCloud

EPOCH = 1_700_000_000 * 10**9
FORWARD = np.array([[0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]], float)
"""base_link from a camera that looks ahead, 1.5 m above the ground."""
LENS = Calibration(np.array([[200.0, 0, 160], [0, 200.0, 90], [0, 0, 1]]), 320, 180, FORWARD)


def boxes(centers, velocity=(0.0, 0.0), stamp=EPOCH):
    count = len(centers)
    return Boxes3D(
        center=np.array(centers, np.float32).reshape(count, 3),
        size=np.tile(np.array([4.0, 2.0, 1.5], np.float32), (count, 1)),
        yaw=np.zeros(count, np.float32),
        velocity=np.tile(np.array(velocity, np.float32), (count, 1)),
        label=np.zeros(count, np.int64),
        score=np.full(count, 0.9, np.float32),
        class_names=DETECTION_CLASSES,
        frame_id="base_link",
        stamp_ns=stamp,
    )


def blank(**parts):
    empty = dict.fromkeys(("points", "classes", "objects", "truth", "bev_map", "truth_event"))
    return Frame(EPOCH, 0.0, cameras=(), latencies_ms={}, **{**empty, **parts})


def record(path, *, cameras=("front",), lidar=True, frames=3, answers=True, late=0, lens=LENS, speed=None):
    """late: nanoseconds by which each camera in the list is behind the one before. speed: odometry, m/s."""
    with BagWriter(path) as bag:
        mounts = [messages.transform_message(np.eye(4), "base_link", "lidar", EPOCH)]
        mounts += [
            messages.transform_message(FORWARD, "base_link", f"{name}_optical", EPOCH) for name in cameras
        ]
        bag.write("/tf_static", messages.tf_message(mounts), EPOCH)
        for index in range(frames):
            stamp = EPOCH + index * 10**8
            if speed is not None:
                pose = np.eye(4)
                pose[0, 3] = speed * index / 10
                bag.write("/tf", messages.tf_message([pose_message(pose, stamp)]), stamp)
            if lidar:
                points = np.random.default_rng(index).uniform(-20, 20, (500, 4)).astype(np.float32)
                points[:, 3] = np.abs(points[:, 3]) / 20
                cloud = PointCloud(points, stamp, "lidar")
                bag.write("/lidar/points", sensor_messages.cloud_message(cloud), stamp)
            sweep = stamp
            for number, name in enumerate(cameras):
                stamp = sweep + number * late
                picture = np.full((180, 320, 3), 90, np.uint8)
                frame = f"{name}_optical"
                image = sensor_messages.compressed_image(picture, stamp, frame, jpeg_quality=80)
                bag.write(f"/camera/{name}/image/compressed", image, stamp)
                info = sensor_messages.camera_info_message(lens, stamp, frame)
                bag.write(f"/camera/{name}/camera_info", info, stamp)
                event = messages.classification_message({"cut_in": 0.8}, stamp, frame)
                bag.write(f"/video/output/{name}/event", event, stamp + 10**7)
            if answers:
                found = perception_messages.objects_message(boxes([(15, 0, 0.75)], (5.0, 0.0), stamp))
                bag.write("/fusion/output/objects", found, stamp + 3 * 10**7)
    return path


def pose_message(pose, stamp):
    return messages.transform_message(pose, "odom", "base_link", stamp)


def sweep(stamp, points=None):
    return sensor_messages.cloud_message(
        PointCloud(np.ones((10, 4), np.float32) if points is None else points, stamp, "lidar")
    )


def mounted(bag, rotation=None):
    mount = messages.transform_message(np.eye(4), "base_link", "lidar", EPOCH)
    if rotation is not None:
        mount.transform.rotation = messages.new("geometry_msgs/msg/Quaternion", **rotation)
    bag.write("/tf_static", messages.tf_message([mount]), EPOCH)


def show(path, *options):
    out = path.with_suffix("")
    return CliRunner().invoke(build_app(), ["show", str(path), "--out", str(out), *options]), out

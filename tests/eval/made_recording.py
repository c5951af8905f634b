# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Recordings made by hand, with known answers."""

import numpy as np

from kestrel.classes import DETECTION_CLASSES, IGNORE, MAP_LAYERS
from kestrel.data import messages, perception_messages, sensor_messages
from kestrel.data.bag import BagWriter
from kestrel.eval import baseline
from kestrel.eval.recording import read_recording
from kestrel.eval.score import figures
from kestrel.types import BevMap, Boxes3D, PointCloud

EPOCH = 1_700_000_000 * 10**9
WALL = 1_800_000_000 * 10**9
MS = 10**6


def boxes(stamp, centers, names=("car",), sizes=(4.0, 2.0, 1.5), score=1.0):
    count = len(centers)
    return Boxes3D(
        center=np.array(centers, np.float32).reshape(count, 3),
        size=np.tile(np.array(sizes, np.float32), (count, 1)).reshape(count, 3),
        yaw=np.zeros(count, np.float32),
        velocity=np.zeros((count, 2), np.float32),
        label=np.array([DETECTION_CLASSES.index(name) for name in names * count][:count], np.int64),
        score=np.full(count, score, np.float32),
        class_names=DETECTION_CLASSES,
        frame_id="base_link",
        stamp_ns=stamp,
    )


def labelled(stamp, classes):
    points = np.zeros(len(classes), [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("class_id", "u1")])
    points["class_id"] = classes
    return sensor_messages.packed_cloud(points, stamp, "base_link")


def road(stamp, half_width):
    bev = baseline.straight_road(stamp)
    side = np.abs(-50 + (np.arange(200) + 0.5) * 0.5)
    probability = np.zeros_like(bev.probability)
    probability[MAP_LAYERS.index("drivable_area")] = side < half_width
    return BevMap(probability, bev.layer_names, bev.lower, bev.resolution, bev.frame_id, stamp)


def write(path, *, sweeps=4, answered=3, latency_ms=40, frame="base_link"):
    """Half of the real cars are found; events are right in three of four frames; 30 ms between sweeps."""
    with BagWriter(path) as bag:
        bag.write("/tf_static", messages.tf_message([messages.transform_message(
            np.eye(4), "base_link", "lidar", EPOCH)]), WALL)  # fmt: skip
        for index in range(sweeps):
            stamp, sent = EPOCH + index * 100 * MS, WALL + index * 400 * MS
            cloud = PointCloud(np.zeros((4, 4), np.float32), stamp, "lidar")
            bag.write("/lidar/points", sensor_messages.cloud_message(cloud), sent)
            truth = boxes(stamp, [(10, 0, 0), (20, 5, 0)])
            bag.write("/truth/objects", perception_messages.objects_message(truth), sent)
            bag.write("/truth/points", labelled(stamp, [0, 0, 1, IGNORE]), sent)
            for layer, grid in perception_messages.map_messages(
                road(stamp, baseline.ROAD_HALF_WIDTH_M)
            ).items():
                bag.write(f"/truth/map/{layer}", grid, sent)
            event = messages.classification_message({"clear": 1.0}, stamp, "camera_front_optical")
            bag.write("/truth/event", event, sent)
            if index < answered:
                answer(bag, index, stamp, sent + latency_ms * MS, frame)
    return path


def answer(bag, index, stamp, at, frame):
    found = boxes(stamp, [(10.5, 0, 0)], score=0.9)
    message = perception_messages.objects_message(found)
    message.header.frame_id = frame
    bag.write("/fusion/output/objects", message, at - 10 * MS)
    bag.write("/segmentation/output/points", labelled(stamp, [0, 1, 1, 0]), at)
    for layer, grid in perception_messages.map_messages(road(stamp, 2 * baseline.ROAD_HALF_WIDTH_M)).items():
        bag.write(f"/fusion/output/map/{layer}", grid, at)
    scores = {"clear": 0.6, "cut_in": 0.4} if index else {"clear": 0.4, "cut_in": 0.6}
    event = messages.classification_message(scores, stamp, "camera_front_optical")
    bag.write("/video/output/front/event", event, at)


def values(path, **options):
    return {name: figure.value for name, figure in figures(read_recording(path), **options).items()}

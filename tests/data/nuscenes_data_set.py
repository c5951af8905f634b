# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A tiny data set of the layout of nuScenes, and where things in it are."""

import json
import math

import cv2
import numpy as np
import pytest

from kestrel.data.nuscenes_scene import scene_messages
from kestrel.errors import InputError

VERSION = "v1.0-mini"
START_US = 1_532_402_927_600_000
SWEEP_US, PICTURE_US, PICTURE_OFFSET_US = 50_000, 83_333, 20_000
LIDAR_AT = (0.94, 0.0, 1.84)
CAMERAS = {"CAM_BACK_LEFT": (32, 18, 110.0), "CAM_FRONT": (48, 27, 0.0)}
"""Width and height of the pictures, and degrees by which the camera is turned to the left."""
EGO_YAW, EGO_TURN = math.pi / 2, 0.2
CAR_SIZE = (4.5, 1.9, 1.5)
TABLES = (
    *("scene", "sample", "sensor", "calibrated_sensor", "sample_data", "ego_pose", "sample_annotation"),
    *("instance", "category", "attribute"),
)


def ego(seconds):
    """Return x, y, yaw of a vehicle that drives north on the map, ever faster, and turns to the left."""
    return 1000.0, 2000.0 + way(seconds), EGO_YAW + EGO_TURN * seconds


def way(seconds):
    """Return how far the vehicle has come."""
    return 10 * seconds + 3 * seconds**2


def car(seconds):
    """Return where a car is on the map, which gets faster."""
    return 1003.0, 2020.0 + 5 * seconds + 2 * seconds**2


def seen(x, y, seconds):
    """Return a place on the map as of the vehicle."""
    ego_x, ego_y, yaw = ego(seconds)
    return turned(x - ego_x, y - ego_y, yaw)


def turned(x, y, yaw):
    return math.cos(yaw) * x + math.sin(yaw) * y, math.cos(yaw) * y - math.sin(yaw) * x


def about_z(yaw):
    """Return w, x, y, z of a turn to the left."""
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def camera_rotation(degrees):
    """Return w, x, y, z: a turn about z after that of an optical frame, which looks ahead."""
    (a, _, _, d), (w, x, y, z) = about_z(math.radians(degrees)), (0.5, -0.5, 0.5, -0.5)
    return [a * w - d * z, a * x - d * y, a * y + d * x, a * z + d * w]


def sweep_file(path, seconds):
    """Write a sweep with five points in the car and one 20 m to the right of the LiDAR."""
    x, y = seen(*car(seconds), seconds)
    points = [(-y + side, x - LIDAR_AT[0], 1.0 - LIDAR_AT[2], 51.0, 3) for side in np.linspace(-0.4, 0.4, 5)]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.array([*points, (20.0, 0.0, 0.0, 255.0, 31)], np.float32).tofile(path)


def picture_file(path, width, height):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))


class DataSet:
    """A tiny nuScenes: three samples, the sweeps and pictures between them, two scenes."""

    def __init__(self, root, step_us=500_000):
        self.root, self.step_us = root, step_us
        self.tables = {name: [] for name in TABLES}
        self.samples_us = [START_US + number * step_us for number in range(3)]
        self._vehicle()
        self._scene("scene-0061", "a", self.samples_us)
        self._scene("scene-0103", "b", [START_US + 10**9])
        self._sensors_of("a", self.samples_us)
        self._measurement("b", "LIDAR_TOP", START_US + 10**9, 0, key=True)
        self._objects()
        for name in TABLES:
            self.write(name)

    def write(self, name):
        folder = self.root / VERSION
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(self.tables[name], indent=0))

    def _vehicle(self):
        mounts = {"LIDAR_TOP": ("lidar", LIDAR_AT, about_z(-math.pi / 2), [])}
        mounts["RADAR_FRONT"] = ("radar", (3.4, 0, 0.5), about_z(0), [])
        for channel, (width, height, degrees) in CAMERAS.items():
            matrix = [[40.0, 0.0, width / 2], [0.0, 41.0, height / 2], [0.0, 0.0, 1.0]]
            mounts[channel] = ("camera", (1.7, 0.1, 1.5), camera_rotation(degrees), matrix)
        for channel, (modality, at, rotation, matrix) in mounts.items():
            self.tables["sensor"].append({"token": f"s {channel}", "channel": channel, "modality": modality})
            self.tables["calibrated_sensor"].append(
                {
                    "token": f"c {channel}",
                    "sensor_token": f"s {channel}",
                    "translation": list(at),
                    "rotation": rotation,
                    "camera_intrinsic": matrix,
                }
            )

    def _scene(self, name, letter, samples_us):
        self.tables["scene"].append({"token": letter, "name": name, "log_token": "log"})
        for number, at in enumerate(samples_us):
            row = {"token": f"{letter}{number}", "timestamp": at, "scene_token": letter}
            self.tables["sample"].insert(0, row)

    def _sensors_of(self, letter, samples_us):
        end = samples_us[-1]
        for at in range(START_US, end + 1, SWEEP_US):
            number = min(-(-(at - START_US) // self.step_us), 2)
            self._measurement(letter, "LIDAR_TOP", at, number, key=at in samples_us)
        self._measurement(letter, "RADAR_FRONT", START_US + 7, 0, key=True)
        for channel, (width, height, _) in CAMERAS.items():
            for at in range(START_US - PICTURE_OFFSET_US, end, PICTURE_US):
                self._measurement(letter, channel, at, 0, key=False, size=(width, height))

    def _measurement(self, letter, channel, at, sample, *, key, size=(0, 0)):
        token, kind = f"{letter} {channel} {at}", "samples" if key else "sweeps"
        suffix = "pcd.bin" if channel == "LIDAR_TOP" else "jpg"
        name = f"{kind}/{channel}/{at}.{suffix}"
        self.tables["sample_data"].insert(
            0,
            {
                "token": token,
                "sample_token": f"{letter}{sample}",
                "ego_pose_token": token,
                "calibrated_sensor_token": f"c {channel}",
                "timestamp": at,
                "is_key_frame": key,
                "filename": name,
                "width": size[0],
                "height": size[1],
            },
        )
        seconds = (at - START_US) / 1e6
        x, y, yaw = ego(seconds)
        pose = {"token": token, "timestamp": at, "translation": [x, y, 0.0], "rotation": about_z(yaw)}
        self.tables["ego_pose"].append(pose)
        if channel == "LIDAR_TOP":
            sweep_file(self.root / name, seconds)
        elif size[0]:
            picture_file(self.root / name, *size)

    def _objects(self):
        self.tables["attribute"] = [{"token": "at", "name": "vehicle.moving"}]
        kinds = {
            "walker": "human.pedestrian.child",
            "car": "vehicle.car",
            "bin": "movable_object.pushable_pullable",
            "fence": "movable_object.barrier",
        }
        for name, category in kinds.items():
            self.tables["category"].append({"token": f"k {name}", "name": category})
            self.tables["instance"].append({"token": name, "category_token": f"k {name}"})
        for number, at in enumerate(self.samples_us):
            seconds = (at - START_US) / 1e6
            self._box(number, "car", (*car(seconds), 1.0), CAR_SIZE, 1.2, attributes=["at"])
            self._box(number, "bin", (1001.0 + seconds, 2005.0, 0.5), (1.0, 1.0, 1.0), 0.0)
            self._box(number, "walker", (996.0 - seconds, 2008.0, 0.9), (0.7, 0.6, 1.8), math.pi)
        self._box(1, "fence", (1005.0, 2003.0, 0.5), (0.5, 2.0, 1.0), 0.3, last=1)

    def _box(self, number, name, center, size, yaw, *, attributes=(), last=2):
        length, width, height = size
        alone = name == "fence"
        self.tables["sample_annotation"].append(
            {
                "token": f"{name}{number}",
                "sample_token": f"a{number}",
                "instance_token": name,
                "attribute_tokens": list(attributes),
                "translation": list(center),
                "size": [width, length, height],
                "rotation": about_z(yaw),
                "num_lidar_pts": 5,
                "num_radar_pts": 0,
                "prev": f"{name}{number - 1}" if number and not alone else "",
                "next": f"{name}{number + 1}" if number < last else "",
            }
        )

    def row(self, table, token):
        return next(row for row in self.tables[table] if row["token"] == token)

    def messages(self, scene="scene-0061"):
        return list(scene_messages(self.root, version=VERSION, scene=scene))

    def error(self):
        with pytest.raises(InputError) as caught:
            self.messages()
        return str(caught.value)

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Boxes and maps as ROS messages and back.

The readers take rclpy messages as well as those of `kestrel.data.bag`: the fields are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from kestrel.data.messages import header, new, pose, stamp_of, time_message, vector3, yaw_quaternion
from kestrel.errors import InputError, describe
from kestrel.types import BevMap, Boxes3D, Float32Array

DONT_CARE: Final = "dont_care"
"""Class of a box of the truth inside which nothing is known: what is found there counts neither way."""


def objects_message(
    boxes: Boxes3D,
    *,
    modality: str = "",
    sensors_used: Sequence[str] = (),
    sensors_missing: Sequence[str] = (),
) -> Any:
    """Return the kestrel_msgs/PerceivedObjects of boxes."""
    return new(
        "kestrel_msgs/msg/PerceivedObjects",
        header=header(boxes.stamp_ns, boxes.frame_id),
        modality=modality,
        sensors_used=list(sensors_used),
        sensors_missing=list(sensors_missing),
        objects=_object_messages(boxes),
    )


def _object_messages(boxes: Boxes3D) -> list[Any]:
    """Return one kestrel_msgs/PerceivedObject for each box; what is zero in all of them is one object."""
    unknown = np.zeros(36)
    still = vector3(0, 0, 0)
    absent = [-1] * len(boxes)
    columns = (
        *(boxes.center, boxes.size, boxes.yaw, boxes.velocity, boxes.label, boxes.score),
        *(boxes.track_id, boxes.num_points),
    )
    rows = zip(*(absent if column is None else column.tolist() for column in columns), strict=True)
    messages = []
    for center, size, yaw, (x, y), label, score, track_id, num_points in rows:
        twist = new("geometry_msgs/msg/Twist", linear=vector3(x, y, 0.0), angular=still)
        at = pose(center, yaw_quaternion(yaw))
        message = new(
            "kestrel_msgs/msg/PerceivedObject",
            class_id=boxes.class_names[label],
            score=score,
            track_id=track_id,
            pose=new("geometry_msgs/msg/PoseWithCovariance", pose=at, covariance=unknown),
            size=vector3(*size),
            twist=new("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=unknown),
            num_points=num_points,
        )
        messages.append(message)
    return messages


def boxes_from_message(message: Any, class_names: Sequence[str]) -> Boxes3D:
    """Return the boxes of a PerceivedObjects; names that are not in ``class_names`` are appended to it."""
    names = list(class_names)
    names += sorted({item.class_id for item in message.objects} - set(names))
    objects = message.objects
    centers = [item.pose.pose.position for item in objects]
    turns = [item.pose.pose.orientation for item in objects]
    speeds = [item.twist.twist.linear for item in objects]

    def table(rows: list[tuple[float, ...]], columns: int) -> Float32Array:
        return np.array(rows, np.float32).reshape(len(objects), columns)

    return Boxes3D(
        center=table([(item.x, item.y, item.z) for item in centers], 3),
        size=table([(item.size.x, item.size.y, item.size.z) for item in objects], 3),
        yaw=np.array([2 * math.atan2(item.z, item.w) for item in turns], np.float32),
        velocity=table([(item.x, item.y) for item in speeds], 2),
        label=np.array([names.index(item.class_id) for item in objects], np.int64),
        score=np.array([item.score for item in objects], np.float32),
        class_names=tuple(names),
        frame_id=message.header.frame_id,
        stamp_ns=stamp_of(message),
        track_id=np.array([item.track_id for item in objects], np.int64),
        num_points=np.array([item.num_points for item in objects], np.int64),
    )


def map_messages(bev: BevMap) -> dict[str, Any]:
    """Return one nav_msgs/OccupancyGrid per layer, by layer name; 0..100 percent."""
    info = new(
        "nav_msgs/msg/MapMetaData",
        map_load_time=time_message(bev.stamp_ns),
        resolution=float(bev.resolution),
        width=bev.probability.shape[1],
        height=bev.probability.shape[2],
        origin=pose((*bev.lower, 0.0), yaw_quaternion(0.0)),
    )
    return {
        layer: new(
            "nav_msgs/msg/OccupancyGrid",
            header=header(bev.stamp_ns, bev.frame_id),
            info=info,
            data=np.rint(bev.probability[index].T * 100).astype(np.int8).reshape(-1),
        )
        for index, layer in enumerate(bev.layer_names)
    }


def map_from_messages(grids: Mapping[str, Any]) -> BevMap:
    """Return the map of OccupancyGrids of one grid and stamp, by layer name; unknown (-1) counts as 0.

    Raises:
        InputError: grids of several sizes, of other numbers of cells than they say, of none, or of no place.
    """
    first = next(iter(grids.values()))
    layers = []
    for layer, grid in grids.items():
        shape = (grid.info.height, grid.info.width)
        cells = np.asarray(grid.data, np.int8)
        if shape != (first.info.height, first.info.width) or cells.size != shape[0] * shape[1]:
            raise InputError(describe(f"map layer {layer}", expected=f"{shape} cells", found=cells.size))
        if not cells.size:
            raise InputError(describe(f"map layer {layer}", expected="at least one cell", found=shape))
        corner = grid.info.origin.position
        if not 0 < grid.info.resolution < math.inf or not np.isfinite((corner.x, corner.y)).all():
            expected = "a finite corner, a positive and finite resolution"
            found = f"({corner.x:g}, {corner.y:g}), {grid.info.resolution:g}"
            raise InputError(describe(f"place of map layer {layer}", expected=expected, found=found))
        layers.append(np.maximum(cells, 0).reshape(shape).T / np.float32(100))
    return BevMap(
        np.stack(layers).astype(np.float32),
        tuple(grids),
        (float(first.info.origin.position.x), float(first.info.origin.position.y)),
        float(first.info.resolution),
        first.header.frame_id,
        stamp_of(first),
    )

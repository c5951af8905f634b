# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The answers of the fusion network as messages, in the frame that was asked for."""

from __future__ import annotations

import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import (
    Point,
    Pose,
    PoseWithCovariance,
    Quaternion,
    Twist,
    TwistWithCovariance,
    Vector3,
)
from kestrel_msgs.msg import PerceivedObject, PerceivedObjects
from nav_msgs.msg import MapMetaData, OccupancyGrid
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header
from vision_msgs.msg import (
    BoundingBox3D,
    Detection3D,
    Detection3DArray,
    ObjectHypothesis,
    ObjectHypothesisWithPose,
)

from kestrel.types import BevMap, Boxes3D, Float64Array
from kestrel_nodes.filled import filled

STILL = Vector3()


@dataclass(frozen=True)
class PlacedBox:
    """One box in the output frame: metres, (x, y, z, w), metres per second (NaN where unknown).

    pose_covariance, twist_covariance: (36,), row by row, of x, y, z and turns about them; 0 where unknown.
    """

    class_name: str
    score: float
    center: tuple[float, float, float]
    quaternion: tuple[float, float, float, float]
    size: tuple[float, float, float]
    velocity: tuple[float, float, float]
    track_id: int
    num_points: int
    pose_covariance: Float64Array
    twist_covariance: Float64Array

    @property
    def pose(self) -> Pose:
        """Pose of the middle of the box, x along its length."""
        x, y, z, w = self.quaternion
        turn = filled(Quaternion, x=x, y=y, z=z, w=w)
        return filled(Pose, position=point(self.center), orientation=turn)


def place_boxes(boxes: Boxes3D, output_from_base: Float64Array) -> list[PlacedBox]:
    """Return ``boxes`` moved by ``output_from_base`` (4, 4), velocities and covariances turned with them."""
    rotation = Rotation.from_matrix(output_from_base[:3, :3])
    centers = boxes.center.astype(np.float64) @ output_from_base[:3, :3].T + output_from_base[:3, 3]
    yaws = Rotation.from_euler("z", boxes.yaw.astype(np.float64)[:, None])
    quaternions = (rotation * yaws).as_quat(canonical=True) if len(boxes) else np.zeros((0, 4))
    flat = np.pad(boxes.velocity.astype(np.float64), ((0, 0), (0, 1)))
    # A turn mixes the axes, so an unknown component makes the others unknown, which NaN does by itself.
    velocities = flat @ output_from_base[:3, :3].T
    track_ids = np.full(len(boxes), -1) if boxes.track_id is None else boxes.track_id
    num_points = np.full(len(boxes), -1) if boxes.num_points is None else boxes.num_points
    rows = zip(
        [boxes.class_names[label] for label in boxes.label],
        boxes.score.tolist(),
        centers.tolist(),
        quaternions.tolist(),
        boxes.size.astype(np.float64).tolist(),
        velocities.tolist(),
        track_ids.tolist(),
        num_points.tolist(),
        *_covariances(boxes, output_from_base[:3, :3]),
        strict=True,
    )
    return [
        PlacedBox(name, score, tuple(center), tuple(quaternion), tuple(size), tuple(velocity), *others)
        for name, score, center, quaternion, size, velocity, *others in rows
    ]


def _covariances(boxes: Boxes3D, rotation: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return the covariances of poses and twists (N, 36); the errors of height and turns are not known."""
    result = np.zeros((2, len(boxes), 6, 6))
    if boxes.covariance is not None:
        for into, part in zip(result, (slice(0, 2), slice(2, 4)), strict=True):
            flat = boxes.covariance[:, part, part].astype(np.float64)
            into[:, :3, :3] = rotation[:, :2] @ flat @ rotation[:, :2].T
    poses, twists = result.reshape(2, -1, 36)
    return poses, twists


def detections_message(boxes: list[PlacedBox], header: Header) -> Detection3DArray:
    """Return vision_msgs/Detection3DArray; ``class_id`` is the name of the class."""
    detections = []
    for box in boxes:
        pose = box.pose
        hypothesis = filled(
            ObjectHypothesisWithPose,
            hypothesis=filled(ObjectHypothesis, class_id=box.class_name, score=box.score),
            pose=filled(PoseWithCovariance, pose=pose, covariance=box.pose_covariance),
        )
        detections.append(
            filled(
                Detection3D,
                header=header,
                results=[hypothesis],
                bbox=filled(BoundingBox3D, center=pose, size=vector(box.size)),
                id="" if box.track_id < 0 else str(box.track_id),
            )
        )
    return Detection3DArray(header=header, detections=detections)


def objects_message(
    boxes: list[PlacedBox],
    header: Header,
    *,
    modality: str,
    used: tuple[str, ...],
    missing: tuple[str, ...],
) -> PerceivedObjects:
    """Return kestrel_msgs/PerceivedObjects: the boxes with velocity, and which sensors they come from."""
    objects = [
        filled(
            PerceivedObject,
            class_id=box.class_name,
            score=box.score,
            track_id=box.track_id,
            pose=filled(PoseWithCovariance, pose=box.pose, covariance=box.pose_covariance),
            size=vector(box.size),
            twist=filled(
                TwistWithCovariance,
                twist=filled(Twist, linear=vector(box.velocity), angular=STILL),
                covariance=box.twist_covariance,
            ),
            num_points=box.num_points,
        )
        for box in boxes
    ]
    return PerceivedObjects(
        header=header,
        modality=modality,
        sensors_used=list(used),
        sensors_missing=list(missing),
        objects=objects,
    )


def grid_messages(
    bev_map: BevMap, header: Header, output_from_base: Float64Array
) -> Iterator[tuple[str, OccupancyGrid]]:
    """Yield (layer, nav_msgs/OccupancyGrid) with the probability in percent.

    The grid keeps the axes it was computed in; its origin carries their pose in the output frame, so that no
    cell has to be resampled.
    """
    corner = output_from_base @ np.array([*bev_map.lower, 0.0, 1.0])
    x, y, z, w = Rotation.from_matrix(output_from_base[:3, :3]).as_quat(canonical=True).tolist()
    origin = Pose(position=point(tuple(corner[:3].tolist())), orientation=Quaternion(x=x, y=y, z=z, w=w))
    for name, layer in zip(bev_map.layer_names, bev_map.probability, strict=True):
        cells_x, cells_y = layer.shape
        info = MapMetaData(
            map_load_time=header.stamp,
            resolution=float(bev_map.resolution),
            width=cells_x,
            height=cells_y,
            origin=origin,
        )
        percent = np.ascontiguousarray(np.round(layer.T * 100).clip(0, 100).astype(np.int8))
        data = array.array("b")
        data.frombytes(memoryview(percent.data).cast("B"))
        yield name, OccupancyGrid(header=header, info=info, data=data)


def point(values: tuple[float, ...]) -> Point:
    """Return (x, y, z) as a message."""
    x, y, z = values
    return filled(Point, x=x, y=y, z=z)


def vector(values: tuple[float, ...]) -> Vector3:
    """Return (x, y, z) as a message."""
    x, y, z = values
    return filled(Vector3, x=x, y=y, z=z)

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Samples of simulated sensors as ROS messages."""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from kestrel.data.bag import typestore
from kestrel.sim.samples import ImuSample, LidarSample, OdometrySample
from kestrel.sim.semantics import POINT_CLASS_TABLE
from kestrel.types import BevMap, Boxes3D, Calibration, Float64Array, PointCloud, UInt8Array

JPEG_QUALITY: Final = 92

CLOUD_LAYOUT: Final = np.dtype(
    [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "<f4"), ("ring", "<u2"), ("time", "<f4")]
)
"""Packed fields of a cloud: metres, intensity 0..1, beam index, seconds after the stamp."""

TRUTH_LAYOUT: Final = np.dtype([("class_id", "u1"), ("semantic", "u1"), ("instance", "<u2")])
"""Packed truth of each point: classes.POINT_CLASSES index (255: none), Semantic, track id (0: none)."""

_FIELD_TYPE: Final = {"u1": 2, "u2": 4, "f4": 7}


def _new(msgtype: str, /, **values: Any) -> Any:
    return typestore().types[msgtype](**values)


def header(stamp_ns: int, frame_id: str) -> Any:
    """Return a std_msgs/Header."""
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    stamp = _new("builtin_interfaces/msg/Time", sec=seconds, nanosec=nanoseconds)
    return _new("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def _vector(values: Float64Array | tuple[float, float, float]) -> Any:
    x, y, z = (float(value) for value in values)
    return _new("geometry_msgs/msg/Vector3", x=x, y=y, z=z)


def _quaternion(values: Float64Array) -> Any:
    x, y, z, w = (float(value) for value in values)
    return _new("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)


def _pose(position: Float64Array, quaternion: Float64Array) -> Any:
    x, y, z = (float(value) for value in position)
    point = _new("geometry_msgs/msg/Point", x=x, y=y, z=z)
    pose = _new("geometry_msgs/msg/Pose", position=point, orientation=_quaternion(quaternion))
    return _new("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=np.zeros(36))


def _twist(linear: Float64Array | tuple[float, float, float], angular: Float64Array) -> Any:
    twist = _new("geometry_msgs/msg/Twist", linear=_vector(linear), angular=_vector(angular))
    return _new("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=np.zeros(36))


def transforms(stamp_ns: int, parent_from_child: dict[tuple[str, str], Float64Array]) -> Any:
    """Return a tf2_msgs/TFMessage; keys are (parent, child) frames, values (4, 4)."""
    stamped = [
        _new(
            "geometry_msgs/msg/TransformStamped",
            header=header(stamp_ns, parent),
            child_frame_id=child,
            transform=_new(
                "geometry_msgs/msg/Transform",
                translation=_vector(matrix[:3, 3]),
                rotation=_quaternion(Rotation.from_matrix(matrix[:3, :3]).as_quat()),
            ),
        )
        for (parent, child), matrix in parent_from_child.items()
    ]
    return _new("tf2_msgs/msg/TFMessage", transforms=stamped)


def packed_points(records: np.ndarray[Any, Any], stamp_ns: int, frame_id: str) -> Any:
    """Return a sensor_msgs/PointCloud2 of structured ``records`` (N,), packed as their dtype is."""
    layout = records.dtype.fields
    assert layout is not None
    fields = [
        _new(
            "sensor_msgs/msg/PointField",
            name=name,
            offset=entry[1],
            datatype=_FIELD_TYPE[entry[0].str[1:]],
            count=1,
        )
        for name, entry in layout.items()
    ]
    return _new(
        "sensor_msgs/msg/PointCloud2",
        header=header(stamp_ns, frame_id),
        height=1,
        width=len(records),
        fields=fields,
        is_bigendian=False,
        point_step=records.dtype.itemsize,
        row_step=records.dtype.itemsize * len(records),
        data=np.frombuffer(records.tobytes(), np.uint8),
        is_dense=True,
    )


def cloud(points: PointCloud) -> Any:
    """Return the sensor_msgs/PointCloud2 of a sweep with ring and time."""
    records = np.empty(len(points), CLOUD_LAYOUT)
    for column, name in enumerate(("x", "y", "z", "intensity")):
        records[name] = points.points[:, column]
    records["ring"], records["time"] = points.ring, points.time_s
    return packed_points(records, points.stamp_ns, points.frame_id)


def point_truth(sample: LidarSample) -> Any:
    """Return the sensor_msgs/PointCloud2 of class, semantic and instance, in the order of the sweep."""
    records = np.empty(len(sample.semantic), TRUTH_LAYOUT)
    records["class_id"] = POINT_CLASS_TABLE[sample.semantic]
    records["semantic"], records["instance"] = sample.semantic, sample.instance
    return packed_points(records, sample.stamp_ns, sample.cloud.frame_id)


def objects(boxes: Boxes3D) -> Any:
    """Return the kestrel_msgs/PerceivedObjects of true boxes."""
    assert boxes.track_id is not None
    assert boxes.num_points is not None
    half = boxes.yaw.astype(np.float64) / 2
    return _new(
        "kestrel_msgs/msg/PerceivedObjects",
        header=header(boxes.stamp_ns, boxes.frame_id),
        modality="camera+lidar",
        sensors_used=[],
        sensors_missing=[],
        objects=[
            _new(
                "kestrel_msgs/msg/PerceivedObject",
                class_id=boxes.class_names[boxes.label[i]],
                score=float(boxes.score[i]),
                track_id=int(boxes.track_id[i]),
                pose=_pose(boxes.center[i], np.array([0, 0, np.sin(half[i]), np.cos(half[i])])),
                size=_vector(boxes.size[i]),
                twist=_twist((*boxes.velocity[i], 0.0), np.zeros(3)),
                num_points=int(boxes.num_points[i]),
            )
            for i in range(len(boxes))
        ],
    )


def grid(layers: BevMap, layer: int) -> Any:
    """Return one layer as nav_msgs/OccupancyGrid, 0..100, whose rows run along x."""
    quaternion = np.array([0.0, 0, 0, 1])
    cells = np.round(100 * layers.probability[layer]).astype(np.int8)
    origin = _pose(np.array([*layers.lower, 0.0]), quaternion).pose
    info = _new(
        "nav_msgs/msg/MapMetaData",
        map_load_time=header(layers.stamp_ns, "").stamp,
        resolution=layers.resolution,
        width=cells.shape[0],
        height=cells.shape[1],
        origin=origin,
    )
    return _new(
        "nav_msgs/msg/OccupancyGrid",
        header=header(layers.stamp_ns, layers.frame_id),
        info=info,
        data=np.ascontiguousarray(cells.T).reshape(-1),
    )


def compressed(picture: UInt8Array, stamp_ns: int, frame_id: str, codec: str) -> Any:
    """Return a sensor_msgs/CompressedImage: RGB (H, W, 3) as ``jpeg``, or class ids (H, W) as ``png``."""
    if codec == "jpeg":
        _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    else:
        _, data = cv2.imencode(".png", picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return _new(
        "sensor_msgs/msg/CompressedImage",
        header=header(stamp_ns, frame_id),
        format=codec,
        data=np.asarray(data, np.uint8).reshape(-1),
    )


def camera_info(calibration: Calibration, stamp_ns: int, frame_id: str) -> Any:
    """Return the sensor_msgs/CameraInfo; a lens without distortion is a plumb_bob of zeros."""
    ideal = calibration.distortion_model == "none"
    projection = np.zeros((3, 4))
    projection[:, :3] = calibration.camera_matrix
    return _new(
        "sensor_msgs/msg/CameraInfo",
        header=header(stamp_ns, frame_id),
        height=calibration.height,
        width=calibration.width,
        distortion_model="plumb_bob" if ideal else calibration.distortion_model,
        d=np.zeros(5) if ideal else calibration.distortion.astype(np.float64),
        k=calibration.camera_matrix.reshape(-1),
        r=np.eye(3).reshape(-1),
        p=projection.reshape(-1),
        binning_x=0,
        binning_y=0,
        roi=_new(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        ),
    )


def event(name: str, stamp_ns: int, frame_id: str) -> Any:
    """Return the vision_msgs/Classification of what goes on in front."""
    hypothesis = _new("vision_msgs/msg/ObjectHypothesis", class_id=name, score=1.0)
    return _new("vision_msgs/msg/Classification", header=header(stamp_ns, frame_id), results=[hypothesis])


def odometry(sample: OdometrySample) -> Any:
    """Return the nav_msgs/Odometry, odom to base_link."""
    matrix = sample.odom_from_base
    return _new(
        "nav_msgs/msg/Odometry",
        header=header(sample.stamp_ns, "odom"),
        child_frame_id="base_link",
        pose=_pose(matrix[:3, 3], Rotation.from_matrix(matrix[:3, :3]).as_quat()),
        twist=_twist(sample.velocity, sample.angular_velocity),
    )


def imu(sample: ImuSample) -> Any:
    """Return the sensor_msgs/Imu."""
    return _new(
        "sensor_msgs/msg/Imu",
        header=header(sample.stamp_ns, "imu"),
        orientation=_quaternion(sample.orientation),
        orientation_covariance=np.zeros(9),
        angular_velocity=_vector(sample.angular_velocity),
        angular_velocity_covariance=np.zeros(9),
        linear_acceleration=_vector(sample.linear_acceleration),
        linear_acceleration_covariance=np.zeros(9),
    )

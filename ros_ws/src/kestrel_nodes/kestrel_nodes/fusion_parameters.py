# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the fusion node can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from kestrel.data.own_vehicle import OwnVehicle
from kestrel.engine import EngineName
from kestrel.errors import ConfigError, describe
from kestrel.pipelines.runtime import Precision
from kestrel_nodes.box_selection import BoxSelection
from kestrel_nodes.collector import LIDAR, CollectorSettings
from kestrel_nodes.on_device import device_parameter
from kestrel_nodes.own_vehicle import own_vehicle_parameter
from kestrel_nodes.parameters import NodeParameters, parameter
from kestrel_nodes.qos import RELIABILITY


@dataclass(frozen=True)
class FusionParameters(NodeParameters):
    """Parameters of the fusion node."""

    weights: str = parameter(
        "kestrel-fusion",
        "Name of shipped weights, or the path of a .safetensors file; a converted BEVFusion runs as well.",
    )
    engine: str = parameter(
        "auto",
        "Engine of the dense layers; auto: folded, or openvino if it is installed and measured faster at "
        "the start. On a GPU: auto, folded, eager or onnxruntime.",
        choices=get_args(EngineName),
    )
    int8_folder: str = parameter(
        "",
        "Folder of the models that `kestrel calibrate` wrote; required by the engine int8, refused by all "
        "others.",
    )
    precision: str = parameter(
        "auto",
        "Arithmetic of the convolutions; auto: bfloat16 where the processor has instructions for it, else "
        "int8 where the CPU has int8 (VNNI) instructions (not for a BEVFusion, not on a GPU), else float32.",
        choices=get_args(Precision),
    )
    threads: int = parameter(0, "Threads of the network; 0 lets torch choose.", minimum=0, maximum=256)
    device: str = device_parameter()
    score_threshold: float = parameter(
        0.1, "Boxes with a lower score are not published.", minimum=0.0, maximum=1.0
    )
    class_thresholds: tuple[str, ...] = parameter(
        (),
        "Score thresholds of single classes in place of score_threshold: CLASS=SCORE, or "
        "CLASS@METRES=SCORE from this distance on.",
    )
    class_remap: tuple[str, ...] = parameter((), "New names for classes, CLASS=NAME; CLASS= drops the class.")
    track: bool = parameter(
        True,
        "Tracking: boxes get persistent ids, and velocities and headings filtered over time. false: no "
        "ids, and the network's velocities and headings.",
    )
    track_memory_s: float = parameter(
        0.6, "How long a track survives without a matching box.", minimum=0.0, maximum=10.0
    )
    track_position_std_m: float = parameter(
        0.5, "Tracker: standard deviation of box centres along x and y.", minimum=0.01, maximum=10.0
    )
    map_memory: bool = parameter(
        True,
        "true: the map accumulates all frames so far (needs odometry); false: it is that of a single frame.",
    )
    cameras: tuple[str, ...] = parameter(
        ("front", "front_right", "back_right", "back", "back_left", "front_left"),
        "Camera names; empty: LiDAR-only.",
    )
    use_lidar: bool = parameter(True, "Whether there is a LiDAR; false: camera-only.")
    reference_camera: str = parameter(
        "",
        "Camera that triggers frames, and gives their stamp, without LiDAR; empty: the first of `cameras`.",
    )
    compressed: bool = parameter(
        True, "true: the cameras publish CompressedImage (JPEG, PNG); false: raw Image."
    )
    rectified: bool = parameter(
        False,
        "true: images are rectified (image_proc), P and R of CameraInfo are used; false: raw images, K and "
        "D are used and lens distortion is removed.",
    )
    base_frame: str = parameter(
        "base_link", "Frame of the vehicle: x forward, y left, z up, origin on the ground."
    )
    odom_frame: str = parameter("odom", "Fixed frame in which TF gives the motion of the vehicle (odometry).")
    output_frame: str = parameter(
        "base_link", "Frame of the published detections, objects, markers and map layers."
    )
    window_s: float = parameter(
        0.1,
        "Largest time difference between an image and the sweep it is fused with, before or after.",
        minimum=0.001,
        maximum=5.0,
    )
    lidar_timeout_s: float = parameter(0.2, "Longest wait of a sweep for images.", minimum=0.0, maximum=10.0)
    camera_timeout_s: float = parameter(
        0.1,
        "Without LiDAR: longest wait of an image of the leading camera for the other cameras.",
        minimum=0.0,
        maximum=10.0,
    )
    lost_after_s: float = parameter(
        1.0,
        "A camera silent for longer is not waited for; a LiDAR silent for longer hands over to "
        "`reference_camera` until its next sweep.",
        minimum=0.05,
        maximum=60.0,
    )
    sensor_offsets_s: tuple[float, ...] = parameter(
        (),
        "Seconds by which header stamps are later than the measurement: first the LiDAR, then each of "
        "`cameras` in order; subtracted before matching. Empty: all 0.",
    )
    tf_tolerance_s: float = parameter(
        0.25,
        "How far beyond the newest (or before the oldest) stamp of a TF transform its motion is "
        "extrapolated.",
        minimum=0.0,
        maximum=10.0,
    )
    deskew: bool = parameter(
        True,
        "Whether to deskew sweeps; needs a time per point and odometry (odom_frame to the sensor in TF).",
    )
    own_vehicle_box_m: tuple[float, ...] = own_vehicle_parameter()
    max_sweeps: int = parameter(
        10, "Maximum number of earlier sweeps per frame; the network may use fewer.", minimum=0, maximum=20
    )
    sweep_max_age_s: float = parameter(
        1.0, "Earlier sweeps older than this are not used.", minimum=0.01, maximum=10.0
    )
    capacity: int = parameter(
        400_000,
        "Maximum number of points per cloud; larger clouds are subsampled evenly.",
        minimum=1,
        maximum=10_000_000,
    )
    intensity_max: float = parameter(
        0.0,
        "Raw intensity that is scaled to 1 (255 for 0..255); higher values are clipped. 0: the maximum of an "
        "integer field, 1.0 for a float field.",
        minimum=0.0,
        maximum=1e9,
    )
    max_missing_cameras: int = parameter(
        3, "More missing cameras than this are ERROR, up to this many WARN.", minimum=0, maximum=64
    )
    points_reliability: str = parameter(
        "best_effort", "Reliability of the point cloud input.", choices=RELIABILITY
    )
    points_depth: int = parameter(5, "Queue depth of the point cloud input.", minimum=1, maximum=100)
    image_reliability: str = parameter("best_effort", "Reliability of the image inputs.", choices=RELIABILITY)
    image_depth: int = parameter(5, "Queue depth of each image input.", minimum=1, maximum=100)
    frozen_after: int = parameter(
        10,
        "This many identical images in a row are WARN: the camera is frozen; 0: never.",
        minimum=0,
        maximum=10000,
    )
    display_score: float = parameter(
        0.4,
        "Boxes with a lower score are published but not drawn (markers, images); 0.4 has the best F1 score "
        "on validation drives.",
        minimum=0.0,
        maximum=1.0,
    )
    pixels_per_metre: float = parameter(
        8.0, "Resolution of the bird's-eye images.", minimum=1.0, maximum=40.0
    )

    def check(self) -> None:
        """Raise ConfigError if parameters contradict each other."""
        if len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(describe("parameter cameras", expected="distinct names", found=self.cameras))
        sensors = 1 + len(self.cameras)
        if self.sensor_offsets_s and len(self.sensor_offsets_s) != sensors:
            expected = f"none or {sensors} values (LiDAR, then each camera)"
            found = len(self.sensor_offsets_s)
            raise ConfigError(describe("parameter sensor_offsets_s", expected=expected, found=found))
        OwnVehicle(self.own_vehicle_box_m)
        self.collector_settings()
        self.box_selection()

    def box_selection(self) -> BoxSelection:
        """Return which boxes are published, and under which names."""
        return BoxSelection.parse(self.score_threshold, self.class_thresholds, self.class_remap)

    def collector_settings(self) -> CollectorSettings:
        """Return the parameters of the collector."""
        return CollectorSettings(
            cameras=self.cameras,
            use_lidar=self.use_lidar,
            reference_camera=self.reference_camera,
            window_s=self.window_s,
            lidar_timeout_s=self.lidar_timeout_s,
            camera_timeout_s=self.camera_timeout_s,
            lost_after_s=self.lost_after_s,
            jump_back_s=self.jump_back_limit_s,
            offsets_s=dict(zip((LIDAR, *self.cameras), self.sensor_offsets_s, strict=False)),
        )

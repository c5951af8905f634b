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
        "What runs the dense parts; auto: folded, or openvino where it is installed and faster at the start. "
        "On a GPU: auto, folded, eager or onnxruntime.",
        choices=get_args(EngineName),
    )
    int8_folder: str = parameter(
        "",
        "Folder of quantized models by `kestrel calibrate`: the engine int8 needs it, any other refuses it.",
    )
    precision: str = parameter(
        "auto",
        "What convolutions multiply; auto: bfloat16, or else int8 (not in a BEVFusion, nor on a GPU), where "
        "the processor has instructions for it.",
        choices=get_args(Precision),
    )
    threads: int = parameter(0, "Threads of the network; 0 lets torch choose.", minimum=0, maximum=256)
    device: str = device_parameter()
    score_threshold: float = parameter(0.1, "Boxes below this score are dropped.", minimum=0.0, maximum=1.0)
    class_thresholds: tuple[str, ...] = parameter(
        (), "Other thresholds: CLASS=SCORE, or CLASS@METRES=SCORE from this distance on."
    )
    class_remap: tuple[str, ...] = parameter(
        (), "Other names for classes, CLASS=NAME; CLASS= leaves the class out."
    )
    track: bool = parameter(True, "Whether boxes get lasting ids, and velocity and course from their motion.")
    track_memory_s: float = parameter(0.6, "How long a track lives without a box.", minimum=0.0, maximum=10.0)
    track_position_std_m: float = parameter(
        0.5, "Standard deviation of the centres of boxes along x and y.", minimum=0.01, maximum=10.0
    )
    map_memory: bool = parameter(
        True, "Whether a map is that of all frames so far, which needs odometry, or of its frame by itself."
    )
    cameras: tuple[str, ...] = parameter(
        ("front", "front_right", "back_right", "back", "back_left", "front_left"),
        "Names of the cameras; none: LiDAR alone.",
    )
    use_lidar: bool = parameter(True, "Whether there is a LiDAR; without: cameras alone.")
    reference_camera: str = parameter(
        "", "The camera that gives the stamp when the LiDAR is silent; empty: the first of `cameras`."
    )
    compressed: bool = parameter(True, "Whether the cameras send CompressedImage (JPEG, PNG) or raw Image.")
    rectified: bool = parameter(
        False, "Whether the images are rectified already (image_proc): P and R count."
    )
    base_frame: str = parameter(
        "base_link", "Frame of the vehicle: x forward, origin on the ground below it."
    )
    odom_frame: str = parameter("odom", "Frame that stands still while the vehicle moves.")
    output_frame: str = parameter("base_link", "Frame of the published boxes and maps.")
    window_s: float = parameter(
        0.1,
        "Largest distance in time of an image from its sweep, before or after.",
        minimum=0.001,
        maximum=5.0,
    )
    lidar_timeout_s: float = parameter(0.2, "How long a sweep waits for images.", minimum=0.0, maximum=10.0)
    camera_timeout_s: float = parameter(
        0.1, "Without LiDAR, how long the leading image waits for the others.", minimum=0.0, maximum=10.0
    )
    lost_after_s: float = parameter(
        1.0, "A sensor silent for longer is not waited for; the LiDAR hands over.", minimum=0.05, maximum=60.0
    )
    sensor_offsets_s: tuple[float, ...] = parameter(
        (), "How far the stamps of the LiDAR and of each of `cameras` are ahead; empty: not at all."
    )
    tf_tolerance_s: float = parameter(
        0.25,
        "How far beyond the last stamp of a transform its motion is taken to go on.",
        minimum=0.0,
        maximum=10.0,
    )
    deskew: bool = parameter(
        True, "Whether to undo the vehicle's motion within a sweep; needs a time per point and odometry."
    )
    own_vehicle_box_m: tuple[float, ...] = own_vehicle_parameter()
    max_sweeps: int = parameter(
        10, "At most so many earlier sweeps; the network may want fewer.", minimum=0, maximum=20
    )
    sweep_max_age_s: float = parameter(
        1.0, "Earlier sweeps older than this are left out.", minimum=0.01, maximum=10.0
    )
    capacity: int = parameter(
        400_000, "More points per cloud than this are thinned out evenly.", minimum=1, maximum=10_000_000
    )
    intensity_max: float = parameter(
        0.0,
        "Intensity that means 1; 0: the largest of an integer type, 1 for floats.",
        minimum=0.0,
        maximum=1e9,
    )
    max_missing_cameras: int = parameter(
        3, "More missing cameras than this are ERROR, fewer WARN.", minimum=0, maximum=64
    )
    points_reliability: str = parameter(
        "best_effort", "Reliability of the point cloud input.", choices=RELIABILITY
    )
    points_depth: int = parameter(5, "Queue depth of the point cloud input.", minimum=1, maximum=100)
    image_reliability: str = parameter("best_effort", "Reliability of the image inputs.", choices=RELIABILITY)
    image_depth: int = parameter(5, "Queue depth of each image input.", minimum=1, maximum=100)
    frozen_after: int = parameter(
        10,
        "So many equal pictures in a row are WARN: the camera is frozen; 0: never.",
        minimum=0,
        maximum=10000,
    )
    display_score: float = parameter(
        0.3, "Boxes below this score are published but not drawn.", minimum=0.0, maximum=1.0
    )
    pixels_per_metre: float = parameter(
        8.0, "Resolution of the bird's-eye picture.", minimum=1.0, maximum=40.0
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

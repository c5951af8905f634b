# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The segmentation node: names the class of every point of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import PointCloud2
from vision_msgs.msg import LabelInfo, VisionClass

from kestrel.classes import IGNORE, POINT_CLASSES, POINT_COLOURS, SEMANTIC_KITTI_CLASSES, Rgb
from kestrel.data.cloud_reader import DecodedCloud, read_cloud
from kestrel.data.own_vehicle import OwnVehicle
from kestrel.data.trajectory import moved
from kestrel.data.transform_buffer import TransformBuffer
from kestrel.errors import ConfigError, describe
from kestrel.label_maps import POINT_CLASS_OF_KITTI
from kestrel.pipelines.runtime import Precision
from kestrel.pipelines.segmentation import PRECISIONS, SweepViews
from kestrel.pipelines.segmenter import Segmenter, load_segmenter
from kestrel.types import Float32Array, Float64Array, PointCloud, PointLabels, UInt8Array
from kestrel_nodes.base import KestrelNode
from kestrel_nodes.deskew import Deskewer
from kestrel_nodes.on_device import device_parameter
from kestrel_nodes.own_vehicle import own_vehicle_parameter
from kestrel_nodes.parameters import NodeParameters, parameter
from kestrel_nodes.qos import RELIABILITY, input_qos
from kestrel_nodes.ros_arrays import chosen_points, cloud_message, finite_points
from kestrel_nodes.transforms import listen

NO_CLASS_COLOUR = (96, 96, 96)


@dataclass(frozen=True)
class SegmentationParameters(NodeParameters):
    """What the segmentation node can be told."""

    weights: str = parameter(
        "kestrel-seg",
        "Name of shipped weights, or the path of a .safetensors file; a converted SPVCNN, MinkUNet or SPVNAS "
        "runs as well.",
    )
    threads: int = parameter(0, "Threads of the network; 0 lets torch choose.", minimum=0, maximum=256)
    device: str = device_parameter()
    precision: str = parameter(
        "auto",
        "Arithmetic of the convolutions; auto: int8 where the CPU has int8 (VNNI) instructions, else "
        "float32; float32 on a GPU and for converted networks.",
        choices=PRECISIONS,
    )
    base_frame: str = parameter(
        "base_link",
        "Frame of the vehicle (x forward, origin on the ground) into which clouds are transformed for the "
        "network; empty: clouds are in it already.",
    )
    points_reliability: str = parameter(
        "best_effort", "Reliability of the point cloud input.", choices=RELIABILITY
    )
    points_depth: int = parameter(2, "Queue depth of the point cloud input.", minimum=1, maximum=100)
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
    deskew: bool = parameter(
        True,
        "Whether to deskew sweeps; needs a time per point and odometry (odom_frame to the sensor in TF).",
    )
    odom_frame: str = parameter("odom", "Fixed frame in which TF gives the motion of the vehicle (odometry).")
    own_vehicle_box_m: tuple[float, ...] = own_vehicle_parameter()
    removed_classes: tuple[str, ...] = parameter(
        (), "Classes left out of `points_filtered`; points without a class stay in."
    )
    kept_classes: tuple[str, ...] = parameter(
        (), "The only classes in `points_filtered`; not together with `removed_classes`."
    )
    test_time_turns: int = parameter(
        1,
        "Test-time augmentation: views of a sweep, rotated evenly about z, whose probabilities are "
        "averaged; the time grows in proportion.",
        minimum=1,
        maximum=16,
    )
    test_time_mirror: bool = parameter(
        False, "Test-time augmentation: whether every view is also mirrored, at twice the time."
    )

    def check(self) -> None:
        """Refuse two filters at once, and a box that is none."""
        OwnVehicle(self.own_vehicle_box_m)
        if self.removed_classes and self.kept_classes:
            expected = "empty where removed_classes is not"
            raise ConfigError(describe("parameter kept_classes", expected=expected, found=self.kept_classes))


@dataclass(frozen=True)
class Answer:
    """What is known of every point of a message, in its order.

    xyz: (N, 3) float32 as measured, NaN for unusable points. class_id: (N,) uint8, IGNORE for no class.
    probability: (N,) float32 of that class. own: (N,) whether the vehicle itself was hit.
    """

    xyz: Float32Array
    class_id: UInt8Array
    probability: Float32Array
    own: NDArray[np.bool_]

    @classmethod
    def of(cls, decoded: DecodedCloud, own: NDArray[np.bool_], labels: PointLabels) -> Answer:
        """Return the answer: ``own`` is about the points of ``decoded``, ``labels`` about all but these."""
        xyz = np.full((decoded.total, 3), np.nan, np.float32)
        xyz[decoded.kept] = decoded.cloud.points[:, :3]
        answer = cls(
            xyz=xyz,
            class_id=np.full(decoded.total, IGNORE, np.uint8),
            probability=np.zeros(decoded.total, np.float32),
            own=np.zeros(decoded.total, np.bool_),
        )
        labelled = decoded.kept[~own]
        answer.class_id[labelled] = labels.label
        answer.probability[labelled] = labels.probability
        answer.own[decoded.kept[own]] = True
        return answer


class SegmentationNode(KestrelNode[SegmentationParameters]):
    """PointCloud2 in; labelled, coloured and filtered clouds out, in the order and frame of the input."""

    parameters_type = SegmentationParameters

    def load(self, device: str) -> Segmenter:
        """Return the pipeline."""
        views = SweepViews(self.params.test_time_turns, self.params.test_time_mirror)
        precision = cast(Precision, self.params.precision)
        threads = self.params.threads or None
        return load_segmenter(self.params.weights, threads, views, precision, device)

    def start(self, device: str) -> Segmenter:
        """Return the pipeline, warmed up."""
        segmenter = self.load(device)
        self.show_model(segmenter.manifest, segmenter.device)
        self.health["model"].set("precision", segmenter.precision)
        segmenter.segment(PointCloud(np.zeros((1, 4), np.float32), 1, self.params.base_frame))
        return segmenter

    @property
    def segmenter(self) -> Segmenter:
        """The pipeline."""
        return self.model.pipeline

    def setup(self) -> None:
        """Load the network, offer the outputs, subscribe to the cloud and to the transforms."""
        self.model = self.add_model(self.params.device, self.start)
        classes = self.segmenter.classes
        self.removed = class_indices("removed_classes", self.params.removed_classes, classes)
        self.kept = class_indices("kept_classes", self.params.kept_classes, classes)
        self.palette = np.array([point_colour(name) for name in classes], np.uint32)
        self.labelled = self.add_output("points", PointCloud2)
        self.coloured = self.add_output("points_coloured", PointCloud2)
        self.filtered = self.add_output("points_filtered", PointCloud2)
        self.label_info = self.add_output("label_info", LabelInfo, latched=True)
        self.transforms = TransformBuffer(jump_back_s=self.params.jump_back_limit_s)
        self.deskewer = Deskewer(self.transforms, self.params.odom_frame, enabled=self.params.deskew)
        self.own_vehicle = OwnVehicle(self.params.own_vehicle_box_m)
        if self.params.base_frame or self.params.deskew:
            listen(self, self.transforms)
        qos = input_qos(self.params.points_reliability, self.params.points_depth)
        self.clouds = self.add_input("points", PointCloud2, self.segment, qos=qos)

    def started(self) -> None:
        """Publish what the class ids mean: of no time and no place, so that the header is empty."""
        classes = [VisionClass(class_id=i, class_name=name) for i, name in enumerate(self.segmenter.classes)]
        self.label_info.publish(LabelInfo(class_map=classes))

    def reset(self, cause: str, source: object) -> None:
        """Forget the transforms of the time before."""
        self.transforms.reset()

    def segment(self, message: PointCloud2) -> None:
        """Answer one cloud."""
        decoded = read_cloud(message, capacity=self.params.capacity, intensity_max=self.params.intensity_max)
        self._report(decoded)
        base_from_cloud = self._base_from(decoded.cloud)
        own = self.own_vehicle.holds(decoded.cloud, base_from_cloud)
        cloud, deskewed = self.deskewer(decoded.cloud.chosen(~own) if own.any() else decoded.cloud)
        deskewed.report(self.health["calibration"])
        labels = self.model.ask(
            lambda segmenter: segmenter.segment(self._placed(cloud, base_from_cloud, segmenter))
        )
        self._publish(message, Answer.of(decoded, own, labels))
        self._report_own(own)

    def _placed(self, cloud: PointCloud, base_from_cloud: Float64Array, segmenter: Segmenter) -> PointCloud:
        """Return the cloud in the axes of the base frame, and where the network wants it."""
        if segmenter.at_lidar:
            base_from_cloud = base_from_cloud.copy()
            base_from_cloud[:3, 3] = 0
        frame = self.params.base_frame or cloud.frame_id
        return replace(cloud, points=moved(cloud.points, base_from_cloud), frame_id=frame)

    def _base_from(self, cloud: PointCloud) -> Float64Array:
        if self.params.base_frame in ("", cloud.frame_id):
            return np.eye(4)
        return self.transforms.lookup(self.params.base_frame, cloud.frame_id, cloud.stamp_ns)

    def _report(self, decoded: DecodedCloud) -> None:
        concern = self.clouds.concern
        for reason, times in (
            ("invalid_points", decoded.invalid),
            ("far_points", decoded.far),
            ("clipped_points", decoded.clipped),
            ("empty_clouds", int(decoded.total == 0)),
        ):
            if times:
                concern.count(reason, times)
        clipped = f"{decoded.clipped} points beyond the capacity of {self.params.capacity} are left out"
        concern.check("capacity", clipped if decoded.clipped else None)
        unusable = decoded.total > 0 and not len(decoded.cloud)
        concern.check("unusable", "no usable point: all are NaN, infinite or too far" if unusable else None)
        concern.check("layout", "; ".join(decoded.notes) or None)

    def _report_own(self, own: NDArray[np.bool_]) -> None:
        concern = self.clouds.concern
        concern.count("own_points", int(own.sum()))
        concern.check("own", "all points are of the vehicle itself" if len(own) and own.all() else None)

    def _publish(self, message: PointCloud2, answer: Answer) -> None:
        """Publish what is wanted; what nobody subscribes to is not made."""
        if self.labelled.wanted or self.coloured.wanted:
            xyz = [(axis, answer.xyz[:, column]) for column, axis in enumerate("xyz")]
            if self.labelled.wanted:
                labels = [("class_id", answer.class_id), ("probability", answer.probability)]
                self.labelled.publish(cloud_message([*xyz, *labels], message.header))
            if self.coloured.wanted:
                rgb = ("rgb", self._rgb(answer.class_id))
                self.coloured.publish(cloud_message([*xyz, rgb], message.header))
        if self.filtered.wanted:
            self.filtered.publish(chosen_points(message, self._stays(message, answer)))

    def _stays(self, message: PointCloud2, answer: Answer) -> NDArray[np.bool_]:
        """Return which points of the message pass the filter, (N,).

        A point beyond range or capacity has no class: nothing says that it may be removed. Points without
        finite coordinates and those of the vehicle itself never pass.
        """
        if self.kept:
            return np.isin(answer.class_id, self.kept)
        stays = ~(np.isin(answer.class_id, self.removed) | answer.own)
        if np.isnan(answer.xyz).any():
            stays &= finite_points(message)
        return stays

    def _rgb(self, class_id: UInt8Array) -> Float32Array:
        """Return colours as RViz reads them: 0x00RRGGBB in the bits of a float."""
        palette = np.tile(np.array(NO_CLASS_COLOUR, np.uint32), (256, 1))
        palette[: len(self.palette)] = self.palette
        packed = palette[:, 0] << 16 | palette[:, 1] << 8 | palette[:, 2]
        return packed[class_id].view(np.float32)


def point_colour(name: str) -> Rgb:
    """Return the colour of a class of points; one of SemanticKITTI has that of its nearest in nuScenes."""
    if name in SEMANTIC_KITTI_CLASSES:
        nearest = POINT_CLASS_OF_KITTI[SEMANTIC_KITTI_CLASSES.index(name)]
        name = name if nearest == IGNORE else POINT_CLASSES[nearest]
    return POINT_COLOURS.get(name, NO_CLASS_COLOUR)


def class_indices(parameter: str, names: tuple[str, ...], classes: tuple[str, ...]) -> list[int]:
    """Return the indices of ``names``; raise ConfigError for one that is not a class."""
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise ConfigError(describe(f"parameter {parameter}", expected=f"names of {classes}", found=unknown))
    return [classes.index(name) for name in names]

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The fusion node: any cameras and a LiDAR in; boxes, objects with velocity and map layers out."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from functools import partial
from typing import Any, Final, cast

import numpy as np
from kestrel_msgs.msg import PerceivedObjects
from nav_msgs.msg import OccupancyGrid
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header
from vision_msgs.msg import Detection3DArray
from visualization_msgs.msg import MarkerArray

from kestrel.data.own_vehicle import OwnVehicle
from kestrel.data.transform_buffer import TransformBuffer
from kestrel.engine import EngineName
from kestrel.errors import CalibrationError
from kestrel.pipelines import Detector, load_detector
from kestrel.pipelines.runtime import Precision
from kestrel.pipelines.tracker import Tracker
from kestrel.types import BevMap, Boxes3D, Float64Array, SensorFrame
from kestrel_nodes.base import KestrelNode
from kestrel_nodes.collector import LIDAR, Collected, Collector
from kestrel_nodes.fusion_frame import BuiltFrame, FrameBuilder
from kestrel_nodes.fusion_health import FusionHealth, sensors_in
from kestrel_nodes.fusion_messages import detections_message, grid_messages, objects_message, place_boxes
from kestrel_nodes.fusion_parameters import FusionParameters
from kestrel_nodes.fusion_pictures import draw_from_above, draw_map, draw_overlay, markers_message
from kestrel_nodes.fusion_warm_up import warm_up_frame
from kestrel_nodes.picture_watch import PictureWatch
from kestrel_nodes.ports import Input, Output
from kestrel_nodes.qos import input_qos
from kestrel_nodes.ros_arrays import image_message
from kestrel_nodes.stamps import NANOSECONDS, stamp_message, stamp_ns
from kestrel_nodes.transforms import listen

FRAME: Final = "frame"
"""The slot of all frames in the worker."""

POLL_S = 0.02
"""How often the timeouts of the collector are looked at while a frame waits for images."""

FASTEST_LIDAR_HZ: Final = 20
"""Sweeps are kept for as long as they may be needed at this rate; of a faster LiDAR the oldest are missed."""


class FusionNode(KestrelNode[FusionParameters]):
    """Collects what belongs together, lets the pipeline look at it, publishes what somebody listens to."""

    parameters_type = FusionParameters

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.sources: dict[str, Input] = {}
        self.overlays: dict[str, Output] = {}
        self.collector = Collector(FusionParameters().collector_settings())
        self.recent_clouds: deque[PointCloud2] = deque()

    def load(self, device: str) -> Detector:
        """Return the pipeline."""
        params = self.params
        lowest = params.box_selection().lowest
        engine = cast(EngineName, params.engine)
        return load_detector(
            params.weights,
            lowest,
            params.threads or None,
            engine,
            params.int8_folder or None,
            cast(Precision, params.precision),
            map_memory=params.map_memory,
            device=device,
        )

    def start(self, device: str) -> Detector:
        """Return the pipeline, warmed up."""
        detector = self.load(device)
        self.show_model(detector.manifest, detector.device)
        self.health["model"].set("precision", detector.precision)
        detector.detect(warm_up_frame(self.params.cameras, use_lidar=self.params.use_lidar))
        detector.reset()
        return detector

    @property
    def detector(self) -> Detector:
        """The pipeline."""
        return self.model.pipeline

    def setup(self) -> None:
        """Load the network and warm it up, create inputs and outputs."""
        params = self.params
        self.model = self.add_model(params.device, self.start)
        self.selection = params.box_selection()
        self.selection.check_classes(self.detector.classes)
        self.tracker = Tracker(memory_s=params.track_memory_s, position_std_m=params.track_position_std_m)
        self.tracks_in, self.tracked_ns = "", 0
        self.transforms = TransformBuffer(
            tolerance_s=params.tf_tolerance_s, jump_back_s=params.jump_back_limit_s
        )
        sweeps = min(self.detector.sweeps, params.max_sweeps)
        self.builder = FrameBuilder(
            self.transforms,
            base_frame=params.base_frame,
            odom_frame=params.odom_frame,
            sweeps=sweeps,
            sweep_s=self.detector.sweep_s,
            sweep_max_age_s=params.sweep_max_age_s,
            remove_close_m=self.detector.remove_close_m,
            rectified=params.rectified,
            capacity=params.capacity,
            intensity_max=params.intensity_max,
            deskew=params.deskew,
            own_vehicle=OwnVehicle(params.own_vehicle_box_m),
            watches={
                camera: PictureWatch(self.health[f"input/{self._image_topic(camera)}"], params.frozen_after)
                for camera in params.cameras
            },
        )
        self.collector = Collector(params.collector_settings())
        needed = max(sweeps, math.ceil(sweeps * self.detector.sweep_s * FASTEST_LIDAR_HZ))
        self.recent_clouds = deque(maxlen=needed + self.collector.settings.pending_limit)
        self._create_outputs()
        self._create_inputs()
        self.fusion_health = FusionHealth(self.health, self.sources, params.max_missing_cameras)
        self.poll_timer = self.add_timer(POLL_S, lambda: self._dispatch(self.collector.poll()))

    def _create_outputs(self) -> None:
        self.detections = self.add_output("detections", Detection3DArray)
        self.objects = self.add_output("objects", PerceivedObjects)
        self.markers = self.add_output("markers", MarkerArray)
        self.bev_image = self.add_output("bev_image", Image)
        self.map_image = self.add_output("map_image", Image)
        self.overlays = {name: self.add_debug(f"overlay/{name}", Image) for name in self.params.cameras}
        self.maps = {layer: self.add_output(f"map/{layer}", OccupancyGrid) for layer in self.detector.layers}

    def _create_inputs(self) -> None:
        params = self.params
        listen(self, self.transforms)
        self.sources = {}
        for camera in params.cameras:
            on_info = partial(self._on_camera_info, camera)
            self.add_input(
                f"{camera}/camera_info", CameraInfo, on_info, in_worker=False, stamped=False, lasting=True
            )
        kind = CompressedImage if params.compressed else Image
        qos = input_qos(params.image_reliability, params.image_depth)
        for camera in params.cameras:
            on_image = partial(self._on_image, camera)
            topic = self._image_topic(camera)
            self.sources[camera] = self.add_input(topic, kind, on_image, qos=qos, in_worker=False)
        if params.use_lidar:
            qos = input_qos(params.points_reliability, params.points_depth)
            self.sources[LIDAR] = self.add_input(
                "points", PointCloud2, self._on_cloud, qos=qos, in_worker=False
            )

    def _image_topic(self, camera: str) -> str:
        return f"{camera}/image{'/compressed' if self.params.compressed else ''}"

    @property
    def wanted(self) -> bool:
        """Whether anybody subscribes to an output or to an overlay."""
        return super().wanted or any(overlay.wanted for overlay in self.overlays.values())

    # Receiving (executor thread).

    def started(self) -> None:
        """Begin with nothing collected."""
        self.collector.reset()

    def stopped(self) -> None:
        """Nothing is collected while the node is inactive."""
        self.collector.reset()
        self.recent_clouds.clear()

    def reset(self, cause: str, source: Input | None) -> None:
        """Time jumped back; what the stamps of one sensor mean for the others is known to the collector."""
        if source is None:
            self.collector.reset()
            self.transforms.reset()
        if source is None or source is self.sources.get(LIDAR):
            self.recent_clouds.clear()

    def slots_of(self, source: Input) -> tuple[str, ...]:
        """Return the slot of the frames if this sensor leads: others only take part in them."""
        leading = LIDAR if self.collector.lidar_leads else self.collector.leading_camera()
        return (FRAME,) if source is self.sources.get(leading) else ()

    def _on_camera_info(self, camera: str, message: CameraInfo) -> None:
        self.builder.camera_infos[camera] = message

    def _on_image(self, camera: str, message: Any) -> None:
        self._dispatch(self.collector.add_image(camera, stamp_ns(message.header.stamp), message))

    def _on_cloud(self, message: PointCloud2) -> None:
        self.recent_clouds.appendleft(message)
        self._dispatch(self.collector.add_cloud(stamp_ns(message.header.stamp), message))

    def _dispatch(self, frames: list[Collected]) -> None:
        for collected in frames:
            if not self.wanted:
                self.fusion_health.count_unwanted(collected)
                continue
            # One slot for all: in one of their own, frames that a camera leads could come after later ones.
            self.submit(
                FRAME,
                partial(self._process, collected, tuple(self.recent_clouds)),
                stamp_ns=collected.stamp_ns,
                superseded=partial(self.fusion_health.count_superseded, collected),
            )
        self._poll_while_frames_wait()

    def _poll_while_frames_wait(self) -> None:
        # Looking costs a turn of the executor, 50 times a second; most of the time no frame waits.
        if self.collector.pending and self.poll_timer.is_canceled():
            self.poll_timer.reset()
        elif not self.collector.pending and not self.poll_timer.is_canceled():
            self.poll_timer.cancel()

    def check_health(self) -> None:
        """Add what the collector counted."""
        super().check_health()
        if self.active:
            self.fusion_health.show_unused(self.collector)

    # Working (worker thread).

    def reset_pipeline(self, cause: str, source: Input | None) -> None:
        """Forget what was answered and decoded before time jumped back."""
        self.builder.forget_sweeps()
        self.detector.reset()
        self.tracker.reset()
        self.tracks_in = ""  # or tracks of another time would be waited for

    def _process(self, collected: Collected, earlier: tuple[PointCloud2, ...]) -> None:
        health = self.fusion_health  # once: this may outlast a cleanup, after which there are other sensors
        try:
            frame = self._build(collected, earlier, health)
            output_from_base = self._output_from_base(frame.stamp_ns)
            boxes, bev_map = self.model.ask(lambda detector: detector.detect(frame))
            self._say_map(frame)
            boxes = self._tracked(self.selection(boxes), velocities_seen=bool(frame.sweeps))
            self._publish(frame, boxes, bev_map, output_from_base)
            self._publish_pictures(frame, boxes, bev_map)
        except Exception as error:
            health.count_failure(collected, error)
            raise
        health.count_answers(collected, frame)

    def _say_map(self, frame: SensorFrame) -> None:
        if self.detector.layers:
            remembers = self.detector.map_memory and frame.fixed_from_reference is not None
            self.health["output"].set("map", "of all frames" if remembers else "of its frame alone")

    def _tracked(self, boxes: Boxes3D, *, velocities_seen: bool) -> Boxes3D:
        """Return ``boxes`` with ids and motion, seen in the frame that stands still.

        Without odometry they are matched in the frame of the vehicle, whose motion is not theirs: they get
        ids alone. Where it is missing for no longer than a track lives, tracks wait and boxes have no ids.
        """
        if not self.params.track:
            return boxes
        fixed = self.params.odom_frame
        try:
            fixed_from_base = self.transforms.lookup(fixed, self.params.base_frame, boxes.stamp_ns)
        except CalibrationError:
            waited_s = (boxes.stamp_ns - self.tracked_ns) / NANOSECONDS
            if self.tracks_in == fixed and waited_s < self.params.track_memory_s:
                self.health["output"].set("tracks", f"{self.tracker.alive} wait for {fixed}")
                return boxes
            fixed, fixed_from_base = self.params.base_frame, np.eye(4)
        if fixed != self.tracks_in:
            self.tracker.reset()
            self.tracks_in = fixed
        self.tracked_ns = boxes.stamp_ns
        tracked = self.tracker.step(boxes, fixed_from_base, velocities_seen=velocities_seen)
        self.health["output"].set("tracks", f"{self.tracker.alive} in {fixed}")
        return tracked if fixed == self.params.odom_frame else replace(boxes, track_id=tracked.track_id)

    def _output_from_base(self, stamp: int) -> Float64Array:
        output_frame, base_frame = self.params.output_frame, self.params.base_frame
        return (
            np.eye(4)
            if output_frame == base_frame
            else self.transforms.lookup(output_frame, base_frame, stamp)
        )

    def _build(
        self, collected: Collected, earlier: tuple[PointCloud2, ...], health: FusionHealth
    ) -> SensorFrame:
        built = BuiltFrame()
        frame = None
        try:
            frame = self.builder.build(collected, earlier, built)
        finally:
            self.refuse_outlasted()
            health.report(collected, frame, built)
            if built.deskewed is not None:
                built.deskewed.report(self.health["calibration"])
        for change in built.changes:
            self.guard.inform(f"calibration: {change}")
        return frame

    def _publish(
        self, frame: SensorFrame, boxes: Boxes3D, bev_map: BevMap, output_from_base: Float64Array
    ) -> None:
        header = Header(stamp=stamp_message(frame.stamp_ns), frame_id=self.params.output_frame)
        placed = place_boxes(boxes, output_from_base)
        if self.detections.wanted:
            self.detections.publish(detections_message(placed, header))
        if self.objects.wanted:
            used = sensors_in(frame)
            missing = tuple(name for name in self.sources if name not in used)
            message = objects_message(placed, header, modality=frame.modality, used=used, missing=missing)
            self.objects.publish(message)
        if self.markers.wanted:
            shown = [box for box in placed if box.score >= self.params.display_score]
            self.markers.publish(markers_message(shown, header))
        if any(output.wanted for output in self.maps.values()):
            for layer, grid in grid_messages(bev_map, header, output_from_base):
                if self.maps[layer].wanted:
                    self.maps[layer].publish(grid)

    def _publish_pictures(self, frame: SensorFrame, boxes: Boxes3D, bev_map: BevMap) -> None:
        params = self.params
        in_base = Header(stamp=stamp_message(frame.stamp_ns), frame_id=params.base_frame)
        if self.map_image.wanted:
            self.map_image.publish(image_message(draw_map(bev_map, params.pixels_per_metre), in_base))
        for camera, image in frame.images.items():
            if self.overlays[camera].wanted:
                picture = draw_overlay(camera, frame, boxes, minimum_score=params.display_score)
                header = Header(stamp=stamp_message(image.stamp_ns), frame_id=image.frame_id)
                self.overlays[camera].publish(image_message(picture, header))
        if self.bev_image.wanted:
            picture = draw_from_above(
                boxes,
                bev_map,
                frame.cloud,
                minimum_score=params.display_score,
                pixels_per_metre=params.pixels_per_metre,
            )
            self.bev_image.publish(image_message(picture, in_base))

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From what all sensors saw at one moment to boxes and a map."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.engine import EngineName, engine_on
from kestrel.engine.device import chosen_device
from kestrel.engine.int8 import Int8Models
from kestrel.errors import ConfigError, ModelError, describe
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionConfig, FusionInput, FusionOutput
from kestrel.pipelines.box_decoder import decode_boxes
from kestrel.pipelines.fusion_engine import FusionEngine, Stage, run_stage
from kestrel.pipelines.fusion_frame import camera_rays, check_size, lidar_takes_part, stack_sweeps
from kestrel.pipelines.map_memory import MapMemory
from kestrel.pipelines.picture_memory import PictureMemory
from kestrel.pipelines.runtime import (
    Precision,
    check_finite,
    chosen_precision,
    load_network,
    set_threads,
    untrained_network,
)
from kestrel.road_view import road_view
from kestrel.types import BevMap, Boxes3D, SensorFrame
from kestrel.weights import Manifest

CLASSES = DETECTION_CLASSES + MAP_LAYERS
"""What the weights answer: boxes first, then map layers."""


class FusionDetector:
    """Detects objects and segments the map from any cameras and LiDAR.

    Pictures look back on those that the same cameras took one hop earlier, where there were such. The map is
    that of all frames since the last ``reset``, as far as frames know where the vehicle was.

    Args:
        weights: name of shipped weights or path of a .safetensors file.
        score_threshold: boxes below it are dropped, 0..1.
        threads: threads that torch may use in this process, None for its default.
        engine: how the dense parts run; "auto" measures at the first frame, which so takes seconds. On a GPU
            it is "folded", beside which only "eager" runs there.
        int8: folder of quantized models (`kestrel calibrate`), with the engine of that name alone.
        precision: of the dense parts; "auto" is bfloat16 or else int8 where the CPU multiplies it in
            hardware. In int8 are the 3x3 convolutions of the engine "folded", if it is taken, and no others.
            On a GPU "auto" is bfloat16 where that multiplies it, else float32.
        map_memory: whether the map is that of all frames and not of each by itself.
        picture_memory: whether pictures look back.
        device: where it computes, see kestrel.engine.device.chosen_device.

    Raises:
        ModelError: the weights, or the quantized models with these weights, cannot be used.
        ConfigError: engine int8 without a folder, or a folder without engine int8; precision int8 on a GPU or
            on a machine that does not multiply bytes; no such device, or an engine that does not run there.
    """

    def __init__(
        self,
        weights: str | Path = "kestrel-fusion",
        score_threshold: float = 0.1,
        threads: int | None = None,
        engine: EngineName = "auto",
        int8: str | Path | None = None,
        precision: Precision = "auto",
        *,
        map_memory: bool = True,
        picture_memory: bool = True,
        device: str = "cpu",
    ) -> None:
        if (engine == "int8") != (int8 is not None):
            expected = "a folder of int8 models with the engine int8, and with no other"
            raise ConfigError(describe(f"engine {engine}", expected=expected, found=int8))
        self.device = chosen_device(device)
        set_threads(threads)
        network, manifest = load_network(KestrelFusion, weights, CLASSES, self.device)
        _expect_one_lens(manifest, weights)
        models = None if int8 is None else Int8Models.open(int8, manifest.sha256)
        self._start(network, manifest, score_threshold, engine, models, precision)
        self.map_memory, self.picture_memory = map_memory, picture_memory

    @classmethod
    def untrained(
        cls,
        seed: int = 0,
        score_threshold: float = 0.1,
        engine: EngineName = "folded",
        config: FusionConfig | None = None,
        precision: Precision = "auto",
        device: str = "cpu",
    ) -> FusionDetector:
        """Return the same network, or one of another config, with random weights."""
        network = untrained_network(partial(KestrelFusion, config), seed)
        return cls.of(network, score_threshold, engine, precision, device)

    @classmethod
    def of(
        cls,
        network: KestrelFusion,
        score_threshold: float = 0.1,
        engine: EngineName = "folded",
        precision: Precision = "auto",
        device: str = "cpu",
    ) -> FusionDetector:
        """Return a detector with this network, which is in evaluation mode and is moved to the device."""
        pipeline = cls.__new__(cls)
        pipeline.device = chosen_device(device)
        pipeline._start(network.to(pipeline.device), None, score_threshold, engine, precision=precision)
        return pipeline

    def _start(
        self,
        network: KestrelFusion,
        manifest: Manifest | None,
        score_threshold: float,
        engine: EngineName,
        int8: Int8Models | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.network = network
        self.precision = chosen_precision(precision, ["bfloat16", "int8"], self.device)
        self.engine = FusionEngine(
            network,
            engine_on(self.device, engine),
            bfloat16=self.precision == "bfloat16",
            dynamic_int8=self.precision == "int8",
            int8=int8,
        )
        self.manifest = manifest
        self.score_threshold = score_threshold
        self.classes = DETECTION_CLASSES
        self.layers = MAP_LAYERS
        self._memory = PictureMemory(network.config.hop_s, network.camera.no_past(1))
        config = network.config
        self._map_memory = MapMemory(config.num_layers, config.map_extent, config.map_resolution, self.device)
        self.map_memory = self.picture_memory = True

    remove_close_m = 0.0
    """Earlier sweeps are taken as they are."""

    @property
    def sweeps(self) -> int:
        """How many earlier sweeps the network makes use of; fewer are fine."""
        return self.network.config.sweeps

    @property
    def sweep_s(self) -> float:
        """Seconds from one of these sweeps to the next: in less a pedestrian stays within a cell."""
        return self.network.config.sweep_s

    def reset(self) -> None:
        """Forget earlier frames."""
        self._memory.clear()
        self._map_memory.clear()

    def detect(self, frame: SensorFrame, stage: Stage = run_stage) -> tuple[Boxes3D, BevMap]:
        """Return what is around the vehicle, in ``frame.frame_id`` at ``frame.stamp_ns``.

        Sensors that are not in the frame took no part; their place in the network stays empty. With pictures
        so does that of a sweep without points. ``stage`` runs the parts, for who wants to measure them.

        Raises:
            InputError: a picture does not have the size that its calibration names.
            ModelError: the network's answer is not finite.
        """
        with torch.inference_mode():
            inputs = stage("inputs", lambda: self.inputs(frame))
            output = self.engine(inputs, stage)
            boxes = stage("post-processing", lambda: self._boxes(output, inputs, frame))
            evidence = stage("map memory", lambda: self._evidence(output, frame))
            bev_map = stage("map", lambda: self._map(evidence, frame))
            # Only now: what is not finite must not come back with the next pictures.
            stage("memory", lambda: self._memory.keep(_pictures(frame), output.state))
            return boxes, bev_map

    def map_evidence(self, frame: SensorFrame) -> Tensor:
        """Return what the map is made from, (2 * layers + 2, X, Y) as of MapMemory.look, without boxes.

        Raises:
            InputError, ModelError: as ``detect`` does.
        """
        with torch.inference_mode():
            output = self.engine(self.inputs(frame))
            evidence = self._evidence(output, frame)
            self._memory.keep(_pictures(frame), output.state)
            return evidence[0]

    def _boxes(self, output: FusionOutput, inputs: FusionInput, frame: SensorFrame) -> Boxes3D:
        check_finite("Kestrel-Fusion heatmap", output.heatmap)
        box = decode_boxes(output, inputs, self.network, self.score_threshold)
        check_finite("Kestrel-Fusion boxes", box.values)
        values = box.values.float().cpu().numpy()
        return Boxes3D(
            center=np.ascontiguousarray(values[:, :3]),
            size=np.ascontiguousarray(values[:, 3:6]),
            yaw=np.ascontiguousarray(values[:, 6]),
            velocity=np.ascontiguousarray(values[:, 7:9]),
            label=box.label.cpu().numpy(),
            score=box.score.cpu().numpy(),
            class_names=self.classes,
            frame_id=frame.frame_id,
            stamp_ns=frame.stamp_ns,
        )

    def _evidence(self, output: FusionOutput, frame: SensorFrame) -> Tensor:
        """Return what this frame and those before it say of the cells of its map, (1, ..., X, Y)."""
        check_finite("Kestrel-Fusion map", output.map_logits)
        return self._map_memory.look(
            output.map_logits[0],
            has_lidar=lidar_takes_part(frame),
            stamp_ns=frame.stamp_ns,
            fixed_from_base=frame.fixed_from_reference if self.map_memory else None,
        )[None]

    def _map(self, evidence: Tensor, frame: SensorFrame) -> BevMap:
        config = self.network.config
        logits = self.engine.refined_map(evidence)
        check_finite("Kestrel-Fusion map of all frames", logits)
        return BevMap(
            probability=logits[0].sigmoid().cpu().numpy(),
            layer_names=self.layers,
            lower=(-config.map_extent, -config.map_extent),
            resolution=config.map_resolution,
            frame_id=frame.frame_id,
            stamp_ns=frame.stamp_ns,
        )

    def inputs(self, frame: SensorFrame) -> FusionInput:
        """Return what the network sees of a frame, and of the pictures before it that ``detect`` saw."""
        config = self.network.config
        points = torch.from_numpy(stack_sweeps(frame, config.sweeps))
        pictures, rays, origins = [], [], []
        for name, image in frame.images.items():
            calibration = frame.calibrations[name]
            check_size(name, image, calibration)
            picture, seen = road_view(image.data, calibration, config.image_size)
            pictures.append(torch.from_numpy(np.ascontiguousarray(picture)))
            ray, origin = camera_rays(seen, config)
            rays.append(torch.from_numpy(ray))
            origins.append(torch.from_numpy(origin))
        height, width = config.image_size
        h, w = config.feature_size
        # Pictures travel as bytes.
        images = torch.stack(pictures).to(self.device).permute(0, 3, 1, 2) / 255 if pictures else None
        made = partial(torch.zeros, device=self.device)
        return FusionInput(
            points=points.to(self.device),
            point_batch=made(len(points), dtype=torch.int64),
            images=made(0, 3, height, width) if images is None else images,
            image_batch=made(len(pictures), dtype=torch.int64),
            rays=torch.stack(rays).to(self.device) if rays else made(0, h, w, 3),
            origins=torch.stack(origins).to(self.device) if origins else made(0, 3),
            has_lidar=torch.tensor([lidar_takes_part(frame)], device=self.device),
            past=self._memory.recall(_pictures(frame)) if self.picture_memory else (),
        )


def _expect_one_lens(manifest: Manifest, weights: str | Path) -> None:
    """Raise ModelError of weights that were trained before all cameras had one focal length to the network.

    They would put everything that cameras see at other distances.
    """
    focal_px = manifest.config.get("focal_px")
    if not isinstance(focal_px, int | float):
        expected = "the one of all cameras in their manifest (others are to be trained on, with --start)"
        raise ModelError(describe(f"focal_px of {weights}", expected=expected, found=focal_px))


def _pictures(frame: SensorFrame) -> list[tuple[str, int]]:
    """Return camera and stamp of each picture."""
    return [(camera, image.stamp_ns) for camera, image in frame.images.items()]

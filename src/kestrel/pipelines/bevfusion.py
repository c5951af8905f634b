# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A converted BEVFusion checkpoint behind the interface of Kestrel-Fusion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.data.undistorter import Undistorter
from kestrel.engine import EngineName, engine_on
from kestrel.engine.device import chosen_device
from kestrel.errors import InputError, ModelError, describe
from kestrel.models.bevfusion import BEVFusion
from kestrel.models.bevfusion_config import build_bevfusion, network_of
from kestrel.models.checkpoints import STANDARD_BOXES
from kestrel.nn.boxes import DecodedBoxes, standard_boxes
from kestrel.pipelines.bevfusion_engine import BEVFusionEngine
from kestrel.pipelines.bevfusion_frame import BASE_FROM_NETWORK, CLOSE_M, SWEEPS, BEVFusionInput, read_frame
from kestrel.pipelines.fusion_engine import Stage, run_stage
from kestrel.pipelines.fusion_frame import check_size
from kestrel.pipelines.runtime import (
    Precision,
    check_finite,
    chosen_precision,
    set_threads,
)
from kestrel.types import BevMap, Boxes3D, SensorFrame
from kestrel.weights import Manifest, assign, load


class BEVFusionDetector:
    """Detects objects or segments the map, whichever the checkpoint was trained for; each frame stands alone.

    A network with both sensors answers as well when one of them is missing: its map stays empty. The released
    checkpoints were not trained for that and answer worse then than those of a single sensor.

    Args:
        weights: path of a .safetensors file that `kestrel convert-checkpoint` wrote.
        score_threshold: boxes below it are dropped, 0..1.
        threads: threads that torch may use in this process, None for its default.
        engine: how the dense parts run; "auto" measures at the first frame, which so takes seconds. On a GPU
            it is "folded", beside which only "eager" runs there.
        precision: of sparse convolutions and dense parts, of which in int8 are the 3x3 convolutions alone.
            "auto" is bfloat16 where the CPU, or the GPU, multiplies it in hardware, and never int8: what that
            costs these weights was not measured, since there are no nuScenes drives here.
        device: where it computes, see kestrel.engine.device.chosen_device.

    Raises:
        ModelError: the weights cannot be used.
        ConfigError: precision int8 on a GPU or on a machine that does not multiply bytes; no such device, or
            an engine that does not run there.
    """

    def __init__(
        self,
        weights: str | Path,
        score_threshold: float = 0.1,
        threads: int | None = None,
        engine: EngineName = "auto",
        precision: Precision = "auto",
        device: str = "cpu",
    ) -> None:
        self.device = chosen_device(device)
        set_threads(threads)
        state, manifest = load(weights)
        if manifest.network != BEVFusion.__name__:
            raise ModelError(
                describe(f"network of {weights}", expected=BEVFusion.__name__, found=manifest.network)
            )
        config, network = network_of(manifest.config, weights)
        assign(network, state, weights)
        self._start(network, config, manifest.classes, manifest, score_threshold, engine, precision)

    @classmethod
    def untrained(
        cls,
        config: Mapping[str, Any],
        classes: tuple[str, ...],
        seed: int = 0,
        score_threshold: float = 0.1,
        engine: EngineName = "folded",
        precision: Precision = "auto",
        device: str = "cpu",
    ) -> BEVFusionDetector:
        """Return a network with random weights.

        Args:
            config: as for kestrel.models.bevfusion_config.build_bevfusion.
            classes: in the order of its outputs.
            seed: of the weights.
            score_threshold: as for the class.
            engine: as for the class.
            precision: as for the class.
            device: as for the class.
        """
        pipeline = cls.__new__(cls)
        pipeline.device = chosen_device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = build_bevfusion(config)
            pipeline._start(network, config, classes, None, score_threshold, engine, precision)
        return pipeline

    def _start(
        self,
        network: BEVFusion,
        config: Mapping[str, Any],
        classes: tuple[str, ...],
        manifest: Manifest | None,
        score_threshold: float,
        engine: EngineName,
        precision: Precision,
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.config = config
        self._undistort = Undistorter()
        self.precision = chosen_precision(precision, ["bfloat16"], self.device)
        self.engine = BEVFusionEngine(
            network,
            engine_on(self.device, engine),
            bfloat16=self.precision == "bfloat16",
            dynamic_int8=self.precision == "int8",
        )
        self.manifest = manifest
        self.score_threshold = score_threshold
        self.layers = MAP_LAYERS if "map" in network.heads else ()
        self.classes = DETECTION_CLASSES if "object" in network.heads else ()
        known = self.classes + self.layers
        if sorted(classes) != sorted(known):
            raise ModelError(describe("classes of the weights", expected=known, found=classes))
        # The camera-only detector groups its classes and so has them in another order.
        objects, layers = ([name for name in classes if name in own] for own in (self.classes, self.layers))
        self._label = torch.tensor([self.classes.index(name) for name in objects])
        self._layer = torch.tensor([layers.index(name) for name in self.layers])
        self._released_boxes = manifest is None or manifest.training.get("boxes") != STANDARD_BOXES

    sweeps = SWEEPS
    """How many earlier sweeps the network makes use of; fewer are fine."""

    sweep_s = 0.0
    """One sweep after the other, as they come."""

    remove_close_m = CLOSE_M
    """Points of earlier sweeps this close to their sensor, along both axes, are of the vehicle itself."""

    map_memory = False
    """Maps are of their frame alone."""

    def reset(self) -> None:
        """Do nothing: each frame stands alone."""

    def detect(self, frame: SensorFrame, stage: Stage = run_stage) -> tuple[Boxes3D, BevMap]:
        """Return what is around the vehicle, in ``frame.frame_id`` at ``frame.stamp_ns``.

        A network for detection returns a map without layers, one for the map returns no boxes.

        Raises:
            InputError: the frame has no sensor that the network can use, or a picture does not have the size
                that its calibration names.
            ModelError: the network's answer is not finite.
        """
        with torch.inference_mode():
            inputs = stage("inputs", lambda: self.inputs(frame))
            answers = self.engine(inputs, stage)
            return stage("post-processing", lambda: (self._boxes(answers, frame), self._map(answers, frame)))

    def inputs(self, frame: SensorFrame) -> BEVFusionInput:
        """Return what the network sees of a frame, pictures without lens distortion."""
        for name, image in frame.images.items():
            check_size(name, image, frame.calibrations[name])
        inputs = read_frame(frame, self.config, self._undistort)
        if inputs.images is None and inputs.clouds is None:
            wanted = " or ".join(self.network.encoders)
            raise InputError(describe("sensors of the frame", expected=wanted, found=frame.modality))
        return inputs.to(self.device)

    def _boxes(self, answers: Mapping[str, Any], frame: SensorFrame) -> Boxes3D:
        found = DecodedBoxes(torch.zeros(0, 9), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        if "object" in answers:
            found = self.network.decode(answers)[0]
        check_finite("BEVFusion boxes", found.boxes)
        kept = found.scores >= self.score_threshold
        order = found.scores[kept].argsort(descending=True)
        boxes, scores, labels = (values[kept][order].cpu() for values in found)
        standard = standard_boxes(boxes, released=self._released_boxes)
        turn = BASE_FROM_NETWORK[:3, :3].astype(np.float32)
        yaw = standard.yaw - np.float32(np.pi / 2)
        return Boxes3D(
            center=standard.center @ turn.T + BASE_FROM_NETWORK[:3, 3].astype(np.float32),
            size=standard.size,
            yaw=(yaw + np.float32(np.pi)) % np.float32(2 * np.pi) - np.float32(np.pi),
            velocity=standard.velocity @ turn[:2, :2].T,
            label=self._label[labels].numpy() if len(labels) else labels.numpy(),
            score=scores.float().numpy(),
            class_names=self.classes,
            frame_id=frame.frame_id,
            stamp_ns=frame.stamp_ns,
        )

    def _map(self, answers: Mapping[str, Any], frame: SensorFrame) -> BevMap:
        """Return the layers with x ahead: rows and columns change places, and left is what was right."""
        if "map" not in answers:
            extent = self._extent()
            empty = np.zeros((0, round(2 * extent), round(2 * extent)), np.float32)
            return BevMap(empty, (), (-extent, -extent), 1.0, frame.frame_id, frame.stamp_ns)
        logits: Tensor = check_finite("BEVFusion map", answers["map"][0])
        logits = logits[self._layer.to(logits.device)]
        across, ahead = self.config["heads"]["map"]["grid_transform"]["output_scope"]
        turned = logits.sigmoid().transpose(1, 2).flip(2)
        return BevMap(
            probability=np.ascontiguousarray(turned.cpu().numpy()),
            layer_names=self.layers,
            lower=(float(ahead[0] + BASE_FROM_NETWORK[0, 3]), float(BASE_FROM_NETWORK[1, 3] - across[1])),
            resolution=float(ahead[2]),
            frame_id=frame.frame_id,
            stamp_ns=frame.stamp_ns,
        )

    def _extent(self) -> float:
        """Return how far the boxes reach, metres: the area that pictures of them show."""
        lower: float = self.config["heads"]["object"]["bbox_coder"]["pc_range"][0]
        return -float(lower)

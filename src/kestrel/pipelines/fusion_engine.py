# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs Kestrel-Fusion with its dense parts in engines and what depends on the calibration kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import torch
from torch import Tensor, nn

from kestrel.engine import Engine, EngineName, make_engine
from kestrel.engine.int8 import Int8Models
from kestrel.models.kestrel_fusion import BirdView, KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionInput, FusionOutput
from kestrel.ops.frustum import LiftSplatIndex

ResultT = TypeVar("ResultT")

CAMERA: Final = "camera"
BIRD: Final = "bird"
MAP: Final = "map"
"""Names of the parts that run in engines, as quantized models are called."""


INT8_PARTS: Final = tuple(f"network.{part}" for part in ("decoder", "shared", "heatmap", "map_head"))
"""Parts of the bird's-eye view that answer in bytes what they answer in floats (ADR 6).

In bytes the answers of these layers are off by 0.4 to 2.3 %, those of the encoders and the fuser by up to
10 %, which would cost three points of the map's IoU.
"""


class Stage(Protocol):
    """Runs a named part; benchmarks put a clock in here."""

    def __call__(self, name: str, run: Callable[[], ResultT]) -> ResultT:
        """Return what ``run`` returns."""


def run_stage(name: str, run: Callable[[], ResultT]) -> ResultT:
    """Run a part without measuring it."""
    return run()


class FusionEngine:
    """Stands for the network at inference; gives the same answers, in outputs that the next call reuses.

    Args:
        network: in evaluation mode.
        engine: how the camera branch and the bird's-eye view run.
        bfloat16: whether they may use bfloat16.
        dynamic_int8: whether the 3x3 convolutions of INT8_PARTS may multiply bytes.
        int8: quantized models of CAMERA and BIRD, for the engine int8; a part that has none is measured.
    """

    def __init__(
        self,
        network: KestrelFusion,
        engine: EngineName = "auto",
        *,
        bfloat16: bool = False,
        dynamic_int8: bool = False,
        int8: Int8Models | None = None,
    ) -> None:
        self.network = network
        self.int8 = int8
        self.engine_name: EngineName = engine
        self.bfloat16, self.dynamic_int8 = bfloat16, dynamic_int8
        self._pillars = network.pillars.folded()
        self._camera: Engine | None = None
        self._bird: Engine | None = None
        self._map: Engine | None = None
        self._index: tuple[tuple[Tensor, Tensor, Tensor], LiftSplatIndex] | None = None

    def __call__(self, inputs: FusionInput, stage: Stage = run_stage) -> FusionOutput:
        """Run the network on a batch of frames.

        Engines are made at the first call that needs them, for the number of frames that it has.
        """
        with torch.autocast(inputs.points.device.type, enabled=False):
            index = stage("index", lambda: self._lift_splat_index(inputs)) if len(inputs.images) else None
            return self.network.run(
                inputs,
                index,
                lambda *points: stage("pillars", lambda: self._pillars(*points)),
                lambda *pictures: stage("camera", lambda: self._run_camera(*pictures)),
                lambda *features: stage("view transform", lambda: self.network.view(*features)),
                lambda *maps: stage("bird's-eye view", lambda: self._run_bird(*maps)),
            )

    def refined_map(self, evidence: Tensor) -> Tensor:
        """Return what the network's map_refiner does, (B, layers, X, Y)."""
        with torch.autocast(evidence.device.type, enabled=False):
            if self._map is None:
                self._map = self._engine(MAP, self.network.map_refiner, (evidence,))
            (logits,) = self._map(evidence)
            return logits.float()

    def _run_camera(self, *pictures: Tensor) -> tuple[Tensor, ...]:
        if self._camera is None:
            self._camera = self._engine(CAMERA, self.network.camera, pictures, dynamic_batch=True)
        return self._camera(*pictures)

    def _run_bird(self, *maps: Tensor) -> tuple[Tensor, ...]:
        if self._bird is None:
            self._bird = self._engine(BIRD, BirdView(self.network).eval(), maps)
        return self._bird(*maps)

    def _engine(
        self, part: str, module: nn.Module, examples: tuple[Tensor, ...], *, dynamic_batch: bool = False
    ) -> Engine:
        model = None if self.int8 is None else self.int8.model(part)
        name = "auto" if self.int8 is not None and model is None else self.engine_name
        return make_engine(
            module,
            examples,
            name,
            bfloat16=self.bfloat16,
            dynamic_batch=dynamic_batch,
            dynamic_int8=INT8_PARTS if self.dynamic_int8 and part == BIRD else (),
            int8=model,
        )

    def _lift_splat_index(self, inputs: FusionInput) -> LiftSplatIndex:
        """Return the index of these calibrations in these frames; the last one is kept."""
        key = inputs.rays, inputs.origins, inputs.image_batch
        if (
            self._index is not None
            and self._index[1].batch == len(inputs.has_lidar)
            and all(torch.equal(a, b) for a, b in zip(key, self._index[0], strict=True))
        ):
            return self._index[1]
        index = self.network.view.index(inputs)
        self._index = key, index
        return index

    @property
    def parts(self) -> dict[str, Engine]:
        """The engine of each part, as far as that is decided."""
        made = {"camera": self._camera, "bird's-eye view": self._bird, "map": self._map}
        return {part: engine for part, engine in made.items() if engine is not None}

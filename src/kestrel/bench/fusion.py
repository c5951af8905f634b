# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel-Fusion with the shipped weights on the nuScenes rig, messages in to messages out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from kestrel.bench.bev import lss_pool
from kestrel.bench.fusion_drive import FrameReader, recorded_drive
from kestrel.bench.stage_clock import PeakMemory, StageClock
from kestrel.bench.timing import THREADS
from kestrel.data.bag import serialize
from kestrel.data.perception_messages import map_messages, objects_message
from kestrel.engine import EngineName
from kestrel.engine.folded import FoldedEngine
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionInput, FusionOutput
from kestrel.ops.frustum import LiftSplatIndex
from kestrel.pipelines.bevfusion import BEVFusionDetector
from kestrel.pipelines.fusion import FusionDetector
from kestrel.pipelines.fusion_engine import Stage, run_stage
from kestrel.pipelines.runtime import keep_what_is_loaded
from kestrel.report import Figure

SWEEPS: Final = 16
ROUNDS: Final = 5
"""How often our form takes all frames; the textbook form takes one frame in each round."""

TEXTBOOK: Final = "textbook form"
"""The same weights in eager fp32; LSS with outer product and cumsum."""


class TextbookEngine:
    """Stands for kestrel.pipelines.fusion_engine.FusionEngine: the network in eager fp32, LSS by cumsum."""

    def __init__(self, network: KestrelFusion) -> None:
        self.network = network

    def __call__(self, inputs: FusionInput, stage: Stage = run_stage) -> FusionOutput:
        """Run the network on a batch of frames."""
        network = self.network
        index = network.view.index(inputs)
        cells = network.view.frustum(inputs).cells(network.view.grid)

        def view(depth: Tensor, context: Tensor, _: LiftSplatIndex) -> tuple[Tensor, Tensor]:
            side = network.config.pillars // 2
            frames = len(inputs.has_lidar)
            pooled = lss_pool(depth.softmax(1), context, cells, frames * side * side)
            seen = torch.zeros(frames * side * side).index_fill_(0, cells[cells >= 0], 1.0)
            return (
                pooled.view(frames, side, side, -1).permute(0, 3, 1, 2),
                seen.view(frames, 1, side, side),
            )

        return network.run(inputs, index, network.pillars, network.camera, view, network.bird)

    def refined_map(self, evidence: Tensor) -> Tensor:
        """Return what the network's map_refiner does."""
        logits: Tensor = self.network.map_refiner(evidence)
        return logits


def fusion(int8: Path | None = None) -> dict[str, Figure]:
    """Six 704x256 JPEGs and a 32-beam sweep with its earlier ones in, boxes and map messages out.

    In what precision "auto" finds; where that is not float32, rate and processor time in float32 as well.

    Args:
        int8: folder of `kestrel calibrate`, to run the camera branch in int8.
    """
    torch.set_num_threads(THREADS)
    # Before the drive, which takes minutes: the folder may be wrong.
    engine: EngineName = "auto" if int8 is None else "int8"
    ours = FusionDetector("kestrel-fusion", threads=THREADS, engine=engine, int8=int8)
    drive = recorded_drive(SWEEPS)
    exact = FusionDetector("kestrel-fusion", threads=THREADS, engine=engine, int8=int8, precision="float32")
    plain = FusionDetector("kestrel-fusion", threads=THREADS, engine="eager", precision="float32")
    # Nothing but the call of an engine is needed of it, so it is none by type.
    plain.engine = TextbookEngine(plain.network)  # type: ignore[assignment]
    reader = FrameReader(drive, ours)
    numbers = reader.numbers
    for number in numbers:
        answer(ours, reader, number, run_stage)
    keep_what_is_loaded()  # as every node does
    clock, floats, slow, memory = StageClock(), StageClock(), StageClock(), PeakMemory()
    peak = memory.mib()
    for turn in range(ROUNDS):
        with clock.watching(parts_of(ours)):
            for number in numbers:
                clock.frame(partial(answer, ours, reader, number, clock))
        peak = peak if turn else memory.mib()
        if ours.precision != "float32":
            answer(exact, reader, numbers[0], run_stage)  # its parts are made, or wake up
            for number in numbers:
                floats.frame(partial(answer, exact, reader, number, run_stage))
        slow.frame(lambda: answer(plain, reader, numbers[0], slow))
    return {
        **_against(slow, clock, ""),
        **(_against(slow, floats, "float32: ") if ours.precision != "float32" else {}),
        **clock.figures(),
        "peak memory": Figure(peak, "MiB, all of the process"),
        **{f"{TEXTBOOK}: {name}": figure for name, figure in slow.figures((50,)).items()},
        **differences(ours, plain, reader, numbers[0]),
    }


def _against(slow: StageClock, clock: StageClock, prefix: str) -> dict[str, Figure]:
    return {
        f"{prefix}rate": Figure(1 / clock.wall_s, "Hz", slow.wall_s / clock.wall_s, TEXTBOOK),
        f"{prefix}processor": Figure(clock.cpu_s, "s per frame", slow.cpu_s / clock.cpu_s, TEXTBOOK),
    }


def answer(
    detector: FusionDetector | BEVFusionDetector, reader: FrameReader, number: int, stage: Stage
) -> list[bytes]:
    """Return the serialized answer to the serialized messages of a frame."""
    frame = reader.read(number, stage)
    boxes, bev_map = detector.detect(frame, stage)
    return stage(
        "encode messages",
        lambda: (
            [serialize(objects_message(boxes, modality=frame.modality))]
            + [serialize(grid) for grid in map_messages(bev_map).values()]
        ),
    )


def parts_of(detector: FusionDetector) -> dict[str, nn.Module]:
    """Return the parts of the engines that are still modules, by name."""
    parts: dict[str, nn.Module] = {}
    camera, bird = detector.engine.parts["camera"], detector.engine.parts["bird's-eye view"]
    if isinstance(camera, FoldedEngine):
        parts["camera: backbone"] = camera.module.get_submodule("trunk")
    if isinstance(bird, FoldedEngine):
        network = bird.module.get_submodule("network")
        names = {
            "LiDAR encoder": ("lidar_stem", "lidar_down"),
            "fuser": ("view.reduce", "fuser"),
            "decoder": ("decoder.0", "decoder.1", "up", "shared"),
            "heads": ("heatmap", "map_head"),
        }
        for group, modules in names.items():
            parts |= {f"{group}: {name}": network.get_submodule(name) for name in modules}
    return parts


def differences(
    ours: FusionDetector, plain: FusionDetector, reader: FrameReader, number: int
) -> dict[str, Figure]:
    """Return how far the raw answers of both forms to one frame are apart at most."""
    frame = reader.read(number, run_stage)
    with torch.inference_mode():
        inputs = ours.inputs(frame)
        found, wanted = ours.engine(inputs), plain.engine(inputs)
    pairs = {
        "heatmap": (found.heatmap, wanted.heatmap),
        "map": (found.map_logits, wanted.map_logits),
    }
    return {
        f"largest difference of the {name}": Figure(
            float((one.sigmoid() - other.sigmoid()).abs().max()), "probability", None, TEXTBOOK
        )
        for name, (one, other) in pairs.items()
    }

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The released BEVFusion detector of cameras and LiDAR at full size, messages in to boxes out."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from importlib import import_module
from typing import Any, Final, cast
from unittest.mock import patch

import torch
from torch import Tensor, nn

from kestrel.bench.bev import cells_of, lss_pool
from kestrel.bench.fusion import answer
from kestrel.bench.fusion_drive import FrameReader, recorded_drive
from kestrel.bench.peer import relative_difference
from kestrel.bench.stage_clock import PeakMemory, StageClock
from kestrel.bench.timing import THREADS
from kestrel.classes import DETECTION_CLASSES
from kestrel.engine.folded import FoldedEngine
from kestrel.models.bevfusion import BEVFusion, CameraEncoder, LidarEncoder
from kestrel.models.bevfusion_released import released_config
from kestrel.nn.boxes import DecodedBoxes
from kestrel.ops import int8_is_fast
from kestrel.pipelines.bevfusion import BEVFusionDetector
from kestrel.pipelines.bevfusion_frame import BEVFusionInput
from kestrel.pipelines.fusion_engine import Stage, run_stage
from kestrel.pipelines.runtime import keep_what_is_loaded
from kestrel.report import Figure

SWEEPS: Final = 12
REPEATS: Final = 5
SLOW_REPEATS: Final = 3
TEXTBOOK: Final = "textbook form"
"""The same weights in eager fp32; LSS with cumsum; sparse convolution as gather, mm and add."""

SAME_M: Final = 0.1
"""Boxes of one class whose middles are no farther apart are the same box."""


class TextbookEngine:
    """Stands for kestrel.pipelines.bevfusion_engine.BEVFusionEngine."""

    def __init__(self, network: BEVFusion) -> None:
        self.network = network

    def __call__(self, inputs: BEVFusionInput, stage: Stage = run_stage) -> dict[str, Any]:
        """Return the raw answer of every head."""
        network = self.network
        with ExitStack() as without_kernels:
            for name in ("packed_weight", "sparse_conv"):
                module = import_module(f"kestrel.ops.{name}")
                without_kernels.enter_context(patch.object(module, "native_for", return_value=None))
            maps = [stage("camera and view transform", lambda: self._camera_map(inputs))]
            lidar = cast(LidarEncoder, network.encoders["lidar"])
            assert inputs.clouds is not None
            maps.append(stage("LiDAR encoder", lambda: lidar(inputs.clouds)))
            bev = stage("bird's-eye view", lambda: network.decoder(network.fuse(maps)))
            return stage("heads", lambda: {name: head(bev) for name, head in network.heads.items()})

    def _camera_map(self, inputs: BEVFusionInput) -> Tensor:
        encoder = cast(CameraEncoder, self.network.encoders["camera"])
        view = encoder.vtransform
        assert inputs.images is not None
        assert inputs.cameras is not None
        depth, context = view.lift(encoder.features(inputs.images), inputs.cameras, inputs.clouds)
        cells = cells_of(view, inputs.cameras)
        nx, ny, nz = view.grid_shape
        pooled = lss_pool(depth, context, cells, nx * ny * nz)
        answer: Tensor = view.downsample(pooled.view(1, nx, ny, -1).permute(0, 3, 1, 2))
        return answer


def official() -> dict[str, Figure]:
    """Swin-T, 0.075 m, 180 x 180 cells, random weights; six 1600x900 JPEGs and ten sweeps of 32 beams.

    In what precision "auto" finds, and in int8 where the processor multiplies bytes.
    """
    torch.set_num_threads(THREADS)
    drive = recorded_drive(SWEEPS, (1600, 900), camera_hz=2.0)
    config = released_config("det", "camera+lidar")
    ours = BEVFusionDetector.untrained(config, DETECTION_CLASSES, engine="auto")
    rough = (
        BEVFusionDetector.untrained(config, DETECTION_CLASSES, engine="auto", precision="int8")
        if int8_is_fast()
        else None
    )
    plain = BEVFusionDetector.untrained(config, DETECTION_CLASSES, engine="eager", precision="float32")
    # Nothing but the call of an engine is needed of it, so it is none by type.
    plain.engine = TextbookEngine(plain.network)  # type: ignore[assignment]
    reader = FrameReader(drive, ours)
    numbers = reader.numbers
    answer(ours, reader, numbers[0], run_stage)
    keep_what_is_loaded()  # as every node does
    clock, slow, memory = StageClock(), StageClock(), PeakMemory()
    with clock.watching(parts_of(ours)):
        for turn in range(REPEATS):
            number = numbers[turn % len(numbers)]
            clock.frame(partial(answer, ours, reader, number, clock))
    peak = memory.mib()
    answer(plain, reader, numbers[0], run_stage)  # the first frame is slower by a sixth, for it as for ours
    for _ in range(SLOW_REPEATS):
        slow.frame(lambda: answer(plain, reader, numbers[0], slow))
    return {
        **_against(slow, clock, ""),
        **({} if rough is None else _in_bytes(rough, plain, reader, slow)),
        **clock.figures((50,)),
        "peak memory": Figure(peak, "MiB, all of the process"),
        **{f"{TEXTBOOK}: {name}": figure for name, figure in slow.figures((50,)).items()},
        **difference(ours, plain, reader, numbers[0]),
    }


def _against(slow: StageClock, clock: StageClock, prefix: str) -> dict[str, Figure]:
    return {
        f"{prefix}frame": Figure(clock.wall_s, "s", slow.wall_s / clock.wall_s, TEXTBOOK),
        f"{prefix}processor": Figure(clock.cpu_s, "s per frame", slow.cpu_s / clock.cpu_s, TEXTBOOK),
    }


def _in_bytes(
    rough: BEVFusionDetector, plain: BEVFusionDetector, reader: FrameReader, slow: StageClock
) -> dict[str, Figure]:
    clock = StageClock()
    answer(rough, reader, reader.numbers[0], run_stage)
    for turn in range(REPEATS):
        number = reader.numbers[turn % len(reader.numbers)]
        clock.frame(partial(answer, rough, reader, number, clock))
    more = clock.figures((50,)) | difference(rough, plain, reader, reader.numbers[0])
    named = {f"int8: {name}": figure for name, figure in more.items()}
    return {**_against(slow, clock, "int8: "), **named}


def parts_of(detector: BEVFusionDetector) -> dict[str, nn.Module]:
    """Return the parts of the engines that are still modules, by name."""
    parts: dict[str, nn.Module] = {}
    camera, bird = detector.engine.parts["camera"], detector.engine.parts["bird's-eye view"]
    if isinstance(camera, FoldedEngine):
        encoder = camera.module.get_submodule("encoder")
        names = {"backbone": "backbone", "neck": "neck", "depth": "vtransform.depthnet"}
        parts |= {f"camera: {name}": encoder.get_submodule(path) for name, path in names.items()}
    if isinstance(bird, FoldedEngine):
        names = {"downsample": "downsample", "fuser": "fuser", "decoder": "decoder"}
        parts |= {f"bird's-eye view: {name}": bird.module.get_submodule(path) for name, path in names.items()}
    return parts


def difference(
    ours: BEVFusionDetector, plain: BEVFusionDetector, reader: FrameReader, number: int
) -> dict[str, Figure]:
    """Return how far the heat maps of both forms for one frame are apart, and how many boxes they share.

    With random weights many peaks are nearly as high as the last that becomes a box: if the heat map changes
    in its fourth digit, a tenth of the boxes is of others.
    """
    frame = reader.read(number, run_stage)
    with torch.inference_mode():
        inputs = ours.inputs(frame)
        answers = [each.engine(inputs) for each in (ours, plain)]
        boxes = [ours.network.decode(answer)[0] for answer in answers]
    found, wanted = (answer["object"]["dense_heatmap"] for answer in answers)
    shared = 100 * float(same_boxes(*boxes).float().mean())
    return {
        "difference of the heat map": Figure(
            relative_difference(found, wanted), "relative norm", None, TEXTBOOK
        ),
        "boxes in common": Figure(shared, f"% of its boxes, within {SAME_M} m", None, TEXTBOOK),
    }


def same_boxes(found: DecodedBoxes, wanted: DecodedBoxes) -> Tensor:
    """Return which of the wanted boxes are among the found ones, (K,) bool: see SAME_M."""
    offsets = wanted.boxes[:, None, :3].double() - found.boxes[None, :, :3].double()
    one_class = wanted.labels[:, None] == found.labels[None]
    near: Tensor = offsets.square().sum(dim=-1) <= SAME_M**2
    return (one_class & near).any(dim=1)

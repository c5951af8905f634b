# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What the temporal shift of Kestrel-Fusion's camera branch costs, against the same network without it."""

from __future__ import annotations

import time
from statistics import median
from typing import Final

import torch

from kestrel.bench.fusion_drive import FrameReader, recorded_drive
from kestrel.bench.timing import THREADS
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.pipelines.fusion import FusionDetector
from kestrel.pipelines.fusion_engine import run_stage
from kestrel.report import Figure
from kestrel.types import SensorFrame

SWEEPS: Final = 16
ROUNDS: Final = 8


def temporal_shift() -> dict[str, Figure]:
    """Frames of the drive of the benchmark fusion to boxes and map, random weights; both take every frame."""
    torch.set_num_threads(THREADS)
    with_shift, without = (
        FusionDetector.untrained(score_threshold=0.999, config=FusionConfig(hop_s=hop_s))
        for hop_s in (FusionConfig.hop_s, 0.0)
    )
    reader = FrameReader(recorded_drive(SWEEPS), with_shift)
    frames = [reader.read(number, run_stage) for number in reader.numbers]
    seconds: list[tuple[float, float]] = []
    processor: list[tuple[float, float]] = []
    for turn in range(ROUNDS + 1):
        for frame in frames:
            first = turn % 2  # who goes first finds other caches
            found = [_time((with_shift, without)[first ^ place], frame) for place in range(2)]
            if turn:
                (wall, cpu), (plain_wall, plain_cpu) = found[first], found[1 - first]
                seconds.append((wall, plain_wall))
                processor.append((cpu, plain_cpu))
    return {
        "latency": _figure(seconds, "ms, p50"),
        "processor": _figure(processor, "ms of processor time, p50"),
    }


def _time(detector: FusionDetector, frame: SensorFrame) -> tuple[float, float]:
    """Return the seconds and the processor seconds of one answer."""
    wall, cpu = time.perf_counter(), time.process_time()
    detector.detect(frame)
    return time.perf_counter() - wall, time.process_time() - cpu


def _figure(pairs: list[tuple[float, float]], unit: str) -> Figure:
    """Return the median with shift, and how many times as long it takes without."""
    ratio = median(without / with_shift for with_shift, without in pairs)
    return Figure(1e3 * median(each for each, _ in pairs), unit, ratio, "no shift")

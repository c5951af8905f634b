# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Detectors of boxes and map layers by what a weights file says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import torch

from kestrel.engine import EngineName
from kestrel.errors import ConfigError, describe
from kestrel.models.bevfusion import BEVFusion
from kestrel.pipelines.bevfusion import BEVFusionDetector
from kestrel.pipelines.fusion import FusionDetector
from kestrel.pipelines.runtime import Precision
from kestrel.types import BevMap, Boxes3D, SensorFrame
from kestrel.weights import Manifest, read_manifest

EARLY: Final = 0.1
"""Part of the time between two sweeps by which the older may come too early: no LiDAR turns evenly."""


class Detector(Protocol):
    """What boxes and maps come from, whatever the network.

    manifest: of the weights, None for random ones. sweeps: earlier sweeps that it makes use of, sweep_s:
    seconds from one to the next, 0: as they come. remove_close_m: points of earlier sweeps this close to
    their sensor, along both axes, are to be left out. precision: what its convolutions multiply, device:
    where. map_memory: whether maps are of all frames that know where the vehicle was. classes, layers: what
    it answers; empty where it knows only the other.
    """

    @property
    def manifest(self) -> Manifest | None:
        """See above."""

    @property
    def classes(self) -> tuple[str, ...]:
        """See above."""

    @property
    def layers(self) -> tuple[str, ...]:
        """See above."""

    @property
    def precision(self) -> str:
        """See above."""

    @property
    def device(self) -> torch.device:
        """See above."""

    @property
    def map_memory(self) -> bool:
        """See above."""

    @property
    def sweeps(self) -> int:
        """See above."""

    @property
    def sweep_s(self) -> float:
        """See above."""

    @property
    def remove_close_m(self) -> float:
        """See above."""

    def reset(self) -> None:
        """Forget earlier frames."""

    def detect(self, frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
        """Return what is around the vehicle, in ``frame.frame_id`` at ``frame.stamp_ns``."""


def chosen_sweeps(now_ns: int, stamps_ns: Sequence[int], sweeps: int, sweep_s: float) -> list[int]:
    """Return which earlier sweeps go into a frame, as indices into ``stamps_ns``.

    A network has learned from sweeps a certain time apart; a LiDAR that turns faster gives more than these.

    Args:
        now_ns: stamp of the frame.
        stamps_ns: of the sweeps there are, the newest first; only what is before ``now_ns`` is chosen.
        sweeps: at most so many are chosen.
        sweep_s: seconds from one to the next, 0: all are good.
    """
    gap_ns = max(1, round((1 - EARLY) * sweep_s * 1e9))
    chosen: list[int] = []
    latest_ns = now_ns - gap_ns
    for index, stamp_ns in enumerate(stamps_ns):
        if len(chosen) < sweeps and stamp_ns <= latest_ns:
            chosen.append(index)
            latest_ns = stamp_ns - gap_ns
    return chosen


def load_detector(
    weights: str | Path,
    score_threshold: float = 0.1,
    threads: int | None = None,
    engine: EngineName = "auto",
    int8: str | Path | None = None,
    precision: Precision = "auto",
    *,
    map_memory: bool = True,
    device: str = "cpu",
) -> Detector:
    """Return Kestrel-Fusion or a converted BEVFusion; arguments as for FusionDetector and BEVFusionDetector.

    A BEVFusion has no memory of maps.

    Raises:
        ModelError: the weights cannot be used.
        ConfigError: engine int8 for a BEVFusion, or not as the detector wants it.
    """
    if read_manifest(weights).network != BEVFusion.__name__:
        return FusionDetector(
            weights,
            score_threshold,
            threads,
            engine,
            int8=int8,
            precision=precision,
            map_memory=map_memory,
            device=device,
        )
    if engine == "int8" or int8 is not None:
        raise ConfigError(describe("network for engine int8", expected="KestrelFusion", found="BEVFusion"))
    return BEVFusionDetector(weights, score_threshold, threads, engine, precision, device)

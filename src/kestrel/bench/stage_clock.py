# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Where the time of a frame goes: a clock for the parts of a pipeline, and what it says as figures."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeVar

import numpy as np
from torch import nn

from kestrel.pipelines.runtime import give_memory_back
from kestrel.report import Figure

ResultT = TypeVar("ResultT")
FRAME: Final = "frame"


class StageClock:
    """Times the named parts of every frame; stands for kestrel.pipelines.fusion_engine.run_stage.

    Parts may contain parts. Processor time is that of all threads of this process.
    """

    def __init__(self) -> None:
        self._wall_s: dict[str, list[float]] = defaultdict(list)
        self._cpu_s: dict[str, list[float]] = defaultdict(list)

    def __call__(self, name: str, run: Callable[[], ResultT]) -> ResultT:
        """Run a part and remember how long it took."""
        started = time.perf_counter(), time.process_time()
        result = run()
        self._note(name, *started)
        return result

    def frame(self, run: Callable[[], ResultT]) -> ResultT:
        """Run a whole frame."""
        return self(FRAME, run)

    def _note(self, name: str, started: float, cpu: float) -> None:
        self._wall_s[name].append(time.perf_counter() - started)
        self._cpu_s[name].append(time.process_time() - cpu)

    @property
    def wall_s(self) -> float:
        """Median time of a frame."""
        return median(self._wall_s[FRAME])

    @property
    def cpu_s(self) -> float:
        """Median processor time of a frame."""
        return median(self._cpu_s[FRAME])

    @contextmanager
    def watching(self, parts: dict[str, nn.Module]) -> Iterator[None]:
        """Time modules wherever they run, as stages of these names."""
        began: dict[str, tuple[float, float]] = {}
        handles = []
        for name, part in parts.items():

            def before(*_: Any, name: str = name) -> None:
                began[name] = time.perf_counter(), time.process_time()

            def after(*_: Any, name: str = name) -> None:
                self._note(name, *began[name])

            handles += [part.register_forward_pre_hook(before), part.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def figures(self, percentiles: Sequence[int] = (50, 95, 99)) -> dict[str, Figure]:
        """Return percentiles of the time and the median processor time of every stage and of the frame."""
        figures = {}
        for name, seconds in self._wall_s.items():
            for percent in percentiles:
                figures[f"{name}, p{percent}"] = Figure(1e3 * float(np.percentile(seconds, percent)), "ms")
            figures[f"{name}, processor"] = Figure(1e3 * median(self._cpu_s[name]), "ms")
        return figures


class PeakMemory:
    """The largest resident memory of this process since it was made (Linux).

    Not by getrusage, whose largest value a process takes over from the one that started it.
    """

    def __init__(self) -> None:
        # Memory that was freed and not given back would be used again unseen.
        give_memory_back()
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        self._before = self.mib()

    def growth_mib(self) -> float:
        """Return by how much the peak is above what was resident at the start [MiB]."""
        return self.mib() - self._before

    def mib(self) -> float:
        """Return the peak [MiB]."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

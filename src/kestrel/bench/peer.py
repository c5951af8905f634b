# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""spconv beside our operators: processes in its own environment that run the same work on the same arrays.

spconv's results are right with one thread only (its scatter-add races), so there is one process per number of
threads: outputs are compared with that of one thread, times with both.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import torch
from torch import Tensor

from kestrel.bench.timing import THREADS, Candidate, medians, timed
from kestrel.errors import SetupError, describe
from kestrel.report import Figure

PYTHON_VARIABLE: Final = "KESTREL_SPCONV_PYTHON"
"""Environment variable with the Python of an environment that has spconv, where it is not the default one."""

_ROOT: Final = Path(__file__).resolve().parents[3]
_WORKER: Final = _ROOT / "kernels" / "peers" / "spconv_worker.py"
_MISSING: Final = "spconv is not installed, nothing is compared with it; `make peers` makes its environment"


class Worker:
    """One process of spconv with a fixed number of threads.

    Raises:
        SetupError: it does not start, or it cannot do what is asked.
    """

    def __init__(self, python: Path, threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        environment.pop("PYTHONPATH", None)
        command = [str(python), str(_WORKER)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, text=True)
        self._files = tempfile.TemporaryDirectory(prefix="kestrel-peer-")
        self.version = str(self._answer()["version"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()
        self._files.cleanup()

    def prepare(self, task: str, kind: str, arrays: Mapping[str, Tensor], **options: object) -> int:
        """Give the worker the arrays of a task; return its largest memory so far [KiB]."""
        path = Path(self._files.name) / "arrays.npz"
        np.savez(path, **{name: array.detach().numpy() for name, array in arrays.items()})  # type: ignore[arg-type]
        reply = self._ask(do="prepare", task=task, kind=kind, arrays=str(path), options=options)
        return int(reply["rss_kb"])

    def run(self, task: str) -> float:
        """Run a task and return its time [ms], measured in the worker."""
        return float(self._ask(do="run", task=task)["ms"])

    def peak_kb(self, task: str) -> int:
        """Run a task and return the largest memory of the worker so far [KiB]."""
        return int(self._ask(do="run", task=task)["rss_kb"])

    def output(self, task: str) -> Tensor:
        """Run a task and return what it computed."""
        path = Path(self._files.name) / "output.npy"
        self._ask(do="output", task=task, file=str(path))
        return torch.from_numpy(np.load(path))

    def _ask(self, **request: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        reply: dict[str, Any] = json.loads(line) if line else {"error": "the process ended"}
        if "error" in reply:
            raise SetupError(describe("spconv worker", expected="an answer", found=reply["error"]))
        return reply


class Peer:
    """Workers with one and with THREADS threads that hold the same tasks."""

    def __init__(self, workers: Mapping[int, Worker]) -> None:
        self.workers = workers

    def name(self, threads: int) -> str:
        """Return what a ratio to these threads is called."""
        plural = "" if threads == 1 else "s"
        return f"spconv {self.workers[1].version}, {threads} thread{plural}"

    def prepare(self, task: str, kind: str, arrays: Mapping[str, Tensor], **options: object) -> None:
        """Give the arrays of a task to all workers."""
        for worker in self.workers.values():
            worker.prepare(task, kind, arrays, **options)

    def candidate(self, task: str, threads: int) -> Candidate:
        """Return the task as a candidate of `medians`."""
        return lambda: self.workers[threads].run(task)

    def difference(self, task: str, ours: Tensor) -> Figure:
        """Return the relative norm of the difference between our result and that of one thread."""
        theirs = self.workers[1].output(task)
        return Figure(relative_difference(ours, theirs), "relative norm", None, f"{self.name(1)}: equality")


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Return |ours - theirs| / |theirs|."""
    reference = theirs.double()
    return float((ours.double() - reference).norm() / reference.norm())


def find_python() -> Path | None:
    """Return the Python of spconv's environment; None, with a line on standard error, where there is none."""
    named = os.environ.get(PYTHON_VARIABLE)
    python = Path(named) if named else _ROOT / "out" / "peers" / "spconv" / "bin" / "python"
    if _WORKER.exists() and python.is_file() and os.access(python, os.X_OK):
        return python
    if named:
        raise SetupError(describe(PYTHON_VARIABLE, expected="the Python of an environment", found=named))
    print(_MISSING, file=sys.stderr)
    return None


@contextmanager
def spconv_peer() -> Iterator[Peer | None]:
    """Run the workers of spconv; None where it is not installed."""
    python = find_python()
    if python is None:
        yield None
        return
    with ExitStack() as stack:
        yield Peer({threads: stack.enter_context(Worker(python, threads)) for threads in (THREADS, 1)})


def race(
    ours: Mapping[str, Callable[[], object]], peer: Peer | None, task: str, *, repeats: int = 9
) -> dict[str, Figure]:
    """Time our ways of doing a task against the peer's, with THREADS threads and with one.

    Returns:
        A figure for each of ``ours`` and number of threads, with the ratio to the peer with as many threads.
    """
    figures = {}
    for threads in (THREADS, 1):
        # One number of threads at a time: processes that change theirs in turn delay each other severalfold.
        candidates = {f"{name}, {_threads(threads)}": timed(work, threads) for name, work in ours.items()}
        against = None if peer is None else peer.name(threads)
        rivals = {} if peer is None else {peer.name(threads): peer.candidate(task, threads)}
        ms = medians({**candidates, **rivals}, repeats=repeats)
        for label in candidates:
            ratio = None if against is None else ms[against] / ms[label]
            figures[label] = Figure(ms[label], "ms", ratio, against)
    return figures


def _threads(threads: int) -> str:
    return f"{threads} thread{'' if threads == 1 else 's'}"

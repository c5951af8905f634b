# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Peak memory of one scan through SPVCNN of width 1, against spconv's MinkUNet of the same width.

Each runs in a fresh process; what counts is by how much its largest resident memory grows over that before
the first scan, when libraries, weights and the scan are loaded already. Our weights are packed by then: a
network that is only run keeps no others.
"""

from __future__ import annotations

import subprocess
import sys
from statistics import median

import torch

from kestrel.bench.networks import CLASSES, Scan, settled
from kestrel.bench.peer import Worker, find_python
from kestrel.bench.stage_clock import PeakMemory
from kestrel.bench.timing import THREADS
from kestrel.models.minkunet import MinkUNet
from kestrel.models.spvcnn import SPVCNN
from kestrel.nn.sparse import keep_packed_alone
from kestrel.report import Figure

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NETWORKS = {"SPVCNN": SPVCNN, "MinkUNet": MinkUNet}


RUNS = 3
"""Fresh processes of each kind, of which the median counts."""


def peak() -> dict[str, Figure]:
    """Return the growth of the largest resident memory for each network and number format."""
    runs = [mib for mib in (_spconv_mib() for _ in range(RUNS)) if mib is not None]
    theirs = median(runs) if runs else None
    figures = {}
    for network in NETWORKS:
        for dtype in DTYPES:
            ours = median(_fresh_mib(network, dtype) for _ in range(RUNS))
            ratio = None if theirs is None else theirs / ours
            figures[f"{network} {dtype}"] = Figure(
                ours, "MiB", ratio, None if ratio is None else "spconv MinkUNet"
            )
    if theirs is not None:
        figures["spconv MinkUNet fp32"] = Figure(theirs, "MiB")
    return figures


def _fresh_mib(network: str, dtype: str) -> float:
    command = [sys.executable, "-m", __name__, network, dtype]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _spconv_mib() -> float | None:
    python = find_python()
    if python is None:
        return None
    with Worker(python, THREADS) as worker:
        before = Scan().prepare(worker, settled(MinkUNet(CLASSES)))
        return (worker.peak_kb("minkunet") - before) / 1024


def main(name: str, dtype: str) -> None:
    """Run one scan in this process and print the growth of its largest memory [MiB]."""
    torch.set_num_threads(THREADS)
    scan, network = Scan(), settled(NETWORKS[name](CLASSES)).to(DTYPES[dtype])
    keep_packed_alone(network, DTYPES[dtype])
    features = scan.features.to(DTYPES[dtype])
    # Making the scan took more memory than it left; only what comes on top of the present size counts.
    memory = PeakMemory()
    with torch.no_grad():
        network(scan.positions, features)
    print(memory.growth_mib())


if __name__ == "__main__":
    main(*sys.argv[1:])

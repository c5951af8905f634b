# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of four ways to see a cloud, on the whole scan of a 64-beam sensor; the weights are random.

What the same networks learn, `kestrel train point-networks` says.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor, nn

from kestrel.bench.scan import street_scan
from kestrel.bench.stage_clock import PeakMemory
from kestrel.bench.timing import THREADS, medians, timed
from kestrel.models.point_baselines import NETWORKS, point_logits
from kestrel.report import Figure

REFERENCE: Final = "dense voxels"


def point_networks() -> dict[str, Figure]:
    """Parameters, median time and growth of the largest memory of each network, against the dense grid."""
    networks = {name: untrained(name) for name in NETWORKS}
    scan = street_scan()
    with torch.no_grad():
        ms = medians({name: timed(runner(network, scan)) for name, network in networks.items()}, repeats=3)
    mib = {name: _fresh_mib(name) for name in NETWORKS}
    figures = {"points": Figure(len(scan), "points")}
    for name, network in networks.items():
        count = sum(parameter.numel() for parameter in network.parameters())
        against = None if name == REFERENCE else REFERENCE
        faster, smaller = ms[REFERENCE] / ms[name], mib[REFERENCE] / mib[name]
        figures[f"{name}: parameters"] = Figure(count / 1e3, "thousand")
        figures[f"{name}: time"] = Figure(ms[name], "ms", faster if against else None, against)
        figures[f"{name}: peak memory"] = Figure(mib[name], "MiB", smaller if against else None, against)
    return figures


def untrained(name: str) -> nn.Module:
    """Return a network of NETWORKS with random weights, ready to answer."""
    torch.manual_seed(0)
    return NETWORKS[name]().eval().requires_grad_(False)


def runner(network: nn.Module, scan: Tensor) -> Callable[[], Tensor]:
    """Return a function that classifies the (P, 4) points of a scan."""
    cloud = scan.T[None].contiguous()
    return lambda: point_logits(network, cloud)


def _fresh_mib(name: str) -> float:
    command = [sys.executable, "-m", __name__, name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(name: str) -> None:
    """Run one scan in this process and print the growth of its largest memory [MiB]."""
    torch.set_num_threads(THREADS)
    run = runner(untrained(name), street_scan())
    # Making the scan took more memory than it left; only what comes on top of the present size counts.
    memory = PeakMemory()
    with torch.no_grad():
        run()
    print(memory.growth_mib())


if __name__ == "__main__":
    main(*sys.argv[1:])

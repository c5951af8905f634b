# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How many frames the simulator makes per second, from rays to the written bag."""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kestrel.report import Figure
from kestrel.sim.record import Encoded, write_drive
from kestrel.sim.rig import load_rig
from kestrel.sim.workers import Plan, Workers
from kestrel.sim.world import build_world

SECONDS: Final = 4.0
LIDAR_HZ: Final = 12.0
"""The rate of the cameras, so that a frame is six pictures and one sweep."""


def simulated_frames() -> Mapping[str, Figure]:
    """Make a short drive of the nuScenes rig (six 704x256 pictures and a sweep per frame) and write it.

    The rate is that of the finished town's drive, from handing it to the processes to the complete bag. The
    processor time is that of all processes, the start of those that make the samples included.
    """
    rig = load_rig("nuscenes").select(lidar_hz=LIDAR_HZ)
    started = time.perf_counter()
    arrived: list[float] = []

    def count(sample: Encoded) -> None:
        if sample.sweep or not arrived:
            arrived.append(time.perf_counter())

    earlier = _processor_seconds(resource.RUSAGE_CHILDREN)
    with Workers() as workers, tempfile.TemporaryDirectory() as folder:
        world = build_world("urban", "elm", 7, SECONDS, "day")
        built, own = time.perf_counter(), _processor_seconds(resource.RUSAGE_SELF)
        samples = workers.drive(Plan(world, rig, SECONDS, (704, 256)))
        write_drive(samples, Path(folder) / "drive", rig=rig, progress=count)
        finished = time.perf_counter()
    spent = _processor_seconds(resource.RUSAGE_SELF) - own
    spent += _processor_seconds(resource.RUSAGE_CHILDREN) - earlier
    frames = len(arrived) - 1
    return {
        "sim/frames_per_second": Figure(frames / (finished - built), "frames/s"),
        "sim/processor_time_per_frame": Figure(spent / frames, "s"),
        "sim/world_build": Figure(built - started, "s"),
        "sim/start": Figure(arrived[0] - started, "s"),
    }


def _processor_seconds(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime

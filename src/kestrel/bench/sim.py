# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How many frames the simulator makes per second, from rays to the written bag."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kestrel.report import Figure
from kestrel.sim.drive import simulate
from kestrel.sim.record import write_drive
from kestrel.sim.rig import load_rig
from kestrel.sim.samples import LidarSample, Sample
from kestrel.sim.world import build_world

SECONDS: Final = 2.0
LIDAR_HZ: Final = 12.0
"""The rate of the cameras, so that a frame is six pictures and one sweep."""


def simulated_frames() -> Mapping[str, Figure]:
    """Make a short drive of the nuScenes rig (six 704x256 pictures and a sweep per frame) and write it."""
    rig = load_rig("nuscenes").select(lidar_hz=LIDAR_HZ)
    started = time.perf_counter()
    world = build_world("urban", "elm", 7, SECONDS, "day")
    built = time.perf_counter()
    frames = 0

    def count(sample: Sample) -> None:
        nonlocal frames
        frames += isinstance(sample, LidarSample)

    with tempfile.TemporaryDirectory() as folder:
        samples = simulate(world, rig, seconds=SECONDS, image_size=(704, 256))
        write_drive(samples, Path(folder) / "drive", rig=rig, progress=count)
    finished = time.perf_counter()
    return {
        "sim/frames_per_second": Figure(frames / (finished - built), "frames/s"),
        "sim/world_build": Figure(built - started, "s"),
    }

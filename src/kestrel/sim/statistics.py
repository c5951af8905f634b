# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What is in simulated drives: how many objects of which class, how far, how hidden, and which events.

``python -m kestrel.sim.statistics docs/data/test_drives.json`` writes the statistics of the test drives.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from kestrel.classes import DETECTION_CLASSES, EVENTS, IGNORE, POINT_CLASSES
from kestrel.sim.drive import simulate
from kestrel.sim.rig import LidarSpec, load_rig
from kestrel.sim.samples import LidarSample
from kestrel.sim.scene import World
from kestrel.sim.semantics import POINT_CLASS_TABLE
from kestrel.sim.splits import DriveSpec, scored_drives
from kestrel.sim.world import build_world
from kestrel.types import Float32Array

SWEEP_HZ: Final = 10.0
EVERY: Final = 5
"""Every fifth sweep is looked at: two a second."""

EVENT_HZ: Final = 12.0
RANGES_M: Final = (20.0, 40.0, 70.0)
VISIBLE: Final = (0.02, 0.15, 0.4)
"""Bounds between hidden, mostly hidden, partly hidden, visible: share of the shots at a box that hit it."""


def drive_statistics(drive: DriveSpec) -> dict[str, Any]:
    """Return counts of one drive, ready for JSON."""
    world = build_world(drive.scene, drive.town, drive.seed, drive.seconds, drive.weather)
    rig = load_rig(drive.rig)
    samples = simulate(world, rig, seconds=drive.seconds, lidar_hz=SWEEP_HZ, cameras=(), seed=drive.seed)
    sweeps = [sample for sample in samples if isinstance(sample, LidarSample)][::EVERY]
    return {
        **asdict(drive),
        "sweeps": len(sweeps),
        "objects": _objects(sweeps, rig.lidar),
        "points": _points(sweeps),
        "events": event_counts(world, drive.seconds),
    }


def event_counts(world: World, seconds: float) -> dict[str, int]:
    """Return how many pictures of a front camera show each event."""
    times = np.arange(0.0, seconds, 1.0 / EVENT_HZ)
    events = Counter(world.event(float(time_s)) for time_s in times)
    return {name: events[name] for name in EVENTS if events[name]}


def _points(sweeps: Iterable[LidarSample]) -> dict[str, int]:
    counts = np.zeros(256, np.int64)
    for sweep in sweeps:
        counts += np.bincount(POINT_CLASS_TABLE[sweep.semantic], minlength=256)
    named = {name: int(counts[index]) for index, name in enumerate(POINT_CLASSES)}
    return {**named, "none": int(counts[IGNORE])}


def _objects(sweeps: Iterable[LidarSample], lidar: LidarSpec) -> dict[str, Any]:
    """Return, per class, numbers of boxes by range and by how much of them the LiDAR sees."""
    table: dict[str, dict[str, int]] = {}
    for sweep in sweeps:
        away = np.hypot(sweep.truth.center[:, 0], sweep.truth.center[:, 1])
        seen = visibility(sweep, lidar)
        for label, metres, share in zip(sweep.truth.label, away, seen, strict=True):
            row = table.setdefault(DETECTION_CLASSES[label], dict.fromkeys((*_RANGE_NAMES, *_SEEN_NAMES), 0))
            row[_RANGE_NAMES[min(int(np.searchsorted(RANGES_M, metres)), len(RANGES_M) - 1)]] += 1
            row[_SEEN_NAMES[int(np.searchsorted(VISIBLE, share))]] += 1
    return {name: table[name] for name in DETECTION_CLASSES if name in table}


_RANGE_NAMES: Final = tuple(f"to_{metres:.0f}_m" for metres in RANGES_M)
_SEEN_NAMES: Final = ("hidden", "mostly_hidden", "partly_hidden", "visible")


def visibility(sweep: LidarSample, lidar: LidarSpec) -> Float32Array:
    """Return (N,) share of the shots through each box that returned from the object in it."""
    boxes = sweep.truth
    assert boxes.num_points is not None
    offset = sweep.base_from_lidar[:3, 3]
    through = np.array(
        [
            _shots_through(boxes.center[i] - offset, boxes.size[i], float(boxes.yaw[i]), lidar)
            for i in range(len(boxes))
        ],
        np.int64,
    )
    return (boxes.num_points / np.maximum(through, 1)).astype(np.float32)


def _shots_through(centre: Float32Array, size: Float32Array, yaw: float, lidar: LidarSpec) -> int:
    """Return how many shots of one turn of a level LiDAR at the origin go through a box."""
    reach = float(np.linalg.norm(size)) / 2
    away = float(np.linalg.norm(centre))
    half = np.pi if away <= reach else float(np.arcsin(reach / away))
    step = 2 * np.pi / lidar.columns
    azimuth = np.arctan2(centre[1], centre[0]) + np.arange(-half, half + step, step)
    elevation = lidar.elevation_rad[:, None]
    rays = np.stack(
        np.broadcast_arrays(
            np.cos(elevation) * np.cos(azimuth - yaw),
            np.cos(elevation) * np.sin(azimuth - yaw),
            np.sin(elevation),
        ),
        axis=-1,
    )
    turned = np.array(
        [
            np.cos(yaw) * centre[0] + np.sin(yaw) * centre[1],
            np.cos(yaw) * centre[1] - np.sin(yaw) * centre[0],
            centre[2],
        ]
    )
    slope = 1.0 / np.where(np.abs(rays) < 1e-9, 1e-9, rays)
    first, second = (turned - size / 2) * slope, (turned + size / 2) * slope
    entry = np.minimum(first, second).max(axis=-1)
    leave = np.maximum(first, second).min(axis=-1)
    return int(np.count_nonzero((entry <= leave) & (leave > 0)))


def main(out: Path) -> None:
    """Write the statistics of all test drives, with their sum, to ``out``."""
    entries = []
    for drive in scored_drives():
        entries.append(drive_statistics(drive))
        print(json.dumps(entries[-1]), file=sys.stderr)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"total": _total(entries), "drives": entries}, indent=1) + "\n")


def _total(entries: list[dict[str, Any]]) -> dict[str, Any]:
    objects: dict[str, Counter[str]] = {}
    points: Counter[str] = Counter()
    events: Counter[str] = Counter()
    for entry in entries:
        points.update(entry["points"])
        events.update(entry["events"])
        for name, row in entry["objects"].items():
            objects.setdefault(name, Counter()).update(row)
    return {"objects": {name: dict(row) for name, row in objects.items()}, "points": points, "events": events}


if __name__ == "__main__":
    main(Path(sys.argv[1]))

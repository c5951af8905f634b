# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel-Seg with the shipped weights, PointCloud2 in, labelled PointCloud2 out, and how its time grows."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
import torch

from kestrel.bench.scan import SENSOR_HEIGHT, street_scan
from kestrel.bench.timing import THREADS
from kestrel.data.bag import deserialize, serialize
from kestrel.data.cloud_reader import read_cloud
from kestrel.data.sensor_messages import (
    cloud_message,
    packed_cloud,
)
from kestrel.errors import SetupError, describe, extra
from kestrel.ops.backend import DISPATCH_VARIABLE, TORCH_LEVEL
from kestrel.pipelines.runtime import keep_what_is_loaded
from kestrel.pipelines.segmentation import PointSegmenter
from kestrel.report import Figure
from kestrel.types import Float64Array, PointCloud, PointLabels

CLOUD: Final = "sensor_msgs/msg/PointCloud2"
FRAMES: Final = 60
TEXTBOOK_FRAMES: Final = 5
TEXTBOOK: Final = "the same weights on torch gather, mm and index_add"
COLUMNS: Final = (225, 450, 675, 900, 1125, 1350, 1575, 1800)
"""Of the scans whose times make the curve: 13 to 113 thousand points."""
REPEATS: Final = 7
PICTURE: Final = Path("out/bench/seg-latency.png")
PERIOD_MS: Final = 100.0


def scan_message(columns: int = 1800) -> bytes:
    """Return the CDR bytes of a PointCloud2 of a 64-beam sensor, in base_link axes."""
    points = street_scan(columns).numpy()
    points[:, 2] += SENSOR_HEIGHT
    return serialize(cloud_message(PointCloud(points, 10**9, "base_link")))


def answer(segmenter: PointSegmenter, raw: bytes) -> tuple[PointLabels, bytes]:
    """Return the labels of a serialized cloud, and the serialized cloud that says them."""
    cloud = read_cloud(deserialize(raw, CLOUD)).cloud
    labels = segmenter.segment(cloud)
    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("class_id", "u1"), ("probability", "<f4")]
    points = np.zeros(len(cloud), fields)
    points["x"], points["y"], points["z"] = cloud.points[:, :3].T
    points["class_id"], points["probability"] = labels.label, labels.probability
    return labels, serialize(packed_cloud(points, cloud.stamp_ns, cloud.frame_id))


def kestrel_seg() -> dict[str, Figure]:
    """A full 64-beam scan, message in to message out; the textbook form runs between the two halves."""
    torch.set_num_threads(THREADS)
    raw = scan_message()
    segmenter, exact = PointSegmenter(threads=THREADS), PointSegmenter(threads=THREADS, precision="float32")
    labels, _ = answer(segmenter, raw)
    exact_labels, _ = answer(exact, raw)
    keep_what_is_loaded()  # as every node does
    wall_ms, cpu_ms = _times(segmenter, raw, FRAMES // 2)
    slow_ms, slow_labels = _textbook()
    more_wall_ms, more_cpu_ms = _times(segmenter, raw, FRAMES - FRAMES // 2)
    wall_ms, cpu_ms = wall_ms + more_wall_ms, cpu_ms + more_cpu_ms
    # They take turns: both meet the same machine.
    turns = [(_times(segmenter, raw, 1)[0][0], _times(exact, raw, 1)[0][0]) for _ in range(FRAMES // 4)]
    gain = median(exactly / quickly for quickly, exactly in turns)
    middle = median(wall_ms)
    equal, exactly_equal = (float((each.label == slow_labels).mean()) for each in (labels, exact_labels))
    return {
        "points": Figure(len(labels.label), "points"),
        "rate": Figure(1e3 / middle, "Hz", slow_ms / middle, TEXTBOOK),
        f"rate in {segmenter.precision} against float32": Figure(gain, "x"),
        **{f"latency, p{p}": Figure(float(np.percentile(wall_ms, p)), "ms") for p in (50, 95, 99)},
        "processor": Figure(median(cpu_ms), "ms per scan"),
        "latency of the textbook form, p50": Figure(slow_ms, "ms"),
        f"labels in {segmenter.precision} equal to the textbook form's": Figure(
            equal, "share", None, TEXTBOOK
        ),
        "labels in float32 equal to the textbook form's": Figure(exactly_equal, "share", None, TEXTBOOK),
    }


def _times(segmenter: PointSegmenter, raw: bytes, frames: int) -> tuple[list[float], list[float]]:
    """Return wall and processor times of so many answers [ms]."""
    wall_ms, cpu_ms = [], []
    for _ in range(frames):
        wall, cpu = time.perf_counter(), time.process_time()
        answer(segmenter, raw)
        wall_ms.append(1e3 * (time.perf_counter() - wall))
        cpu_ms.append(1e3 * (time.process_time() - cpu))
    return wall_ms, cpu_ms


def _textbook() -> tuple[float, np.ndarray]:
    """Return the median time [ms] and the labels of the reference operators, in a process of their own."""
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "labels.npy"
        environment = {**os.environ, DISPATCH_VARIABLE: TORCH_LEVEL}
        command = [sys.executable, "-m", __name__, str(labels)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return float(done.stdout), np.load(labels)


def latency() -> dict[str, Figure]:
    """Time against the number of points, the line through it, and a picture of both."""
    torch.set_num_threads(THREADS)
    segmenter = PointSegmenter(threads=THREADS)
    messages = {columns: scan_message(columns) for columns in COLUMNS}
    counts = [len(answer(segmenter, raw)[0].label) for raw in messages.values()]
    times: dict[int, list[float]] = {columns: [] for columns in COLUMNS}
    for _ in range(REPEATS):
        for columns, raw in messages.items():
            times[columns] += _times(segmenter, raw, 1)[0]
    points, ms = np.array(counts, np.float64), np.array([median(values) for values in times.values()])
    slope, offset = np.polyfit(points, ms, 1)
    residual = ((ms - slope * points - offset) ** 2).sum() / ((ms - ms.mean()) ** 2).sum()
    draw(points, ms, slope, offset, PICTURE)
    in_time = (
        {"points in 100 ms": Figure(float(np.interp(PERIOD_MS, ms, points)), "points")}
        if ms[0] <= PERIOD_MS <= ms[-1]
        else {}
    )
    return {
        **{f"{int(n)} points": Figure(t, "ms") for n, t in zip(points, ms, strict=True)},
        "time per 1000 points": Figure(1e3 * slope, "ms"),
        "time of an empty scan, by the line": Figure(offset, "ms"),
        "share of the variance that the line explains": Figure(1 - residual, "R²"),
        **in_time,
    }


def draw(points: Float64Array, ms: Float64Array, slope: float, offset: float, path: Path) -> None:
    """Write the curve as a PNG.

    Raises:
        SetupError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise SetupError(describe("matplotlib", expected=extra("show"), found="none")) from None
    canvas = Canvas(figsize=(6.4, 4.0), layout="constrained")
    axes = canvas.add_subplot()
    axes.plot(points / 1e3, ms, "o", label="measured (median)")
    ends = np.array([0.0, points.max()])
    axes.plot(
        ends / 1e3, slope * ends + offset, label=f"{1e3 * slope:.2f} ms per 1000 points + {offset:.0f} ms"
    )
    axes.axhline(PERIOD_MS, color="grey", linestyle=":", label="10 Hz")
    axes.set(xlabel="thousand points of a sweep", ylabel="ms, message in to message out", ylim=(0, None))
    axes.set_title(f"Kestrel-Seg, {THREADS} threads")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=120)
    print(f"picture: {path}", file=sys.stderr)


def main(labels: str) -> None:
    """Print the median time [ms] of this process' operators, and write their labels."""
    torch.set_num_threads(THREADS)
    segmenter, raw = PointSegmenter(threads=THREADS), scan_message()
    found, _ = answer(segmenter, raw)
    np.save(labels, found.label)
    print(median(_times(segmenter, raw, TEXTBOOK_FRAMES)[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])

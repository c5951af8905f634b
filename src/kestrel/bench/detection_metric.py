# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel's detection metric against that of nuscenes-devkit, on the same boxes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np

from kestrel.classes import ATTRIBUTES, DETECTION_CLASSES, NO_ATTRIBUTE
from kestrel.eval.detection import BoxTable, DetectionScores, evaluate
from kestrel.report import Figure
from kestrel.types import Float64Array

PYTHON_VARIABLE: Final = "KESTREL_DEVKIT_PYTHON"
"""Environment variable that names the Python of the devkit's environment."""

DEVKIT: Final = "nuscenes-devkit"
FRAMES: Final = 200


@dataclass(frozen=True)
class DevkitScores:
    """What the devkit says: as in DetectionScores, with the time it took."""

    average_precision: Float64Array
    errors: Float64Array
    mean_average_precision: float
    nuscenes_detection_score: float
    seconds: float


def find_devkit() -> Path | None:
    """Return the Python of the devkit's environment, or None where there is none."""
    named = os.environ.get(PYTHON_VARIABLE)
    python = Path(named) if named else Path("out") / "peers" / DEVKIT / "bin" / "python"
    return python if python.exists() else None


def devkit_scores(python: Path, truth: BoxTable, predicted: BoxTable, frames: int) -> DevkitScores:
    """Let the devkit score boxes of frames 0 to ``frames`` - 1."""
    arrays = {
        f"{name}/{item.name}": getattr(table, item.name)
        for name, table in (("truth", truth), ("predicted", predicted))
        for item in fields(table)
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "boxes.npz"
        np.savez(path, frames=frames, class_names=np.array(DETECTION_CLASSES), **arrays)
        worker = Path(__file__).with_name("devkit_worker.py")
        run = subprocess.run(
            [str(python), str(worker), str(path)], check=True, capture_output=True, text=True
        )
    found = json.loads(run.stdout)
    return DevkitScores(
        np.array(found["precision"]),
        np.array(found["errors"]),
        found["mean_ap"],
        found["nd_score"],
        found["seconds"],
    )


def random_boxes(frames: int, seed: int = 0) -> tuple[BoxTable, BoxTable]:
    """Return truth and imperfect detections of it: some missed, some twice, some of nothing."""
    random = np.random.default_rng(seed)
    count = 40 * frames
    moving = random.normal(0, 5, (count, 2))
    moving[random.random(count) < 0.05] = np.nan
    truth = BoxTable(
        sample=np.sort(random.integers(0, frames, count)),
        label=random.integers(0, len(DETECTION_CLASSES), count),
        center=random.uniform((-60, -60, -1), (60, 60, 2), (count, 3)),
        size=random.uniform(0.3, 6, (count, 3)),
        yaw=random.uniform(-np.pi, np.pi, count),
        velocity=moving,
        score=np.ones(count),
        num_points=random.integers(0, 20, count),
        attribute=np.where(
            random.random(count) < 0.1, NO_ATTRIBUTE, random.integers(0, len(ATTRIBUTES), count)
        ),
    )
    picked = np.flatnonzero(random.random(count) < 0.8)
    picked = np.concatenate((picked, random.choice(picked, len(picked) // 5)))
    found = truth.take(picked)
    close = random.exponential(0.8, (len(picked), 1))
    elsewhere = random.random(len(picked)) < 0.15
    center = found.center + close * random.normal(0, 1, (len(picked), 3))
    center[elsewhere, :2] = random.uniform(-60, 60, (int(elsewhere.sum()), 2))
    swapped = random.random(len(picked)) < 0.1
    predicted = BoxTable(
        sample=found.sample,
        label=np.where(swapped, random.integers(0, len(DETECTION_CLASSES), len(picked)), found.label),
        center=center,
        size=found.size * np.exp(random.normal(0, 0.2, found.size.shape)),
        yaw=found.yaw + random.normal(0, 0.5, len(picked)),
        velocity=np.nan_to_num(found.velocity) + random.normal(0, 1, (len(picked), 2)),
        score=random.permutation(len(picked)) / len(picked),
        num_points=np.full(len(picked), -1, np.int64),
        attribute=random.integers(0, len(ATTRIBUTES), len(picked)),
    )
    return truth, predicted


def detection_metric() -> dict[str, Figure]:
    """Score 200 frames of 40 boxes with both; the devkit's time is that of its metric alone."""
    truth, predicted = random_boxes(FRAMES)
    started = time.perf_counter()
    ours = evaluate(truth, predicted)
    seconds = time.perf_counter() - started
    figures = {
        "mAP": Figure(ours.mean_average_precision, "AP"),
        "NDS": Figure(ours.nuscenes_detection_score, "NDS"),
    }
    python = find_devkit()
    if python is None:
        print("no nuscenes-devkit: `make devkit` makes its environment", file=sys.stderr)
        return {"time": Figure(seconds, "s"), **figures}
    theirs = devkit_scores(python, truth, predicted, FRAMES)
    return {
        "time": Figure(seconds, "s", theirs.seconds / seconds, DEVKIT),
        **figures,
        "largest difference": Figure(largest_difference(ours, theirs), "AP or error", None, DEVKIT),
    }


def largest_difference(ours: DetectionScores, theirs: DevkitScores) -> float:
    """Return the largest difference in any class and threshold; infinite where one is defined alone."""
    if (np.isnan(ours.errors) != np.isnan(theirs.errors)).any():
        return float("inf")
    gaps = (
        np.abs(ours.average_precision - theirs.average_precision).max(),
        np.nanmax(np.abs(ours.errors - theirs.errors)),
        abs(ours.nuscenes_detection_score - theirs.nuscenes_detection_score),
    )
    return float(max(gaps))

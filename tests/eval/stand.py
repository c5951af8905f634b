# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A detector that answers what it is told, and recordings of the tiny nuScenes to show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from typer.testing import CliRunner

from kestrel.classes import DETECTION_CLASSES
from kestrel.cli import build_app
from kestrel.eval.detector_score import DetectorScore
from kestrel.eval.recording import read_recording
from kestrel.types import BevMap, Boxes3D, SensorFrame
from tests.data.nuscenes_data_set import (
    DataSet,
)


class Stand:
    """A detector that answers what it is told, and keeps the frames it was shown."""

    manifest = None
    classes: tuple[str, ...] = DETECTION_CLASSES
    layers: tuple[str, ...] = ()
    precision, device, map_memory = "float32", torch.device("cpu"), False
    sweeps, sweep_s, remove_close_m = 9, 0.0, 1.0

    def __init__(self, answer: Callable[[int], Boxes3D]) -> None:
        self.answer = answer
        self.frames: list[SensorFrame] = []

    def reset(self) -> None:
        self.frames.clear()

    def detect(self, frame: SensorFrame) -> tuple[Boxes3D, BevMap]:
        self.frames.append(frame)
        empty = np.zeros((0, 1, 1), np.float32)
        return self.answer(frame.stamp_ns), BevMap(empty, (), (0, 0), 1, frame.frame_id, frame.stamp_ns)


def imported(data_set: DataSet, out: Path, scene: str = "scene-0061") -> Path:
    """The scene as `kestrel import nuscenes` writes it."""
    arguments = ["import", "nuscenes", str(data_set.root), "--out", str(out), "--scene", scene]
    assert CliRunner().invoke(build_app(), arguments, catch_exceptions=False).exit_code == 0
    return out


def knowing(bag: Path) -> Stand:
    """A detector that answers the truth."""
    truth = read_recording(bag).truth.objects
    return Stand(lambda stamp: replace(truth[stamp], attribute=None))


def values(score: DetectorScore) -> dict[str, float]:
    return {name: figure.value for name, figure in score.figures().items()}


def add_cycle_at_a_rack(data_set: DataSet) -> None:
    for name, category in (("bike", "vehicle.bicycle"), ("rack", "static_object.bicycle_rack")):
        data_set.tables["category"].append({"token": f"k {name}", "name": category})
        data_set.tables["instance"].append({"token": name, "category_token": f"k {name}"})
        for number in range(3):
            size = (1.7, 0.6, 1.2) if name == "bike" else (4.0, 2.0, 2.0)
            data_set._box(number, name, (1006.0, 2010.0, 0.8), size, 0.7)
    for name in ("category", "instance", "sample_annotation"):
        data_set.write(name)

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""How well boxes and maps are found on cached drives, also where sensors are out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Final

import numpy as np
import torch

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS, NO_ATTRIBUTE
from kestrel.errors import InputError, describe
from kestrel.eval.fusion import EDGES_M, ScoredFrame, Values, by_class, by_range, compare, summary
from kestrel.eval.labelled import judged
from kestrel.eval.overlap import MapOverlap
from kestrel.train import cache, drive_file
from kestrel.train.drive_file import Holds
from kestrel.train.progress import track
from kestrel.train.sensor_cases import (
    CAMERAS,
    CASES,
    LIDAR,
    NOTHING,
    RING,
    Without,
    is_later,
    sensor_frame,
    stamp_of,
)
from kestrel.types import BevMap, Boxes3D, SensorFrame

SENSORS: Final[Mapping[str, Without]] = {
    "camera+lidar": NOTHING,
    "lidar": Without.of(CAMERAS),
    "camera": Without.of(LIDAR),
}
"""Sensors that are there, and so those that are left out."""

SENSORS_OUT: Final = "sensors_out"
COMPARED: Final = ("mAP", "mAP_2m", "NDS", "map_miou")
"""Figures of which it is said what they lose, in points, without some sensors."""

Detector = Callable[[SensorFrame], tuple[Boxes3D, BevMap]]


@dataclass(frozen=True)
class Drive:
    """A finished drive: where it is, its rig, its weather and what it holds; imported ones have no rig."""

    folder: Path
    rig: str
    weather: str
    holds: frozenset[str]

    @classmethod
    def below(cls, folder: Path, needed: Holds = Holds.BOXES) -> list[Drive]:
        """Return the finished drives below ``folder`` that have key frames with what is needed.

        Raises:
            InputError: there is none, as in a split of videos, or one is of an earlier version.
        """
        told = {path: drive_file.read(path) for path in drive_file.drives_with([folder], needed)}
        drives = [
            cls(
                path,
                rig=values.get("rig", drive_file.UNKNOWN),
                weather=values.get("weather", drive_file.UNKNOWN),
                holds=drive_file.holds(values),
            )
            for path, values in told.items()
        ]
        found = [drive for drive in drives if drive.files]
        if not found:
            expected = "drives with key frames"
            raise InputError(describe(str(folder), expected=expected, found=f"{len(drives)} without"))
        return found

    @property
    def files(self) -> list[Path]:
        """The key frames."""
        return cache.key_frames(self.folder)

    def has_ring(self) -> bool:
        """Whether its rig has the six cameras of RING."""
        return len(cache.read(cache.CachedFrame, self.files[0]).matrices) == len(RING)


class Answers:
    """What a detector answers to whole drives; each is asked for once.

    Frames come in the order of a drive. For every drive and choice of sensors time starts anew, as when a
    recording is played again, so that nothing of another run is remembered.

    Args:
        detect: answers one frame.
        sweeps: earlier ones in a frame.
    """

    def __init__(self, detect: Detector, sweeps: int) -> None:
        self._detect = detect
        self._sweeps = sweeps
        self._known: dict[tuple[Path, Without], list[ScoredFrame]] = {}

    def to(self, drives: Sequence[Drive], without: Without) -> list[ScoredFrame]:
        """Return the answers to all frames of ``drives`` without some sensors, beside their truth.

        Those to the first half of a drive in which nothing is left out yet are asked for alone.
        """
        missing = [drive for drive in drives if (drive.folder, without) not in self._known]
        frames = [
            (path, is_later(place, len(drive.files)))
            for drive in missing
            for place, path in enumerate(drive.files)
        ]
        for path, later in track(frames, str(without)) if frames else ():
            counts = later or not without.later
            answer = self._answer(path, without if counts else NOTHING)
            self._known.setdefault((path.parent, without), []).extend([answer] if counts else [])
        return [frame for drive in drives for frame in self._known[drive.folder, without]]

    def _answer(self, path: Path, without: Without) -> ScoredFrame:
        cached = cache.read(cache.CachedFrame, path)
        boxes, bev_map = self._detect(sensor_frame(cached, self._sweeps, without, stamp_of(path)))
        middles, truth, *gaps = (
            torch.from_numpy(each)
            for each in (boxes.center, cached.boxes, cached.unlabelled, cached.labelled_classes)
        )
        boxes = boxes.chosen(judged(middles, torch.from_numpy(boxes.label), truth, *gaps).numpy())
        if not cached.has_map:
            return ScoredFrame(_truth(cached), boxes, tuple(MapOverlap(len(MAP_LAYERS)) for _ in EDGES_M))
        map_truth = cached.map_truth(len(MAP_LAYERS), bev_map.probability.shape[1]) > 0
        return compare(_truth(cached), map_truth, boxes, bev_map)


def score_fusion(answers: Answers, folder: Path, modalities: Sequence[str]) -> dict[str, float]:
    """Return scores with each choice of sensors (SENSORS) on the drives below ``folder``.

    As a whole and by class; with the first choice also by range, by weather and by rig. Choices with cameras
    are of the drives that have pictures; without any they are left out.
    """
    every = Drive.below(folder)
    served = {sensors: every if sensors == LIDAR else _with_pictures(every) for sensors in modalities}
    served = {sensors: drives for sensors, drives in served.items() if drives}
    values: dict[str, float] = {}
    for sensors, drives in served.items():
        frames = answers.to(drives, SENSORS[sensors])
        values |= _below(sensors, _summary(frames) | by_class(frames))
    first, drives = next(iter(served.items()))
    for name, own in by_range(answers.to(drives, SENSORS[first])).items():
        values |= _below(f"{first}/range/{name}", own)
    for kind in ("weather", "rig"):
        for name in sorted({getattr(drive, kind) for drive in drives}):
            chosen = [drive for drive in drives if getattr(drive, kind) == name]
            values |= _below(f"{first}/{kind}/{name}", _summary(answers.to(chosen, SENSORS[first])))
    return values


def score_all_sensors(answers: Answers, folder: Path) -> dict[str, float]:
    """Return the figures of COMPARED with all sensors on the drives below ``folder``."""
    return _compared(answers.to(Drive.below(folder), NOTHING))


def score_cameras_alone(answers: Answers, folder: Path) -> dict[str, float]:
    """Return all figures of the cameras alone on the drives below ``folder`` that have any."""
    return _summary(answers.to(_with_pictures(Drive.below(folder)), SENSORS["camera"]))


def _with_pictures(drives: Sequence[Drive]) -> list[Drive]:
    return [drive for drive in drives if Holds.PICTURES in drive.holds]


def _summary(frames: Sequence[ScoredFrame]) -> Values:
    """Return the scores without those of what no truth knows, of which none would say anything.

    By its definition an error that cannot be told counts as the largest.
    """
    truth = [frame.truth for frame in frames]
    unknown = set()
    if not any(np.isfinite(boxes.velocity).any() for boxes in truth):
        unknown |= {"mAVE", "NDS"}
    if all(boxes.attribute is None or (boxes.attribute == NO_ATTRIBUTE).all() for boxes in truth):
        unknown |= {"mAAE", "NDS"}
    return {name: value for name, value in summary(frames).items() if name not in unknown}


def score_without_sensors(answers: Answers, folder: Path) -> dict[str, float]:
    """Return the scores of all CASES, on the drives below ``folder`` that six cameras saw.

    The figures of a case are means over its runs, of which each has its own too. ``.../X_lost`` says by how
    many points the figure X is below that with all sensors, ``.../X_lost_most`` in the worst run.

    Raises:
        InputError: no drive has six cameras.
    """
    drives = [drive for drive in Drive.below(folder) if drive.has_ring()]
    if not drives:
        raise InputError(describe(str(folder), expected="drives with six cameras", found="none"))
    values = _below(f"{SENSORS_OUT}/none", _compared(answers.to(drives, NOTHING)))
    for case, runs in CASES.items():
        found = {name: _compared(answers.to(drives, without)) for name, without in runs.items()}
        later = any(without.later for without in runs.values())
        complete = _compared(answers.to(drives, Without(later=later)))
        for figure, whole in complete.items():
            own = [run[figure] for run in found.values()]
            values[f"{SENSORS_OUT}/{case}/{figure}"] = mean(own)
            values[f"{SENSORS_OUT}/{case}/{figure}_lost"] = 100 * (whole - mean(own))
            if len(own) > 1:
                values[f"{SENSORS_OUT}/{case}/{figure}_lost_most"] = 100 * (whole - min(own))
        if len(runs) > 1:
            for name, run in found.items():
                values |= _below(f"{SENSORS_OUT}/{case}/{name}", run)
    return values


def score_rounded(
    exact: Answers, rough: Answers, name: str, folder: Path, count: int | None
) -> dict[str, float]:
    """Return the scores in float32 and in fewer bits, and by how many points the latter are below the former.

    Args:
        exact: answers computed in float32.
        rough: answers computed in fewer bits.
        name: what they are called, with which the figures begin: "bfloat16" or "int8".
        folder: finished drives.
        count: how many of them are looked at, the first ones; None: all.
    """
    drives = Drive.below(folder)[:count]
    reference, frames = _compared(exact.to(drives, NOTHING)), rough.to(drives, NOTHING)
    found = _compared(frames)
    lost = {f"{figure}_lost": 100 * (reference[figure] - value) for figure, value in found.items()}
    return {
        f"{name}/drives": float(len(drives)),
        f"{name}/frames": float(len(frames)),
        **_below("float32", reference),
        **_below(name, found | lost),
    }


def _compared(frames: Sequence[ScoredFrame]) -> Values:
    return {name: value for name, value in _summary(frames).items() if name in COMPARED}


def _truth(cached: cache.CachedFrame) -> Boxes3D:
    return Boxes3D(
        center=np.ascontiguousarray(cached.boxes[:, :3]),
        size=np.ascontiguousarray(cached.boxes[:, 3:6]),
        yaw=np.ascontiguousarray(cached.boxes[:, 6]),
        velocity=np.ascontiguousarray(cached.boxes[:, 7:9]),
        label=cached.box_label,
        score=np.ones(len(cached.boxes), np.float32),
        class_names=DETECTION_CLASSES,
        frame_id="base_link",
        stamp_ns=10**9,
        num_points=cached.box_points,
        attribute=cached.box_attribute,
    )


def _below(prefix: str, values: Values) -> Values:
    return {f"{prefix}/{name}": value for name, value in values.items()}

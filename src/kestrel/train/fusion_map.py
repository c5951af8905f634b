# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A late stage of Kestrel-Fusion: the map from what all frames of a drive say of it.

The rest of the network stays as it is. What it says of some thousand frames, and what those before them said,
is collected once; a step then costs no frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from kestrel.classes import MAP_LAYERS
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.pipelines.fusion import CLASSES, FusionDetector
from kestrel.pipelines.runtime import fast_arithmetic
from kestrel.train import cache
from kestrel.train.fusion_loss import map_loss
from kestrel.train.loop import Task
from kestrel.train.plan import Plan
from kestrel.train.progress import track
from kestrel.train.sensor_cases import (
    CAMERAS,
    LIDAR,
    NOTHING,
    Without,
    is_later,
    sensor_frame,
    stamp_of,
)
from kestrel.train.sweep_augmentation import uniform

FRAMES: Final = 3500
"""Frames that are collected, at most, drive by drive; together they take 5 GB of memory."""

SENSORS: Final = ((0.45, NOTHING), (0.2, Without.of(CAMERAS)), (0.2, Without.of(LIDAR)))
"""Share of the drives with pictures that are seen without these sensors; in the others the LiDAR comes or
goes."""

FORGOTTEN: Final = 0.1
"""Share of the frames before which everything is forgotten, so that there are short memories too."""

ALONE: Final = 0.2
"""Share of the samples that know of no frame but their own."""

CUT: Final = 128
"""Cells along a side of a sample."""


@dataclass(frozen=True)
class MapEvidence:
    """What is known of the cells of maps, and what they are.

    evidence: (B, 2 * layers + 2, X, Y) as MapMemory.look returns it. truth: (B, layers, X, Y) bool.
    """

    evidence: Tensor
    truth: Tensor

    @classmethod
    def joined(cls, parts: list[MapEvidence]) -> MapEvidence:
        """Return all parts as one batch."""
        return cls(
            torch.cat([part.evidence for part in parts]).float(), torch.cat([part.truth for part in parts])
        )


class MapSource:
    """Frames that were collected; :meth:`draw` cuts, turns and mirrors them."""

    def __init__(self, frames: Sequence[MapEvidence]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> MapEvidence:
        """Return frame ``index`` as it is."""
        return self.frames[index]

    def draw(self, generator: torch.Generator) -> MapEvidence:
        """Return a part of a random frame."""
        chosen = self.frames[int(torch.randint(len(self.frames), (1,), generator=generator))]
        evidence, truth = chosen.evidence.float(), chosen.truth
        if uniform(0, 1, generator) < ALONE:
            layers = len(MAP_LAYERS)
            now, weight = evidence[:, :layers], evidence[:, -1:]
            evidence = torch.cat((now, now, weight, weight), 1)
        rows, columns = (
            slice(first, first + CUT)
            for first in torch.randint(truth.shape[-1] - CUT + 1, (2,), generator=generator).tolist()
        )
        cut = [evidence[..., rows, columns], truth[..., rows, columns]]
        flips = [axis for axis in (-2, -1) if uniform(0, 1, generator) < 0.5]
        turned = uniform(0, 1, generator) < 0.5
        return MapEvidence(*(each.flip(flips).mT if turned else each.flip(flips) for each in cut))


def collect(network: KestrelFusion, files: list[Path], plan: Plan, *, varied: bool) -> MapSource:
    """Return what ``network`` says of the maps of key frames, drive by drive.

    Args:
        network: in evaluation mode.
        files: the key frames.
        plan: of the stage; no more frames than it has steps are collected.
        varied: drives in random order, some without some sensors, with short memories among them; else in
            their order, with all sensors.
    """
    torch.set_num_threads(plan.threads)
    generator = torch.Generator().manual_seed(plan.seed)
    drives: dict[Path, list[Path]] = {}
    for path in files:
        drives.setdefault(path.parent, []).append(path)
    order = torch.randperm(len(drives), generator=generator).tolist() if varied else range(len(drives))
    each = list(drives.values())
    wanted = [path for number in order for path in each[number]][: min(FRAMES, plan.steps)]
    detector = FusionDetector.of(network.eval())
    found: list[MapEvidence] = []
    sensors = NOTHING, NOTHING
    for path in track(wanted, "maps to learn from"):
        frame = cache.read(cache.CachedFrame, path)
        place = drives[path.parent].index(path)
        if place == 0 or (varied and uniform(0, 1, generator) < FORGOTTEN):
            detector.reset()
        if place == 0 and varied:
            sensors = _sensors(generator) if len(frame.matrices) else (NOTHING, NOTHING)
        without = sensors[is_later(place, len(drives[path.parent]))]
        seen = detector.map_evidence(sensor_frame(frame, detector.sweeps, without, stamp_of(path)))
        truth = torch.from_numpy(frame.map_truth(len(MAP_LAYERS), seen.shape[-1]) > 0)
        found.append(MapEvidence(seen.half()[None], truth[None]))
    return MapSource(found)


def _sensors(generator: torch.Generator) -> tuple[Without, Without]:
    """Draw which sensors are left out in the first and in the second half of a drive."""
    chance = uniform(0, 1, generator)
    for share, without in SENSORS:
        if chance < share:
            return without, without
        chance -= share
    there, gone = NOTHING, Without.of(LIDAR)
    return (there, gone) if uniform(0, 1, generator) < 0.5 else (gone, there)


class MapTask(Task[KestrelFusion]):
    """The map of all frames; judged by the mean IoU of its layers."""

    name = "kestrel-fusion"
    classes = CLASSES

    def __init__(self, plan: Plan, config: FusionConfig) -> None:
        super().__init__(KestrelFusion(config), plan)
        self.network.requires_grad_(False)
        self.network.map_refiner.requires_grad_(True)
        self._restart()

    def _restart(self) -> None:
        self.overlap = torch.zeros(2, len(MAP_LAYERS))

    def training_step(self, batch: MapEvidence, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        with fast_arithmetic():
            logits = self.network.map_refiner(batch.evidence)
        loss = map_loss(logits.float(), batch.truth.float())
        self.log("map", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: MapEvidence, batch_idx: int) -> None:
        """Count the cells of one frame that the averaged network has right."""
        with fast_arithmetic():
            answer = self.averaged.map_refiner(batch.evidence) > 0
        self.overlap[0] += (answer & batch.truth).sum((0, 2, 3))
        self.overlap[1] += (answer | batch.truth).sum((0, 2, 3))

    def scores(self) -> dict[str, float]:
        """Return the IoU of the layers and their mean."""
        iou = (self.overlap[0] / self.overlap[1].clamp(min=1)).tolist()
        self._restart()
        return {
            "map_miou": sum(iou) / len(iou),
            **{f"iou/{name}": value for name, value in zip(MAP_LAYERS, iou, strict=True)},
        }

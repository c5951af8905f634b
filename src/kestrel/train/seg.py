# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Training of Kestrel-Seg."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from kestrel.classes import IGNORE, POINT_CLASSES
from kestrel.models.kestrel_seg import KestrelSeg, SegConfig
from kestrel.train import cache, drive_file
from kestrel.train.drawing import drawing_weights
from kestrel.train.drive_file import Holds
from kestrel.train.loop import NetworkT, Task, fit
from kestrel.train.lovasz import lovasz_softmax
from kestrel.train.plan import Plan
from kestrel.train.scan_mixing import laser_mix, paste_things, polar_mix
from kestrel.train.sweep_augmentation import LabelledSweep, augment, uniform

PLAN = Plan(steps=2000, batch_size=2, lr=4e-3, validate_every=250, validation_batches=50)

LEAST_POINTS = 20
"""A sweep has a class from so many points on."""

MIXED = 0.5
"""Share of the training sweeps that are mixed from two."""

COPIED = tuple(POINT_CLASSES.index(name) for name in ("bicycle", "motorcycle", "traffic_cone"))
"""Classes whose things are copied into other sweeps.

Small ones only: a bus copied to where no bus could stand, and counted more than the house that it stands in,
teaches that any wall may be a bus.
"""


@dataclass(frozen=True)
class Sweeps:
    """A batch: points (P, 4), cloud of each (P,), label (P,), IGNORE where there is none."""

    points: Tensor
    batch: Tensor
    label: Tensor


class SweepSource:
    """Current sweeps of cached frames; :meth:`draw` prefers those with classes that few sweeps have."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self._chance = torch.from_numpy(drawing_weights(np.array([_classes(path) for path in files])))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> LabelledSweep:
        """Return points (P, 4) and labels (P,) int64 as they are."""
        frame = cache.read(cache.CachedFrame, self.files[index])
        points = torch.from_numpy(frame.cloud(0)[:, :4])
        return points, torch.from_numpy(frame.label).long()

    def draw(self, generator: torch.Generator) -> LabelledSweep:
        """Return a random sweep, augmented; some are mixed from two."""
        sweep = self._draw_one(generator)
        kind = uniform(0, 1, generator) / MIXED
        if kind >= 1:
            return sweep
        other = self._draw_one(generator)
        if kind < 1 / 3:
            return polar_mix(sweep, other, generator)
        if kind < 2 / 3:
            return laser_mix(sweep, other, generator)
        return paste_things(sweep, other, COPIED)

    def _draw_one(self, generator: torch.Generator) -> LabelledSweep:
        points, label = self[int(torch.multinomial(self._chance, 1, generator=generator))]
        return augment(points, label, generator)


def _classes(path: Path) -> NDArray[np.bool_]:
    """Return which classes the sweep of a cached frame has."""
    with cache.opened(path) as stored:
        count = np.bincount(stored["label"], minlength=len(POINT_CLASSES))[: len(POINT_CLASSES)]
    return np.asarray(count >= LEAST_POINTS)


def collate(samples: list[LabelledSweep]) -> Sweeps:
    """Put sweeps into one batch."""
    batch = torch.repeat_interleave(
        torch.arange(len(samples)), torch.tensor([len(points) for points, _ in samples])
    )
    return Sweeps(
        torch.cat([points for points, _ in samples]), batch, torch.cat([label for _, label in samples])
    )


class PointTask(Task[NetworkT]):
    """Cross-entropy plus Lovasz-Softmax on points; judged by the mean intersection over union.

    The cross-entropy counts every point the same, which leaves to the network how likely each class is; that
    rare classes are learned is the part of Lovasz-Softmax, which counts every class the same.
    """

    classes = POINT_CLASSES

    def __init__(self, network: NetworkT, plan: Plan) -> None:
        super().__init__(network, plan)
        self.confusion = torch.zeros(len(POINT_CLASSES), len(POINT_CLASSES), dtype=torch.int64)

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the loss of points with logits (P, classes) and labels (P,), IGNORE where there is none."""
        cross_entropy = F.cross_entropy(logits, label, ignore_index=IGNORE)
        known = label != IGNORE
        lovasz = lovasz_softmax(logits[known].softmax(1), label[known])
        self.log_dict({"cross_entropy": cross_entropy.detach(), "lovasz": lovasz.detach()}, prog_bar=True)
        return cross_entropy + lovasz

    def count(self, answer: Tensor, label: Tensor) -> None:
        """Count agreements of answers (P,) with labels (P,)."""
        known = label != IGNORE
        classes = len(POINT_CLASSES)
        pairs = label[known] * classes + answer[known]
        self.confusion += torch.bincount(pairs, minlength=classes**2).view(classes, classes)

    def scores(self) -> dict[str, float]:
        """Return mIoU over the classes that occur, and the IoU of each."""
        hit = self.confusion.diag().float()
        union = self.confusion.sum(0) + self.confusion.sum(1) - self.confusion.diag()
        there = self.confusion.sum(1) > 0
        iou = hit / union.clamp(min=1)
        self.confusion.zero_()
        names = {f"iou/{name}": float(iou[index]) for index, name in enumerate(POINT_CLASSES) if there[index]}
        return {"point_miou": float(iou[there].mean()) if there.any() else 0.0, **names}


class SegTask(PointTask[KestrelSeg]):
    """The training of Kestrel-Seg."""

    name = "kestrel-seg"

    def __init__(self, plan: Plan, config: SegConfig | None = None) -> None:
        super().__init__(KestrelSeg(config), plan)

    def training_step(self, batch: Sweeps, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        inside = self.network.inside(batch.points)
        return self.loss(self.network(batch.points[inside], batch.batch[inside]), batch.label[inside])

    def validation_step(self, batch: Sweeps, batch_idx: int) -> None:
        """Count agreements of the averaged network."""
        inside = self.averaged.inside(batch.points)
        answer = self.averaged(batch.points[inside], batch.batch[inside]).argmax(1)
        self.count(answer, batch.label[inside])


def train(data: Path, out: Path, plan: Plan, *, resume: bool, start: str | None = None) -> Path:
    """Train Kestrel-Seg on the sweeps of all training splits that have any; return the exported weights.

    Drives whose points have no classes, as imported recordings, are left out.

    Args:
        data: folder of the splits; for training and for validation one each suffices.
        out: folder of the runs.
        plan: how long and how.
        resume: go on from the last checkpoint.
        start: weights to start from, or None for random ones.

    Raises:
        InputError: there are no such splits, or no drive has classes of points.
    """
    splits = cache.split_folders(data, "train", "lidar")
    train_source = SweepSource(drive_file.frames_with(splits, Holds.POINT_CLASSES))
    judges = cache.split_folders(data, "validation", "lidar")
    validation = SweepSource(drive_file.frames_with(judges, Holds.POINT_CLASSES))
    task = SegTask(plan)
    task.data = drive_file.summary(splits, Holds.POINT_CLASSES)
    if start is not None:
        task.start_from(start)
    return fit(task, train_source, validation, collate, out / "seg", resume=resume)

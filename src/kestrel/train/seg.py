# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Training of Kestrel-Seg."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.classes import IGNORE, POINT_CLASSES
from kestrel.models.kestrel_seg import KestrelSeg, SegConfig
from kestrel.train import cache
from kestrel.train.loop import Plan, Task, fit
from kestrel.train.lovasz import lovasz_softmax
from kestrel.train.scan_mixing import LabelledSweep, laser_mix, paste_things, polar_mix
from kestrel.types import Float64Array, Int64Array

PLAN = Plan(steps=2000, batch_size=2, lr=4e-3, validate_every=250, validation_batches=50)

MOST_POINTS = 50_000
"""Of a training sweep; a denser one is thinned out."""

LEAST_POINTS = 20
"""A sweep has a class from so many points on."""

MIXED = 0.5
"""Share of the training sweeps that are mixed from two."""

RARE = tuple(
    POINT_CLASSES.index(name)
    for name in ("bicycle", "bus", "construction_vehicle", "motorcycle", "trailer", "truck", "traffic_cone")
)
"""Classes whose things are copied into other sweeps."""

CLASS_WEIGHT = (2.5, 5.0, 3.5, 1.5, 5.0, 5.0, 3.0, 4.0, 4.0, 2.5, 0.5, 1.5, 0.8, 0.7, 0.6, 0.7)
"""Of POINT_CLASSES in the cross-entropy: the rarer a class in simulated drives, the more a point counts."""


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
        self._chance = torch.from_numpy(drawing_weights([_class_counts(path) for path in files]))

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
        return paste_things(sweep, other, RARE)

    def _draw_one(self, generator: torch.Generator) -> LabelledSweep:
        points, label = self[int(torch.multinomial(self._chance, 1, generator=generator))]
        return augment(points, label, generator)


def _class_counts(path: Path) -> Int64Array:
    with np.load(path) as stored:
        return np.bincount(stored["label"], minlength=len(POINT_CLASSES))[: len(POINT_CLASSES)]


def drawing_weights(counts: list[Int64Array]) -> Float64Array:
    """Return how often to draw each sweep, given its points per class.

    A class that one sweep in ten has makes such a sweep three times as likely as one with common classes
    only; of several rare classes the rarest decides (repeat factor sampling, Gupta et al., CVPR 2019).
    """
    there = np.array(counts) >= LEAST_POINTS
    share = there.mean(0).clip(1 / len(counts))
    return np.asarray((there / np.sqrt(share)).max(1).clip(1.0))


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Return one random number."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def augment(points: Tensor, label: Tensor, generator: torch.Generator) -> LabelledSweep:
    """Turn, mirror and scale a sweep, and disturb what differs between LiDARs: density and intensity."""
    share = uniform(0.6, 1.0, generator) * min(1.0, MOST_POINTS / max(len(points), 1))
    kept = torch.rand(len(points), generator=generator) < share
    points, label = points[kept].clone(), label[kept]
    angle = torch.tensor(uniform(-torch.pi, torch.pi, generator))
    cosine, sine = torch.cos(angle), torch.sin(angle)
    turn = torch.stack((torch.stack((cosine, -sine)), torch.stack((sine, cosine))))
    if uniform(0, 1, generator) < 0.5:
        turn = turn @ torch.diag(torch.tensor([1.0, -1.0]))
    scale = uniform(0.95, 1.05, generator)
    points[:, :2] = points[:, :2] @ turn.T * scale
    points[:, 2] = points[:, 2] * scale + uniform(-0.1, 0.1, generator)
    points[:, :3] += 0.01 * torch.randn(len(points), 3, generator=generator)
    gain = uniform(0.5, 1.6, generator) if uniform(0, 1, generator) < 0.85 else 0.0
    points[:, 3] = (points[:, 3] * gain + uniform(-0.05, 0.1, generator)).clamp(0, 1)
    return points, label


def collate(samples: list[LabelledSweep]) -> Sweeps:
    """Put sweeps into one batch."""
    batch = torch.repeat_interleave(
        torch.arange(len(samples)), torch.tensor([len(points) for points, _ in samples])
    )
    return Sweeps(
        torch.cat([points for points, _ in samples]), batch, torch.cat([label for _, label in samples])
    )


class SegTask(Task[KestrelSeg]):
    """Weighted cross-entropy plus Lovasz-Softmax; judged by the mean intersection over union."""

    name = "kestrel-seg"
    classes = POINT_CLASSES

    def __init__(self, plan: Plan, config: SegConfig | None = None) -> None:
        super().__init__(KestrelSeg(config), plan)
        self.weight: Tensor
        self.register_buffer("weight", torch.tensor(CLASS_WEIGHT), persistent=False)
        self.confusion = torch.zeros(len(POINT_CLASSES), len(POINT_CLASSES), dtype=torch.int64)

    def training_step(self, batch: Sweeps, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        inside = self.network.inside(batch.points)
        logits = self.network(batch.points[inside], batch.batch[inside])
        label = batch.label[inside]
        cross_entropy = F.cross_entropy(logits, label, self.weight, ignore_index=IGNORE)
        known = label != IGNORE
        lovasz = lovasz_softmax(logits[known].softmax(1), label[known])
        self.log_dict({"cross_entropy": cross_entropy.detach(), "lovasz": lovasz.detach()}, prog_bar=True)
        return cross_entropy + lovasz

    def validation_step(self, batch: Sweeps, batch_idx: int) -> None:
        """Count agreements of the averaged network."""
        inside = self.averaged.inside(batch.points)
        answer = self.averaged(batch.points[inside], batch.batch[inside]).argmax(1)
        label = batch.label[inside]
        known = label != IGNORE
        count = len(POINT_CLASSES)
        pairs = label[known] * count + answer[known]
        self.confusion += torch.bincount(pairs, minlength=count**2).view(count, count)

    def scores(self) -> dict[str, float]:
        """Return mIoU over the classes that occur, and the IoU of each."""
        hit = self.confusion.diag().float()
        union = self.confusion.sum(0) + self.confusion.sum(1) - self.confusion.diag()
        there = self.confusion.sum(1) > 0
        iou = hit / union.clamp(min=1)
        self.confusion.zero_()
        names = {f"iou/{name}": float(iou[index]) for index, name in enumerate(POINT_CLASSES) if there[index]}
        return {"point_miou": float(iou[there].mean()) if there.any() else 0.0, **names}


def train(data: Path, out: Path, plan: Plan, *, resume: bool, start: str | None = None) -> Path:
    """Train Kestrel-Seg on the sweeps of the splits train and train_lidar; return the exported weights.

    Args:
        data: folder of the splits; of train and validation either kind suffices.
        out: folder of the runs.
        plan: how long and how.
        resume: go on from the last checkpoint.
        start: weights to start from, or None for random ones.
    """
    splits = cache.split_folders(data, "train", "lidar")
    train_source = SweepSource(cache.frame_files(*splits))
    validation = SweepSource(cache.frame_files(*cache.split_folders(data, "validation", "lidar")))
    task = SegTask(plan)
    task.data = cache.summary(splits)
    if start is not None:
        task.start_from(start)
    return fit(task, train_source, validation, collate, out / "seg", resume=resume)

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What four networks of equal size learn of the same sweeps in the same number of steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from kestrel.models.point_baselines import NETWORKS, point_logits
from kestrel.report import Figure
from kestrel.train import cache, drive_file
from kestrel.train.loop import fit
from kestrel.train.plan import Plan
from kestrel.train.progress import track
from kestrel.train.resume import last_checkpoint, moves_done
from kestrel.train.seg import PointTask, SweepSource
from kestrel.train.sweep_augmentation import LabelledSweep
from kestrel.weights import assign, load

PLAN: Final = Plan(steps=300, batch_size=2, lr=4e-3, validate_every=300, validation_batches=20)

RANGE_M: Final = 50.0
"""Half the side of the square that is judged; the cells of a dense grid grow with it."""

POINTS: Final = 16384
"""Of a cloud in training, drawn at random: clouds of a batch have equally many."""


@dataclass(frozen=True)
class Clouds:
    """Clouds (B, 4, N) and the label of each point (B, N), IGNORE where there is none."""

    points: Tensor
    label: Tensor


class CloudSource:
    """Sweeps within RANGE_M; those that are drawn are augmented and have POINTS points."""

    def __init__(self, sweeps: SweepSource) -> None:
        self.sweeps = sweeps

    def __len__(self) -> int:
        return len(self.sweeps)

    def __getitem__(self, index: int) -> LabelledSweep:
        """Return points (P, 4) and labels (P,) of a whole sweep as it is."""
        return _within_range(*self.sweeps[index])

    def draw(self, generator: torch.Generator) -> LabelledSweep:
        """Return a random sweep, augmented and mixed as those of Kestrel-Seg are."""
        points, label = _within_range(*self.sweeps.draw(generator))
        chosen = torch.randperm(len(points), generator=generator)[:POINTS]
        if len(chosen) < POINTS:
            again = torch.randint(len(points), (POINTS - len(chosen),), generator=generator)
            chosen = torch.cat((chosen, again))
        return points[chosen], label[chosen]


def _within_range(points: Tensor, label: Tensor) -> LabelledSweep:
    near = points[:, :2].abs().amax(1) < RANGE_M
    return points[near], label[near]


def collate(samples: list[LabelledSweep]) -> Clouds:
    """Put sweeps of as many points into one batch."""
    points = torch.stack([points.T for points, _ in samples])
    return Clouds(points, torch.stack([label for _, label in samples]))


class ComparisonTask(PointTask[nn.Module]):
    """The training of one of NETWORKS."""

    def __init__(self, name: str, plan: Plan) -> None:
        torch.manual_seed(plan.seed)
        super().__init__(NETWORKS[name](), plan)
        self.name = _file_name(name)

    def config(self) -> dict[str, Any]:
        """Return nothing: the sizes are those of NETWORKS."""
        return {}

    def training_step(self, batch: Clouds, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        logits = point_logits(self.network, batch.points)
        return self.loss(logits.transpose(1, 2).flatten(0, 1), batch.label.flatten())

    def validation_step(self, batch: Clouds, batch_idx: int) -> None:
        """Count agreements of the averaged network."""
        answer = point_logits(self.averaged, batch.points).argmax(1)
        self.count(answer.flatten(), batch.label.flatten())


def compare(data: Path, out: Path, plan: Plan, *, resume: bool) -> dict[str, Figure]:
    """Train all of NETWORKS; return the mean IoU of each on the drives of the split test.

    Args:
        data: folder of the splits.
        out: folder of the runs; each network has one of its own below ``point-networks``.
        plan: how long and how, the same for all.
        resume: leave out networks whose training has ended, and go on with the one that was interrupted.

    Raises:
        ConfigError: ``resume`` where one was trained in another length, by another seed or learning rate.
    """
    folders = {name: out / "point-networks" / _file_name(name) for name in NETWORKS}
    begun = [name for name, folder in folders.items() if resume and last_checkpoint(folder).exists()]
    done = {name: moves_done(folders[name], plan) for name in begun}  # before any of them goes on
    training, validation, test = (
        CloudSource(SweepSource(drive_file.frames_with(splits, drive_file.Holds.POINT_CLASSES)))
        for splits in (
            cache.split_folders(data, "train", "lidar"),
            cache.split_folders(data, "validation", "lidar"),
            [data / "test"],
        )
    )
    figures: dict[str, Figure] = {}
    for name, folder in folders.items():
        if done.get(name, 0) >= plan.steps:
            weights = folder / f"{_file_name(name)}.safetensors"
        else:
            task = ComparisonTask(name, plan)
            weights = fit(task, training, validation, collate, folder, resume=name in done)
        figures[f"{name}: point mIoU"] = Figure(_miou(name, weights, plan, test), "IoU")
    return figures


def _miou(name: str, weights: Path, plan: Plan, source: CloudSource) -> float:
    task = ComparisonTask(name, plan)
    assign(task.averaged, load(weights)[0], weights)
    with torch.inference_mode():
        for index in track(range(len(source)), f"scoring {name}"):
            task.validation_step(collate([source[index]]), index)
    return task.scores()["point_miou"]


def _file_name(name: str) -> str:
    return name.lower().replace(" ", "-")

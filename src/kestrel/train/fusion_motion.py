# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Last stage of Kestrel-Fusion: how fast boxes are and where they head, by their points.

The rest of the network stays as it is. What it finds in some thousand frames is collected once. A step then
costs no frame, and looks at as many boxes as a hundred frames have.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from kestrel.classes import DETECTION_CLASSES
from kestrel.errors import InputError, describe
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_motion import turned
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.pipelines.box_decoder import DecodedBoxes, first_boxes
from kestrel.pipelines.fusion import CLASSES
from kestrel.pipelines.runtime import fast_arithmetic
from kestrel.train.drawing import Endless
from kestrel.train.fusion_data import FrameSource
from kestrel.train.fusion_loss import MOVING_MPS
from kestrel.train.fusion_sample import FusionSample, collate
from kestrel.train.loop import Task, mean_loss
from kestrel.train.plan import Plan
from kestrel.train.progress import track
from kestrel.train.sweep_augmentation import uniform

SCORE: Final = 0.05
"""Boxes below it are not learned from."""

MOST_BOXES: Final = 160
"""Boxes of a frame that are learned from, the best ones."""

MATCH_M: Final = 2.0
"""How far a box may be from the true one whose velocity it should have."""

FRAMES: Final = 2500
"""Frames whose boxes are collected, at most."""

TOGETHER: Final = 256
"""Boxes of a sample."""

WRONG_MPS: Final = (2.0, 1.0)
"""Up to which standard deviation, along and across, first estimates are made more wrong than they are."""

REVERSED: Final = 0.1
"""Share of the boxes that are turned around: few, or it would not learn that most need not be."""

ALONE: Final = 0.1
"""Share of the boxes that are seen in one sweep alone."""

LOST_POINTS: Final = 0.3
"""Share of the points of a box that are left out at most."""

BETA_MPS: Final = 0.3
"""Error from which on the loss is linear."""

RIGHT_MPS: Final = 0.5
"""A velocity is right that is less wrong than this."""

STANDING: Final = ("barrier", "traffic_cone")
"""Classes whose velocity and sense nobody asks for."""

_STANDING: Final = torch.tensor([DETECTION_CLASSES.index(name) for name in STANDING])

SENSE_WEIGHT: Final = 0.3


@dataclass(frozen=True)
class Surroundings:
    """Boxes that were found, in their own axes.

    around: (K, slots, POINTS, 5), there, count: as BoxMotion.points_of returns them. size: (K, 3). told,
    truth: (K, 2) first estimate and true velocity, along and across, the latter NaN where unknown. reverse:
    (K,) bool whether it heads the other way. label: (K,) int64.
    """

    around: Tensor
    there: Tensor
    count: Tensor
    size: Tensor
    told: Tensor
    truth: Tensor
    reverse: Tensor
    label: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def take(self, rows: Tensor) -> Surroundings:
        """Return the chosen boxes."""
        return Surroundings(**{item.name: getattr(self, item.name)[rows] for item in fields(self)})

    @classmethod
    def joined(cls, parts: list[Surroundings]) -> Surroundings:
        """Return the boxes of all parts."""
        return cls(
            **{item.name: torch.cat([getattr(part, item.name) for part in parts]) for item in fields(cls)}
        )


def surroundings(network: KestrelFusion, sample: FusionSample) -> Surroundings:
    """Return what ``network``, in evaluation mode, finds of true objects that have points."""
    with torch.no_grad(), fast_arithmetic():
        output = network(collate([sample]).inputs)
        boxes = first_boxes(output, network, SCORE)
    found, true = matched(boxes, sample)
    around, there, count = network.motion.points_of(sample.points, found.values)
    yaw = found.values[:, 6]
    told, truth = turned(found.values[:, 7:9], -yaw), turned(true[:, 7:9], -yaw)
    reverse = (true[:, 6] - yaw).cos() < 0
    each = Surroundings(around.half(), there, count, found.values[:, 3:6], told, truth, reverse, found.label)
    return each.take(count[:, 0] > 0)


def matched(boxes: DecodedBoxes, sample: FusionSample) -> tuple[DecodedBoxes, Tensor]:
    """Return those of the MOST_BOXES best boxes that are near a true one of their class, and that (K, 9)."""
    values, label, score = (part[:MOST_BOXES] for part in (boxes.values, boxes.label, boxes.score))
    seen = sample.box_points > 0
    if not seen.any():
        return DecodedBoxes(values[:0], label[:0], score[:0]), values[:0]
    truth = sample.boxes[seen]
    distance = torch.cdist(values[:, :2], truth[:, :2])
    distance = distance.masked_fill(label[:, None] != sample.box_label[seen], torch.inf)
    nearest, row = distance.min(1)
    mine = nearest < MATCH_M
    return DecodedBoxes(values[mine], label[mine], score[mine]), truth[row[mine]]


def collect(
    network: KestrelFusion, source: FrameSource, plan: Plan, weights: str | Path | None, *, augmented: bool
) -> MotionSource:
    """Return what ``network`` finds in frames: in random ones, augmented, or in all as they are.

    They are no more than FRAMES, nor than ``plan`` has steps.

    Raises:
        InputError: it finds nothing there; the message names ``weights``, its own.
    """
    count = min(FRAMES, plan.steps)
    if augmented:
        drawn = Endless(source, plan.seed)
        frames = DataLoader(drawn, batch_size=None, num_workers=plan.workers)
    else:
        spread = torch.linspace(0, len(source) - 1, min(count, len(source))).long().tolist()
        count = len(spread)
        frames = DataLoader(
            Subset(cast(Dataset[FusionSample], source), spread), batch_size=None, num_workers=plan.workers
        )
    torch.set_num_threads(plan.threads)
    whole = network.eval()
    found = [
        surroundings(whole, sample)
        for _, sample in zip(track(range(count), "boxes to learn from"), frames, strict=False)
    ]
    boxes = Surroundings.joined(found)
    if not len(boxes):
        expected = "objects with points that the network finds in key frames: train it for more steps"
        nothing = f"none; the weights without this stage are {weights}"
        raise InputError(describe("last stage of fusion, velocities", expected=expected, found=nothing))
    return MotionSource(boxes)


class MotionSource:
    """Boxes that were collected, at least one; :meth:`draw` prefers those of rare kinds: class, moving."""

    def __init__(self, boxes: Surroundings) -> None:
        self.boxes = boxes
        kind = 2 * boxes.label + (boxes.truth.norm(dim=1) > MOVING_MPS)
        self._chance = torch.bincount(kind).double().rsqrt()[kind]

    def __len__(self) -> int:
        return -(-len(self.boxes) // TOGETHER)

    def __getitem__(self, index: int) -> Surroundings:
        """Return the boxes of one of ``len(self)`` parts as they are."""
        return self.boxes.take(torch.arange(index, len(self.boxes), len(self)))

    def draw(self, generator: torch.Generator) -> Surroundings:
        """Return TOGETHER boxes, mirrored, turned around, with worse estimates and fewer points."""
        chosen = self.boxes.take(torch.multinomial(self._chance, TOGETHER, True, generator=generator))
        aside = torch.where(torch.rand(TOGETHER, generator=generator) < 0.5, -1.0, 1.0)
        back = torch.where(torch.rand(TOGETHER, generator=generator) < REVERSED, -1.0, 1.0)
        signs = torch.stack((back, back * aside), 1)
        most = torch.tensor(WRONG_MPS) * uniform(0, 1, generator)
        wrong = most * torch.randn(TOGETHER, 2, generator=generator)
        around = chosen.around.float()
        places = around[..., :2] * signs[:, None, None] + wrong[:, None, None] * around[..., 4:]
        kept = torch.rand(chosen.there.shape, generator=generator) > uniform(0, LOST_POINTS, generator)
        sweeps = torch.rand(TOGETHER, 1, generator=generator) > ALONE
        sweeps = sweeps | (torch.arange(chosen.there.shape[1]) == 0)
        return Surroundings(
            around=torch.cat((places, around[..., 2:]), -1),
            there=chosen.there & kept & sweeps[..., None],
            count=chosen.count * sweeps,
            size=chosen.size,
            told=chosen.told * signs + wrong,
            truth=chosen.truth * signs,
            reverse=chosen.reverse ^ (back < 0),
            label=chosen.label,
        )


class MotionTask(Task[KestrelFusion]):
    """Velocity and sense of boxes that the network finds; judged by how many are right, classes alike."""

    name = "kestrel-fusion"
    classes = CLASSES

    def __init__(self, plan: Plan, config: FusionConfig) -> None:
        super().__init__(KestrelFusion(config), plan)
        self.network.requires_grad_(False)
        self.network.motion.requires_grad_(True)
        self._restart()

    def _restart(self) -> None:
        self.errors: list[list[float]] = [[] for _ in DETECTION_CLASSES]
        self.senses: list[list[bool]] = [[] for _ in DETECTION_CLASSES]

    def training_step(self, batch: Surroundings, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        velocity, reverse = _answer(self.network, batch)
        told, sided = self._told(batch), ~torch.isin(batch.label, _STANDING)
        truth = batch.truth.nan_to_num()  # or nothing times NaN would be the gradient of what is not told
        parts = {
            "velocity": _mean(F.smooth_l1_loss(velocity, truth, beta=BETA_MPS, reduction="none"), told),
            "sense": SENSE_WEIGHT
            * _mean(
                F.binary_cross_entropy_with_logits(reverse, batch.reverse.float(), reduction="none"), sided
            ),
        }
        self.log_dict({key: value.detach() for key, value in parts.items()}, prog_bar=True)
        return mean_loss(parts)

    def validation_step(self, batch: Surroundings, batch_idx: int) -> None:
        """Keep what the averaged network has right."""
        velocity, reverse = _answer(self.averaged, batch)
        error, right = (velocity - batch.truth).norm(dim=1), (reverse > 0) == batch.reverse
        told = self._told(batch)
        for row, label in enumerate(batch.label.tolist()):
            self.senses[label].append(bool(right[row]))
            if told[row]:
                self.errors[label].append(float(error[row]))

    def _told(self, boxes: Surroundings) -> Tensor:
        """Return of which boxes the points tell a velocity and the truth knows it, (K,) bool."""
        return self.network.motion.is_told(boxes.count) & boxes.truth.isfinite().all(1)

    def scores(self) -> dict[str, float]:
        """Return the shares of right velocities and senses, and the mean error, of classes that may move."""
        shares: dict[str, dict[str, float]] = {"velocity": {}, "sense": {}, "error": {}}
        for label, name in enumerate(DETECTION_CLASSES):
            if name not in STANDING and self.errors[label]:
                errors = torch.tensor(self.errors[label])
                shares["velocity"][name] = float((errors < RIGHT_MPS).float().mean())
                shares["sense"][name] = sum(self.senses[label]) / len(self.senses[label])
                shares["error"][name] = float(errors.mean())
        self._restart()
        means = {kind: sum(each.values()) / max(len(each), 1) for kind, each in shares.items()}
        every = {f"{kind}/{name}": value for kind, each in shares.items() for name, value in each.items()}
        return {"mean": (means["velocity"] + means["sense"]) / 2, **means, **every}


def _mean(loss: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of the rows that count, 0 without any."""
    return loss[counts].mean() if counts.any() else 0 * loss.sum()


def _answer(network: KestrelFusion, boxes: Surroundings) -> tuple[Tensor, Tensor]:
    around = boxes.around.float()
    return network.motion.corrected(around, boxes.there, boxes.count, boxes.size, boxes.told, boxes.label)

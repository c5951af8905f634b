# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Training of Kestrel-Augment: pix2pix with differentiable augmentation of what the critic sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.models.kestrel_augment import AugmentConfig, KestrelAugment, PatchCritic
from kestrel.nn.diffaugment import diff_augment
from kestrel.pipelines.augment import CLASSES
from kestrel.pipelines.runtime import fast_arithmetic
from kestrel.train import cache, drive_file
from kestrel.train.loop import Task, fit
from kestrel.train.plan import Plan

PLAN = Plan(steps=500, batch_size=2, lr=5e-4, validate_every=125, validation_batches=40, weight_decay=0.0)

L1_WEIGHT = 30.0
FEATURE_WEIGHT = 5.0


class PictureSource:
    """Pictures of cached frames with their labels and weather."""

    def __init__(self, folder: Path, config: AugmentConfig) -> None:
        self.places = []
        for drive in cache.finished_drives(folder):
            weather = config.weathers.index(drive_file.read(drive)["weather"])
            self.places += [(path, weather) for path in sorted(drive.glob("frame_*.npz"))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        """Return the first picture (3, H, W) uint8 of a frame, its labels (H, W) and its weather."""
        return self._load(index, 0)

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
        """Return half of a random picture, mirrored half the time; the generator is convolutional."""
        index = int(torch.randint(len(self.places), (1,), generator=generator))
        picture, labels, weather = self._load(index, int(torch.randint(6, (1,), generator=generator)))
        left = int(torch.randint(picture.shape[2] // 2 + 1, (1,), generator=generator))
        cut = slice(left, left + picture.shape[2] // 2)
        picture, labels = picture[:, :, cut], labels[:, cut]
        if float(torch.rand((), generator=generator)) < 0.5:
            picture, labels = picture.flip(2), labels.flip(1)
        return picture, labels, weather

    def _load(self, index: int, camera: int) -> tuple[Tensor, Tensor, int]:
        path, weather = self.places[index]
        frame = cache.read(cache.CachedFrame, path)
        camera %= len(frame.picture_ends)
        picture = torch.from_numpy(frame.picture(camera)).permute(2, 0, 1)
        return picture, torch.from_numpy(frame.semantic(camera)).long(), weather


def collate(samples: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures (B, 3, H, W), 0..1, labels (B, H, W) and weather (B,)."""
    pictures = torch.stack([picture for picture, _, _ in samples]).float() / 255
    return (
        pictures,
        torch.stack([labels for _, labels, _ in samples]),
        torch.tensor([weather for _, _, weather in samples]),
    )


class AugmentTask(Task[KestrelAugment]):
    """Hinge loss, feature matching and L1; judged by the mean absolute error on unseen drives."""

    name = "kestrel-augment"
    classes = CLASSES
    optimizer_count = 2

    def __init__(self, plan: Plan, config: AugmentConfig | None = None) -> None:
        super().__init__(KestrelAugment(config), plan)
        self.automatic_optimization = False
        settings = self.network.config
        self.critic = PatchCritic(settings.num_labels + len(settings.weathers))
        self.errors: list[float] = []

    def configure_optimizers(self) -> Any:
        """Adam for both players (two time scales, Heusel et al. 2017)."""
        lr = self.plan.lr
        return [
            torch.optim.Adam(self.network.parameters(), lr=lr, betas=(0.5, 0.999)),
            torch.optim.Adam(self.critic.parameters(), lr=lr, betas=(0.5, 0.999)),
        ]

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Move the critic, then the generator."""
        pictures, labels, weather = batch
        planes = self.network.planes(labels, weather)
        with fast_arithmetic():
            made = self.network(labels, weather, self._noise(labels))
        critic_loss = self._critic_loss(pictures, made.detach(), planes)
        self._step(1, critic_loss)
        generator_loss, l1 = self._generator_loss(pictures, made, planes)
        self._step(0, generator_loss)
        self.log_dict({"critic": critic_loss.detach(), "l1": l1.detach()}, prog_bar=True)

    def _noise(self, labels: Tensor) -> Tensor:
        config = self.network.config
        height, width = labels.shape[1:]
        return torch.randn(len(labels), config.noise_channels, height // 8, width // 8)

    def _judge(self, pictures: Tensor, planes: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the critic's scores of augmented pictures; labels move with them."""
        coloured = diff_augment(pictures * 2 - 1, "color")
        changed = diff_augment(torch.cat((coloured, planes), 1), "translation,cutout")
        with fast_arithmetic():
            scores, features = self.critic(changed[:, :3] / 2 + 0.5, changed[:, 3:])
        return scores.float(), [feature.float() for feature in features]

    def _critic_loss(self, real: Tensor, made: Tensor, planes: Tensor) -> Tensor:
        yes, _ = self._judge(real, planes)
        no, _ = self._judge(made, planes)
        return F.relu(1 - yes).mean() + F.relu(1 + no).mean()

    def _generator_loss(self, real: Tensor, made: Tensor, planes: Tensor) -> tuple[Tensor, Tensor]:
        scores, _ = self._judge(made, planes)
        with fast_arithmetic():
            _, wanted = self.critic(real, planes)
            _, found = self.critic(made, planes)
        matched = torch.stack(
            [F.l1_loss(a.float(), b.detach().float()) for a, b in zip(found, wanted, strict=True)]
        )
        l1 = F.l1_loss(made, real)
        return -scores.mean() + FEATURE_WEIGHT * matched.mean() + L1_WEIGHT * l1, l1

    def _step(self, number: int, loss: Tensor) -> None:
        optimizer: Any = self.optimizers()[number]  # type: ignore[index]
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Measure the averaged generator on one picture."""
        pictures, labels, weather = batch
        noise = torch.zeros_like(self._noise(labels))
        with fast_arithmetic():
            made = self.averaged(labels, weather, noise)
        self.errors.append(float(F.l1_loss(made, pictures)))

    def scores(self) -> dict[str, float]:
        """Return one minus the mean absolute error."""
        error = sum(self.errors) / max(len(self.errors), 1)
        self.errors.clear()
        return {"likeness": 1 - error, "l1": error}


def train(data: Path, out: Path, plan: Plan, *, resume: bool, start: str | None = None) -> Path:
    """Train Kestrel-Augment on the drives below ``data``; return the exported weights."""
    config = AugmentConfig()
    sources = [PictureSource(data / split, config) for split in ("train", "validation")]
    task = AugmentTask(plan, config)
    task.data = drive_file.summary([data / "train"])
    if start is not None:
        task.start_from(start)
    return fit(task, sources[0], sources[1], collate, out / "augment", resume=resume)

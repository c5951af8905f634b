# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Training of Kestrel-Video on clips of the front camera, as a stream sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kestrel.classes import EVENTS
from kestrel.models.kestrel_video import KestrelVideo, VideoConfig
from kestrel.pipelines.runtime import fast_arithmetic
from kestrel.road_view import crop_to_road
from kestrel.train import cache, drive_file
from kestrel.train.loop import Task, fit
from kestrel.train.plan import Plan
from kestrel.train.sweep_augmentation import uniform
from kestrel.types import UInt8Array

PLAN = Plan(
    steps=3500, batch_size=8, lr=1.5e-3, validate_every=125, validation_batches=240, weight_decay=0.05
)

CLIP = 8
"""Frames of a clip, one hop apart."""

WARM = 3
"""Frames at the start of a clip that are not judged: they have no past."""

DRAWN_EVENTS = 0.5
"""Share of the clips for whose end each event is as likely as any other."""

LABEL_SMOOTHING = 0.05
MIRRORED = {"crossing_from_left": "crossing_from_right", "crossing_from_right": "crossing_from_left"}
MIRROR = torch.tensor([EVENTS.index(MIRRORED.get(name, name)) for name in EVENTS])


class ClipSource:
    """Clips out of cached videos, all of which are held in memory (as JPEG)."""

    def __init__(self, files: list[Path], config: VideoConfig) -> None:
        self.videos = [cache.read(cache.CachedVideo, path) for path in files]
        self.config = config
        self.by_event = [
            [(v, i) for v, video in enumerate(self.videos) for i in np.flatnonzero(video.event == event)]
            for event in range(len(EVENTS))
        ]
        self.everywhere = [(v, i) for v, video in enumerate(self.videos) for i in range(len(video.event))]
        self.present = [event for event, places in enumerate(self.by_event) if places]
        self.ends = [
            (v, i) for v, video in enumerate(self.videos) for i in range(CLIP, len(video.stamp_ns), CLIP)
        ]

    def prior_shift(self) -> Tensor:
        """Return (K,) by how much drawing raises the logarithm of the odds of each event."""
        share = np.array([len(places) for places in self.by_event]) / len(self.everywhere)
        present = share > 0
        drawn = DRAWN_EVENTS * present / present.sum() + (1 - DRAWN_EVENTS) * share
        shift = np.log(np.where(present, drawn / np.where(present, share, 1), 1))
        return torch.from_numpy(shift).float()

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return pictures (T, 3, H, W) uint8 and events (T,) of one clip as it is."""
        video, end = self.ends[index]
        return self._clip(self.videos[video], self._indices(self.videos[video], end, 1.0))

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a random clip, augmented; DRAWN_EVENTS of them end in an event that was drawn first."""
        event = self.present[int(torch.randint(len(self.present), (1,), generator=generator))]
        places = self.by_event[event] if uniform(0, 1, generator) < DRAWN_EVENTS else self.everywhere
        video, end = places[int(torch.randint(len(places), (1,), generator=generator))]
        pace = uniform(0.8, 1.25, generator)
        clip, events = self._clip(self.videos[video], self._indices(self.videos[video], int(end), pace))
        return augment(clip, events, generator)

    def _indices(self, video: cache.CachedVideo, end: int, pace: float) -> list[int]:
        """Return what a stream would keep before ``end``; the first frame stands for those before it."""
        hops = video.stamp_ns[end] - np.arange(CLIP - 1, -1, -1) * self.config.hop_s * pace * 1e9
        nearest = np.searchsorted(video.stamp_ns, hops - 1)
        return [int(index) for index in nearest.clip(0, end)]

    def _clip(self, video: cache.CachedVideo, indices: list[int]) -> tuple[Tensor, Tensor]:
        size = self.config.image_size
        pictures: list[UInt8Array] = [crop_to_road(video.picture(index), size) for index in indices]
        clip = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        return clip, torch.from_numpy(video.event[indices].astype(np.int64))


def augment(clip: Tensor, events: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror, cut and recolour a clip, all frames alike."""
    if uniform(0, 1, generator) < 0.5:
        clip, events = clip.flip(3), MIRROR[events]
    _, _, height, width = clip.shape
    scale = uniform(0.85, 1.0, generator)
    h, w = round(height * scale), round(width * scale)
    top = int(uniform(0, height - h + 1, generator))
    left = int(uniform(0, width - w + 1, generator))
    cut = clip[:, :, top : top + h, left : left + w].float()
    resized = F.interpolate(cut, size=(height, width), mode="bilinear", align_corners=False)
    middle = resized.mean((2, 3), keepdim=True)
    changed = (resized - middle) * uniform(0.7, 1.3, generator) + middle * uniform(0.7, 1.3, generator)
    changed *= 1 + 0.1 * torch.randn(1, 3, 1, 1, generator=generator)
    return changed.clamp(0, 255).to(torch.uint8), events


def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return pictures (B, T, 3, H, W), 0..1, and events (B, T)."""
    clips = torch.stack([clip for clip, _ in samples]).float() / 255
    return clips, torch.stack([events for _, events in samples])


class VideoTask(Task[KestrelVideo]):
    """Cross-entropy at every frame with a past; judged by the share of right answers at the clips' ends.

    Rare events are drawn more often than they happen. The loss says so (logit adjustment, Menon et al. 2021),
    so that the network answers for events as often as they are.
    """

    name = "kestrel-video"
    classes = EVENTS

    def __init__(self, plan: Plan, config: VideoConfig | None = None) -> None:
        super().__init__(KestrelVideo(config), plan)
        self.prior_shift = torch.zeros(len(EVENTS))
        self.confusion = torch.zeros(len(EVENTS), len(EVENTS), dtype=torch.int64)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch of clips."""
        clips, events = batch
        with fast_arithmetic():
            logits = self.network.clip(clips)
        judged, truth = logits[:, WARM:].flatten(0, 1), events[:, WARM:].flatten()
        loss = F.cross_entropy(judged + self.prior_shift, truth, label_smoothing=LABEL_SMOOTHING)
        right = (judged.argmax(1) == truth).float().mean()
        self.log_dict({"loss": loss.detach(), "accuracy": right}, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Count the answers of the averaged network at the end of one clip."""
        clips, events = batch
        with fast_arithmetic():
            answer = self.averaged.clip(clips)[:, -1].argmax(1)
        self.confusion.index_put_((events[:, -1], answer), torch.ones_like(answer), accumulate=True)

    def scores(self) -> dict[str, float]:
        """Return accuracy, its lead over always naming the commonest event, and the recall of each event."""
        total = self.confusion.sum().clamp(min=1)
        accuracy = float(self.confusion.diag().sum() / total)
        majority = float(self.confusion.sum(1).max() / total)
        there = self.confusion.sum(1)
        recall = {
            f"recall/{name}": float(self.confusion[index, index] / there[index])
            for index, name in enumerate(EVENTS)
            if there[index]
        }
        self.confusion.zero_()
        return {"accuracy": accuracy, "majority": majority, "lead": accuracy - majority, **recall}


def train(data: Path, out: Path, plan: Plan, *, resume: bool, start: str | None = None) -> Path:
    """Train Kestrel-Video on the videos of the splits train and train_video; return the exported weights."""
    config = VideoConfig()
    train_source, validation = (
        ClipSource([drive / "video.npz" for each in splits for drive in cache.finished_drives(each)], config)
        for splits in (cache.split_folders(data, name, "video") for name in ("train", "validation"))
    )
    task = VideoTask(plan, config)
    task.prior_shift = train_source.prior_shift()
    task.data = drive_file.summary(cache.split_folders(data, "train", "video"))
    if start is not None:
        task.start_from(start)
    return fit(task, train_source, validation, collate, out / "video", resume=resume)

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Training of Kestrel-Fusion: LiDAR alone first, then all sensors."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.models.kestrel_fusion import FusionConfig, FusionOutput, KestrelFusion
from kestrel.pipelines.box_decoder import decode_boxes
from kestrel.pipelines.fusion import CLASSES
from kestrel.pipelines.runtime import fast_arithmetic
from kestrel.train import cache
from kestrel.train.detection_score import DetectionScore
from kestrel.train.fusion_data import FrameSource
from kestrel.train.fusion_loss import fusion_loss
from kestrel.train.fusion_sample import FusionBatch, collate
from kestrel.train.loop import Plan, Task, fit, mean_loss

LIDAR_PLAN = Plan(steps=2000, batch_size=2, lr=2e-3, validate_every=500, validation_batches=60, threads=2)
PLAN = Plan(steps=800, batch_size=2, lr=1e-3, validate_every=400, validation_batches=60, threads=2)
"""Of the first stage, and of the second, which starts from its weights."""

MAP_THRESHOLDS = torch.arange(0.35, 0.66, 0.05)


class FusionTask(Task[KestrelFusion]):
    """All heads at once; judged by the mean of box AP and map IoU."""

    name = "kestrel-fusion"
    classes = CLASSES

    def __init__(self, plan: Plan, config: FusionConfig | None = None) -> None:
        super().__init__(KestrelFusion(config), plan)
        self._restart()

    def _restart(self) -> None:
        self.detection = DetectionScore(len(DETECTION_CLASSES))
        self.overlap = torch.zeros(2, len(MAP_THRESHOLDS), len(MAP_LAYERS))

    def training_step(self, batch: FusionBatch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        with fast_arithmetic():
            output = self.network(batch.inputs)
        parts = fusion_loss(output, batch, self.network)
        self.log_dict({key: value.detach() for key, value in parts.items()}, prog_bar=True)
        return mean_loss(parts)

    def validation_step(self, batch: FusionBatch, batch_idx: int) -> None:
        """Add one frame to the scores of the averaged network."""
        with fast_arithmetic():
            output: FusionOutput = self.averaged(batch.inputs)
        sample = batch.samples[0]
        boxes = decode_boxes(output, self.averaged, 0.05)
        self.detection.add(boxes, sample.boxes, sample.box_label, sample.box_points)
        probability = output.map_logits[0].sigmoid()
        for number, threshold in enumerate(MAP_THRESHOLDS):
            answer = probability > threshold
            truth = sample.map_truth > 0.5
            self.overlap[0, number] += (answer & truth).sum((1, 2))
            self.overlap[1, number] += (answer | truth).sum((1, 2))

    def scores(self) -> dict[str, float]:
        """Return the average precision at 2 m and the map IoU at the best threshold, per class."""
        precision = self.detection.average_precision()
        iou = (self.overlap[0] / self.overlap[1].clamp(min=1)).max(0).values
        self._restart()
        boxes = {f"ap2m/{name}": precision[index] for index, name in enumerate(DETECTION_CLASSES)}
        boxes = {key: value for key, value in boxes.items() if value == value}  # NaN: no such object
        layers = {f"iou/{name}": float(iou[index]) for index, name in enumerate(MAP_LAYERS)}
        mean_ap = sum(boxes.values()) / max(len(boxes), 1)
        mean_iou = float(iou.mean())
        return {"mean": (mean_ap + mean_iou) / 2, "map_miou": mean_iou, "ap2m": mean_ap, **boxes, **layers}


def train(
    data: Path, out: Path, lidar_plan: Plan, plan: Plan, *, resume: bool, start: str | None = None
) -> Path:
    """Train Kestrel-Fusion in two stages on all training splits that have LiDAR; return the exported weights.

    The stages have their own folders below ``out``. Resuming skips the first once the second began.

    Args:
        data: folder of the splits; for training and for validation one each suffices.
        out: folder of the runs.
        lidar_plan: how long and how LiDAR alone is trained.
        plan: the same for all sensors, after that.
        resume: go on from the last checkpoint.
        start: weights that the first stage starts from, or None for random ones.
    """
    first, second = out / "fusion-lidar", out / "fusion"
    if not (resume and _started(second)):
        lidar = FusionTask(lidar_plan)
        if start is not None:
            lidar.start_from(start)
        _stage(lidar, data, first, resume=resume and _started(first), with_cameras=False)
    task = FusionTask(plan)
    task.start_from(first / f"{task.name}.safetensors")
    return _stage(task, data, second, resume=resume and _started(second), with_cameras=True)


def _stage(task: FusionTask, data: Path, out: Path, *, resume: bool, with_cameras: bool) -> Path:
    config = task.network.config
    splits = {purpose: cache.split_folders(data, purpose, "lidar") for purpose in ("train", "validation")}
    task.data = cache.summary(splits["train"])
    train_source, validation = (
        FrameSource(cache.frame_files(*folders), config, with_cameras=with_cameras)
        for folders in splits.values()
    )
    return fit(task, train_source, validation, collate, out, resume=resume)


def _started(folder: Path) -> bool:
    return (folder / "checkpoints" / "last.ckpt").exists()

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Training of Kestrel-Fusion: its camera branch, the LiDAR alone, all sensors, maps and velocities."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kestrel.classes import DETECTION_CLASSES, MAP_LAYERS
from kestrel.errors import ConfigError, describe
from kestrel.eval.labelled import judged
from kestrel.models.kestrel_fusion import KestrelFusion
from kestrel.models.kestrel_fusion_types import FusionConfig, FusionOutput
from kestrel.pipelines.box_decoder import DecodedBoxes, first_boxes
from kestrel.pipelines.fusion import CLASSES
from kestrel.pipelines.runtime import fast_arithmetic
from kestrel.train import cache, drive_file, fusion_cameras, fusion_map, fusion_motion
from kestrel.train.detection_score import DetectionScore
from kestrel.train.drive_file import Holds
from kestrel.train.fusion_cameras import CameraTask, PictureSource
from kestrel.train.fusion_cut import cut_config
from kestrel.train.fusion_data import CamerasAlone, FrameSource
from kestrel.train.fusion_loss import fusion_loss
from kestrel.train.fusion_map import MapEvidence, MapSource, MapTask
from kestrel.train.fusion_motion import MotionSource, MotionTask, Surroundings
from kestrel.train.fusion_sample import FusionBatch, collate
from kestrel.train.loop import Task, fit, mean_loss
from kestrel.train.plan import Plan, scaled
from kestrel.train.resume import last_checkpoint, moves_done


@dataclass(frozen=True)
class Plans:
    """How long and how the six stages are trained; each starts from the weights of the one before it."""

    cameras: Plan
    lidar: Plan
    quarters: Plan
    all_sensors: Plan
    maps: Plan
    motion: Plan

    def scaled(self, steps: int | None, seed: int) -> Plans:
        """Return plans of another length, all the same, and with another seed."""
        plans = {stage.name: scaled(getattr(self, stage.name), steps, seed) for stage in fields(self)}
        return Plans(**plans)


PLANS = Plans(
    cameras=Plan(steps=1700, batch_size=2, lr=2e-3, validate_every=850, threads=2, optimizer="muon"),
    lidar=Plan(steps=4000, batch_size=6, lr=2e-3, validate_every=1000, threads=2, optimizer="muon"),
    quarters=Plan(steps=4000, batch_size=6, lr=1e-3, validate_every=2000, threads=2, optimizer="muon"),
    all_sensors=Plan(steps=1000, batch_size=2, lr=1e-3, validate_every=500, threads=2, optimizer="muon"),
    maps=Plan(steps=12000, batch_size=6, lr=3e-3, validate_every=3000, threads=2),
    motion=Plan(steps=8000, batch_size=1, lr=2e-3, validate_every=2000, threads=2),
)


MAP_THRESHOLDS = torch.arange(0.35, 0.66, 0.05)


class FusionTask(Task[KestrelFusion]):
    """All heads at once; judged, on whole frames, by the mean of box AP and map IoU.

    What layers normalise by is learned from the LiDAR alone, as it is most of the time. Of a batch in which
    one of two frames lacks its LiDAR it would be of neither.

    cuts: whether the batches hold quarters of frames. lidar_alone: whether they never have pictures.
    """

    name = "kestrel-fusion"
    classes = CLASSES

    def __init__(
        self, plan: Plan, config: FusionConfig, *, cuts: bool = False, lidar_alone: bool = False
    ) -> None:
        super().__init__(KestrelFusion(cut_config(config) if cuts else config), plan)
        self.lidar_alone = lidar_alone
        if cuts:
            whole = KestrelFusion(config).requires_grad_(False).eval()
            whole.load_state_dict(self.network.state_dict())
            # To mypy there is no change of the memory format alone.
            self.averaged = whole.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._restart()

    def _restart(self) -> None:
        self.detection = DetectionScore(len(DETECTION_CLASSES))
        self.overlap = torch.zeros(2, len(MAP_THRESHOLDS), len(MAP_LAYERS))
        self.knows_maps = False

    def training_step(self, batch: FusionBatch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        # Without pictures the view transform would get used to seeing nothing at all.
        (self.network.view if self.lidar_alone else self.network).eval()
        with fast_arithmetic():
            output = self.network(batch.inputs_of(self.network))
        parts = fusion_loss(output, batch, self.network)
        self.log_dict({key: value.detach() for key, value in parts.items()}, prog_bar=True)
        return mean_loss(parts)

    def validation_step(self, batch: FusionBatch, batch_idx: int) -> None:
        """Add one frame to the scores of the averaged network."""
        with fast_arithmetic():
            output: FusionOutput = self.averaged(batch.inputs_of(self.averaged))
        sample = batch.samples[0]
        found = first_boxes(output, self.averaged, 0.05)
        gaps = sample.unlabelled, sample.labelled_classes
        told = judged(found.values, found.label, sample.boxes, *gaps)
        boxes = DecodedBoxes(found.values[told], found.label[told], found.score[told])
        self.detection.add(boxes, sample.boxes, sample.box_label, sample.box_points)
        probability = output.map_logits[0].sigmoid()
        known, truth = ~sample.map_truth.isnan(), sample.map_truth > 0.5
        self.knows_maps |= bool(known.any())
        for number, threshold in enumerate(MAP_THRESHOLDS):
            answer = (probability > threshold) & known
            self.overlap[0, number] += (answer & truth).sum((1, 2))
            self.overlap[1, number] += (answer | truth).sum((1, 2))

    def scores(self) -> dict[str, float]:
        """Return the average precision at 2 m and the map IoU at the best threshold, per class.

        Where no frame says what the ground is the boxes alone decide.
        """
        precision = self.detection.average_precision()
        iou, knows_maps = (self.overlap[0] / self.overlap[1].clamp(min=1)).max(0).values, self.knows_maps
        self._restart()
        boxes = {f"ap2m/{name}": precision[index] for index, name in enumerate(DETECTION_CLASSES)}
        boxes = {key: value for key, value in boxes.items() if value == value}  # NaN: no such object
        mean_ap = sum(boxes.values()) / max(len(boxes), 1)
        if not knows_maps:
            return {"mean": mean_ap, "ap2m": mean_ap, **boxes}
        layers = {f"iou/{name}": float(iou[index]) for index, name in enumerate(MAP_LAYERS)}
        mean_iou = float(iou.mean())
        return {"mean": (mean_ap + mean_iou) / 2, "map_miou": mean_iou, "ap2m": mean_ap, **boxes, **layers}


@dataclass(frozen=True)
class Stage:
    """One stage: its task, its folder, where its samples come from by purpose, what of Holds these need."""

    task: Task[KestrelFusion]
    folder: str
    source: Callable[[str], Any]
    collate: Any
    needs: Holds


def served(stages: list[Stage], splits: dict[str, list[Path]], *, needs_start: bool) -> list[Stage]:
    """Return the stages whose samples the drives of the splits have; say of the others why they are left out.

    Args:
        stages: all of them.
        splits: folders by purpose.
        needs_start: whether the network would not learn what those left out teach: it starts from nothing.

    Raises:
        ConfigError: that is so, and some are left out.
    """
    offered = {purpose: drive_file.held(folders) for purpose, folders in splits.items()}
    kept, reasons = [], []
    for stage in stages:
        lacks = [purpose for purpose, held in offered.items() if stage.needs not in held]
        if lacks:
            reasons.append(f"stage {stage.folder}: no drive for {lacks[0]} has {stage.needs}")
        else:
            kept.append(stage)
    if reasons and needs_start:
        expected = f"weights, which know what cannot be learned from these drives ({'; '.join(reasons)})"
        raise ConfigError(describe("--start", expected=expected, found="none"))
    for reason in reasons:
        print(f"{reason}; it is left out", file=sys.stderr)
    return kept


def train(
    data: Path, out: Path, plans: Plans, config: FusionConfig, *, resume: bool, start: str | None = None
) -> Path:
    """Train Kestrel-Fusion on all training splits that have LiDAR; return the exported weights.

    The camera branch learns from the pictures alone what is how far away, the rest from quarters of frames of
    the LiDAR alone; then all sensors together, first on quarters, most of them of the cameras alone, by which
    it is judged, then on whole frames; then what joins the maps of several frames, from those that this
    network answers; last what tells velocities, from the boxes that it finds. Each stage has its own folder
    below ``out``; resuming skips those that are over. Those that the drives cannot serve, as imported ones
    without maps, are left out, which standard error says.

    Args:
        data: folder of the splits; for training and for validation one each suffices.
        out: folder of the runs.
        plans: of the stages.
        config: of the network.
        resume: go on from the last checkpoint.
        start: weights that the first stage starts from, or None for random ones.

    Raises:
        InputError: there are no such splits, or drives without boxes; ``resume`` of what never began; or the
            network finds nothing to learn velocities from.
        ConfigError: ``resume`` with another length, seed or learning rate; or stages are left out without
            ``start``.
    """
    splits = {purpose: cache.split_folders(data, purpose, "lidar") for purpose in ("train", "validation")}
    files = {purpose: cache.frame_files(*folders) for purpose, folders in splits.items()}
    for folders in splits.values():
        drive_file.expect_boxes(folders)
    summary = drive_file.summary(splits["train"])

    def pictures(purpose: str) -> PictureSource:
        return PictureSource(files[purpose], config)

    def frames(*, with_cameras: bool, cuts: bool) -> Callable[[str], FrameSource]:
        return lambda purpose: FrameSource(files[purpose], config, with_cameras=with_cameras, cuts=cuts)

    def quarters(purpose: str) -> FrameSource | CamerasAlone:
        source = frames(with_cameras=True, cuts=True)(purpose)
        # Judged by all sensors, it would stop before the cameras have learned.
        return source if purpose == "train" else CamerasAlone(source)

    def found_boxes(purpose: str) -> MotionSource:
        source = frames(with_cameras=False, cuts=False)(purpose)
        augmented, found_by = purpose == "train", weights[-2]
        return fusion_motion.collect(motion.network, source, plans.motion, found_by, augmented=augmented)

    def found_maps(purpose: str) -> MapSource:
        told = drive_file.frames_with(splits[purpose], Holds.MAPS)
        return fusion_map.collect(maps.network, told, plans.maps, varied=purpose == "train")

    maps, motion = MapTask(plans.maps, config), MotionTask(plans.motion, config)

    cameras = CameraTask(plans.cameras, config)
    lidar = FusionTask(plans.lidar, config, cuts=True, lidar_alone=True)
    parts, whole = FusionTask(plans.quarters, config, cuts=True), FusionTask(plans.all_sensors, config)
    stages = [
        Stage(cameras, "fusion-cameras", pictures, fusion_cameras.collate, Holds.PICTURES),
        Stage(lidar, "fusion-lidar", frames(with_cameras=False, cuts=True), collate, Holds.BOXES),
        Stage(parts, "fusion-quarters", quarters, collate, Holds.PICTURES),
        Stage(whole, "fusion-sensors", frames(with_cameras=True, cuts=False), collate, Holds.PICTURES),
        Stage(maps, "fusion-map", found_maps, MapEvidence.joined, Holds.MAPS),
        Stage(motion, "fusion", found_boxes, Surroundings.joined, Holds.VELOCITIES),
    ]
    every = [out / stage.folder for stage in stages]
    stages = served(stages, splits, needs_start=start is None and not resume)
    folders = [out / stage.folder for stage in stages]
    begun = [number for number, folder in enumerate(folders) if last_checkpoint(folder).exists()]
    first = max(begun, default=0) if resume else 0
    if resume:  # before it makes data for what is refused
        moves_done(folders[first], stages[first].task.plan, stages[first].task.config())
    exported = [folder / f"{FusionTask.name}.safetensors" for folder in folders]
    weights = [start, *exported]
    for number, stage in enumerate(stages[first:], first):
        before = weights[number]
        if before is not None:
            stage.task.start_from(before)
        stage.task.data = summary
        sources = stage.source("train"), stage.source("validation")
        if number == 0 and not resume:  # or, interrupted, it would go on with later stages of an earlier run
            for folder in every:
                last_checkpoint(folder).unlink(missing_ok=True)
        fit(stage.task, *sources, stage.collate, folders[number], resume=resume and number == first)
    return exported[-1]

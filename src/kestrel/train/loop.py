# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What all trainings share: optimiser, averaged weights, checkpoints, export."""

from __future__ import annotations

import copy
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from kestrel.pipelines.runtime import keep_freed_memory
from kestrel.train.curves import draw_curves, keep_metrics
from kestrel.train.drawing import Endless
from kestrel.train.optimizers import build_optimizer
from kestrel.train.plan import Plan, one_cycle
from kestrel.train.resume import kept, last_checkpoint, moves_done
from kestrel.weights import Manifest, assign, load, save

NetworkT = TypeVar("NetworkT", bound=nn.Module)

EMA_DECAY: Final = 0.998
"""Of the averaged weights, which are the ones that are validated and exported."""


class Task(lightning.LightningModule, Generic[NetworkT]):
    """One training: subclasses say what the loss is and how good the averaged network is.

    Subclasses set ``name``, ``classes`` and implement training_step, validation_step and scores().
    ``data`` says in the manifest what the weights were trained on.
    """

    name: str
    classes: tuple[str, ...]
    network: NetworkT
    averaged: NetworkT
    optimizer_count = 1

    def __init__(self, network: NetworkT, plan: Plan) -> None:
        super().__init__()
        # 3D kernels have no such form.
        if not any(parameter.dim() == 5 for parameter in network.parameters()):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network
        self.averaged = copy.deepcopy(network).requires_grad_(False).eval()
        self.plan = plan
        self.best: dict[str, float] = {}
        self.data: dict[str, Any] = {}
        self.started_from: dict[str, str] = {}

    def start_from(self, weights: str | Path) -> None:
        """Take up weights of the same network, by name or path; the manifest of the result names them.

        Raises:
            ModelError: they are not there, damaged, or of another network.
        """
        state, manifest = load(weights)
        assign(self.network, state, weights)
        assign(self.averaged, state, weights)
        self.started_from = {"name": manifest.name, "sha256": manifest.sha256}

    def scores(self) -> dict[str, float]:
        """Return what the validation since the last call found; the first entry decides which is best."""
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        """The plan's optimizer with a one-cycle schedule over its steps."""
        plan = self.plan
        optimizer = build_optimizer(plan.optimizer, self, plan.lr, plan.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step / plan.steps))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave batches where they are: they are frozen dataclasses on the CPU, where training runs."""
        return batch

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Move the averaged network towards the trained one; early on by larger steps."""
        decay = min(EMA_DECAY, (1 + self.global_step) / (10 + self.global_step))
        with torch.no_grad():
            trained = self.network.state_dict()
            for key, value in self.averaged.state_dict().items():
                if value.is_floating_point():
                    value.lerp_(trained[key], 1 - decay)
                else:
                    value.copy_(trained[key])

    def on_validation_epoch_end(self) -> None:
        """Log the scores and export the averaged network when they are the best so far."""
        scores = self.scores()
        for key, value in scores.items():
            self.log(f"val/{key}", value)
        first = next(iter(scores))
        if not self.trainer.sanity_checking and scores[first] >= self.best.get(first, -1.0):
            self.best = scores
            self.export()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep with the weights the best scores, what the run started from and what of it stays the same."""
        checkpoint["best"] = self.best
        checkpoint["started_from"] = self.started_from
        checkpoint["plan"] = kept(self.plan)
        checkpoint["network"] = self.config()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up again what the run started from, and its best scores unless later ones are known."""
        self.best = self.best or checkpoint["best"]
        self.started_from = checkpoint.get("started_from", self.started_from)

    def config(self) -> dict[str, Any]:
        """Return the sizes of the network, for the manifest."""
        # To mypy the attribute of any module is a tensor or a module; here it is a dataclass.
        sizes: dict[str, Any] = asdict(self.averaged.config)  # type: ignore[call-overload]
        return sizes

    def export(self) -> None:
        """Write the averaged network and its manifest into the run's folder."""
        manifest = Manifest(
            name=self.name,
            network=type(self.network).__name__,
            config=self.config(),
            classes=self.classes,
            rigs=tuple(self.data.get("rigs", ())),
            training={
                "command": f"kestrel train {self.name.removeprefix('kestrel-')}",
                **asdict(self.plan),
                "data": self.data,
                **({"started_from": self.started_from} if self.started_from else {}),
            },
            metrics={f"val/{key}": round(value, 4) for key, value in self.best.items()},
        )
        save(
            Path(self.trainer.default_root_dir) / f"{self.name}.safetensors",
            self.averaged.state_dict(),
            manifest,
        )


def fit(
    task: Task[Any],
    train_source: Any,
    validation_source: Any,
    collate: Any,
    out: Path,
    *,
    resume: bool,
) -> Path:
    """Run a training to its end; return the exported weights.

    Args:
        task: what to train.
        train_source: has draw(generator) -> one random sample.
        validation_source: a map-style dataset in a fixed order.
        collate: batches samples.
        out: folder of this run: checkpoints, metrics.csv, exported weights, and curves.png at the end.
        resume: go on from the last checkpoint in ``out``; otherwise that of an earlier run is removed.

    Raises:
        InputError: ``resume`` without a checkpoint, or with a damaged one.
        ConfigError: ``resume`` with another length, seed, learning rate or network.
    """
    plan = task.plan
    torch.set_num_threads(plan.threads)
    keep_freed_memory()
    lightning.seed_everything(plan.seed, verbose=False)
    checkpoint = last_checkpoint(out)
    moves = moves_done(out, plan, task.config()) if resume else 0
    if not resume:  # or this run, interrupted before its first checkpoint, would go on as another one
        checkpoint.unlink(missing_ok=True)
    done = moves // task.optimizer_count
    keep_metrics(out, resumed=done > 0)
    loaders = _loaders(task, train_source, validation_source, collate, done * plan.batch_size)
    interval = plan.steps // max(1, round(plan.steps / plan.validate_every))
    if done > 0 and done % interval == 0:
        _validate(task, loaders[1], checkpoint, out)
    trainer = lightning.Trainer(
        accelerator="cpu",
        default_root_dir=str(out),
        max_steps=plan.steps * task.optimizer_count,
        gradient_clip_val=None if not task.automatic_optimization else 10.0,
        val_check_interval=interval,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        enable_model_summary=False,
        logger=CSVLogger(str(out), name="", version=""),
        callbacks=[
            TQDMProgressBar(refresh_rate=5),
            ModelCheckpoint(
                out / "checkpoints",
                save_last=True,
                every_n_train_steps=min(100, plan.steps),
                save_top_k=0,
                enable_version_counter=False,
            ),
        ],
    )
    with redirect_stdout(sys.stderr):  # the bar: standard output holds results alone
        trainer.fit(task, *loaders, ckpt_path=str(checkpoint) if resume else None, weights_only=True)
    draw_curves(out)
    return out / f"{task.name}.safetensors"


def _validate(task: Task[Any], loader: DataLoader[Any], checkpoint: Path, out: Path) -> None:
    """Judge what a checkpoint holds that was saved right before a validation, which resuming would skip."""
    trainer = lightning.Trainer(
        accelerator="cpu",
        default_root_dir=str(out),
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        inference_mode=False,  # as in training: what a task counts in has to be written to later
        callbacks=[TQDMProgressBar(refresh_rate=5)],
    )
    with redirect_stdout(sys.stderr):
        trainer.validate(task, loader, ckpt_path=str(checkpoint), weights_only=True, verbose=False)


def _loaders(
    task: Task[Any], train_source: Any, validation_source: Any, collate: Any, first: int
) -> tuple[DataLoader[Any], DataLoader[Any]]:
    plan = task.plan
    train: DataLoader[Any] = DataLoader(
        Endless(train_source, plan.seed, first),
        batch_size=plan.batch_size,
        collate_fn=collate,
        num_workers=plan.workers,
        persistent_workers=plan.workers > 0,
        prefetch_factor=4 if plan.workers else None,
    )
    count = min(plan.validation_batches, len(validation_source))
    spread = torch.linspace(0, len(validation_source) - 1, count).long().tolist()
    chosen = Subset(validation_source, spread)
    validation: DataLoader[Any] = DataLoader(chosen, batch_size=1, collate_fn=collate)
    return train, validation


def mean_loss(parts: dict[str, Tensor]) -> Tensor:
    """Return the sum of weighted loss terms."""
    return torch.stack(list(parts.values())).sum()

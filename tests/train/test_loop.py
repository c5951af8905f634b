# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kestrel.errors import ConfigError, InputError, ModelError
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.train import fusion, fusion_cameras
from kestrel.train.loop import Task, fit
from kestrel.train.plan import Plan
from kestrel.train.resume import last_checkpoint, moves_done
from kestrel.weights import load, save

PLAN = Plan(steps=4, batch_size=2, lr=1e-3, validate_every=2, validation_batches=1, workers=0)


@dataclass(frozen=True)
class Config:
    """Of nothing."""


class Network(nn.Module):
    """One weight."""

    def __init__(self) -> None:
        super().__init__()
        self.config = Config()
        self.weight = nn.Parameter(torch.zeros(1))


class KilledError(Exception):
    """Ends a run where a kill would."""


class Numbers:
    """Samples that say which one they are."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Tensor:
        return torch.zeros(1)

    def draw(self, generator: torch.Generator) -> Tensor:
        return torch.tensor([float(generator.initial_seed())])


class Counting(Task[Network]):
    """Notes its samples and validations; each validation scores what ``worth`` says of its step."""

    name = "counting"
    classes = ()

    def __init__(
        self, worth: dict[int, float], *, stop_in: int | None = None, stop_at: int | None = None
    ) -> None:
        super().__init__(Network(), PLAN)
        self.worth = worth
        self.stop_in, self.stop_at = stop_in, stop_at
        self.seen: list[float] = []
        self.validated = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Count one step, which the weight does too."""
        if len(self.seen) == self.stop_at:
            raise KilledError
        self.seen.append(float(batch[0]))
        return -self.network.weight.sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Be interrupted where the test wants it."""
        self.validated += 1
        if self.validated == self.stop_in:
            raise KilledError

    def scores(self) -> dict[str, float]:
        """Return what the step is worth, told by how far the weight has come."""
        return {"worth": self.worth[round(float(self.network.weight) / 1e-3)]}


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Move the weight by the same in every step."""

    def configured(task: Any) -> Any:
        return torch.optim.SGD(task.network.parameters(), lr=1e-3)

    monkeypatch.setattr(Task, "configure_optimizers", configured)


def run(task: Task[Any], out: Path, *, resume: bool) -> dict[str, Any]:
    weights = fit(task, Numbers(), Numbers(), torch.stack, out, resume=resume)
    return load(weights)[1].metrics


def interrupted(task: Task[Any], out: Path) -> None:
    with pytest.raises(KilledError):
        run(task, out, resume=False)


@pytest.fixture
def checkpoints_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from kestrel.train import loop

    plain = loop.ModelCheckpoint

    def often(*args: Any, **options: Any) -> Any:
        return plain(*args, **{**options, "every_n_train_steps": 1})

    monkeypatch.setattr(loop, "ModelCheckpoint", often)


@pytest.mark.usefixtures("checkpoints_every_step")
@pytest.mark.parametrize(("validation", "missed"), [(1, 2), (2, 4)])
def test_a_validation_that_was_interrupted_is_made_up_for(
    tmp_path: Path, validation: int, missed: int
) -> None:
    worth = {2: 0.1, 4: 0.1, missed: 0.9}
    interrupted(Counting(worth, stop_in=validation), tmp_path)
    assert run(Counting(worth), tmp_path, resume=True) == {"val/worth": 0.9}


@pytest.mark.usefixtures("checkpoints_every_step")
def test_a_resumed_run_does_not_replace_better_weights_of_the_checkpoint_it_goes_on_from(
    tmp_path: Path,
) -> None:
    worth = {2: 0.9, 4: 0.5}
    interrupted(Counting(worth, stop_at=2), tmp_path)
    assert run(Counting(worth), tmp_path, resume=True) == {"val/worth": 0.9}


@pytest.mark.usefixtures("checkpoints_every_step")
def test_what_a_run_started_from_outlives_an_interruption(tmp_path: Path) -> None:
    worth = {2: 0.1, 4: 0.2}
    first = Counting(worth, stop_at=3)
    first.started_from = {"name": "mine", "sha256": "abc"}
    interrupted(first, tmp_path)
    run(Counting(worth), tmp_path, resume=True)
    manifest = load(tmp_path / "counting.safetensors")[1]
    assert manifest.training["started_from"] == {"name": "mine", "sha256": "abc"}


@pytest.mark.usefixtures("checkpoints_every_step")
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 5}, r"--seed: expected 0, that of the run in .*found 5"),
        ({"lr": 0.5}, r"--lr: expected 0\.001, that of the run in .*found 0\.5"),
    ],
)
def test_a_run_keeps_its_seed_and_its_rate_to_the_end(
    tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    worth = {2: 0.1, 4: 0.2}
    interrupted(Counting(worth, stop_at=3), tmp_path)
    task = Counting(worth)
    task.plan = replace(PLAN, **other)
    with pytest.raises(ConfigError, match=message):
        run(task, tmp_path, resume=True)
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    del content["plan"]  # as before they were kept
    torch.save(content, checkpoint)
    assert run(task, tmp_path, resume=True) == {"val/worth": 0.2}


@pytest.mark.usefixtures("checkpoints_every_step")
def test_a_run_keeps_the_length_over_which_its_rate_falls(tmp_path: Path) -> None:
    worth = {2: 0.1, 4: 0.2}
    interrupted(Counting(worth, stop_at=3), tmp_path)
    task = Counting(worth)
    task.plan = replace(PLAN, steps=8)
    with pytest.raises(ConfigError, match=r"--steps: expected 4, that of the run in .*found 8"):
        run(task, tmp_path, resume=True)


class Sized(Counting):
    """The same of a network with sizes."""

    def __init__(self, *, stop_at: int | None = None, **sizes: Any) -> None:
        super().__init__({2: 0.1, 4: 0.2}, stop_at=stop_at)
        self.sizes = sizes

    def config(self) -> dict[str, Any]:
        """Return them."""
        return self.sizes


@pytest.mark.usefixtures("checkpoints_every_step")
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"hop_s": 0.0}, r"--hop: expected 0\.5, that of the run in .*found 0\.0"),
        (
            {"image_size": (64, 64)},
            r"image_size: expected \(128, 352\), that of the run in .*found \(64, 64\)",
        ),
    ],
)
def test_a_run_keeps_its_network_to_the_end(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    sizes = {"hop_s": 0.5, "image_size": (128, 352)}
    interrupted(Sized(stop_at=3, **sizes), tmp_path)
    with pytest.raises(ConfigError, match=message):
        run(Sized(**{**sizes, **other}), tmp_path, resume=True)
    assert run(Sized(**sizes, new_size=1), tmp_path, resume=True) == {"val/worth": 0.2}


def test_a_fusion_training_without_hops_does_not_go_on_with_one_that_has_them(
    data: Path, tmp_path: Path
) -> None:
    task = fusion_cameras.CameraTask(PLAN, FusionConfig(hop_s=0.5))
    checkpoint: dict[str, Any] = {"global_step": 2}
    task.on_save_checkpoint(checkpoint)
    path = tmp_path / "fusion-cameras" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(checkpoint, path)
    plans = fusion.Plans(PLAN, PLAN, PLAN, PLAN, PLAN, PLAN)
    with pytest.raises(ConfigError, match=r"--hop: expected 0\.5, that of the run in .*found 0"):
        fusion.train(data, tmp_path, plans, FusionConfig(hop_s=0), resume=True)


@pytest.mark.usefixtures("checkpoints_every_step")
@pytest.mark.parametrize(
    "damage", [lambda whole: whole[: len(whole) // 2], lambda _: b"", lambda _: b"other"]
)
def test_a_damaged_checkpoint_is_named_with_what_to_do(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    interrupted(Counting({2: 0.1, 4: 0.2}, stop_at=3), tmp_path)
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.write_bytes(damage(path.read_bytes()))
    expected = r"last\.ckpt: expected the checkpoint of a run \(begin it again without --resume"
    with pytest.raises(InputError, match=expected):
        run(Counting({2: 0.1, 4: 0.2}), tmp_path, resume=True)


@pytest.mark.parametrize("content", [[1], {"epoch": 3}, {"global_step": "3"}])
def test_another_file_in_place_of_a_checkpoint_is_named(tmp_path: Path, content: object) -> None:
    last_checkpoint(tmp_path).parent.mkdir()
    torch.save(content, last_checkpoint(tmp_path))
    with pytest.raises(
        InputError, match=r"last\.ckpt: expected the checkpoint of a run .*found something else"
    ):
        moves_done(tmp_path, PLAN)


class Playing(Counting):
    """Two players, each of which moves in every step."""

    optimizer_count = 2

    def __init__(self, *, stop_at: int | None = None) -> None:
        super().__init__(dict.fromkeys(range(9), 0.5), stop_at=stop_at)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        """One for each player."""
        return [torch.optim.SGD(self.network.parameters(), lr=5e-4) for _ in range(2)]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Move both."""
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():  # type: ignore[union-attr]  # a list: there are two
            optimizer.zero_grad()
            self.manual_backward(-self.network.weight.sum())
            optimizer.step()
        return loss


@pytest.mark.usefixtures("checkpoints_every_step")
def test_a_resumed_run_with_two_optimisers_draws_the_next_samples(tmp_path: Path) -> None:
    whole = Playing()
    run(whole, tmp_path / "whole", resume=False)
    first, second = Playing(stop_at=2), Playing()
    interrupted(first, tmp_path / "parts")
    run(second, tmp_path / "parts", resume=True)
    assert first.seen + second.seen == whole.seen == [0.0, 2.0, 4.0, 6.0]


def test_an_interrupted_run_is_not_resumed_as_an_earlier_one(tmp_path: Path) -> None:
    run(Counting({2: 0.1, 4: 0.2}), tmp_path, resume=False)
    interrupted(Counting({}, stop_at=0), tmp_path)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()


def test_another_seed_of_a_fusion_training_is_refused_before_data_are_made_for_its_stage(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collected(*_: Any, **__: Any) -> None:
        raise KilledError

    monkeypatch.setattr(fusion.fusion_map, "collect", collected)
    checkpoint = tmp_path / "fusion-map" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({"global_step": 2, "plan": {"seed": 5}}, checkpoint)
    save(
        tmp_path / "fusion-sensors" / "kestrel-fusion.safetensors",
        load("kestrel-fusion")[0],
        load("kestrel-fusion")[1],
    )
    plans = fusion.Plans(PLAN, PLAN, PLAN, PLAN, PLAN, PLAN)
    with pytest.raises(ConfigError, match="--seed: expected 5"):
        fusion.train(data, tmp_path, plans, FusionConfig(), resume=True)


def test_an_interrupted_fusion_training_is_not_resumed_in_a_later_stage_of_an_earlier_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = [
        tmp_path / folder / "checkpoints" / "last.ckpt"
        for folder in (
            "fusion-cameras",
            "fusion-lidar",
            "fusion-quarters",
            "fusion-sensors",
            "fusion-map",
            "fusion",
        )
    ]
    for path in checkpoints:
        path.parent.mkdir(parents=True)
        path.touch()

    def stopped(*_: Any, **__: Any) -> None:
        raise KilledError

    monkeypatch.setattr(fusion, "fit", stopped)
    plans = fusion.Plans(PLAN, PLAN, PLAN, PLAN, PLAN, PLAN)
    with pytest.raises(ModelError, match="weights nope"):
        fusion.train(data, tmp_path, plans, FusionConfig(), resume=False, start="nope")
    assert all(path.exists() for path in checkpoints), "a slip costs no earlier run"
    with pytest.raises(KilledError):
        fusion.train(data, tmp_path, plans, FusionConfig(), resume=False)
    assert not any(path.exists() for path in checkpoints)

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kestrel.errors import ConfigError
from kestrel.models.point_baselines import NETWORKS
from kestrel.train import cache, point_networks
from kestrel.train.plan import Plan
from kestrel.train.seg import SweepSource

PLAN = Plan(steps=1, batch_size=2, lr=1e-3, validate_every=1, validation_batches=1, workers=0)


@pytest.fixture
def splits(data: Path, tmp_path: Path) -> Path:
    for name, source in (("train", "train"), ("validation", "validation"), ("test", "validation")):
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(data / source)
    return tmp_path / "data"


def test_each_network_is_trained_and_judged_and_an_interrupted_comparison_goes_on(
    splits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def trained() -> dict[str, int]:
        found = (tmp_path / "point-networks").glob("*/checkpoints/last.ckpt")
        return {path.parts[-3]: path.stat().st_mtime_ns for path in found}

    first = point_networks.compare(splits, tmp_path, PLAN, resume=False)
    assert list(first) == [f"{name}: point mIoU" for name in NETWORKS]
    assert all(0 <= figure.value <= 1 for figure in first.values())
    before = trained()
    assert len(before) == len(NETWORKS)
    (tmp_path / "point-networks" / "pvcnn" / "checkpoints" / "last.ckpt").unlink()
    again = point_networks.compare(splits, tmp_path, PLAN, resume=True)
    assert {name: figure.value for name, figure in again.items()} == pytest.approx(
        {name: figure.value for name, figure in first.items()}, abs=1e-6
    )
    assert {name for name, time in trained().items() if time != before[name]} == {"pvcnn"}
    assert not capsys.readouterr().out  # which --json has for itself
    for other, option in (({"lr": 0.5}, "--lr"), ({"seed": 5}, "--seed")):
        with pytest.raises(ConfigError, match=rf"{option}: expected .*, that of the run in .*pointnet"):
            point_networks.compare(splits, tmp_path, replace(PLAN, **other), resume=True)
    assert {name: time for name, time in trained().items() if name != "pvcnn"} == {
        name: time for name, time in before.items() if name != "pvcnn"
    }


def test_that_one_network_was_trained_otherwise_is_found_before_another_goes_on(
    splits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = tmp_path / "point-networks" / "spvcnn" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    torch.save({"global_step": 1, "plan": {"seed": 5}}, last)
    begun: list[Path] = []
    monkeypatch.setattr(point_networks, "fit", lambda *arguments, **_: begun.append(arguments[4]))
    with pytest.raises(ConfigError, match=r"--seed: expected 5, that of the run in .*spvcnn"):
        point_networks.compare(splits, tmp_path, PLAN, resume=True)
    assert not begun


def test_clouds_of_a_batch_have_equally_many_points_and_lie_within_range(data: Path) -> None:
    source = point_networks.CloudSource(SweepSource(cache.frame_files(data / "train")))
    for seed in range(5):
        points, label = source.draw(torch.Generator().manual_seed(seed))
        assert points.shape == (point_networks.POINTS, 4)
        assert label.shape == (point_networks.POINTS,)
        assert points[:, :2].abs().max() < point_networks.RANGE_M

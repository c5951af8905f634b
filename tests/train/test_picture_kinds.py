# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.sim.semantics import Semantic
from kestrel.train import cache
from kestrel.train.fusion import PLANS, FusionTask
from kestrel.train.fusion_data import FrameSource
from kestrel.train.fusion_sample import collate
from kestrel.train.picture_kinds import KINDS, shares_of_kinds

CONFIG = FusionConfig()


def test_a_cell_is_told_by_the_share_of_its_pixels() -> None:
    semantic = np.full((128, 352), Semantic.ROAD, np.uint8)
    semantic[8:16, 16:20] = Semantic.CAR
    semantic[8:10, 20:24] = Semantic.POLE
    shares = shares_of_kinds(semantic, CONFIG)
    assert tuple(shares.shape) == (KINDS, 16, 44)
    cell = shares[:, 1, 2]
    assert cell[Semantic.CAR] == 0.5
    assert cell[Semantic.POLE] == 8 / 64
    assert cell[Semantic.ROAD] == 24 / 64
    assert (shares[Semantic.ROAD] == 1).sum() == 16 * 44 - 1


def test_all_sensors_learn_what_pictures_show_where_that_is_known(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = FusionTask(PLANS.all_sensors, CONFIG)
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(task, "log_dict", lambda parts, **_: (logged.clear(), logged.update(parts)))
    files = cache.frame_files(data / "train")[:1]
    shown = FrameSource(files, CONFIG, with_cameras=True)[0]
    untold = replace(shown, shares=torch.full_like(shown.shares, torch.nan))
    blind = FrameSource(files, CONFIG, with_cameras=False)[0]
    for sample, told in ((shown, True), (untold, False), (blind, False)):
        loss = task.training_step(collate([sample]), 0)
        assert ("kinds" in logged) == told
        assert bool(loss.isfinite())
        loss.backward()
        gradient = task.kinds.weight.grad
        assert (gradient is not None and bool(gradient.any())) == told
        task.zero_grad()

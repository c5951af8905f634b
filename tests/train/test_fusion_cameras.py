# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kestrel.errors import InputError
from kestrel.models.kestrel_fusion_types import FusionConfig
from kestrel.sim.semantics import Semantic
from kestrel.train import cache
from kestrel.train.fusion_cameras import (
    KINDS,
    CameraTask,
    PictureBatch,
    PictureSource,
    collate,
    shares_of_kinds,
)
from kestrel.train.fusion_sample import collate_earlier
from kestrel.train.plan import Plan

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


def test_mirrored_pictures_keep_depth_and_kinds_in_their_places(data: Path) -> None:
    source = PictureSource(cache.frame_files(data / "validation")[:1], CONFIG)
    plain = source[0]
    mirrored = 0
    for seed in range(8):
        drawn = source.draw(torch.Generator().manual_seed(seed))
        turned = not torch.equal(drawn.shares, plain.shares)
        mirrored += turned
        for name in ("depth", "shares"):
            expected = getattr(plain, name).flip(-1) if turned else getattr(plain, name)
            torch.testing.assert_close(getattr(drawn, name), expected)
        images = plain.images.flip(-1) if turned else plain.images
        together = torch.stack((images.float().flatten(), drawn.images.float().flatten()))
        assert torch.corrcoef(together)[0, 1] > 0.3  # not the same colours, but the same picture
    assert 0 < mirrored < 8


def test_frames_without_pictures_are_left_out_and_none_is_an_error(data: Path, tmp_path: Path) -> None:
    frame = cache.read(cache.CachedFrame, cache.frame_files(data / "train")[0])
    nothing = np.zeros(0, np.int64)
    blind = replace(frame, picture_ends=nothing, matrices=frame.matrices[:0])
    cache.write(tmp_path / "frame_0000.npz", blind)
    files = [tmp_path / "frame_0000.npz", *cache.frame_files(data / "train")]
    assert len(PictureSource(files, CONFIG)) == 2
    with pytest.raises(InputError, match=r"1 key frames.*pictures.*none"):
        PictureSource(files[:1], CONFIG)


def test_scores_count_depths_right_to_one_bin_and_kinds() -> None:
    torch.manual_seed(0)
    task = CameraTask(Plan(steps=1, batch_size=1, lr=1e-3, validate_every=1))
    images = torch.rand(1, 3, 128, 352)
    with torch.no_grad():
        depth, context, *_ = task.averaged.camera(images)
        named = task.kinds(context).argmax(1)
    one_hot = torch.nn.functional.one_hot(named, KINDS).permute(0, 3, 1, 2).float()
    alone = collate_earlier([torch.zeros(0, 1, 3, 128, 352)])
    task.validation_step(PictureBatch(images, alone, depth.argmax(1), one_hot), 0)
    right = task.scores()
    assert (right["depth"], right["miou"]) == (1, 1)
    unknown = torch.full_like(named, -1)
    unknown[:, :8] = (depth.argmax(1) + 1)[:, :8]
    unknown[:, 0] += 1
    task.validation_step(PictureBatch(images, alone, unknown, one_hot.roll(1, 1)), 0)
    wrong = task.scores()
    assert wrong["depth"] == 7 / 8
    assert wrong["miou"] < 0.5


def test_it_learns_a_picture(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    task = CameraTask(Plan(steps=12, batch_size=1, lr=3e-3, validate_every=12))
    monkeypatch.setattr(task, "log_dict", lambda *_, **__: None)  # there is no trainer to log to
    batch = collate([PictureSource(cache.frame_files(data / "train")[:1], CONFIG)[0]])
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(12):
        loss = task.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]


def test_of_pictures_without_labels_the_depth_alone_is_learned(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    task = CameraTask(Plan(steps=1, batch_size=1, lr=3e-3, validate_every=1))
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(task, "log_dict", lambda parts, **_: (logged.clear(), logged.update(parts)))
    shown = cache.frame_files(data / "train")[0]
    frame = cache.read(cache.CachedFrame, shown)
    nothing = np.zeros(0, np.int64)
    cache.write(tmp_path / "frame_0000.npz", replace(frame, semantic_ends=nothing))
    cache.finish(tmp_path, {"frame_hz": 2.0})
    unknown, known = (PictureSource([path], CONFIG)[0] for path in (tmp_path / "frame_0000.npz", shown))
    assert torch.equal(unknown.depth, known.depth)
    task.training_step(collate([unknown]), 0).backward()
    assert set(logged) == {"depth"}
    assert task.kinds.weight.grad is None
    task.validation_step(collate([unknown]), 0)
    assert set(task.scores()) == {"mean", "depth"}
    task.training_step(collate([known]), 0)
    alone = logged["kinds"]
    task.training_step(collate([unknown, known]), 0)
    torch.testing.assert_close(logged["kinds"], alone, rtol=1e-3, atol=1e-3)
    dark = replace(unknown, depth=torch.full_like(unknown.depth, -1))
    assert float(task.training_step(collate([dark]), 0)) == 0

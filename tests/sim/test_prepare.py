# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kestrel.sim.splits import DriveSpec
from kestrel.train import cache
from kestrel.train.prepare import prepare_drive


@pytest.mark.parametrize(("sensors", "pictures"), [("cameras", 6), ("lidar", 0)])
def test_a_drive_without_video_becomes_key_frames_of_three_sweeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sensors: str, pictures: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # prepare_drive sets it; other tests shall not see it
    drive = DriveSpec("d", "nuscenes", "suburban", "alder", 1, 2.0, "day", sensors)
    prepare_drive(drive, tmp_path)
    files = cache.frame_files(tmp_path)
    assert [path.name for path in files] == ["frame_0000.npz"]
    assert not (tmp_path / "d" / "video.npz").exists()
    assert json.loads((tmp_path / "d" / cache.DONE).read_text())["frames"] == 1
    frame = cache.read(cache.CachedFrame, files[0])
    np.testing.assert_allclose(frame.ages, [0, 0.1, 0.2], atol=1e-6)
    assert np.unique(frame.sweep).tolist() == [0, 1, 2]
    assert len(frame.label) == (frame.sweep == 0).sum() > 5000
    assert len(frame.picture_ends) == len(frame.semantic_ends) == len(frame.matrices) == pictures
    if pictures:
        assert frame.picture(0).shape == (128, 352, 3)
        assert len(np.unique(frame.semantic(0))) > 3

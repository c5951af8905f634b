# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Training data that needs no simulator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kestrel.classes import IGNORE, POINT_CLASSES
from kestrel.train import cache

SIZE = (128, 352)


def make_cached_frame(seed: int = 0, cameras: int = 2) -> cache.CachedFrame:
    random = np.random.default_rng(seed)
    counts = (1500, 1200, 1200)
    points = random.normal(0, (12, 12, 0.8), (sum(counts), 3)).clip(-60, 60)
    label = random.integers(0, len(POINT_CLASSES), counts[0]).astype(np.uint8)
    label[:10] = IGNORE
    pictures = [random.integers(0, 255, (*SIZE, 3), dtype=np.uint8) for _ in range(cameras)]
    semantics = [random.integers(0, 31, SIZE, dtype=np.uint8) for _ in range(cameras)]
    jpeg, jpeg_ends = cache.encode(pictures, ".jpg")
    png, png_ends = cache.encode(semantics, ".png")
    base_from_camera = np.eye(4)
    base_from_camera[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    base_from_camera[:3, 3] = (1.5, 0, 1.6)
    return cache.CachedFrame(
        points=np.round(points / cache.POSITION_STEP_M).astype(np.int16),
        intensity=random.integers(0, 255, sum(counts), dtype=np.uint8),
        sweep=np.repeat(np.arange(3, dtype=np.uint8), counts),
        ages=np.array([0, 0.1, 0.2], np.float32),
        label=label,
        boxes=np.array(
            [[10, 3, 0.8, 4.5, 1.9, 1.6, 0.3, 2, 0], [-20, 8, 0.9, 0.7, 0.7, 1.8, 1, 0, 1]], np.float32
        ),
        box_label=np.array([0, 8], np.int64),
        box_points=np.array([30, 0], np.int64),
        box_attribute=np.array([5, 2], np.int64),
        map_bits=np.packbits(random.random((6, 200, 200)) > 0.7),
        pictures=jpeg,
        picture_ends=jpeg_ends,
        semantics=png,
        semantic_ends=png_ends,
        matrices=np.tile(np.array([[280.0, 0, 176], [0, 280, 64], [0, 0, 1]]), (cameras, 1, 1)),
        base_from_camera=np.tile(base_from_camera, (cameras, 1, 1)),
        base_from_picture=np.tile(np.eye(4), (cameras, 1, 1)),
        odom_from_base=np.eye(4),
    )


def make_cached_video(seed: int = 0, frames: int = 45) -> cache.CachedVideo:
    random = np.random.default_rng(seed)
    pictures, ends = cache.encode(
        [random.integers(0, 255, (*SIZE, 3), dtype=np.uint8) for _ in range(frames)], ".jpg"
    )
    return cache.CachedVideo(
        pictures,
        ends,
        (np.arange(frames) * 100_000_000).astype(np.int64),
        (np.arange(frames) // 10 % 3).astype(np.uint8),
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one finished drive per split, and an unfinished one."""
    root = tmp_path_factory.mktemp("data")
    for number, split in enumerate(("train", "validation")):
        drive = root / split / "d0"
        drive.mkdir(parents=True)
        for index in range(2):
            cache.write(drive / f"frame_{index:04d}.npz", make_cached_frame(10 * number + index))
        cache.write(drive / "video.npz", make_cached_video(number))
        cache.finish(
            drive,
            {
                "weather": "day",
                "town": "alder",
                "rig": "kitti",
                "seed": number,
                "seconds": 4.5,
                "frames": 2,
                "frame_hz": 2.0,
                "format": cache.FORMAT,
            },
        )
    unfinished = root / "train" / "d1"
    unfinished.mkdir()
    (unfinished / "frame_0000.npz").write_bytes(b"cut off")
    return root

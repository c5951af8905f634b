# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Writing pictures and a video of a recording without any display."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import imageio
import numpy as np

from kestrel.eval.scene import Scene
from kestrel.files import replacing, write_whole
from kestrel.show import compose
from kestrel.types import UInt8Array

CODEC: Final = "libx264"
QUALITY: Final = 7
"""Of imageio, 0..10: small enough to send, sharp enough for box labels."""
PRESET: Final = "veryfast"
"""Of x264: files of the same size as with its default, for less work."""


def write_png(picture: UInt8Array, path: Path) -> None:
    """Write an RGB picture.

    Raises:
        InputError: the file cannot be written.
    """
    write_whole(path, cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes())


def write_pictures(scene: Scene, folder: Path, title: str) -> list[Path]:
    """Write what one moment looks like; return the paths."""
    frame = scene.frame(scene.best_stamp())
    pictures = {"overview": compose.overview(frame, title), "birdseye": compose.panels(frame)}
    if frame.cameras:
        pictures["cameras"] = compose.cameras(frame)
    paths = []
    for name, picture in pictures.items():
        paths.append(folder / f"{name}.png")
        write_png(picture, paths[-1])
    return paths


def write_video(scene: Scene, path: Path, title: str, progress: Callable[[int], None]) -> None:
    """Write every frame at the rate of the sensor; ``progress`` is called with the number of frames done.

    The video appears when it is complete: one that breaks off could not be told from a shorter drive.

    Raises:
        InputError: the file cannot be written.
    """
    size = _video_size(scene, title)
    with replacing(path, "video") as unfinished:
        writer: Any = imageio.get_writer(
            unfinished,
            fps=max(scene.rate_hz, 1.0),
            codec=CODEC,
            quality=QUALITY,
            macro_block_size=2,
            output_params=["-preset", PRESET],
        )
        with writer:
            for done, frame in enumerate(scene.frames(), start=1):
                writer.append_data(_fitted(compose.overview(frame, title), size))
                progress(done)


def _video_size(scene: Scene, title: str) -> tuple[int, ...]:
    """Return the shape of the highest picture: cameras may begin after the LiDAR, or end before it."""
    first = {scene.cameras_at(stamp): stamp for stamp in reversed(scene.stamps)}
    return max(compose.overview(scene.frame(stamp), title).shape for stamp in first.values())


def _fitted(picture: UInt8Array, size: tuple[int, ...]) -> UInt8Array:
    """Return the picture cut or padded at its bottom: a frame without pictures has another height."""
    fitted = np.zeros(size, np.uint8)
    rows = min(len(picture), size[0])
    fitted[:rows] = picture[:rows]
    return fitted

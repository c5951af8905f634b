# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Bring a camera picture to the size a network was trained with, and say where its pixels went.

Resampling is Pillow's, because its antialiased bicubic filter is what the released checkpoints were trained
with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from kestrel.types import Float32Array, UInt8Array


@dataclass(frozen=True)
class ImageAugmentation:
    """Resize, crop, flip, rotate; in this order.

    resize: scale of both axes.
    crop: (left, top) of the cut, pixels of the resized picture.
    size: (H, W) of the cut and of the result.
    flip: mirror left and right.
    rotate_deg: counter-clockwise about the middle, degrees.
    """

    resize: float
    crop: tuple[int, int]
    size: tuple[int, int]
    flip: bool = False
    rotate_deg: float = 0.0

    @classmethod
    def evaluation(
        cls, image_size: tuple[int, int], size: tuple[int, int], resize: float, bottom: float = 0.0
    ) -> ImageAugmentation:
        """Return what evaluation uses: the lower part of the resized picture, centred.

        Args:
            image_size: (H, W) of the camera.
            size: (H, W) of the network.
            resize: scale.
            bottom: fraction of the resized height to leave out below the cut.
        """
        height, width = (int(length * resize) for length in image_size)
        top = int((1 - bottom) * height) - size[0]
        return cls(resize, (int(max(0, width - size[1]) / 2), top), size)

    def apply(self, image: UInt8Array) -> UInt8Array:
        """(H, W, 3) to (size, 3) uint8; what lies outside the camera's picture is black."""
        height, width = image.shape[:2]
        (left, top), (rows, columns) = self.crop, self.size
        across = _kept(width, int(width * self.resize), left, columns)
        down = _kept(height, int(height * self.resize), top, rows)
        box = across.place[0], down.place[0], across.place[1], down.place[1]
        picture = PIL.Image.fromarray(image).resize((across.count, down.count), box=box)
        left, top = left - across.first, top - down.first
        picture = picture.crop((left, top, left + columns, top + rows))
        if self.flip:
            picture = picture.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(picture.rotate(self.rotate_deg))

    def matrix(self) -> Float32Array:
        """Return the 4x4 that maps (column, row, 1 or depth, 1) of the camera to those of the result."""
        rotation, shift = np.eye(2) * self.resize, -np.array(self.crop, dtype=np.float64)
        if self.flip:
            mirror = np.array([[-1.0, 0.0], [0.0, 1.0]])
            rotation, shift = mirror @ rotation, mirror @ shift + (self.size[1], 0)
        rotation, shift = _rotate_about_middle(rotation, shift, self.size, math.radians(self.rotate_deg))
        matrix = np.eye(4, dtype=np.float32)
        matrix[:2, :2], matrix[:2, 3] = rotation, shift
        return matrix


@dataclass(frozen=True)
class _Kept:
    """Pixels of a resized picture along one axis, and where they are in the picture before.

    first, count: the pixels. place: (begin, end), whole pixels of the picture before.
    """

    first: int
    count: int
    place: tuple[int, int]


def _kept(length: int, resized: int, first: int, count: int) -> _Kept:
    """Return the pixels that resizing has to make for a cut of some, and some around.

    To Pillow the place of what is resampled is a float32, so that pixels come out as those of the whole only
    where it begins and ends at whole pixels: every ``unit`` of them.
    """
    unit = resized // math.gcd(length, resized)
    begin, end = first // unit * unit, -(-(first + count) // unit) * unit
    begin, end = max(0, begin), min(resized, end)
    if begin >= end:  # nothing of the picture is in the cut
        begin, end = 0, resized
    return _Kept(begin, end - begin, (begin * length // resized, end * length // resized))


def _rotate_about_middle(
    rotation: NDArray[np.float64], shift: NDArray[np.float64], size: tuple[int, int], angle: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Append a turn about the middle of the picture; rows point down, so its sense is reversed."""
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    middle = np.array([size[1], size[0]]) / 2
    return turn @ rotation, turn @ (shift - middle) + middle

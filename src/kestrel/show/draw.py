# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Drawing on pictures with numpy and OpenCV, text with Pillow; needs no display."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Final, TypeAlias

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kestrel.types import Float64Array, UInt8Array

Rgb: TypeAlias = tuple[int, int, int]

BACKGROUND: Final[Rgb] = (16, 19, 26)
PANEL: Final[Rgb] = (24, 28, 37)
TEXT: Final[Rgb] = (232, 236, 243)
MUTED: Final[Rgb] = (146, 156, 173)
ACCENT: Final[Rgb] = (255, 178, 66)
TRUTH: Final[Rgb] = (255, 255, 255)

_FRACTION_BITS: Final = 4
_FARTHEST_PX: Final = 1e5
_LEAST_BRIGHTNESS: Final = 120.0


def canvas(width: int, height: int, colour: Rgb = BACKGROUND) -> UInt8Array:
    """Return an empty (height, width, 3) RGB picture."""
    return np.full((height, width, 3), colour, np.uint8)


def visible(colour: Rgb) -> Rgb:
    """Return ``colour``, lightened as far as it takes to be seen on a dark background."""
    brightness = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]
    if brightness >= _LEAST_BRIGHTNESS:
        return colour
    share = (_LEAST_BRIGHTNESS - brightness) / (255 - brightness)
    red, green, blue = (round(value + (255 - value) * share) for value in colour)
    return red, green, blue


def within_reach(points: NDArray[np.floating]) -> Float64Array:
    """Return pixel positions of which those farther off than whole numbers reach are brought nearer."""
    near: Float64Array = np.clip(points, -_FARTHEST_PX, _FARTHEST_PX, dtype=np.float64)
    return near


def polyline(
    picture: UInt8Array,
    points: NDArray[np.floating],
    colour: Rgb,
    *,
    width: int = 1,
    closed: bool = False,
) -> None:
    """Draw a smooth line through (N, 2) pixel positions."""
    fixed = np.round(within_reach(points) * (1 << _FRACTION_BITS)).astype(np.int32)
    cv2.polylines(picture, [fixed.reshape(-1, 1, 2)], closed, colour, width, cv2.LINE_AA, _FRACTION_BITS)


def dashed(picture: UInt8Array, points: NDArray[np.floating], colour: Rgb, *, dash_px: float = 5.0) -> None:
    """Draw a closed dashed line through (N, 2) pixel positions."""
    for start, end in zip(points, np.roll(points, -1, 0), strict=True):
        count = max(int(np.hypot(*(end - start)) / dash_px), 1)
        stops = start + (end - start) * (np.arange(count + 1) / count)[:, None]
        for index in range(0, count, 2):
            polyline(picture, stops[index : index + 2], colour)


def fill(picture: UInt8Array, points: NDArray[np.floating], colour: Rgb, opacity: float) -> None:
    """Fill the polygon through (N, 2) pixel positions with a share of ``colour``."""
    points = within_reach(points)
    low = np.maximum(np.floor(points.min(0)).astype(int), 0)
    high = np.minimum(np.ceil(points.max(0)).astype(int) + 1, picture.shape[1::-1])
    if (high <= low).any():
        return
    part = picture[low[1] : high[1], low[0] : high[0]]
    painted = part.copy()
    cv2.fillPoly(painted, [np.round(points - low).astype(np.int32)], colour, cv2.LINE_AA)
    cv2.addWeighted(painted, opacity, part, 1 - opacity, 0, dst=part)


def arrow(picture: UInt8Array, start: Float64Array, end: Float64Array, colour: Rgb) -> None:
    """Draw an arrow between two pixel positions."""
    length = float(np.hypot(*(end - start)))
    if length < 3:
        return
    ahead = (end - start) / length
    side = np.array([-ahead[1], ahead[0]])
    head = min(7.0, length / 2)
    polyline(picture, np.array([start, end]), colour, width=2)
    left, right = (end - ahead * head + way * side * head / 2 for way in (1, -1))
    polyline(picture, np.array([left, end, right]), colour, width=2)


@functools.cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


@functools.lru_cache(maxsize=512)
def _glyphs(text: str, size: int, bold: bool) -> NDArray[np.float32]:
    """Return the (H, W, 1) opacity of a line of text."""
    font = _font(size, bold)
    ascent, descent = font.getmetrics()
    mask = Image.new("L", (max(round(font.getlength(text)), 1), ascent + descent))
    ImageDraw.Draw(mask).text((0, 0), text, fill=255, font=font)
    return (np.asarray(mask, np.float32) / np.float32(255))[:, :, None]


def text_width(text: str, size: int, *, bold: bool = False) -> int:
    """Return the width of a line of text in pixels."""
    return int(_glyphs(text, size, bold).shape[1])


def write(
    picture: UInt8Array,
    text: str,
    position: tuple[float, float],
    *,
    size: int = 16,
    colour: Rgb = TEXT,
    bold: bool = False,
    align: str = "left",
) -> None:
    """Write one line with its top at ``position``; ``align``: which part of it is there (left, right)."""
    glyphs = _glyphs(text, size, bold)
    left = round(position[0]) - (glyphs.shape[1] if align == "right" else 0)
    top = round(position[1])
    rows = slice(max(top, 0), min(top + glyphs.shape[0], picture.shape[0]))
    columns = slice(max(left, 0), min(left + glyphs.shape[1], picture.shape[1]))
    if rows.stop <= rows.start or columns.stop <= columns.start:
        return
    opacity = glyphs[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    part = picture[rows, columns]
    part[:] = np.rint(part * (1 - opacity) + np.array(colour) * opacity)


def tag(
    picture: UInt8Array,
    text: str,
    position: tuple[float, float],
    *,
    colour: Rgb,
    size: int = 15,
    bold: bool = True,
) -> int:
    """Write text on a dark plate with a bar of ``colour``; return the width of the plate."""
    width, height = text_width(text, size, bold=bold) + 18, round(size * 1.65)
    left, top = round(position[0]), round(position[1])
    corners = np.array(
        [(left, top), (left + width, top), (left + width, top + height), (left, top + height)], float
    )
    fill(picture, corners, (10, 12, 16), 0.72)
    cv2.rectangle(picture, (left, top), (left + 4, top + height), colour, -1)
    write(picture, text, (left + 11, top + size * 0.22), size=size, bold=bold)
    return width


def legend(
    picture: UInt8Array, title: str, entries: Sequence[tuple[str, Rgb]], position: tuple[int, int], width: int
) -> int:
    """Write named colours in rows of at most ``width`` pixels; return the height used."""
    left, top = position
    x, row = left, 0
    if title:
        write(picture, title, (x, top), size=13, colour=MUTED, bold=True)
        x += text_width(title, 13, bold=True) + 14
    for name, colour in entries:
        label = name.replace("_", " ")
        needed = text_width(label, 13) + 34
        if x + needed > left + width:
            x, row = left, row + 1
        y = top + row * 22
        cv2.rectangle(picture, (x, y + 3), (x + 12, y + 13), colour, -1)
        write(picture, label, (x + 18, y), size=13)
        x += needed
    return (row + 1) * 22

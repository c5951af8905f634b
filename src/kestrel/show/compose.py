# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""One picture of everything at one moment: title, cameras, two views from above, legends, timings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from kestrel.classes import DETECTION_COLOURS, MAP_COLOURS, POINT_COLOURS
from kestrel.eval.scene import CameraView, Frame
from kestrel.show import birdseye, draw
from kestrel.show.camera import annotate
from kestrel.types import Boxes3D, UInt8Array

WIDTH: Final = 1920
GAP: Final = 6
TITLE: Final = 64
PANEL_HEIGHT: Final = 620
LEGEND: Final = 100
MOST_CAMERAS_HIGH: Final = 480
SHOWN_SCORE: Final = 0.4
"""Detections below this are left out of pictures (never out of scores)."""


def shown_boxes(boxes: Boxes3D | None) -> Boxes3D | None:
    """Return the boxes that are sure enough for a picture."""
    if boxes is None:
        return None
    return boxes.chosen(boxes.score >= SHOWN_SCORE)


def overview(frame: Frame, title: str) -> UInt8Array:
    """Return the whole picture, (H, 1920, 3) with an even H."""
    parts = [_title(frame, title)]
    if frame.cameras:
        parts.append(cameras(frame))
    parts.append(panels(frame))
    parts.append(_legends())
    gap = draw.canvas(WIDTH, GAP)
    rows = [row for part in parts for row in (part, gap)][:-1]
    picture = np.concatenate(rows)
    return picture if len(picture) % 2 == 0 else np.concatenate([picture, draw.canvas(WIDTH, 1)])


def _title(frame: Frame, title: str) -> UInt8Array:
    strip = draw.canvas(WIDTH, TITLE)
    draw.write(strip, "Kestrel", (18, 12), size=32, bold=True, colour=draw.ACCENT)
    left = 18 + draw.text_width("Kestrel", 32, bold=True) + 22
    draw.write(strip, title, (left, 12), size=17)
    found = shown_boxes(frame.objects)
    facts = [f"t = {frame.seconds:.1f} s"]
    if frame.points is not None:
        facts.append(f"{len(frame.points):,} points")
    if found is not None:
        facts.append(f"{len(found)} objects")
    if frame.truth_event is not None:
        facts.append(f"in truth: {frame.truth_event.replace('_', ' ')}")
    draw.write(strip, "   ".join(facts), (left, 36), size=15, colour=draw.MUTED)
    right = float(WIDTH - 18)
    for node, latency in sorted(frame.latencies_ms.items(), reverse=True):
        value = f"{latency:.0f} ms"
        column = max(draw.text_width(value, 20, bold=True), draw.text_width(node, 13))
        draw.write(strip, value, (right, 11), size=20, bold=True, align="right")
        draw.write(strip, node, (right, 37), size=13, colour=draw.MUTED, align="right")
        right -= column + 30
    return strip


def cameras(frame: Frame) -> UInt8Array:
    """Return the camera pictures with boxes and events, six in two rows of three, fewer in one row."""
    views = frame.cameras
    columns = 3 if len(views) > 3 else len(views)
    boxes = shown_boxes(frame.objects)
    rows = [
        _camera_row(views[start : start + columns], boxes, columns) for start in range(0, len(views), columns)
    ]
    gap = draw.canvas(WIDTH, GAP)
    return np.concatenate([part for row in rows for part in (row, gap)][:-1])


def _camera_row(views: Sequence[CameraView], boxes: Boxes3D | None, columns: int) -> UInt8Array:
    width = (WIDTH - GAP * (columns - 1)) // columns
    ratio = max(view.picture.shape[0] / view.picture.shape[1] for view in views)
    height = min(max(round(width * ratio), 1), MOST_CAMERAS_HIGH)
    row = draw.canvas(WIDTH, height)
    for index, view in enumerate(views):
        rows, cols = view.picture.shape[:2]
        scale = min(width / cols, height / rows)
        own_width, own_height = max(round(cols * scale), 1), max(round(rows * scale), 1)
        left = index * (width + GAP) + (width - own_width) // 2
        row[:own_height, left : left + own_width] = annotate(view, boxes, own_width, own_height)
    return row


def panels(frame: Frame) -> UInt8Array:
    """Return the two views from above: what the points are, and map with objects."""
    width = (WIDTH - GAP) // 2
    window = birdseye.Window(width, PANEL_HEIGHT, width / 84, 34.0)
    filtered = replace(frame, objects=shown_boxes(frame.objects))
    left = birdseye.paint(filtered, window, with_map=False, with_points=True, with_boxes=False)
    right = birdseye.paint(filtered, window, with_map=True, with_points=False, with_boxes=True)
    draw.tag(left, "segmentation: class of every point", (10, 10), colour=(0, 207, 191))
    draw.tag(right, "fusion: map, objects, velocities    (dashed: truth)", (10, 10), colour=draw.ACCENT)
    return np.concatenate([left, draw.canvas(WIDTH - 2 * width, PANEL_HEIGHT), right], 1)


def _legends() -> UInt8Array:
    strip = draw.canvas(WIDTH, LEGEND)
    half = (WIDTH - GAP) // 2
    points = [(name, draw.visible(colour)) for name, colour in POINT_COLOURS.items()]
    objects = [(name, draw.visible(colour)) for name, colour in DETECTION_COLOURS.items()]
    draw.legend(strip, "points", points, (14, 8), half - 28)
    used = draw.legend(strip, "map", list(MAP_COLOURS.items()), (half + GAP + 14, 8), half - 28)
    draw.legend(strip, "objects", objects, (half + GAP + 14, 8 + used), half - 28)
    return strip

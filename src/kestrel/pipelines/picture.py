# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of any camera as Kestrel's networks were trained on: cut to their aspect, then resized."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from kestrel.types import Calibration, UInt8Array


def road_window(width: int, height: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of a picture that have the aspect of ``size`` (h, w).

    The top (sky) goes when it is too tall, both sides in equal parts when it is too wide: the road stays.
    """
    wanted = size[1] / size[0]
    if width / height > wanted:
        kept = max(1, round(height * wanted))
        left = (width - kept) // 2
        return slice(0, height), slice(left, left + kept)
    return slice(height - max(1, round(width / wanted)), height), slice(0, width)


def crop_to_road(data: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """Cut a picture (H, W, 3) to the aspect of ``size`` (h, w), see `road_window`, and resize it."""
    cut = data[road_window(data.shape[1], data.shape[0], size)]
    if cut.shape[:2] == size:
        return cut
    return np.asarray(cv2.resize(cut, (size[1], size[0]), interpolation=cv2.INTER_AREA), np.uint8)


def crop_calibration(calibration: Calibration, size: tuple[int, int]) -> Calibration:
    """Return the calibration of what `crop_to_road` leaves of a picture before it is resized."""
    rows, columns = road_window(calibration.width, calibration.height, size)
    matrix = calibration.camera_matrix.copy()
    matrix[:2, 2] -= columns.start, rows.start
    return replace(
        calibration,
        camera_matrix=matrix,
        width=columns.stop - columns.start,
        height=rows.stop - rows.start,
    )

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which pixels of a picture the sun shines on."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from kestrel.sim.blocks import Blocks
from kestrel.sim.caster import WorldCaster
from kestrel.sim.scene import Weather
from kestrel.sim.showroom import MovingActors
from kestrel.sim.surfaces import BoolArray
from kestrel.types import Float32Array, Int64Array

SHADOW_BIAS_M: Final = 0.02
WEAKEST_SUN: Final = 0.02

_LIT: Final = 1
_DARK: Final = 2


class Shadows:
    """The shadows that one camera of a drive sees."""

    def __init__(self, blocks: Blocks, caster: WorldCaster, weather: Weather) -> None:
        self._blocks = blocks
        self._caster = caster
        self._sun = weather.sun_direction.astype(np.float64)
        self._shines = weather.sun > WEAKEST_SUN
        row, column = np.divmod(blocks.pixel, blocks.shape[1])
        self._coarse: BoolArray = (row % 2 == 0) & (column % 2 == 0)

    def lit(self, faces: BoolArray, points: Float32Array, actors: MovingActors) -> BoolArray:
        """Return (N,) bool: the sun shines on what each ray found.

        Every second pixel of every second row asks for the sun; where those around a pixel disagree, it asks
        for itself.

        Args:
            faces: (N,) bool, the surface is turned to the sun.
            points: (3, N) float32 where, in map.
            actors: Those that move.
        """
        if not self._shines or not faces.any():
            return np.zeros_like(faces)
        pixel = self._blocks.pixel
        asked = np.zeros(self._blocks.shape, np.uint8)
        coarse = np.flatnonzero(faces & self._coarse)
        answers = np.zeros(len(faces), np.uint8)
        answers[coarse] = np.where(self._dark(points, coarse, actors), _DARK, _LIT)
        asked.reshape(-1)[pixel[coarse]] = answers[coarse]
        around = np.ones((3, 3), np.uint8)
        grid = asked[::2, ::2]
        lowest, highest = cv2.erode(grid, around), cv2.dilate(grid, around)
        agreed = np.where(lowest == highest, lowest, 0).repeat(2, axis=0).repeat(2, axis=1)
        settled = agreed[: asked.shape[0], : asked.shape[1]].reshape(-1)[pixel]
        settled = np.where(answers > 0, answers, settled)
        open_ = np.flatnonzero(faces & (settled == 0))
        settled[open_] = np.where(self._dark(points, open_, actors), _DARK, _LIT)
        lit: BoolArray = faces & (settled == _LIT)
        return lit

    def _dark(self, points: Float32Array, rows: Int64Array, actors: MovingActors) -> BoolArray:
        """Return (K,) bool: something stands between the sun and the points of ``rows`` (K,)."""
        sun = self._sun.astype(np.float32)
        rays = np.empty((len(rows), 6), np.float32)
        for axis in range(3):
            rays[:, axis] = points[axis][rows] + sun[axis] * np.float32(SHADOW_BIAS_M)
            rays[:, 3 + axis] = sun[axis]
        dark = self._caster.shaded(rays)
        if len(actors) and len(rows):
            pairs = self._blocks.shadow_pairs(actors, rows, rays[:, :3].T, self._sun)
            self._caster.shade_by_actors(dark, rays, actors, pairs)
        return dark

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
from kestrel.sim.showroom import MovingActors, Pairs
from kestrel.sim.surfaces import BoolArray
from kestrel.types import Float32Array, Float64Array, Int64Array

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

    def lit(
        self,
        faces: BoolArray,
        points: Float32Array,
        distance: Float32Array,
        actors: MovingActors,
        map_from_camera: Float64Array,
    ) -> BoolArray:
        """Return (N,) bool: the sun shines on what each ray found.

        Every second pixel of every second row asks for the sun; where those around a pixel disagree, it asks
        for itself.

        Args:
            faces: (N,) bool, the surface is turned to the sun.
            points: (N, 3) float32 where, in map.
            distance: (N,) metres from the camera.
            actors: Those that move.
            map_from_camera: (4, 4) at the moment of the picture.
        """
        if not self._shines or not faces.any():
            return np.zeros_like(faces)
        pairs = self._blocks.shadow_pairs(actors, map_from_camera, distance, faces, self._sun)
        height, width = self._blocks.shape
        answers = np.zeros((height, width), np.uint8)
        answers[::2, ::2] = faces.reshape(height, width)[::2, ::2]
        coarse = np.flatnonzero(answers)
        answers.reshape(-1)[coarse] = np.where(self._dark(points, coarse, actors, pairs), _DARK, _LIT)
        around = np.ones((3, 3), np.uint8)
        grid = answers[::2, ::2]
        lowest, highest = cv2.erode(grid, around), cv2.dilate(grid, around)
        agreed = np.where(lowest == highest, lowest, 0).repeat(2, axis=0).repeat(2, axis=1)
        settled = np.where(answers > 0, answers, agreed[:height, :width]).reshape(-1)
        open_ = np.flatnonzero(faces & (settled == 0))
        settled[open_] = np.where(self._dark(points, open_, actors, pairs), _DARK, _LIT)
        lit: BoolArray = faces & (settled == _LIT)
        return lit

    def _dark(self, points: Float32Array, rows: Int64Array, actors: MovingActors, pairs: Pairs) -> BoolArray:
        """Return (K,) bool: something stands between the sun and the points of ``rows`` (K,)."""
        sun = self._sun.astype(np.float32)
        rays = np.empty((len(rows), 6), np.float32)
        rays[:, :3] = points.take(rows, axis=0) + sun * np.float32(SHADOW_BIAS_M)
        rays[:, 3:] = sun
        dark = self._caster.shaded(rays)
        if len(pairs.ray) and len(rows):
            asked = np.full(len(points), -1)
            asked[rows[~dark]] = np.flatnonzero(~dark)
            ray = asked.take(pairs.ray)
            asks = ray >= 0
            self._caster.shade_by_actors(dark, rays, actors, Pairs(pairs.actor[asks], ray[asks]))
        return dark

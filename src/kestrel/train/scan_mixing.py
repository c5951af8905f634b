# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Mixing two labelled sweeps into one that neither street would have given.

Scenes are cut by azimuth (PolarMix, Xiao et al., NeurIPS 2022) or by inclination (LaserMix, Kong et al.,
CVPR 2023); things of rare classes are copied from one sweep into the other at several headings (PolarMix).
A network then sees each thing before many backgrounds and learns less from what usually stands beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from kestrel.train.sweep_augmentation import SENSOR_HEIGHT_M, LabelledSweep

INCLINATIONS: Final = (-0.45, 0.1)
"""Radians between which the zones of :func:`laser_mix` lie."""

COPIES: Final = (0.0, 2 * math.pi / 3, 4 * math.pi / 3)
"""Headings [rad] at which :func:`paste_things` sets what it copies."""


def polar_mix(first: LabelledSweep, second: LabelledSweep, generator: torch.Generator) -> LabelledSweep:
    """Return ``first`` with a sector of a quarter to three quarters of a turn taken from ``second``."""
    start, share = (float(torch.rand((), generator=generator)) for _ in range(2))
    width = (0.25 + 0.5 * share) * 2 * math.pi

    def in_sector(points: Tensor) -> Tensor:
        azimuth = torch.atan2(points[:, 1], points[:, 0])
        return torch.remainder(azimuth - start * 2 * math.pi, 2 * math.pi) < width

    return _exchange(first, second, in_sector(first[0]), in_sector(second[0]))


def laser_mix(first: LabelledSweep, second: LabelledSweep, generator: torch.Generator) -> LabelledSweep:
    """Return ``first`` with every other of three to six zones of inclination taken from ``second``."""
    zones = int(torch.randint(3, 7, (), generator=generator))
    low, high = INCLINATIONS

    def in_odd_zone(points: Tensor) -> Tensor:
        inclination = torch.atan2(points[:, 2] - SENSOR_HEIGHT_M, points[:, :2].norm(dim=1))
        zone = ((inclination - low) / (high - low) * zones).floor().clamp(0, zones - 1)
        return zone % 2 == 1

    return _exchange(first, second, in_odd_zone(first[0]), in_odd_zone(second[0]))


def paste_things(first: LabelledSweep, second: LabelledSweep, classes: Sequence[int]) -> LabelledSweep:
    """Return ``first`` with the points of ``classes`` in ``second`` added three times around the vehicle."""
    chosen = torch.isin(second[1], torch.tensor(classes))
    things, label = second[0][chosen], second[1][chosen]
    points, labels = [first[0]], [first[1]]
    for heading in COPIES:
        cosine, sine = math.cos(heading), math.sin(heading)
        turned = things.clone()
        turned[:, 0] = cosine * things[:, 0] - sine * things[:, 1]
        turned[:, 1] = sine * things[:, 0] + cosine * things[:, 1]
        points.append(turned)
        labels.append(label)
    return torch.cat(points), torch.cat(labels)


def _exchange(first: LabelledSweep, second: LabelledSweep, leaves: Tensor, comes: Tensor) -> LabelledSweep:
    points = torch.cat((first[0][~leaves], second[0][comes]))
    return points, torch.cat((first[1][~leaves], second[1][comes]))

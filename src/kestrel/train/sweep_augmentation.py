# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Changes a labelled sweep into one that another LiDAR, mounted elsewhere, might have taken elsewhere.

What real sweeps have and simulated ones lack is made up for here: a road that is not level, shots that panes
swallow, reflectivities that nothing in the label tells of, drivers that hand on a part of the turn only.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import torch
from torch import Tensor

LabelledSweep: TypeAlias = tuple[Tensor, Tensor]
"""Points (P, 4) [x, y, z, intensity] in base_link, and their classes (P,) int64."""

MOST_POINTS: Final = 50_000
"""Of a training sweep; a denser one is thinned out."""

CROPPED: Final = 0.15
"""Share of the sweeps of which a sector is left."""

PIERCED: Final = 0.4
"""Share of the sweeps with holes."""

MOST_HOLES: Final = 24

TILT_RAD: Final = 0.01
"""Standard deviation of pitch and roll: a car that brakes, a road that rises or is cambered."""

PATCHED: Final = 0.4
"""Share of the sweeps in which every patch of surface has a reflectivity of its own."""

UNEVEN: Final = 0.35
"""Share of the sweeps whose lasers are calibrated differently from each other."""

WITHOUT_INTENSITY: Final = 0.15

SENSOR_HEIGHT_M: Final = 1.8
"""Where inclinations are measured from; near enough to every rig."""

_HASH: Final = (73_856_093, 19_349_663, 83_492_791)
"""Primes that spread cells of space over a table (Teschner et al., VMV 2003)."""

_TABLE: Final = 4096

_BEAMS: Final = 256


def uniform(low: float, high: float, generator: torch.Generator) -> float:
    """Return one random number."""
    return low + (high - low) * float(torch.rand((), generator=generator))


def augment(points: Tensor, label: Tensor, generator: torch.Generator) -> LabelledSweep:
    """Thin out, crop, pierce, turn, mirror, scale and tilt a sweep, and disturb its intensity."""
    share = uniform(0.6, 1.0, generator) * min(1.0, MOST_POINTS / max(len(points), 1))
    kept = torch.rand(len(points), generator=generator) < share
    if uniform(0, 1, generator) < CROPPED:
        kept &= in_sector(points, generator)
    points, label = points[kept].clone(), label[kept]
    if uniform(0, 1, generator) < PIERCED:
        whole = ~in_holes(points, generator)
        points, label = points[whole], label[whole]
    points[:, 3] = disturbed_intensity(points, generator)
    points[:, :3] = _moved(points[:, :3], generator)
    return points, label


def in_sector(points: Tensor, generator: torch.Generator) -> Tensor:
    """Return which points (P, 4) lie in a random sector of 80 to 240 degrees, (P,) bool."""
    start, width = uniform(0, 2 * torch.pi, generator), uniform(1.4, 4.2, generator)
    azimuth = torch.atan2(points[:, 1], points[:, 0])
    return torch.remainder(azimuth - start, 2 * torch.pi) < width


def in_holes(points: Tensor, generator: torch.Generator) -> Tensor:
    """Return which points (P, 4) lie in one of some balls around random points, (P,) bool.

    Panes, wet paint and black cloth return little of a shot: what is behind stays unseen.
    """
    gone = torch.zeros(len(points), dtype=torch.bool)
    if not len(points):
        return gone
    for _ in range(int(torch.randint(1, MOST_HOLES + 1, (), generator=generator))):
        centre = points[int(torch.randint(len(points), (), generator=generator)), :3]
        radius = uniform(0.2, 1.0, generator)
        gone |= (points[:, :3] - centre).square().sum(1) < radius**2
    return gone


def _moved(position: Tensor, generator: torch.Generator) -> Tensor:
    """Return positions (P, 3) turned about z, mirrored, scaled, tilted, lifted and with noise."""
    angle = torch.tensor(uniform(-torch.pi, torch.pi, generator))
    cosine, sine = torch.cos(angle), torch.sin(angle)
    turn = torch.stack((torch.stack((cosine, -sine)), torch.stack((sine, cosine))))
    if uniform(0, 1, generator) < 0.5:
        turn = turn @ torch.diag(torch.tensor([1.0, -1.0]))
    scale = uniform(0.95, 1.05, generator)
    moved = position * scale
    moved[:, :2] = moved[:, :2] @ turn.T
    slope = TILT_RAD * torch.randn(2, generator=generator)
    moved[:, 2] += moved[:, :2] @ slope + uniform(-0.15, 0.15, generator)
    return moved + 0.01 * torch.randn(moved.shape, generator=generator)


def disturbed_intensity(points: Tensor, generator: torch.Generator) -> Tensor:
    """Return other intensities (P,) for points (P, 4 or more): another curve, another paint, other lasers."""
    if uniform(0, 1, generator) < WITHOUT_INTENSITY:
        return torch.full((len(points),), uniform(0, 0.1, generator))
    value = points[:, 3].clamp(0, 1) ** uniform(0.6, 1.5, generator) * uniform(0.5, 1.8, generator)
    if uniform(0, 1, generator) < PATCHED:
        cell = (points[:, :3] / uniform(0.4, 3.0, generator)).floor().long() * torch.tensor(_HASH)
        gain = (torch.rand(_TABLE, generator=generator) * 1.9 - 0.15).clamp(min=0)
        value = value * gain[torch.remainder(cell.sum(1), _TABLE)]
    value = value + uniform(-0.05, 0.1, generator)
    return (by_beam(value, points, generator) if uniform(0, 1, generator) < UNEVEN else value).clamp(0, 1)


def by_beam(value: Tensor, points: Tensor, generator: torch.Generator) -> Tensor:
    """Return intensities (P,) of points (P, 4) as lasers give them of which each is calibrated differently.

    On a road of one colour the lasers of a worn HDL-64E say anything from 0 to 0.3.
    """
    inclination = torch.atan2(points[:, 2] - SENSOR_HEIGHT_M, points[:, :2].norm(dim=1))
    beam = torch.remainder((inclination / uniform(0.004, 0.012, generator)).floor().long(), _BEAMS)
    gain = torch.rand(_BEAMS, generator=generator) * 0.9 + 0.6
    offset = 0.08 * torch.randn(_BEAMS, generator=generator)
    offset[torch.rand(_BEAMS, generator=generator) < 0.06] -= 0.3
    return value * gain[beam] + offset[beam]

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from kestrel.sim.blocks import Blocks
from kestrel.sim.lens import pixel_directions
from kestrel.sim.rig import load_rig
from kestrel.sim.showroom import MovingActors

WIDTH, HEIGHT = 205, 90  # neither is a multiple of a block


def camera(model):
    spec = load_rig("nuscenes").cameras[0]
    if model != "none":
        spec = replace(
            spec, distortion_model=model, distortion=np.array([-0.28, 0.07, 0.0002, -0.0004, 0.01])
        )
    pose = np.eye(4)
    pose[:3, :3] = spec.base_from_camera[:3, :3]
    pose[:3, 3] = (100.0, -50.0, 1.5)
    return Blocks(pixel_directions(spec.calibration((WIDTH, HEIGHT)))), pose


def actors(rng, count, near):
    """Boxes all around (100, -50), some of them beside or around the camera."""
    away, bearing = rng.uniform(near, 60, count), rng.uniform(-np.pi, np.pi, count)
    size = rng.uniform((0.5, 0.5, 1.0), (12.0, 2.5, 3.5), (count, 3))
    return MovingActors(
        track=np.arange(1, count + 1, dtype=np.uint16),
        place=np.stack([100 + away * np.cos(bearing), -50 + away * np.sin(bearing), np.zeros(count)], 1),
        yaw=rng.uniform(-np.pi, np.pi, count),
        velocity=np.zeros((count, 3)),
        yaw_rate=np.zeros(count),
        slot=np.zeros(count, np.int64),
        lower=size * (-0.5, -0.5, 0.0),
        upper=size * (0.5, 0.5, 1.0),
    )


def meetings(crowd, origin, direction):
    """(A, N) which rays enter which boxes, and (A, N) where."""
    cosine, sine = np.cos(crowd.yaw)[:, None], np.sin(crowd.yaw)[:, None]
    entry, leave = np.full((len(crowd), len(direction)), 0.0), np.full((len(crowd), len(direction)), np.inf)
    start = origin - crowd.place[:, None]
    for axis, (x, y) in enumerate(((cosine, sine), (-sine, cosine))):
        begin, along = x * start[..., 0] + y * start[..., 1], x * direction[:, 0] + y * direction[:, 1]
        ends = [(bound[:, axis, None] - begin) / along for bound in (crowd.lower, crowd.upper)]
        entry, leave = np.maximum(entry, np.minimum(*ends)), np.minimum(leave, np.maximum(*ends))
    ends = [(bound[:, 2, None] - start[..., 2]) / direction[:, 2] for bound in (crowd.lower, crowd.upper)]
    entry, leave = np.maximum(entry, np.minimum(*ends)), np.minimum(leave, np.maximum(*ends))
    return entry < leave, entry


def table(pairs, count):
    paired = np.zeros((count, WIDTH * HEIGHT), bool)
    paired[pairs.actor, pairs.ray] = True
    assert paired.sum() == len(pairs.ray)
    assert (np.diff(pairs.actor) >= 0).all()
    return paired


@pytest.mark.parametrize("model", ["none", "plumb_bob"])
def test_every_ray_is_paired_with_the_actors_it_meets_and_with_few_others(model):
    blocks, pose = camera(model)
    crowd = actors(np.random.default_rng(3), 80, near=0.0)
    direction = blocks.directions.astype(np.float64) @ pose[:3, :3].T
    distance = np.random.default_rng(4).uniform(5, 80, len(direction)).astype(np.float32)
    meets, entry = meetings(crowd, pose[:3, 3], direction)
    seen = meets & (entry < distance)
    paired = table(blocks.pairs(crowd, pose, distance), len(crowd))
    assert seen.sum() > 1000
    assert not (seen & ~paired).any()
    assert meets[paired].mean() > 0.6


def test_every_place_is_paired_with_the_actors_that_shade_it_and_with_few_others():
    blocks, pose = camera("none")
    crowd = actors(np.random.default_rng(5), 80, near=3.0)
    direction = blocks.directions.astype(np.float64) @ pose[:3, :3].T
    faces = direction[:, 2] < -0.03
    distance = np.where(faces, -pose[2, 3] / np.minimum(direction[:, 2], -0.03), np.inf).astype(np.float32)
    places = pose[:3, 3] + direction * np.where(faces, distance, 0)[:, None]
    sun = np.array([0.5, -0.6, 0.62])
    sun /= np.linalg.norm(sun)
    meets, _ = meetings(crowd, places, np.broadcast_to(sun, places.shape))
    paired = table(blocks.shadow_pairs(crowd, pose, distance, faces, sun), len(crowd))
    shaded = meets & faces
    assert shaded.sum() > 1000
    assert not (shaded & ~paired).any()
    assert shaded[paired].mean() > 0.2

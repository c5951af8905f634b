# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The truth about objects and the map around the vehicle, in its own frame."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from kestrel.classes import ATTRIBUTES, DETECTION_CLASSES, NO_ATTRIBUTE
from kestrel.sim.scene import ActorState, EgoState, World
from kestrel.sim.semantics import DETECTION_CLASS, Semantic
from kestrel.types import BevMap, Boxes3D, UInt16Array

OBJECT_RANGE_M: Final = 70.0
"""Objects farther than this from the vehicle are not in the truth."""

MOVING_MPS: Final = 0.2
"""What is faster moves."""

MAP_CELLS: Final = 200
MAP_RESOLUTION_M: Final = 0.5


def object_boxes(world: World, ego: EgoState, time_s: float, stamp_ns: int, instance: UInt16Array) -> Boxes3D:
    """Return the boxes around the vehicle in base_link.

    Args:
        world: The town and its traffic.
        ego: Motion of the vehicle at ``time_s``.
        time_s: Moment of the boxes.
        stamp_ns: Their stamp.
        instance: (N,) uint16 track id of each LiDAR point, from which ``num_points`` is counted.
    """
    base_from_map = np.linalg.inv(ego.map_from_base)
    heading = np.arctan2(ego.map_from_base[1, 0], ego.map_from_base[0, 0])
    states = [
        state
        for state in world.actor_states(time_s)
        if world.actors[state.track_id].semantic in DETECTION_CLASS
    ]
    actors = [world.actors[state.track_id] for state in states]
    foot = np.array([state.position for state in states], np.float64).reshape(-1, 3)
    size = np.array([actor.size for actor in actors], np.float64).reshape(-1, 3)
    middle = foot + np.array([0, 0, 0.5]) * size
    centre = middle @ base_from_map[:3, :3].T + base_from_map[:3, 3]
    yaw = np.array([state.yaw for state in states], np.float64) - heading
    velocity = np.array([(*state.velocity, 0.0) for state in states], np.float64).reshape(-1, 3)
    velocity = (velocity @ base_from_map[:3, :3].T)[:, :2]
    track = np.array([state.track_id for state in states], np.int64)
    label = np.array([DETECTION_CLASSES.index(DETECTION_CLASS[actor.semantic]) for actor in actors], np.int64)
    attribute = np.array(
        [_attribute(actor.semantic, state) for actor, state in zip(actors, states, strict=True)], np.int64
    )
    near = np.hypot(centre[:, 0], centre[:, 1]) <= OBJECT_RANGE_M
    counts = np.bincount(instance, minlength=int(track.max(initial=0)) + 1)
    return Boxes3D(
        center=centre[near].astype(np.float32),
        size=size[near].astype(np.float32),
        yaw=((yaw[near] + np.pi) % (2 * np.pi) - np.pi).astype(np.float32),
        velocity=velocity[near].astype(np.float32),
        label=label[near],
        score=np.ones(int(near.sum()), np.float32),
        class_names=DETECTION_CLASSES,
        frame_id="base_link",
        stamp_ns=stamp_ns,
        track_id=track[near],
        num_points=counts[track[near]].astype(np.int64),
        attribute=attribute[near],
    )


def _attribute(semantic: Semantic, state: ActorState) -> int:
    """Return what nuScenes says of an actor beside its class: an index into ATTRIBUTES, or NO_ATTRIBUTE."""
    moves = np.hypot(*state.velocity) > MOVING_MPS
    if semantic in (Semantic.BARRIER, Semantic.TRAFFIC_CONE):
        return NO_ATTRIBUTE
    if semantic == Semantic.PEDESTRIAN:
        name = "pedestrian.moving" if moves else "pedestrian.standing"
    elif semantic in (Semantic.BICYCLIST, Semantic.MOTORCYCLIST):
        name = "cycle.with_rider"
    elif semantic in (Semantic.BICYCLE, Semantic.MOTORCYCLE):
        name = "cycle.without_rider"
    elif moves:
        name = "vehicle.moving"
    else:
        name = "vehicle.parked" if state.parked else "vehicle.stopped"
    return ATTRIBUTES.index(name)


def map_layers(world: World, ego: EgoState, stamp_ns: int) -> BevMap:
    """Return the map layers 50 m around the vehicle, in base_link."""
    lower = -0.5 * MAP_CELLS * MAP_RESOLUTION_M
    layers = world.bev_map(ego.map_from_base, lower=lower, resolution=MAP_RESOLUTION_M, cells=MAP_CELLS)
    return replace(layers, stamp_ns=stamp_ns)

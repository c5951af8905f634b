# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A world as a whole: repeatable, rich, and refused when the arguments make no sense."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from kestrel.errors import ConfigError
from kestrel.sim.scene import Mesh
from kestrel.sim.semantics import DETECTION_CLASS, MOTOR_VEHICLES, Semantic
from kestrel.sim.world import TownWorld, build_world
from tests.sim.world.conftest import DRIVES, SECONDS


def _bytes(mesh: Mesh) -> bytes:
    parts = (mesh.vertices, mesh.triangles, mesh.semantic, mesh.colour, mesh.texture, mesh.reflectivity)
    return b"".join(part.tobytes() for part in parts)


def test_same_arguments_give_the_same_bytes(street: TownWorld) -> None:
    scene, town, seed = DRIVES[0]
    again = build_world(scene, town, seed, SECONDS)
    assert _bytes(again.static) == _bytes(street.static)
    assert again.actors.keys() == street.actors.keys()
    for track_id, actor in again.actors.items():
        assert all(map(_same, actor.meshes, street.actors[track_id].meshes))
    assert again.actor_states(7.3) == street.actor_states(7.3)
    assert np.array_equal(again.ego(7.3).map_from_base, street.ego(7.3).map_from_base)


def _same(a: Mesh, b: Mesh) -> bool:
    return _bytes(a) == _bytes(b)


def test_another_seed_gives_another_world(street: TownWorld) -> None:
    scene, town, seed = DRIVES[0]
    assert _bytes(build_world(scene, town, seed + 1, 1.0).static) != _bytes(street.static)


@pytest.mark.parametrize(
    ("scene", "town", "seconds", "weather"),
    [
        ("desert", "alder", 10.0, None),
        ("urban", "atlantis", 10.0, None),
        ("urban", "alder", 0.0, None),
        ("urban", "alder", float("nan"), None),
        ("urban", "alder", 10.0, "hail"),
    ],
)
def test_unknown_arguments_are_refused_by_name(
    scene: str, town: str, seconds: float, weather: str | None
) -> None:
    with pytest.raises(ConfigError, match=r"(scene|town|seconds|weather): expected .* found"):
        build_world(scene, town, 0, seconds, weather)


def test_meshes_are_well_formed_and_small_enough(worlds: list[TownWorld]) -> None:
    for world in worlds:
        meshes = [world.static, *(mesh for actor in world.actors.values() for mesh in actor.meshes)]
        assert len(world.static.triangles) < 400_000
        for mesh in meshes:
            count = len(mesh.triangles)
            assert mesh.triangles.max() < len(mesh.vertices)
            assert np.isfinite(mesh.vertices).all()
            assert (
                len(mesh.semantic) == len(mesh.colour) == len(mesh.texture) == len(mesh.reflectivity) == count
            )
            assert (mesh.reflectivity > 0.0).all()
            assert (mesh.reflectivity <= 1.0).all()
        assert max(len(mesh.triangles) for mesh in meshes[1:]) < 1500


def test_boxes_enclose_their_meshes_tightly(worlds: list[TownWorld]) -> None:
    for world in worlds:
        for actor in world.actors.values():
            vertices = np.concatenate([mesh.vertices for mesh in actor.meshes])
            length, width, height = actor.size
            expected = np.array([(-length / 2, -width / 2, 0.0), (length / 2, width / 2, height)])
            assert np.allclose((vertices.min(0), vertices.max(0)), expected, atol=1e-3)
            assert {int(s) for mesh in actor.meshes for s in mesh.semantic} == {int(actor.semantic)}


def test_vehicles_at_the_kerb_are_parked_and_those_in_traffic_are_not(worlds: list[TownWorld]) -> None:
    times = np.linspace(0, SECONDS, 7)
    for (scene, *_), world in zip(DRIVES, worlds, strict=True):
        motor = [key for key, actor in world.actors.items() if actor.semantic in MOTOR_VEHICLES]
        states = [state for time in times for state in world.actor_states(float(time))]
        fast = {state.track_id for state in states if np.hypot(*state.velocity) > 0.2}
        parked = {state.track_id for state in states if state.parked} & set(motor)
        assert len(parked) > (0 if scene == "highway" else 10)
        assert len(parked & fast) <= 1  # one may move off into the way of the ego vehicle
        assert len(set(motor) & fast - parked) > 5


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed: expected 0 or more, found -1"):
        build_world("urban", "elm", -1, 1.0)


def test_every_kind_of_surface_and_actor_occurs(worlds: list[TownWorld]) -> None:
    surfaces = set().union(*(set(world.static.semantic.tolist()) for world in worlds))
    structures = set(range(Semantic.ROAD, Semantic.CAR)) | {int(Semantic.OTHER_GROUND)}
    assert structures <= surfaces
    kinds = {actor.semantic for world in worlds for actor in world.actors.values()}
    assert kinds == set(DETECTION_CLASS)


def test_boxes_have_the_sizes_of_real_things(worlds: list[TownWorld]) -> None:
    limits = {
        "car": ((3.3, 6.2), (1.6, 2.4), (1.2, 2.7)),
        "truck": ((4.8, 11.0), (2.1, 3.0), (2.2, 4.1)),
        "bus": ((7.0, 14.0), (2.6, 3.1), (2.8, 3.7)),
        "trailer": ((7.0, 14.5), (2.2, 2.8), (1.4, 4.1)),
        "construction_vehicle": ((4.0, 8.5), (1.8, 4.5), (2.4, 4.5)),
        "motorcycle": ((1.7, 2.5), (0.6, 0.9), (1.0, 2.1)),
        "bicycle": ((1.5, 2.1), (0.5, 0.85), (0.9, 2.1)),
        "pedestrian": ((0.3, 1.3), (0.33, 1.2), (1.0, 2.2)),
        "barrier": ((0.1, 0.8), (1.6, 2.8), (0.7, 1.3)),
        "traffic_cone": ((0.2, 0.65), (0.2, 0.65), (0.5, 1.3)),
    }
    for world in worlds:
        for actor in world.actors.values():
            for value, (low, high) in zip(actor.size, limits[DETECTION_CLASS[actor.semantic]], strict=True):
                assert low <= value <= high, (actor.semantic, actor.size)


def test_the_surroundings_are_as_busy_as_a_street(worlds: list[TownWorld]) -> None:
    counts: Counter[str] = Counter()
    frames = 0
    for world in worlds:
        for time_s in np.arange(0.0, SECONDS, 2.0):
            frames += 1
            x, y = world.ego(time_s).map_from_base[:2, 3]
            for state in world.actor_states(time_s):
                if np.hypot(state.position[0] - x, state.position[1] - y) < 50.0:
                    counts[DETECTION_CLASS[world.actors[state.track_id].semantic]] += 1
    least = {"car": 6.0, "pedestrian": 2.0, "barrier": 1.0, "traffic_cone": 0.5, "truck": 0.5, "bicycle": 0.5}
    for name in DETECTION_CLASS.values():
        assert counts[name] / frames > least.get(name, 0.05), counts

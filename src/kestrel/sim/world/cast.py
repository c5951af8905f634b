# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The actors of a world: which models there are, and which of them stand still where."""

from __future__ import annotations

import numpy as np

from kestrel.sim.scene import Actor, ActorState
from kestrel.sim.semantics import Semantic
from kestrel.sim.world.buildings import pick
from kestrel.sim.world.cars import KINDS, Model, build_car
from kestrel.sim.world.cycles import build_bicycle, build_motorcycle
from kestrel.sim.world.obstacles import build_barrier, build_cone
from kestrel.sim.world.people import PHASES, build_pedestrian
from kestrel.sim.world.towns import Town
from kestrel.sim.world.trucks import build_bus, build_machine, build_tractor, build_trailer, build_truck
from kestrel.types import Float64Array


class Cast:
    """Creates actors; those that never move are ``standing``."""

    def __init__(self, rng: np.random.Generator, town: Town) -> None:
        self.rng = rng
        self.town = town
        self.actors: dict[int, Actor] = {}
        self.standing: list[ActorState] = []
        self._people: list[Model] = []

    def add(self, model: Model) -> Actor:
        """Give a model a track id."""
        meshes, size = model
        track_id = len(self.actors) + 1
        actor = Actor(track_id, Semantic(int(meshes[0].semantic[0])), size, meshes)
        self.actors[track_id] = actor
        return actor

    def stand(self, model: Model, place: Float64Array, yaw: float, z: float = 0.0, phase: int = 0) -> Actor:
        """Add an actor that stays where it is. place: (2,)."""
        actor = self.add(model)
        state = ActorState(
            *(actor.track_id, (float(place[0]), float(place[1]), z), float(yaw), (0.0, 0.0), phase),
            parked=True,
        )
        self.standing.append(state)
        return actor

    def car(self, kind: str | None = None) -> Model:
        """A passenger car or van in the mix of the town."""
        weights = np.array(self.town.vehicle_mix[: len(KINDS)])
        chosen = kind or str(
            self.rng.choice(["sedan", "hatch", "estate", "suv", "van", "pickup"], p=weights / weights.sum())
        )
        return build_car(self.rng, chosen, pick(self.town.paints, self.rng))

    def vehicle(self, *, heavy: float = 1.0) -> Model:
        """A car, truck or bus in the mix of the town, large ones ``heavy`` times as often."""
        mix = np.array(self.town.vehicle_mix) * ([1.0] * len(KINDS) + [heavy, heavy])
        index = int(self.rng.choice(len(mix), p=mix / mix.sum()))
        if index == len(KINDS):
            return build_truck(self.rng, pick(self.town.paints, self.rng))
        if index == len(KINDS) + 1:
            return build_bus(self.rng, pick(self.town.paints, self.rng))
        return self.car()

    def truck(self) -> Model:
        """A rigid truck."""
        return build_truck(self.rng, pick(self.town.paints, self.rng))

    def tractor(self) -> Model:
        """A road tractor."""
        return build_tractor(self.rng, pick(self.town.paints, self.rng))

    def trailer(self) -> Model:
        """A semi-trailer."""
        return build_trailer(self.rng)

    def bus(self) -> Model:
        """A bus."""
        return build_bus(self.rng, pick(self.town.paints, self.rng))

    def machine(self) -> Model:
        """A construction vehicle."""
        return build_machine(self.rng)

    def cycle(self, *, rider: bool) -> Model:
        """A bicycle or, less often, a motorcycle."""
        if self.rng.random() < 0.62:
            return build_bicycle(self.rng, rider=rider)
        return build_motorcycle(self.rng, rider=rider)

    def bicycle(self, *, rider: bool) -> Model:
        """A bicycle."""
        return build_bicycle(self.rng, rider=rider)

    def motorcycle(self, *, rider: bool) -> Model:
        """A motorcycle or scooter."""
        return build_motorcycle(self.rng, rider=rider)

    def person(self) -> Model:
        """A pedestrian; one of up to sixteen people of this world."""
        if len(self._people) < 16:
            self._people.append(build_pedestrian(self.rng))
            return self._people[-1]
        return self._people[int(self.rng.integers(len(self._people)))]

    def cone(self) -> Model:
        """A traffic cone."""
        return build_cone(self.rng)

    def barrier(self, kind: int) -> Model:
        """A barrier of a kind of obstacles.build_barrier."""
        return build_barrier(self.rng, kind)


STANDING_PHASE = PHASES
"""Phase of a pedestrian that does not walk."""

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Evolutionary search for the best sub-network below a measured latency (Tang et al. 2020, section 3.3)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from kestrel.errors import ConfigError, InputError, describe
from kestrel.files import write_whole
from kestrel.models.spvnas_space import NetConfig, SearchSpace

DRAWS: Final = 40
"""How often a candidate is drawn again because it is too slow before the limit counts as out of reach."""


@dataclass(frozen=True)
class SearchPlan:
    """How to search.

    latency_limit_ms: of a candidate. population: candidates of a generation. generations: how many after the
    first, random one. parents: the best so far from which the next generation comes. mutations: share of a
    generation that are mutants, the others are children of two. mutation_probability: of each choice.
    """

    latency_limit_ms: float
    population: int = 20
    generations: int = 10
    parents: int = 5
    mutations: float = 0.5
    mutation_probability: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.latency_limit_ms > 0 and 1 <= self.parents <= self.population and self.generations >= 0):
            expected = "a positive limit, 1 <= parents <= population, generations >= 0"
            raise ConfigError(describe("search plan", expected=expected, found=self))

    @property
    def candidates(self) -> int:
        """How many candidates are judged."""
        return self.population * (self.generations + 1)


@dataclass(frozen=True)
class Candidate:
    """One judged sub-network: its median latency [ms] on this machine and its accuracy, None if too slow."""

    number: int
    draw: int
    config: NetConfig
    latency_ms: float
    accuracy: float | None


class SearchLog:
    """All that was measured, one JSON line each, so that an interrupted search goes on where it was.

    Raises:
        InputError: the file belongs to a search with another plan or space.
    """

    def __init__(self, path: Path, plan: SearchPlan, space: SearchSpace) -> None:
        self._path = path
        self._known: dict[tuple[int, int], Candidate] = {}
        # The length of a search may change between two calls: what was measured stays true.
        identity = {**asdict(plan), **asdict(space)}
        identity.pop("generations")
        identity = json.loads(json.dumps(identity))
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, (json.dumps(identity) + "\n").encode())
            return
        first, *lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        if json.loads(first) != identity:
            raise InputError(
                describe(str(path), expected=f"the log of a search with {identity}", found=first)
            )
        complete = [line for line in lines if line.endswith("\n")]
        if len(complete) < len(lines):  # interrupted while it was written
            write_whole(path, "".join((first, *complete)).encode())
        for line in complete:
            candidate = Candidate(**json.loads(line))
            self._known[candidate.number, candidate.draw] = candidate

    def find(self, number: int, draw: int) -> Candidate | None:
        """Return what was measured for this draw of this candidate."""
        return self._known.get((number, draw))

    def add(self, candidate: Candidate) -> None:
        """Write down one measurement."""
        self._known[candidate.number, candidate.draw] = candidate
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(candidate)) + "\n")


def search(
    space: SearchSpace,
    plan: SearchPlan,
    log: SearchLog,
    *,
    latency_ms: Callable[[NetConfig], float],
    accuracy: Callable[[NetConfig], float],
) -> Iterator[Candidate]:
    """Judge ``plan.candidates`` candidates below the latency limit and yield each.

    What ``log`` holds is not measured again, and with the same measurements the same candidates are drawn.

    Args:
        space: what to search in.
        plan: how to search.
        log: where measurements are kept.
        latency_ms: measures a sub-network; called first, since it is cheaper.
        accuracy: judges a sub-network, more is better.

    Raises:
        ConfigError: no candidate below the latency limit was found in DRAWS draws.
    """
    judged: list[Candidate] = []
    for number in range(plan.candidates):
        generation = number // plan.population
        parents = best(judged[: generation * plan.population], plan.parents)
        ms = 0.0
        for draw in range(DRAWS):
            candidate = log.find(number, draw)
            if candidate is None:
                rng = random.Random(f"{plan.seed}/{number}/{draw}")  # noqa: S311
                config = _draw(space, plan, parents, number % plan.population, rng)
                took = latency_ms(config)
                score = accuracy(config) if took <= plan.latency_limit_ms else None
                candidate = Candidate(number, draw, config, took, score)
                log.add(candidate)
            ms = candidate.latency_ms
            if candidate.accuracy is not None:
                break
        else:
            expected = f"a network faster than {plan.latency_limit_ms} ms in {DRAWS} draws"
            raise ConfigError(
                describe("latency limit", expected=expected, found=f"none; the last takes {ms:.1f} ms")
            )
        judged.append(candidate)
        yield candidate


def _draw(
    space: SearchSpace, plan: SearchPlan, parents: list[Candidate], place: int, rng: random.Random
) -> NetConfig:
    """Return the candidate for one place of a generation; the first of it are mutants."""
    if not parents:
        return space.sample(rng)
    first = rng.choice(parents).config
    if place < plan.mutations * plan.population or len(parents) == 1:
        return space.mutate(first, plan.mutation_probability, rng)
    second = rng.choice([parent.config for parent in parents if parent.config is not first])
    return space.cross(first, second, rng)


def best(judged: list[Candidate], count: int) -> list[Candidate]:
    """Return the ``count`` most accurate candidates, of equal ones the faster first, without doubles."""
    found: list[Candidate] = []
    for candidate in sorted(judged, key=lambda c: (-(c.accuracy or 0.0), c.latency_ms, c.number)):
        if all(candidate.config != other.config for other in found):
            found.append(candidate)
    return found[:count]

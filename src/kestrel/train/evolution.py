# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Evolutionary search for the best sub-network below a measured latency (Tang et al. 2020, section 3.3)."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from kestrel.errors import ConfigError, InputError, ModelError, describe
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

    What an interrupted run left of its last line is cut off, and measured again.

    Args:
        path: the file.
        plan: how to search.
        space: what to search in.
        setting: what else the measurements are true of: the super-network, the data, the machine.

    Raises:
        InputError: the file belongs to a search with another plan, space or setting, or one of its lines is
            damaged.
    """

    def __init__(
        self, path: Path, plan: SearchPlan, space: SearchSpace, setting: Mapping[str, object]
    ) -> None:
        self._path = path
        self._known: dict[tuple[int, int], Candidate] = {}
        # The length of a search may change between two calls: what was measured stays true.
        identity = {**asdict(plan), **asdict(space), **setting}
        identity.pop("generations")
        identity = json.loads(json.dumps(identity))
        if not path.exists():
            write_whole(path, (json.dumps(identity) + "\n").encode())
            return
        try:
            *complete, torn = path.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(describe(str(path), expected="the log of a search", found=error)) from error
        if not complete:
            expected = "the log of a search"
            raise InputError(describe(str(path), expected=expected, found="no complete line"))
        first, *lines = complete
        found = _parsed(first, f"{path} line 1", "the plan and the space of a search")
        others = [name for name in {**identity, **found} if found.get(name) != identity.get(name)]
        if others:
            wanted, had = ({name: values.get(name) for name in others} for values in (identity, found))
            expected = f"the log of a search with {wanted} (another search needs another --out)"
            raise InputError(describe(str(path), expected=expected, found=had))
        for number, line in enumerate(lines, start=2):
            candidate = _candidate(line, f"{path} line {number}", space)
            self._known[candidate.number, candidate.draw] = candidate
        if torn:
            write_whole(path, b"".join(line + b"\n" for line in complete))

    def find(self, number: int, draw: int) -> Candidate | None:
        """Return what was measured for this draw of this candidate."""
        return self._known.get((number, draw))

    def add(self, candidate: Candidate) -> None:
        """Write down one measurement."""
        self._known[candidate.number, candidate.draw] = candidate
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(candidate)) + "\n")


def _parsed(line: bytes, place: str, expected: str) -> dict[str, Any]:
    """Return the JSON object of a line; raise InputError naming ``place``."""
    try:
        values = json.loads(line)
    except ValueError as error:
        raise InputError(describe(place, expected=expected, found=error)) from error
    if not isinstance(values, dict):
        raise InputError(describe(place, expected=expected, found=type(values).__name__))
    return values


def _candidate(line: bytes, place: str, space: SearchSpace) -> Candidate:
    """Return the candidate of a line of the log; raise InputError naming ``place``."""
    expected = "a judged candidate"
    values = _parsed(line, place, expected)
    try:
        number, draw, config = (values.pop(name) for name in ("number", "draw", "config"))
        space.check(config)
        candidate = Candidate(int(number), int(draw), config, **values)
        for measured in (candidate.latency_ms, candidate.accuracy or 0.0):
            if not math.isfinite(measured):
                raise ValueError(f"{measured}")
    except (AttributeError, KeyError, TypeError, ValueError, ModelError) as error:
        raise InputError(describe(place, expected=expected, found=error)) from error
    return candidate


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

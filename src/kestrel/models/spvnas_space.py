# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The search space of SPVNAS: which ``net.config`` a super-network holds (Tang et al. 2020, section 3.2)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from kestrel.errors import ModelError, describe

NetConfig: TypeAlias = dict[str, Any]

STAGES: Final = 4
BLOCKS: Final = 2
"""Residual blocks of a stage at most; each has two convolutions."""

POINT_WIDTHS: Final = (4, 6, 8)
"""Which of the nine widths the three point transforms share."""


@dataclass(frozen=True)
class SearchSpace:
    """Elastic widths and depths.

    widths, least: largest and smallest of the nine ``output_channels``. divisor: all chosen widths are
    multiples of it. least_ratio: smallest share of its full width that a transition or the inside of a
    residual block may have. least_depth: smallest number of residual blocks of a stage (of BLOCKS).
    """

    widths: tuple[int, ...] = (32, 48, 96, 192, 384, 384, 192, 128, 128)
    least: tuple[int, ...] = (32, 16, 32, 64, 128, 128, 64, 48, 48)
    divisor: int = 16
    least_ratio: float = 0.125
    least_depth: int = 1

    def __post_init__(self) -> None:
        fits = len(self.widths) == len(self.least) == 2 * STAGES + 1
        if not fits or any(low > high for low, high in zip(self.least, self.widths, strict=True)):
            raise ModelError(
                describe("search space", expected="nine widths, none below its least", found=self)
            )

    def transition_width(self, stage: int) -> int:
        """Return the full width of the transition of stage 0..7; 0..3 lead down, the others up."""
        return self.widths[stage] if stage < STAGES else self.widths[stage + 1]

    def sample(self, rng: random.Random) -> NetConfig:
        """Return a random configuration."""
        widths = [self._round(rng.randint(*pair)) for pair in zip(self.least, self.widths, strict=True)]
        widths[0] = self.widths[0]
        genes = {name: self._draw(name, rng) for name in self.genes()}
        return self.configuration(widths, genes)

    def mutate(self, config: NetConfig, probability: float, rng: random.Random) -> NetConfig:
        """Return ``config`` with each of its choices drawn again with ``probability``."""
        fresh = self.sample(rng)
        return self._mix(config, fresh, 1 - probability, rng)

    def cross(self, first: NetConfig, second: NetConfig, rng: random.Random) -> NetConfig:
        """Return a configuration that has each choice from one of its parents."""
        return self._mix(first, second, 0.5, rng)

    def _mix(self, first: NetConfig, second: NetConfig, share: float, rng: random.Random) -> NetConfig:
        pairs = zip(first["output_channels"], second["output_channels"], strict=True)
        widths = [mine if rng.random() < share else other for mine, other in pairs]
        genes = {}
        for name in self.genes():
            choices = (first, second) if rng.random() < share else (second, first)
            # The inside of a block that one parent does not have comes from the other, or is drawn.
            genes[name] = next((c[name] for c in choices if c.get(name)), None) or self._draw(name, rng)
        return self.configuration(widths, genes)

    def genes(self) -> Iterator[str]:
        """Yield the names of the choices besides ``output_channels``."""
        for stage in range(2 * STAGES):
            prefix = stage_name(stage)
            yield f"{prefix}.transition"
            yield f"{prefix}.feature"
            for block in range(BLOCKS):
                yield f"{prefix}.feature.layers.{block}.net.layers.0"

    def _draw(self, name: str, rng: random.Random) -> int:
        kind, index = name.split(".")[:2]
        stage = int(index) + (STAGES if kind == "upsample" else 0)
        if name.endswith(".feature"):
            return rng.randint(self.least_depth, BLOCKS)
        full = self.transition_width(stage) if name.endswith(".transition") else self.widths[stage + 1]
        return min(full, self._round(int(full * rng.uniform(self.least_ratio, 1.0))))

    def _round(self, width: int) -> int:
        return max(self.divisor, width // self.divisor * self.divisor)

    def configuration(self, widths: list[int], genes: dict[str, int]) -> NetConfig:
        """Return the ``net.config`` of the given widths and choices; entries of absent blocks are None."""
        config: NetConfig = {"output_channels": widths}
        for stage in range(2 * STAGES):
            prefix, width = stage_name(stage), widths[stage + 1]
            depth = genes[f"{prefix}.feature"]
            config[f"{prefix}.transition"] = genes[f"{prefix}.transition"]
            config[f"{prefix}.feature"] = depth
            for block in range(BLOCKS):
                name, there = f"{prefix}.feature.layers.{block}", block < depth
                config[f"{name}.net"] = 2 if there else None
                config[f"{name}.net.layers.0"] = genes[f"{name}.net.layers.0"] if there else None
                config[f"{name}.net.layers.1"] = width if there else None
                if block == 0:
                    config[f"{name}.downsample"] = width
        for number, index in enumerate(POINT_WIDTHS):
            config[f"point_transforms.{number}"] = widths[index]
        return config

    def check(self, config: NetConfig) -> None:
        """Raise ModelError unless the super-network holds ``config``."""
        widths = config.get("output_channels")
        if not isinstance(widths, list) or len(widths) != len(self.widths):
            raise ModelError(describe("net.config output_channels", expected="nine widths", found=widths))
        limits = {f"output_channels[{i}]": (w, self.widths[i]) for i, w in enumerate(widths)}
        for name in self.genes():
            limits[name] = config.get(name), self._limit(name)
        for name, (value, limit) in limits.items():
            absent = value is None and ".layers.1." in name
            if not absent and not (isinstance(value, int) and 1 <= value <= limit):
                raise ModelError(describe(f"net.config {name}", expected=f"1 .. {limit}", found=value))

    def _limit(self, name: str) -> int:
        kind, index = name.split(".")[:2]
        stage = int(index) + (STAGES if kind == "upsample" else 0)
        if name.endswith(".feature"):
            return BLOCKS
        return self.transition_width(stage) if name.endswith(".transition") else self.widths[stage + 1]


def stage_name(stage: int) -> str:
    """Return the name of stage 0..7 in a ``net.config``."""
    return f"downsample.{stage}" if stage < STAGES else f"upsample.{stage - STAGES}"

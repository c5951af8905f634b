# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A topics.yaml read backwards: which sensor a topic of a vehicle is, by its name in recordings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from kestrel.data.recorded_sensors import CAMERA_TYPES, CLOUD
from kestrel.errors import ConfigError, describe

NODE: Final = "fusion"
PLACEHOLDER: Final = "{camera}"
INPUT: Final = "~/input/"
POINTS: Final = "points"
PICTURES: Final = re.compile(rf"(?P<camera>\{{camera\}}|[^/{{}}]+)/(?P<kind>{'|'.join(CAMERA_TYPES)})")
NAME: Final = "[A-Za-z][A-Za-z0-9_]*"


@dataclass(frozen=True)
class TopicNames:
    """Which topics of a vehicle are which sensors.

    named: by topic, what it is called in recordings of Kestrel. patterns: each with what a topic that fits it
    is called, for the name of its camera.
    """

    named: Mapping[str, tuple[str, ...]]
    patterns: tuple[tuple[re.Pattern[str], str], ...]

    def of(self, topic: str) -> tuple[str, ...]:
        """Return what a topic is called in recordings of Kestrel: nothing if it is of no sensor.

        Cameras that are named come before the pattern, which may fit as well.
        """
        if topic in self.named:
            return self.named[topic]
        taken = {name for names in self.named.values() for name in names}
        fitting = ((pattern.fullmatch(topic), name) for pattern, name in self.patterns)
        found = {name.replace(PLACEHOLDER, match["camera"]) for match, name in fitting if match is not None}
        return tuple(sorted(found - taken))


def read_topic_names(path: Path) -> TopicNames:
    """Return what the section ``fusion`` of a topics.yaml says of the sensors.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or its section is missing or says nothing usable.
    """
    named: dict[str, tuple[str, ...]] = {}
    patterns = []
    for source, target in _section(path).items():
        if not source.startswith(INPUT):
            continue  # outputs may be renamed in the same place
        name, topic = _recorded_name(source, path), "/" + target.lstrip("/")
        if (PLACEHOLDER in name) != (PLACEHOLDER in topic):
            expected = f"{PLACEHOLDER} in both, or in neither"
            raise ConfigError(describe(f"{path}, {source}", expected=expected, found=target))
        if PLACEHOLDER in name:
            patterns.append((_pattern(topic), name))
        else:
            named[topic] = (*named.get(topic, ()), name)
    if not named and not patterns:
        expected = f"inputs of sensors ({INPUT}...)"
        raise ConfigError(describe(f"{path}, {NODE}", expected=expected, found="none"))
    return TopicNames(named, tuple(patterns))


def _section(path: Path) -> Mapping[str, str]:
    """Return the inputs of the fusion node and their topics."""
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        found = " ".join(str(error).split())  # YAML says where on several lines
        raise ConfigError(
            describe("--topics", expected="a file like config/topics.yaml", found=found)
        ) from None
    section = content.get(NODE) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        has = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(describe(str(path), expected=f"a section {NODE}", found=has))
    for source, target in section.items():
        if not isinstance(source, str) or not isinstance(target, str) or not target.strip("/"):
            raise ConfigError(
                describe(f"{path}, {NODE}", expected="inputs and topics", found=f"{source}: {target}")
            )
    return section


def _recorded_name(source: str, path: Path) -> str:
    """Return what an input of the fusion node is called in recordings."""
    rest = source.removeprefix(INPUT)
    if rest == POINTS:
        return CLOUD
    if (match := PICTURES.fullmatch(rest)) is None:
        kinds = ", ".join(f"{INPUT}{PLACEHOLDER}/{kind}" for kind in CAMERA_TYPES)
        expected = f"{INPUT}{POINTS} or {kinds}"
        raise ConfigError(describe(f"{path}, {NODE}", expected=expected, found=source))
    return f"/camera/{match['camera']}/{match['kind']}"


def _pattern(topic: str) -> re.Pattern[str]:
    """Return what fits a topic for any name of a camera, the same one wherever it stands."""
    first, *others = (re.escape(part) for part in topic.split(PLACEHOLDER))
    return re.compile(f"{first}(?P<camera>{NAME}){'(?P=camera)'.join(others)}")

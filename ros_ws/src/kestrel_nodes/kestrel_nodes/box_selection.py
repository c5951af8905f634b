# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Which boxes are good enough to be published, by class and range, and what their classes are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kestrel.errors import ConfigError, describe
from kestrel.types import Boxes3D


@dataclass(frozen=True)
class Threshold:
    """The least score of a class, from a distance on."""

    class_name: str
    from_m: float
    score: float


@dataclass(frozen=True)
class BoxSelection:
    """Thresholds and names.

    default: least score of classes that are not named. thresholds: by rising distance, the later one wins.
    names: by class of the network, its name; an empty one leaves the class out.
    """

    default: float
    thresholds: tuple[Threshold, ...]
    names: Mapping[str, str]

    @classmethod
    def parse(cls, default: float, thresholds: Sequence[str], remap: Sequence[str]) -> BoxSelection:
        """Return the selection of ``CLASS=SCORE``, ``CLASS@METRES=SCORE`` and ``CLASS=NAME`` entries.

        Raises:
            ConfigError: an entry has another form, or its score is not in 0..1.
        """
        parsed = sorted((_threshold(text) for text in thresholds), key=lambda item: item.from_m)
        names: dict[str, str] = {}
        for text in remap:
            old, separator, new = (part.strip() for part in text.partition("="))
            if not separator or not old or old in names:
                expected = "CLASS=NAME, each class once"
                raise ConfigError(describe("parameter class_remap", expected=expected, found=text))
            names[old] = new
        return cls(default, tuple(parsed), names)

    @property
    def lowest(self) -> float:
        """The least score with which any box is published."""
        return min(self.default, *(item.score for item in self.thresholds), 1.0)

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raise ConfigError if a class is named that the network does not know."""
        named = {
            "class_thresholds": {item.class_name for item in self.thresholds},
            "class_remap": set(self.names),
        }
        for parameter, names in named.items():
            unknown = sorted(names - set(classes))
            if unknown:
                expected = f"some of {', '.join(classes)}"
                raise ConfigError(describe(f"parameter {parameter}", expected=expected, found=unknown))

    def __call__(self, boxes: Boxes3D) -> Boxes3D:
        """Return the boxes that are published, under their names; distances count from the frame's origin."""
        least = np.full(len(boxes), self.default)
        distance = np.hypot(boxes.center[:, 0], boxes.center[:, 1])
        for item in self.thresholds:
            if item.class_name in boxes.class_names:
                its_own = boxes.label == boxes.class_names.index(item.class_name)
                least[its_own & (distance >= item.from_m)] = item.score
        kept = boxes.chosen(boxes.score >= least.astype(np.float32))
        return self._renamed(kept) if self.names else kept

    def _renamed(self, boxes: Boxes3D) -> Boxes3D:
        new = [self.names.get(name, name) for name in boxes.class_names]
        class_names = tuple(dict.fromkeys(name for name in new if name))
        labels = np.array([class_names.index(name) if name else -1 for name in new], np.int64)[boxes.label]
        return replace(boxes, label=labels, class_names=class_names).chosen(labels >= 0)


def _threshold(text: str) -> Threshold:
    where, _, score = text.partition("=")
    name, _, distance = where.partition("@")
    try:
        parsed = Threshold(name.strip(), float(distance) if "@" in where else 0.0, float(score))
    except ValueError:
        parsed = Threshold("", 0.0, 0.0)
    if not parsed.class_name or not 0 <= parsed.score <= 1 or not 0 <= parsed.from_m < np.inf:
        expected = "CLASS=SCORE or CLASS@METRES=SCORE, scores in 0 .. 1"
        raise ConfigError(describe("parameter class_thresholds", expected=expected, found=text))
    return parsed

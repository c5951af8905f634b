# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The messages of chosen moments of a recording, in one reading: those of one moment are kept at a time."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from kestrel.data.bag import BagMessage, BagReader
from kestrel.data.messages import source_of
from kestrel.errors import InputError, describe

PICTURE_NS: Final = 100_000_000
"""How long before or after its sweep a picture may be taken, as in the fusion node."""

Key = tuple[str, int]
"""Topic and stamp."""


def nearest(stamps: Sequence[int], wanted: int, within_ns: int) -> int | None:
    """Return the one of sorted stamps that is closest to a wanted one, None if none is within so many ns."""
    after = bisect_left(stamps, wanted)
    best = min(stamps[max(after - 1, 0) : after + 1], key=lambda stamp: abs(stamp - wanted), default=None)
    return None if best is None or abs(best - wanted) > within_ns else best


@dataclass(frozen=True)
class WantedMoment:
    """What a moment is made of: messages by topic and stamp.

    number: of the moment among others. sweeps: the current one first. pictures: by camera. maps: by layer.
    """

    number: int
    stamp_ns: int
    sweeps: tuple[Key, ...]
    pictures: Mapping[str, Key]
    maps: Mapping[str, Key] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[Key, ...]:
        """All messages that are needed."""
        return *self.sweeps, *self.pictures.values(), *self.maps.values()


def read_moments(
    reader: BagReader, moments: Sequence[WantedMoment]
) -> Iterator[tuple[WantedMoment, Mapping[Key, BagMessage]]]:
    """Yield moments, in their order, with the messages that they need.

    Raises:
        InputError: the recording ends, or is damaged, before the last of them.
    """
    uses = Counter(key for moment in moments for key in moment.keys)
    held: dict[Key, BagMessage] = {}
    stream = reader.messages(sorted({topic for topic, _ in uses}))
    for moment in moments:
        missing = set(moment.keys) - held.keys()
        while missing:
            message = next(stream, None)
            if message is None:
                expected = f"{len(missing)} more messages of {moment.stamp_ns} ns"
                raise InputError(describe(str(reader.path), expected=expected, found="its end"))
            source = source_of(message.msgtype, message.raw)
            key = (message.topic, source.stamp_ns) if source is not None else ("", 0)
            if uses[key] > 0 and key not in held:
                held[key] = message
                missing.discard(key)
        yield moment, held
        uses.subtract(moment.keys)
        held = {key: message for key, message in held.items() if uses[key] > 0}

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""What a recording of nuScenes keeps of its samples beside sensor data and boxes.

No message has a place for it, so that one text (JSON) on its own topic holds it for the whole scene. The
stamps in it are those of headers: it stays true in the recording of a replay.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from kestrel.classes import ATTRIBUTES, NO_ATTRIBUTE
from kestrel.data.messages import new
from kestrel.errors import InputError, describe
from kestrel.types import Boxes3D

SAMPLES_TOPIC: Final = "/truth/samples"
MAP_FRAME: Final = "map"
"""Frame of the data set's maps, in which odom stands."""

Rack = tuple[float, float, float, float, float, float, float]
"""Centre, length, width and height in metres, yaw; in base_link."""


@dataclass(frozen=True)
class Sample:
    """One key frame.

    token: its name in the data set. stamp_ns: of its sweep. pictures: stamps of its pictures, by camera.
    attributes: names ("" for none) in the order of the boxes of /truth/objects, empty where there are none.
    racks: where bicycles stand that the benchmark does not count.
    """

    token: str
    stamp_ns: int
    pictures: Mapping[str, int]
    attributes: tuple[str, ...] = ()
    racks: tuple[Rack, ...] = ()

    def with_attributes(self, truth: Boxes3D) -> Boxes3D:
        """Return the true boxes of the sample with their attributes.

        Raises:
            InputError: there are not as many.
        """
        if len(truth) != len(self.attributes):
            name = f"attributes of sample {self.token} in {SAMPLES_TOPIC}"
            raise InputError(describe(name, expected=f"{len(truth)}, as boxes", found=len(self.attributes)))
        known = [ATTRIBUTES.index(name) if name in ATTRIBUTES else NO_ATTRIBUTE for name in self.attributes]
        return replace(truth, attribute=np.array(known, np.int64))

    def counted(self, boxes: Boxes3D) -> Boxes3D:
        """Return the boxes without the cycles at racks."""
        table = np.array(self.racks, np.float32).reshape(-1, 7)
        racks = Boxes3D(
            center=table[:, :3],
            size=table[:, 3:6],
            yaw=table[:, 6],
            velocity=np.zeros((len(table), 2), np.float32),
            label=np.zeros(len(table), np.int64),
            score=np.ones(len(table), np.float32),
            class_names=("rack",),
            frame_id=boxes.frame_id,
            stamp_ns=boxes.stamp_ns,
        )
        cycles = [boxes.class_names.index(name) for name in CYCLES if name in boxes.class_names]
        parked = racks.contain(boxes.center).any(0) & np.isin(boxes.label, cycles)
        return boxes.chosen(~parked)


CYCLES: Final = ("bicycle", "motorcycle")
"""What stands at racks."""


def samples_message(samples: Iterable[Sample]) -> Any:
    """Return the std_msgs/String of the samples of a scene."""
    return new("std_msgs/msg/String", data=json.dumps([asdict(sample) for sample in samples]))


def samples_from_message(message: Any) -> dict[int, Sample]:
    """Return the samples by stamp.

    Raises:
        InputError: the text is not one that samples_message has written.
    """
    try:
        samples = [_sample(entry) for entry in json.loads(message.data)]
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        expected = "the samples of a scene as `kestrel import nuscenes` writes them"
        raise InputError(describe(SAMPLES_TOPIC, expected=expected, found=repr(error))) from error
    return {sample.stamp_ns: sample for sample in samples}


def _sample(entry: Mapping[str, Any]) -> Sample:
    return Sample(
        str(entry["token"]),
        int(entry["stamp_ns"]),
        {str(name): int(stamp) for name, stamp in entry["pictures"].items()},
        tuple(str(name) for name in entry["attributes"]),
        tuple(_rack(values) for values in entry["racks"]),
    )


def _rack(values: Iterable[float]) -> Rack:
    x, y, z, length, width, height, yaw = (float(value) for value in values)
    return x, y, z, length, width, height, yaw

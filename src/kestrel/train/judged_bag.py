# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Recorded sweeps with true boxes: what real recordings judge networks by that were trained on simulation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kestrel.classes import DETECTION_CLASSES
from kestrel.data.bag import BagReader
from kestrel.data.messages import source_of
from kestrel.data.perception_messages import DONT_CARE, boxes_from_message
from kestrel.data.recorded_sensors import CLOUD
from kestrel.data.recorded_sweeps import RecordedSweeps
from kestrel.data.recorded_transforms import RecordedTransforms
from kestrel.data.rig_parameters import ALL_THERE_IS
from kestrel.errors import InputError, describe
from kestrel.eval.recording import BASE_FRAME
from kestrel.train.recorded_moments import OBJECTS
from kestrel.types import Boxes3D, Float32Array, PointCloud

GROUPS: Final = {
    "vehicle": ("car", "truck", "bus", "trailer", "construction_vehicle"),
    "cycle": ("bicycle", "motorcycle"),
    "pedestrian": ("pedestrian",),
}
"""What counts as the same thing: a van that is called a truck is no mistake here."""

JUDGED_RANGE_M: Final = 40.0
"""Farther from base_link nothing is a mistake: labels of real recordings end somewhere."""


@dataclass(frozen=True)
class JudgedSweep:
    """A sweep in base_link and the true boxes of its moment, among them regions of class DONT_CARE."""

    cloud: PointCloud
    truth: Boxes3D

    @property
    def names(self) -> NDArray[np.str_]:
        """The class of every true box."""
        return np.array([self.truth.class_names[index] for index in self.truth.label], np.str_)

    def known(self, points: Float32Array) -> NDArray[np.bool_]:
        """Return at which points (P, 3) in base_link the truth says what is there, (P,)."""
        known = np.hypot(points[:, 0], points[:, 1]) < JUDGED_RANGE_M
        regions = self.truth.chosen(self.names == DONT_CARE)
        known[known] = ~regions.contain(points[known]).any(0)
        return known


def judged_sweeps(bag: Path) -> list[JudgedSweep]:
    """Return the sweeps of a bag that have true boxes, in the order of time, read as the nodes read them.

    Raises:
        InputError: there are none, the true boxes are in another frame, or the bag is damaged.
        CalibrationError: it is not known where the LiDAR sits.
    """
    reader = BagReader(bag)
    truth = {boxes.stamp_ns: boxes for boxes in _true_boxes(reader)}
    transforms = RecordedTransforms(reader)
    reader.raise_if_damaged()  # before what is missing is put down to anything else
    read, judged = RecordedSweeps(bag, transforms, ALL_THERE_IS), {}
    for message in reader.messages([CLOUD]):
        source = source_of(message.msgtype, message.raw)
        if source is not None and source.stamp_ns in truth:
            cloud = read(message)
            placed = cloud.moved(transforms.mount(cloud.frame_id, cloud.stamp_ns), BASE_FRAME)
            judged[source.stamp_ns] = JudgedSweep(placed, truth[source.stamp_ns])
    reader.raise_if_damaged()
    if not judged:
        raise InputError(describe(f"bag {bag}", expected=f"{CLOUD} with {OBJECTS}", found="none"))
    return [judged[stamp] for stamp in sorted(judged)]


def _true_boxes(reader: BagReader) -> Iterator[Boxes3D]:
    for message in reader.messages([OBJECTS]):
        boxes = boxes_from_message(message.decode(), DETECTION_CLASSES)
        if boxes.frame_id != BASE_FRAME:
            raise InputError(describe(f"frame of {OBJECTS}", expected=BASE_FRAME, found=boxes.frame_id))
        yield boxes

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Classes of points judged by boxes: for real sweeps whose points nobody has labelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kestrel.classes import POINT_CLASSES
from kestrel.train.judged_bag import GROUPS, JudgedSweep, judged_sweeps
from kestrel.train.progress import track
from kestrel.types import PointCloud, UInt8Array

Labeller = Callable[[PointCloud], UInt8Array]


def score_points(labels_of: Labeller, bag: Path) -> dict[str, float]:
    """Return recall and precision of the points of each group, over all sweeps of a bag with true boxes.

    Recall: points inside of boxes of the group that got a class of it. Precision: points with a class of the
    group, within 40 m and outside of the regions of which the truth says nothing, that are inside of a box of
    the group. Boxes stand on the road: its points below a vehicle count as missed ones. ``sweeps`` says how
    many there are.

    Raises:
        InputError, CalibrationError: see judged_sweeps.
    """
    counts: Counter[tuple[str, str]] = Counter()
    sweeps = judged_sweeps(bag)
    for sweep in track(sweeps, "boxes"):
        _count(counts, sweep, labels_of(sweep.cloud))
    values = {"sweeps": float(len(sweeps))}
    for group in GROUPS:
        for name, whole in (("recall", "true"), ("precision", "judged")):
            if counts[group, whole]:
                values[f"{name}/{group}"] = counts[group, name] / counts[group, whole]
    return values


def _count(counts: Counter[tuple[str, str]], sweep: JudgedSweep, label: UInt8Array) -> None:
    points = sweep.cloud.points[:, :3]
    known = sweep.known(points)
    for group, members in GROUPS.items():
        called = np.isin(label, [POINT_CLASSES.index(name) for name in members])
        true = sweep.truth.chosen(np.isin(sweep.names, members)).contain(points).any(0)
        counts[group, "true"] += int(true.sum())
        counts[group, "recall"] += int((true & called).sum())
        counts[group, "judged"] += int((called & known).sum())
        counts[group, "precision"] += int((called & known & true).sum())

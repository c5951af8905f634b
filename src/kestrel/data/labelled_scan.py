# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A sweep with a raw label for every point, as the data sets of LiDAR segmentation store them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from kestrel.errors import InputError, describe
from kestrel.types import Float64Array, PointCloud, UInt16Array

LABELS_SHOWN: Final = 5
"""Of unknown labels in an error."""


@dataclass(frozen=True)
class ScanFiles:
    """Where a labelled sweep is stored.

    sweep: its points. labels: a raw label for each of them, in their order.
    base_from_lidar: (4, 4), from the axes of the cloud to base_link.
    """

    sweep: Path
    labels: Path
    base_from_lidar: Float64Array
    stamp_ns: int = 0


@dataclass(frozen=True)
class LabelledScan:
    """One sweep and what its points are.

    cloud: in frame ``lidar``: the place of the LiDAR, x ahead, y left, z up; intensity 0..1.
    raw_label: (N,) semantic labels in the numbers of the data set, see kestrel.label_maps.
    base_from_lidar: (4, 4).
    """

    cloud: PointCloud
    raw_label: UInt16Array
    base_from_lidar: Float64Array

    def in_base(self) -> PointCloud:
        """Return the cloud in base_link: the ground is at z = 0."""
        return self.cloud.moved(self.base_from_lidar, "base_link")


def read_raw_labels(path: Path, number: np.dtype[np.unsignedinteger], count: int) -> UInt16Array:
    """Return the lower 16 bits of the numbers in a file: of ``count`` points (N,), nothing before or after.

    Raises:
        InputError: there is no such file, or it has another size.
    """
    expected = f"{count} labels of {number.itemsize} bytes, one for each point of the sweep"
    if not path.is_file():
        raise InputError(describe(f"labels {path}", expected=expected, found="no such file"))
    data = path.read_bytes()
    if len(data) != count * number.itemsize:
        raise InputError(describe(f"labels {path}", expected=expected, found=f"{len(data)} bytes"))
    return np.frombuffer(data, number).astype(np.uint16)  # of a wider number the lower bits are left


def check_known(path: Path, raw: UInt16Array, known: Collection[int]) -> None:
    """Raise InputError naming the file where raw labels are none of those of the data set."""
    unknown = sorted(set(np.unique(raw).tolist()) - set(known))
    if unknown:
        more = f" and {len(unknown) - LABELS_SHOWN} more" if len(unknown) > LABELS_SHOWN else ""
        found = ", ".join(map(str, unknown[:LABELS_SHOWN])) + more
        raise InputError(describe(f"labels {path}", expected=f"some of {sorted(known)}", found=found))

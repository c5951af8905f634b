# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""SemanticKITTI as it is distributed: sweeps of KITTI's odometry benchmark with a label for every point.

Behley et al., SemanticKITTI: A Dataset for Semantic Scene Understanding of LiDAR Sequences, ICCV 2019. The
sweeps are those of data_odometry_velodyne.zip, the labels those of data_odometry_labels.zip; both unpack into
``dataset/sequences``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from kestrel.data.kitti_files import numbered, read_sweep
from kestrel.data.kitti_recordings import base_from_lidar
from kestrel.data.labelled_scan import LabelledScan, ScanFiles, check_known, read_raw_labels
from kestrel.errors import InputError, describe
from kestrel.label_maps import OFFICIAL_RAW_LABELS, SEMANTIC_KITTI_WITHOUT_CLASS

VALIDATION: Final = ("08",)
"""The sequences on which validation scores are given; 11 to 21 are the test, whose labels are not public."""

_KNOWN: Final = frozenset(
    (*SEMANTIC_KITTI_WITHOUT_CLASS, *(raw for group in OFFICIAL_RAW_LABELS.values() for raw in group))
)
_LABEL: Final = np.dtype("<u4")


def scan_files(folder: Path, sequences: Sequence[str] | None = None) -> list[ScanFiles]:
    """Return the files of all sweeps of some sequences, in their order.

    Args:
        folder: the one that holds ``sequences``.
        sequences: numbers as the folders have them, such as 08; by default those of VALIDATION.

    Raises:
        InputError: a folder is missing, or holds a sweep without labels or labels without a sweep.
    """
    files = []
    for name in sequences or VALIDATION:
        files += sequence_files(folder / "sequences" / name)
    return files


def is_sequence(folder: Path) -> bool:
    """Return whether a folder is meant as a sequence: it holds sweeps as KITTI's odometry has them."""
    return (folder / "velodyne").is_dir()


def sequence_files(sequence: Path) -> list[ScanFiles]:
    """Return the files of all sweeps in the folder of one sequence, see scan_files."""
    for part in (sequence / "velodyne", sequence / "labels"):
        if not part.is_dir():
            raise InputError(describe("SemanticKITTI", expected=f"folder {part}", found="none"))
    sweeps = [path for _, path in numbered(sequence / "velodyne", "bin")]
    labels = {path.stem: path for path in sorted((sequence / "labels").glob("*.label"))}
    # A download that was cut off would be scored on what has come, as if that were the benchmark.
    _check_pairs(sequence, {path.stem for path in sweeps}, set(labels))
    return [ScanFiles(sweep, labels[sweep.stem], base_from_lidar()) for sweep in sweeps]


def _check_pairs(sequence: Path, sweeps: set[str], labels: set[str]) -> None:
    missing = [sequence / "labels" / f"{stem}.label" for stem in sorted(sweeps - labels)]
    missing += [sequence / "velodyne" / f"{stem}.bin" for stem in sorted(labels - sweeps)]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        found = f"{len(sweeps)} sweeps, {len(labels)} files of labels"
        raise InputError(describe(str(sequence), expected=f"{missing[0]}{others}", found=found))


def read_scan(files: ScanFiles) -> LabelledScan:
    """Return a sweep with its labels; the upper 16 bits, the instance, are left out.

    Raises:
        InputError: a file is missing, has the wrong size or holds what it must not.
    """
    cloud = read_sweep(files.sweep, files.stamp_ns)
    raw = read_raw_labels(files.labels, _LABEL, len(cloud))
    check_known(files.labels, raw, _KNOWN)
    return LabelledScan(cloud, raw, files.base_from_lidar)

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Classes of points judged on SemanticKITTI and nuScenes lidarseg, with the metric of these benchmarks."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from kestrel.classes import IGNORE, POINT_CLASSES, SEMANTIC_KITTI_CLASSES
from kestrel.data import lidarseg, semantickitti
from kestrel.data.labelled_scan import LabelledScan, ScanFiles
from kestrel.errors import ConfigError, KestrelError, describe
from kestrel.eval import baseline
from kestrel.eval.overlap import PointConfusion
from kestrel.label_maps import (
    LIDARSEG_RAW_LABELS,
    OFFICIAL_RAW_LABELS,
    POINT_CLASS_OF_KITTI,
    SPVNAS_RAW_LABELS,
    class_of_raw,
)
from kestrel.pipelines import PointSegmenter
from kestrel.pipelines.released_segmenter import NETWORKS, ReleasedSegmenter
from kestrel.train.progress import track
from kestrel.train.score import BASELINE
from kestrel.types import UInt8Array
from kestrel.weights import read_manifest

FULL_VERSION: Final = "v1.0-trainval"
"""Of nuScenes, the whole data set."""

_SAME: Final = np.arange(256, dtype=np.uint8)

ScanLabeller = Callable[[LabelledScan], UInt8Array]


@dataclass(frozen=True)
class PointBenchmark:
    """Labelled sweeps and what their raw labels mean.

    name: with which the figures begin. scans: what is scored, each read by ``read`` when its turn comes.
    classes: in the benchmark's order. raw_labels: of each of them.
    """

    name: str
    scans: Sequence[ScanFiles]
    read: Callable[[ScanFiles], LabelledScan]
    classes: tuple[str, ...]
    raw_labels: Mapping[str, tuple[int, ...]]

    def truth(self, scan: LabelledScan) -> UInt8Array:
        """Return the class of every point (N,), IGNORE where it does not count."""
        return class_of_raw(scan.raw_label, self.raw_labels, self.classes)


@dataclass(frozen=True)
class BenchmarkScore:
    """What came out.

    figures: by name. left_out: classes of the benchmark that the network's cannot be compared with, whose
    points do not count. unseen: classes that no point of the sweeps has, which are not in the mean.
    """

    figures: dict[str, float]
    left_out: tuple[str, ...]
    unseen: tuple[str, ...]


def semantickitti_benchmark(
    folder: Path, sequences: Sequence[str] | None = None, scans: int | None = None
) -> PointBenchmark:
    """Return SemanticKITTI with the benchmark's own map of labels.

    Args:
        folder: see kestrel.data.semantickitti.scan_files.
        sequences: the same.
        scans: how many, spread evenly over all; by default all.

    Raises:
        InputError: see kestrel.data.semantickitti.scan_files.
    """
    files = _spread(semantickitti.scan_files(folder, sequences), scans)
    return PointBenchmark(
        "semantickitti", files, semantickitti.read_scan, SEMANTIC_KITTI_CLASSES, OFFICIAL_RAW_LABELS
    )


def lidarseg_benchmark(
    folder: Path, version: str, scenes: Collection[str] | None = None, scans: int | None = None
) -> PointBenchmark:
    """Return nuScenes lidarseg with the sixteen classes of its challenge.

    Args:
        folder: see kestrel.data.lidarseg.scan_files.
        version: the same.
        scenes: the same.
        scans: how many, spread evenly over all; by default all.

    Raises:
        InputError: see kestrel.data.lidarseg.scan_files.
    """
    files = _spread(lidarseg.scan_files(folder, version, scenes), scans)
    return PointBenchmark("lidarseg", files, lidarseg.read_scan, POINT_CLASSES, LIDARSEG_RAW_LABELS)


def _spread(files: list[ScanFiles], count: int | None) -> list[ScanFiles]:
    if count is None or count >= len(files):
        return files
    return [files[index] for index in np.linspace(0, len(files) - 1, count).round().astype(int)]


def score_benchmark(weights: str | Path, benchmark: PointBenchmark, device: str = "cpu") -> BenchmarkScore:
    """Return the IoU of each class over all sweeps, and the mean over the classes that the truth has.

    Points without a class in the benchmark do not count. A point to which a network gives no class, or one
    that the benchmark has not, is a miss of its true class.

    Args:
        weights: name of shipped weights of a Kestrel-Seg, path of one or of a converted network, or BASELINE.
        benchmark: what to score on.
        device: where the network computes, see kestrel.engine.device.chosen_device.

    Raises:
        ConfigError: weights of a network that does not label points, or there is no such device.
        InputError: a file of the benchmark is missing or malformed.
    """
    classes, labels_of = labeller(weights, device)
    judging = judging_of(benchmark.classes, classes)
    confusion, of_spvnas = PointConfusion(len(judging.classes)), PointConfusion(len(SEMANTIC_KITTI_CLASSES))
    # The authors of SPVNAS count by another map of labels: their figure stands beside.
    as_spvnas = benchmark.classes == classes == SEMANTIC_KITTI_CLASSES
    for files in track(benchmark.scans, benchmark.name):
        scan = benchmark.read(files)
        try:
            answer = labels_of(scan)
        except KestrelError as error:  # which of thousands of sweeps it was
            raise type(error)(f"sweep {files.sweep}: {error}") from error
        confusion.add(judging.of_truth[benchmark.truth(scan)], judging.of_answer[answer])
        if as_spvnas:
            of_spvnas.add(class_of_raw(scan.raw_label, SPVNAS_RAW_LABELS, classes), answer)
    beside = {"labels of spvnas/point_miou": of_spvnas.mean_iou()} if as_spvnas else {}
    return _scored(benchmark, judging, confusion, beside)


def _scored(
    benchmark: PointBenchmark, judging: Judging, confusion: PointConfusion, beside: dict[str, float]
) -> BenchmarkScore:
    """Return what was counted, with other figures ``beside`` it, under the name of the benchmark."""
    where = benchmark.name if judging.direct else f"{benchmark.name} in common classes"
    named = list(zip(judging.classes, confusion.iou(), strict=True))
    values = {
        "scans": float(len(benchmark.scans)),
        "points": float(confusion.truth_count.sum()),
        "point_miou": confusion.mean_iou(),
        **beside,
        **{f"iou/{name}": float(iou) for name, iou in named if not np.isnan(iou)},
    }
    unseen = tuple(name for name, iou in named if np.isnan(iou) and name in judging.possible)
    figures = {f"{where}/{name}": round(value, 4) for name, value in values.items()}
    return BenchmarkScore(figures, judging.left_out, unseen)


def labeller(weights: str | Path, device: str = "cpu") -> tuple[tuple[str, ...], ScanLabeller]:
    """Return the classes of a network, and what gives every point of a sweep one of them.

    Raises:
        ConfigError: weights of a network that does not label points, or there is no such device.
        ModelError: they cannot be used.
    """
    if weights == BASELINE:
        return POINT_CLASSES, lambda scan: baseline.point_classes(scan.in_base().points)
    network = read_manifest(weights).network
    threads = len(os.sched_getaffinity(0))
    if network == "KestrelSeg":
        own = PointSegmenter(weights, threads, precision="float32", device=device)
        return own.classes, lambda scan: own.segment(scan.in_base()).label
    if network in NETWORKS:
        released = ReleasedSegmenter(weights, threads, device)
        return released.classes, lambda scan: released.segment(scan.cloud).label
    expected = f"one of KestrelSeg, {', '.join(NETWORKS)}"
    raise ConfigError(describe("network to score on labelled points", expected=expected, found=network))


@dataclass(frozen=True)
class Judging:
    """In which classes answers are compared with the truth.

    classes: in which both are compared. of_truth, of_answer: (256,) class by that of the benchmark, of the
    network; IGNORE where there is none. left_out: classes of the benchmark without one. possible: those of
    ``classes`` that the truth may have. direct: they are the benchmark's.
    """

    classes: tuple[str, ...]
    of_truth: UInt8Array
    of_answer: UInt8Array
    left_out: tuple[str, ...]
    possible: frozenset[str]
    direct: bool


def judging_of(benchmark: tuple[str, ...], network: tuple[str, ...]) -> Judging:
    """Return how to judge a network of some classes on a benchmark of the same or of others.

    Between SemanticKITTI and lidarseg only the way to lidarseg is clear (a driveable surface may be road or
    parking): both are judged in those classes of lidarseg that SemanticKITTI has.
    """
    if benchmark == network:
        return Judging(benchmark, _SAME, _SAME, (), frozenset(benchmark), direct=True)
    common = sorted(set(POINT_CLASS_OF_KITTI[: len(SEMANTIC_KITTI_CLASSES)].tolist()) - {IGNORE})
    within = np.where(np.isin(_SAME, common), _SAME, np.uint8(IGNORE))
    of_kitti = benchmark == SEMANTIC_KITTI_CLASSES
    of_truth, of_answer = (POINT_CLASS_OF_KITTI, _SAME) if of_kitti else (within, POINT_CLASS_OF_KITTI)
    left_out = tuple(name for index, name in enumerate(benchmark) if of_truth[index] == IGNORE)
    possible = frozenset(POINT_CLASSES[index] for index in common)
    return Judging(POINT_CLASSES, of_truth, of_answer, left_out, possible, direct=False)

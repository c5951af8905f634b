# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Search for a sub-network of SPVNAS that is fast on this machine and right on cached drives."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from kestrel.classes import POINT_CLASSES, SEMANTIC_KITTI_CLASSES
from kestrel.errors import ModelError, describe
from kestrel.eval.overlap import PointConfusion
from kestrel.files import write_whole
from kestrel.label_maps import POINT_CLASS_OF_KITTI
from kestrel.models.spvnas import SPVNAS
from kestrel.models.spvnas_space import NetConfig, SearchSpace
from kestrel.models.spvnas_supernet import SPVNASSuperNet
from kestrel.report import describe_machine
from kestrel.train import cache, drive_file
from kestrel.train.evolution import Candidate, SearchLog, SearchPlan, best, search
from kestrel.types import UInt8Array
from kestrel.weights import Manifest, assign, load, save

CALIBRATION_FRAMES: Final = 4
REPEATS: Final = 3


@dataclass(frozen=True)
class Frame:
    """A cached sweep: positions (P, 4) and features (P, 4) of its points, label (P,); name of its file."""

    positions: Tensor
    features: Tensor
    label: UInt8Array
    name: str

    @property
    def identity(self) -> str:
        """Its name and a hash of what is in it."""
        digest = hashlib.sha256()
        for values in (self.positions.numpy(), self.features.numpy(), self.label):
            digest.update(np.ascontiguousarray(values).tobytes())
        return f"{self.name} {digest.hexdigest()[:16]}"


def load_supernet(weights: str | Path) -> tuple[SPVNASSuperNet, Manifest]:
    """Return a super-network that ``kestrel convert-checkpoint`` has written.

    Raises:
        ModelError: the weights are those of another network.
    """
    state, manifest = load(weights)
    if manifest.network != "SPVNASSuperNet":
        raise ModelError(describe(f"network of {weights}", expected="SPVNASSuperNet", found=manifest.network))
    values = dict(manifest.config)
    space: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.pop("space").items()
    }
    network = SPVNASSuperNet(space=SearchSpace(**space), **values)
    assign(network, state, weights)
    return network.eval().requires_grad_(False), manifest


def cached_frames(folder: Path, count: int, vres: float) -> list[Frame]:
    """Return ``count`` sweeps spread over the finished drives below ``folder``.

    Raises:
        InputError: there are no finished drives, or none with classes of points.
    """
    files = drive_file.frames_with([folder], drive_file.Holds.POINT_CLASSES)
    chosen = np.unique(np.linspace(0, len(files) - 1, count).astype(int))
    frames = []
    for index in chosen:
        frame = cache.read(cache.CachedFrame, files[index])
        points = torch.from_numpy(np.ascontiguousarray(frame.cloud(0)[:, :4]))
        positions = torch.cat((torch.zeros(len(points), 1), points[:, :3] / vres), 1)
        frames.append(Frame(positions, points, frame.label, "/".join(files[index].parts[-2:])))
    return frames


def recalibrate(network: nn.Module, frames: list[Frame]) -> None:
    """Measure the batch norms of ``network`` again: shared statistics fit no single sub-network."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm1d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all that is seen
        norm.train()
    for frame in frames:
        network(frame.positions, frame.features)
    for norm in norms:
        norm.eval()


def measured_latency(network: nn.Module, frame: Frame) -> float:
    """Return the median time [ms] of one sweep, kernel maps included."""
    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        network(frame.positions, frame.features)
        times.append((time.perf_counter() - start) * 1e3)
    return median(times[1:])


def point_miou(network: nn.Module, frames: list[Frame], classes: tuple[str, ...]) -> float:
    """Return the mean IoU over POINT_CLASSES; SemanticKITTI's classes are translated.

    Raises:
        ModelError: classes that are neither.
    """
    if classes not in (POINT_CLASSES, SEMANTIC_KITTI_CLASSES):
        expected = "POINT_CLASSES or SEMANTIC_KITTI_CLASSES"
        raise ModelError(describe("classes of the super-network", expected=expected, found=classes))
    confusion = PointConfusion(len(POINT_CLASSES))
    for frame in frames:
        answer = network(frame.positions, frame.features).argmax(1).numpy().astype(np.uint8)
        confusion.add(frame.label, answer if classes == POINT_CLASSES else POINT_CLASS_OF_KITTI[answer])
    return confusion.mean_iou()


def run(
    network: SPVNASSuperNet,
    manifest: Manifest,
    plan: SearchPlan,
    out: Path,
    frames: list[Frame],
    judge: Callable[[SPVNAS], float] | None = None,
) -> Candidate:
    """Search and write the result below ``out``; what the same search measured there before is taken up.

    ``net.config`` is the best configuration, ``subnet.safetensors`` its network, ``candidates.md`` a table.

    Args:
        network: from load_supernet.
        manifest: the same.
        plan: how to search.
        out: folder of this search.
        frames: sweeps; the first ones calibrate batch norms, latency is measured on the first.
        judge: accuracy of a determinized network; by default the mean IoU on the remaining frames.

    Raises:
        InputError: ``out`` has measurements of another plan, network, data or machine; or cannot be written.
    """
    calibration, judged = frames[:CALIBRATION_FRAMES], frames[CALIBRATION_FRAMES:] or frames
    score = judge or (lambda sub: point_miou(sub, judged, manifest.classes))

    def sub_network(config: NetConfig) -> SPVNAS:
        return network.determinize(config).eval().requires_grad_(False)

    def accuracy(config: NetConfig) -> float:
        sub = sub_network(config)
        recalibrate(sub, calibration)
        return score(sub)

    log = SearchLog(out / "search.jsonl", plan, network.space, _setting(manifest, frames))
    columns = (
        TextColumn("search {task.fields[top]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    found: list[Candidate] = []
    with torch.no_grad(), Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("search", total=plan.candidates, top="")
        measure = search(
            network.space,
            plan,
            log,
            latency_ms=lambda config: measured_latency(sub_network(config), frames[0]),
            accuracy=accuracy,
        )
        for candidate in measure:
            found.append(candidate)
            top = best(found, 1)[0]
            bar.update(task, advance=1, top=f"{top.accuracy:.3f} in {top.latency_ms:.0f} ms")
        winner = best(found, 1)[0]
        chosen = sub_network(winner.config)
        recalibrate(chosen, calibration)
    _write(chosen, winner, found, manifest, plan, out)
    return winner


def _setting(manifest: Manifest, frames: list[Frame]) -> dict[str, object]:
    """Return what accuracies and latencies are of: the weights, the sweeps and the machine."""
    machine = describe_machine()
    return {
        "network_sha256": manifest.sha256,
        "frames": [frame.identity for frame in frames],
        "machine": {
            "cpu": machine["cpu"],
            "dispatch": machine["dispatch"],
            "threads": torch.get_num_threads(),
        },
    }


def _write(
    network: SPVNAS,
    winner: Candidate,
    found: list[Candidate],
    manifest: Manifest,
    plan: SearchPlan,
    out: Path,
) -> None:
    config = {
        **winner.config,
        "num_classes": network.classifier.linear.out_features,
        "pres": network.pres,
        "vres": network.vres,
    }
    write_whole(out / "net.config", (json.dumps(config, indent=1) + "\n").encode())
    rows = ["| candidate | latency [ms] | accuracy | widths |", "|---|---|---|---|"]
    rows += [
        f"| {c.number} | {c.latency_ms:.1f} | {c.accuracy:.4f} | {c.config['output_channels']} |"
        for c in best(found, len(found))
    ]
    write_whole(out / "candidates.md", ("\n".join(rows) + "\n").encode())
    save(
        out / "subnet.safetensors",
        network.state_dict(),
        Manifest(
            name="subnet",
            network="SPVNAS",
            config={
                "net_config": winner.config,
                "num_classes": config["num_classes"],
                "pres": network.pres,
                "vres": network.vres,
                "classifier_inputs": network.classifier.linear.in_features,
            },
            classes=manifest.classes,
            training={"searched_from": manifest.sha256, **asdict(plan)},
            metrics={"accuracy": float(winner.accuracy or 0.0), "latency_ms": winner.latency_ms},
            licence=manifest.licence,
        ),
        exact=True,
    )

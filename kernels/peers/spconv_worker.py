# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs spconv for the benchmarks: a process in spconv's environment that `kestrel.bench.peer` talks to.

One JSON object per line each way. Requests:
    {"do": "prepare", "task": NAME, "kind": KIND, "arrays": FILE.npz, "options": {...}}
    {"do": "run", "task": NAME}                         the answer has the time as "ms"
    {"do": "output", "task": NAME, "file": FILE.npy}
Every answer carries "rss_kb", the largest memory of the process since it prepared a task, or "error".
Threads are those of OMP_NUM_THREADS, which holds for spconv's own OpenMP library too.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import spconv
import spconv.pytorch
import torch
from spconv.core import ConvAlgo
from spconv.pytorch import ops
from spconv.utils import Point2VoxelCPU3d
from spconv_networks import MinkUNet, SparseEncoder, load_slices, part
from torch import Tensor

Arrays: TypeAlias = dict[str, Tensor]
Options: TypeAlias = dict[str, Any]
Task: TypeAlias = Callable[[], Any]


def sparse_tensor(arrays: Arrays, options: Options) -> Any:
    """Return the tensor of features and indices (batch, x, y, z), without any map."""
    indices = arrays["indices"].int()
    return spconv.pytorch.SparseConvTensor(arrays["features"], indices, options["spatial_shape"], 1)


def submanifold(arrays: Arrays, options: Options) -> Task:
    """Build the map of a 3x3x3 layer and convolve."""
    layer = _layer(arrays)
    return lambda: layer(sparse_tensor(arrays, options)).features


def submanifold_conv(arrays: Arrays, options: Options) -> Task:
    """Convolve over a map that exists already."""
    layer, kept = _layer(arrays), sparse_tensor(arrays, options)
    kept.indice_dict = layer(kept).indice_dict
    return lambda: layer(kept).features


def submanifold_map(arrays: Arrays, options: Options) -> Task:
    """Build the map of a 3x3x3 layer."""
    indices = arrays["indices"].int()
    shape, one, none = options["spatial_shape"], [1, 1, 1], [0, 0, 0]

    def run() -> Tensor:
        found = ops.get_indice_pairs(
            indices, 1, shape, ConvAlgo.Native, [3, 3, 3], one, one, one, none, subm=True
        )
        count: Tensor = found[2]
        return count

    return run


def network(make: Callable[..., torch.nn.Module]) -> Callable[[Arrays, Options], Task]:
    """Return the kind of task that runs a network on voxels, maps included."""

    def prepare(arrays: Arrays, options: Options) -> Task:
        built = make(part(arrays, "state"), **options.get("network", {})).eval()
        return lambda: built(sparse_tensor(arrays, options))

    return prepare


def point_to_voxel(arrays: Arrays, options: Options) -> Task:
    """Group points into voxels with spconv's CPU generator."""
    points = arrays["points"].numpy()
    generator = Point2VoxelCPU3d(
        options["voxel_size"],
        options["point_cloud_range"],
        points.shape[1],
        options["max_voxels"],
        options["max_points"],
    )
    from cumm import tensorview

    wrapped = tensorview.from_numpy(points)

    def run() -> Any:
        assert len(points)  # the wrapper borrows this array: it must live as long as the task
        return generator.point_to_voxel(wrapped)

    return run


def table_of_voxels(found: Any) -> Tensor:
    """Return the cell x, y, z, the number of points and their mean of every voxel, one row each."""
    voxels, indices, counts = (each.numpy_view().astype(np.float64) for each in found)
    means = voxels.sum(1) / counts[:, None]
    return torch.from_numpy(np.concatenate((indices[:, ::-1], counts[:, None], means), 1))


KINDS: Final[dict[str, Callable[[Arrays, Options], Task]]] = {
    "submanifold": submanifold,
    "submanifold_map": submanifold_map,
    "submanifold_conv": submanifold_conv,
    "minkunet": network(MinkUNet),
    "sparse_encoder": network(SparseEncoder),
    "point_to_voxel": point_to_voxel,
}


def _layer(arrays: Arrays) -> Any:
    slices = arrays["weight"]
    layer = spconv.pytorch.SubMConv3d(*slices.shape[1:], 3, bias=False, padding=1, indice_key="map")
    return load_slices(layer, slices)


def answer(tasks: dict[str, Task], request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request."""
    name = request["task"]
    if request["do"] == "prepare":
        with np.load(request["arrays"]) as stored:
            arrays = {key: torch.from_numpy(stored[key]) for key in stored.files}
        tasks[name] = KINDS[request["kind"]](arrays, request["options"])
        # What preparing took beyond what it left does not count, nor what it freed: the peak starts anew.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return {}
    start = time.perf_counter()
    result = tasks[name]()
    elapsed = time.perf_counter() - start
    if request["do"] == "output":
        table = result if isinstance(result, Tensor) else table_of_voxels(result)
        np.save(request["file"], table.numpy())
        return {}
    return {"ms": elapsed * 1e3}


def peak_kb() -> int:
    """Return the largest resident memory of this process so far."""
    # Not getrusage, whose largest value a process takes over from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    """Answer requests until the input ends."""
    # Whatever a library prints must not reach the line that answers go through.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tasks: dict[str, Task] = {}
    print(json.dumps({"version": spconv.__version__}), file=answers, flush=True)
    with torch.no_grad():
        for line in sys.stdin:
            try:
                reply = {**answer(tasks, json.loads(line)), "rss_kb": peak_kb()}
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Runners of the point-cloud fixtures: each feeds a fixture to the product and names what came out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kestrel.classes import SEMANTIC_KITTI_CLASSES
from kestrel.label_maps import SPVNAS_RAW_LABELS, class_of_raw
from kestrel.models import semantickitti
from kestrel.models.minkunet import MinkUNet, scaled_channels
from kestrel.models.sparse_encoder import SparseEncoder
from kestrel.models.spvcnn import SPVCNN
from kestrel.models.spvnas import SPVNAS
from kestrel.nn.sparse import SparseTensor
from kestrel.nn.sparse_points import PointTensor
from kestrel.ops import (
    CoordinateSet,
    coordinate_set,
    devoxelize,
    point_rows,
    point_to_voxel,
    sparse_conv,
    torchsparse_offsets,
    trilinear_neighbours,
    voxelize,
)
from tests.parity.fixture import fill

Outputs = dict[str, np.ndarray]


def batch_first(coords: np.ndarray) -> Tensor:
    """Fixtures keep the batch in the last column, Kestrel in the first."""
    return torch.from_numpy(coords)[:, [3, 0, 1, 2]]


def batch_last(voxels: CoordinateSet) -> np.ndarray:
    return voxels.indices[:, [1, 2, 3, 0]].numpy()


def rows_of(voxels: CoordinateSet, indices: Tensor) -> Tensor:
    """Return where the voxels that a fixture samples are in ours."""
    rows = point_rows(indices.double() * torch.tensor((1, *voxels.stride)), voxels)
    assert (rows >= 0).all(), "a voxel of the fixture does not exist"
    return rows.long()


class Recorder:
    """Keeps the intermediate tensors of a network under the names of a fixture."""

    def __init__(self, fixture: Any) -> None:
        self._expected: Mapping[str, np.ndarray] = fixture.outputs
        self.outputs: Outputs = {}

    def sparse(self, name: str, x: SparseTensor) -> None:
        expected = self._expected
        if f"{name}.coords" in expected:
            self.outputs[f"{name}.coords"] = batch_last(x.coordinates)
        if f"{name}.row_coords" in expected:
            self._sample(name, x, batch_first(expected[f"{name}.row_coords"]), "row_coords")
        if f"{name}.row_indices" in expected:
            self._sample(name, x, torch.from_numpy(expected[f"{name}.row_indices"]), "row_indices")
            self.outputs[f"{name}.count"] = np.asarray(len(x.features))
            self.outputs[f"{name}.spatial_shape"] = np.asarray(x.coordinates.spatial_shape)

    def _sample(self, name: str, x: SparseTensor, indices: Tensor, key: str) -> None:
        rows = rows_of(x.coordinates, indices.long())
        found = x.coordinates.indices[rows]
        columns = [1, 2, 3, 0] if key == "row_coords" else [0, 1, 2, 3]
        self.outputs[f"{name}.{key}"] = found[:, columns].numpy()
        self.outputs[f"{name}.feats"] = x.features[rows].numpy()
        self.outputs[f"{name}.channel_mean"] = x.features.mean(0).numpy()

    def points(self, name: str, z: PointTensor) -> None:
        if f"{name}.rows" in self._expected:
            rows = self._expected[f"{name}.rows"]
            self.outputs[f"{name}.rows"] = rows
            self.outputs[f"{name}.feats"] = z.features[torch.from_numpy(rows)].numpy()
            self.outputs[f"{name}.channel_mean"] = z.features.mean(0).numpy()

    def watch(self, module: nn.Module, *names: str) -> None:
        """Record each output of a module under the next of the names."""
        remaining = list(names)

        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            name = remaining.pop(0)
            (self.sparse if isinstance(output, SparseTensor) else self.points)(name, output)

        module.register_forward_hook(record)


def _classify(network: nn.Module, fixture: Any, recorder: Recorder) -> Outputs:
    with torch.no_grad():
        logits = fill(network, fixture)(
            batch_first(fixture.inputs["coords"]), torch.from_numpy(fixture.inputs["feats"])
        )
    return recorder.outputs | {"logits": logits.numpy()}


def _unet(kind: type[MinkUNet], fixture: Any) -> tuple[MinkUNet, Recorder]:
    config = fixture.manifest["config"]
    network = kind(
        config["num_classes"],
        channels=scaled_channels(config["cr"]),
        pres=config["pres"],
        vres=config["vres"],
    )
    recorder = Recorder(fixture)
    network.stem.register_forward_pre_hook(
        lambda _module, inputs: recorder.sparse("initial_voxelize", inputs[0])
    )
    for name in ("stem", "stage1", "stage2", "stage3", "stage4"):
        recorder.watch(getattr(network, name), name)
    for name in ("up1", "up2", "up3", "up4"):
        recorder.watch(getattr(network, name)[0], f"{name}_deconv")
        recorder.watch(getattr(network, name)[1][-1], name)  # its blocks are called one by one
    return network, recorder


def minkunet(fixture: Any) -> Outputs:
    network, recorder = _unet(MinkUNet, fixture)
    return _classify(network, fixture, recorder)


def spvcnn(fixture: Any) -> Outputs:
    network, recorder = _unet(SPVCNN, fixture)

    def read_alone(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Let the recorder see what the transform reads and adds in one pass."""
        network.to_point(*arguments)

    for transform in network.point_transforms:
        transform.register_forward_pre_hook(read_alone)
    recorder.watch(network.to_point, *(f"voxel_to_point{i}" for i in range(4)))
    recorder.watch(network.to_voxel, *(f"point_to_voxel{i}" for i in range(3)))
    return _classify(network, fixture, recorder)


def spvnas(fixture: Any) -> Outputs:
    config = fixture.manifest["config"]
    network = SPVNAS(config["net_config"], config["num_classes"], pres=config["pres"], vres=config["vres"])
    recorder = Recorder(fixture)
    recorder.watch(network.stem, "stem")
    for i in range(4):
        recorder.watch(network.downsample[i], f"downsample{i}")
        recorder.watch(network.upsample[i].transition, f"upsample{i}.transition")
        recorder.watch(network.upsample[i].feature, f"upsample{i}.feature")
    return _classify(network, fixture, recorder)


def sparse_encoder(fixture: Any) -> Outputs:
    config = fixture.manifest["config"]
    features = torch.from_numpy(fixture.inputs["voxel_features"])
    network = SparseEncoder(
        features.shape[1],
        tuple(config["sparse_shape"]),
        encoder_channels=config["encoder_channels"],
    )
    recorder = Recorder(fixture)
    recorder.watch(network.conv_input, "conv_input")
    for number, stage in enumerate(network.encoder_layers, start=1):
        recorder.watch(stage, f"layer{number}")
    recorder.watch(network.conv_out, "conv_out")
    with torch.no_grad():
        bev = fill(network, fixture)(features, torch.from_numpy(fixture.inputs["coords"]), config["batch"])
    return recorder.outputs | {
        "bev.index": fixture.outputs["bev.index"],
        "bev.value": fixture.sampled(bev.contiguous(), "bev"),
        "bev.channel_mean": bev.mean((2, 3)).numpy(),
    }


def sparse_operators(fixture: Any) -> Outputs:
    pseudo = importlib.import_module("fill")
    seed = fixture.manifest["weights"]["seed"]

    def kernel(name: str, *shape: int) -> Tensor:
        return torch.from_numpy(pseudo.fill_tensor(f"op.{name}.kernel", shape, seed))

    voxels, rows = coordinate_set(batch_first(fixture.inputs["coords"]))
    given = torch.from_numpy(fixture.inputs["feats"])
    feats = torch.empty_like(given).index_copy(0, rows, given)
    cubes, halves = torchsparse_offsets(3), torchsparse_offsets(2)
    coarse, down = voxels.downsample(halves, (2, 2, 2))
    downed = sparse_conv(feats, kernel("down_k2s2", 8, 8, 12), down)
    same = voxels.submanifold_map(cubes)
    deep = coarse.submanifold_map(cubes)
    outputs = {
        "offsets_k3": np.array(cubes, np.int32),
        "offsets_k2": np.array(halves, np.int32),
        "subm_k3.coords": batch_last(voxels),
        "subm_k3.feats": sparse_conv(feats, kernel("subm_k3", 27, 8, 12), same),
        "down_k2s2.coords": batch_last(coarse),
        "down_k2s2.feats": downed,
        "up_k2s2.coords": batch_last(voxels),
        "up_k2s2.feats": sparse_conv(downed, kernel("up_k2s2", 8, 12, 8), down.transposed()),
        "subm_k3_at_stride2.coords": batch_last(coarse),
        "subm_k3_at_stride2.feats": sparse_conv(downed, kernel("subm_k3_s2", 27, 12, 12), deep),
    }
    strided, map_k3 = voxels.downsample(cubes, (2, 2, 2))
    outputs["down_k3s2.coords"] = batch_last(strided)
    outputs["down_k3s2.feats"] = sparse_conv(feats, kernel("down_k3s2", 27, 8, 12), map_k3)
    outputs |= _point_operators(fixture, voxels, feats, coarse, downed)
    expected = fixture.outputs
    return {name: np.asarray(value) for name, value in outputs.items() if name in expected}


def _point_operators(
    fixture: Any, voxels: CoordinateSet, feats: Tensor, coarse: CoordinateSet, downed: Tensor
) -> dict[str, Any]:
    points = batch_first(fixture.inputs["points"])
    point_feats = torch.from_numpy(fixture.inputs["point_feats"])
    keep = torch.from_numpy(fixture.inputs["point_keep"])
    halved = points * torch.tensor((1, 0.5, 0.5, 0.5))
    initial = PointTensor(point_feats, halved).voxelized()
    rows, weights = trilinear_neighbours(points, voxels)
    averaged = point_to_voxel(point_feats[keep], point_rows(points[keep], voxels), len(voxels))
    return {
        "initial_voxelize.coords": batch_last(initial.coordinates),
        "initial_voxelize.feats": initial.features,
        "voxel_to_point.feats": devoxelize(feats, rows, weights),
        "voxel_to_point.weights": weights,
        "voxel_to_point.missing": rows < 0,
        "voxel_to_point_stride2.feats": devoxelize(downed, *trilinear_neighbours(points, coarse)),
        "point_to_voxel.coords": batch_last(voxels),
        "point_to_voxel.feats": averaged,
    }


def hard_voxelization(fixture: Any) -> Outputs:
    config = fixture.manifest["config"]
    voxels = voxelize(
        torch.from_numpy(fixture.inputs["points"]),
        tuple(config["voxel_size"]),
        tuple(config["point_cloud_range"]),
        max_points=config["max_num_points"],
        max_voxels=config["max_voxels"][1],
    )
    return {
        "coords": voxels.indices.numpy(),
        "num": voxels.counts.numpy(),
        "mean": voxels.features.numpy(),
    }


def semantickitti_quantize(fixture: Any) -> Outputs:
    cells, first, rows = semantickitti.quantize(torch.from_numpy(fixture.inputs["points"]))
    raw = fixture.inputs["raw_label"].astype(np.uint16)
    labels = class_of_raw(raw, SPVNAS_RAW_LABELS, SEMANTIC_KITTI_CLASSES)
    return {
        "coords": cells.numpy(),
        "index": first.numpy(),
        "inverse": rows.numpy(),
        "label": labels[first.numpy()],
    }


RUNNERS: dict[str, Callable[[Any], Outputs]] = {
    "minkunet": minkunet,
    "spvcnn": spvcnn,
    "SPVNAS sub-network (determinized)": spvnas,
    "SparseEncoder": sparse_encoder,
    "single operators": sparse_operators,
    "hard voxelisation + mean": hard_voxelization,
    "voxel preparation of one scan (evaluation mode, no rotation)": semantickitti_quantize,
}
"""Runner by the network's name in the manifest."""

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""A converted network of points gets what it was trained on, and every point the class of its voxel."""

from __future__ import annotations

import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kestrel.classes import IGNORE, POINT_CLASSES, SEMANTIC_KITTI_CLASSES
from kestrel.errors import ConfigError, ModelError
from kestrel.models.checkpoints import convert
from kestrel.models.minkunet import MinkUNet
from kestrel.models.spvcnn import SPVCNN
from kestrel.models.spvnas_supernet import SPVNASSuperNet
from kestrel.pipelines.released_segmenter import ReleasedSegmenter
from kestrel.pipelines.segmentation import PointSegmenter, SweepViews
from kestrel.pipelines.segmenter import load_segmenter
from kestrel.types import PointCloud
from kestrel.weights import Manifest, save
from tests.models.points.test_spvnas import TINY
from tests.second_device import second_device

CHANNELS = (8, 8, 16, 16, 16, 16, 16, 8, 8)


def weights_file(
    folder: Path, kind: str = "SPVCNN", outputs: int = 19, config: Any = None, **training: str
) -> Path:
    torch.manual_seed(0)
    if kind == "SPVNAS":
        network: nn.Module = SPVNASSuperNet(outputs, TINY).eval().determinize(TINY.sample(random.Random(0)))
    else:
        network = {"SPVCNN": SPVCNN, "MinkUNet": MinkUNet}[kind](outputs, channels=CHANNELS)
    found = convert(network.state_dict(), "file", network=kind)
    path = folder / "network.safetensors"
    manifest = Manifest(
        "network", found.network, found.config | (config or {}), found.classes, training=training
    )
    save(path, found.state, manifest)
    return path


@pytest.fixture
def sweep() -> PointCloud:
    generator = np.random.default_rng(3)
    points = generator.uniform((-4, -4, -1.7, 0), (4, 4, 0, 1), (3000, 4)).astype(np.float32)
    return PointCloud(points, 0, "lidar")


@pytest.mark.parametrize("kind", ["SPVCNN", "MinkUNet", "SPVNAS"])
def test_points_get_the_class_of_the_first_point_of_their_voxel(
    tmp_path: Path, sweep: PointCloud, kind: str
) -> None:
    segmenter = ReleasedSegmenter(weights_file(tmp_path, kind))
    cells = np.round(sweep.points[:, :3] / np.float32(0.05)).astype(int)
    cells -= cells.min(0)
    voxels, first, rows = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    assert len(voxels) < len(cells)
    positions = torch.from_numpy(np.pad(voxels, ((0, 0), (1, 0))))
    with torch.inference_mode():
        logits = segmenter.network(positions, torch.from_numpy(sweep.points[first]))
    labels = segmenter.segment(sweep)
    best = logits.softmax(1).max(1)
    assert labels.class_names == SEMANTIC_KITTI_CLASSES
    # Without a training one class wins everywhere; how surely it does differs from voxel to voxel.
    assert len(np.unique(labels.probability)) > len(voxels) / 2
    np.testing.assert_allclose(labels.probability, best.values.numpy()[rows.ravel()], rtol=1e-4)
    assert (labels.label == best.indices.numpy()[rows.ravel()]).all()


class Seen(nn.Module):
    """Keeps what it was given."""

    def forward(self, positions: Tensor, features: Tensor) -> Tensor:
        self.features = features
        return torch.zeros(len(features), 16)


def test_sixteen_classes_are_those_of_nuscenes_with_its_axes_and_intensities(tmp_path: Path) -> None:
    segmenter = ReleasedSegmenter(weights_file(tmp_path, outputs=16))
    assert segmenter.classes == POINT_CLASSES
    segmenter.network = Seen()
    segmenter.segment(PointCloud(np.array([[10, 2, -1, 0.2]], np.float32), 0, "lidar"))
    np.testing.assert_allclose(segmenter.network.features.numpy(), [[-2, 10, -1, 51]], rtol=1e-6)


def test_on_another_device_answers_are_those_of_the_cpu(tmp_path: Path, sweep: PointCloud) -> None:
    path = weights_file(tmp_path)
    cpu = ReleasedSegmenter(path).segment(sweep)
    with nullcontext() if torch.cuda.is_available() else second_device():
        other = ReleasedSegmenter(path, device="cuda:0").segment(sweep)
    np.testing.assert_allclose(other.probability, cpu.probability, rtol=1e-3)
    assert (other.label == cpu.label).mean() > 0.999


def test_an_empty_cloud_gives_empty_labels(tmp_path: Path) -> None:
    segmenter = ReleasedSegmenter(weights_file(tmp_path))
    assert len(segmenter.segment(PointCloud(np.zeros((0, 4), np.float32), 0, "lidar")).label) == 0


def test_a_number_of_classes_that_no_benchmark_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected 19 \(SemanticKITTI\) or 16 .*, found 20"):
        ReleasedSegmenter(weights_file(tmp_path, outputs=20))


def test_positions_in_another_unit_than_the_voxels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"pres of .*: expected 0.05, found 0.1"):
        ReleasedSegmenter(weights_file(tmp_path, config={"pres": 0.1}))


def test_a_network_that_was_measured_on_simulated_drives_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expected a converted checkpoint, found one of `kestrel search-"):
        ReleasedSegmenter(weights_file(tmp_path, searched_from="x"))


def test_the_network_of_a_file_decides_what_segments(tmp_path: Path) -> None:
    weights = weights_file(tmp_path)
    released, own = load_segmenter(weights), load_segmenter("kestrel-seg")
    assert (type(released), released.classes, released.at_lidar) == (
        ReleasedSegmenter, SEMANTIC_KITTI_CLASSES, True,
    )  # fmt: skip
    assert (type(own), own.classes, own.at_lidar) == (PointSegmenter, POINT_CLASSES, False)
    with pytest.raises(ConfigError, match="precision: expected auto or float32 for a converted SPVCNN"):
        load_segmenter(weights, precision="int8")
    with pytest.raises(ConfigError, match="test-time views"):
        load_segmenter(weights, views=SweepViews(mirror=True))


def test_a_point_too_far_for_a_voxel_has_no_class_and_the_others_have_theirs(
    tmp_path: Path, sweep: PointCloud
) -> None:
    segmenter = ReleasedSegmenter(weights_file(tmp_path))
    far = np.array([[4000, 0, 0, 0.5], [0, -9000, 0, 0.5]], np.float32)
    labels = segmenter.segment(PointCloud(np.concatenate((far, sweep.points)), 0, "lidar"))
    alone = segmenter.segment(sweep)
    assert labels.label[:2].tolist() == [IGNORE, IGNORE]
    assert not labels.probability[:2].any()
    assert (labels.label[2:] == alone.label).all()
    assert (segmenter.segment(PointCloud(far, 0, "lidar")).label == IGNORE).all()

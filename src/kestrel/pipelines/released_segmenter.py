# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From one LiDAR sweep to the class of every point, by a converted SPVCNN, MinkUNet or SPVNAS."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from kestrel.classes import IGNORE, POINT_CLASSES, SEMANTIC_KITTI_CLASSES
from kestrel.engine.device import chosen_device
from kestrel.errors import ModelError, describe
from kestrel.models.checkpoints import load_network
from kestrel.models.semantickitti import VOXEL_SIZE, quantize
from kestrel.nn.sparse import keep_packed_alone
from kestrel.ops import most_likely
from kestrel.pipelines.runtime import check_finite, ready, set_threads
from kestrel.types import PointCloud, PointLabels
from kestrel.weights import Manifest

NETWORKS: Final = ("SPVCNN", "MinkUNet", "SPVNAS")
"""Networks of a manifest that take the voxels of one sweep."""

IN_CHANNELS: Final = 4

FARTHEST_M: Final = 1600.0
"""Along each axis: voxels that are farther apart than twice this have no number."""

INTENSITY: Final = 255.0
"""What is 1 here in the sweeps of nuScenes."""


class ReleasedSegmenter:
    """Labels every point of a sweep with a network as SPVNAS and mmdetection3d release them.

    Sweeps reach the network as in its training: in voxels of 5 cm with the values of their first point, and
    every point gets the class of its voxel (:func:`kestrel.models.semantickitti.quantize`). Nineteen classes
    are those of SemanticKITTI, whose sweeps have x ahead and a remission of 0..1. Sixteen are those of
    nuScenes lidarseg, whose sweeps have x to the right, y ahead and an intensity of 0..255.

    Args:
        weights: path of a .safetensors file that ``kestrel convert-checkpoint`` wrote.
        threads: threads that torch may use in this process, None for its default.
        device: where it computes, see kestrel.engine.device.chosen_device.

    Raises:
        ModelError: the weights cannot be used.
        ConfigError: there is no such device.
    """

    def __init__(self, weights: str | Path, threads: int | None = None, device: str = "cpu") -> None:
        self.device = chosen_device(device)
        set_threads(threads)
        network, self.manifest = load_network(weights)
        self.classes = _classes(weights, self.manifest)
        self.network = ready(network, self.device)
        keep_packed_alone(self.network)

    precision: Final = "float32"
    at_lidar: Final = True

    def segment(self, cloud: PointCloud) -> PointLabels:
        """Return the class and its probability for every point, in the order of the cloud.

        Args:
            cloud: one sweep at the place of the LiDAR, x ahead, y left, z up. Points beyond FARTHEST_M get
                the label IGNORE and probability 0.

        Raises:
            ModelError: the network's answer is not finite.
        """
        label, probability = np.full(len(cloud), IGNORE, np.uint8), np.zeros(len(cloud), np.float32)
        points = self._as_trained(torch.from_numpy(cloud.points))
        inside = (points[:, :3].abs() < FARTHEST_M).all(1)
        if bool(inside.any()):
            points = points[inside]
            cells, first, rows = quantize(points)
            with torch.inference_mode():
                voxels = functional.pad(cells[first], (1, 0)).to(self.device)
                logits = self.network(voxels, points[first].to(self.device))
                best, share = most_likely(check_finite(self.manifest.network, logits))
            label[inside.numpy()] = best.cpu()[rows].numpy()
            probability[inside.numpy()] = share.cpu()[rows].numpy()
        return PointLabels(label, probability, self.classes)

    def _as_trained(self, points: Tensor) -> Tensor:
        """Return points (P, 4) in the axes and with the intensities of the data that the classes are of."""
        if self.classes == SEMANTIC_KITTI_CLASSES:
            return points
        x, y, z, intensity = points.unbind(1)
        return torch.stack((-y, x, z, intensity * INTENSITY), 1)


def _classes(weights: str | Path, manifest: Manifest) -> tuple[str, ...]:
    """Return what the outputs mean; sixteen classes have no names in a manifest.

    Raises:
        ModelError: the network does not take voxels of one sweep as they are released, or has other classes.
    """
    if manifest.network not in NETWORKS:
        raise ModelError(
            describe(f"network of {weights}", expected=f"one of {NETWORKS}", found=manifest.network)
        )
    if "searched_from" in manifest.training:
        expected = "a converted checkpoint"
        found = "one of `kestrel search-spvnas`, measured again on simulated drives in base_link"
        raise ModelError(describe(str(weights), expected=expected, found=found))
    values = {"in_channels": IN_CHANNELS, "pres": VOXEL_SIZE}
    for name, expected_value in values.items():
        found_value = manifest.config.get(name, expected_value)
        if found_value != expected_value:
            raise ModelError(describe(f"{name} of {weights}", expected=expected_value, found=found_value))
    outputs = manifest.config["num_classes"]
    for classes in (SEMANTIC_KITTI_CLASSES, POINT_CLASSES):
        if outputs == len(classes) and manifest.classes in ((), classes):
            return classes
    expected = f"{len(SEMANTIC_KITTI_CLASSES)} (SemanticKITTI) or {len(POINT_CLASSES)} (nuScenes lidarseg)"
    found = f"{outputs} {', '.join(manifest.classes)}".strip()
    raise ModelError(describe(f"classes of {weights}", expected=expected, found=found))

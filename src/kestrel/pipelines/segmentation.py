# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From one LiDAR sweep to the class of every point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kestrel.classes import IGNORE, POINT_CLASSES
from kestrel.models.kestrel_seg import KestrelSeg
from kestrel.pipelines.runtime import check_finite, load_network, set_threads, untrained_network
from kestrel.types import PointCloud, PointLabels
from kestrel.weights import Manifest


class PointSegmenter:
    """Labels every point of a sweep; each sweep stands alone.

    Args:
        weights: name of shipped weights or path of a .safetensors file.
        threads: threads that torch may use in this process, None for its default.

    Raises:
        ModelError: the weights cannot be used.
    """

    def __init__(self, weights: str | Path = "kestrel-seg", threads: int | None = None) -> None:
        set_threads(threads)
        network, manifest = load_network(KestrelSeg, weights, POINT_CLASSES)
        self._start(network, manifest)

    @classmethod
    def untrained(cls, seed: int = 0) -> PointSegmenter:
        """Return the same network with random weights."""
        pipeline = cls.__new__(cls)
        pipeline._start(untrained_network(KestrelSeg, seed), None)
        return pipeline

    def _start(self, network: KestrelSeg, manifest: Manifest | None) -> None:
        self.network = network
        self.manifest = manifest
        self.classes = POINT_CLASSES

    def segment(self, cloud: PointCloud) -> PointLabels:
        """Return the class and its probability for every point, in the order of the cloud.

        Args:
            cloud: one sweep in base_link axes (x forward, y left, z up, ground at z = 0). Points beyond the
                network's range get the label IGNORE and probability 0.

        Raises:
            ModelError: the network's answer is not finite.
        """
        label = np.full(len(cloud), IGNORE, np.uint8)
        probability = np.zeros(len(cloud), np.float32)
        points = torch.from_numpy(cloud.points)
        inside = self.network.inside(points)
        if bool(inside.any()):
            kept = points[inside]
            with torch.inference_mode():
                logits = self.network(kept, torch.zeros(len(kept), dtype=torch.int64))
                best = check_finite("Kestrel-Seg", logits).softmax(1).max(1)
            label[inside.numpy()] = best.indices.numpy().astype(np.uint8)
            probability[inside.numpy()] = best.values.numpy()
        return PointLabels(label, probability, self.classes)

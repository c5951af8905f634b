# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From label images to synthetic camera pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from kestrel.engine.device import chosen_device
from kestrel.engine.folded import FoldedEngine
from kestrel.errors import InputError, describe
from kestrel.models.kestrel_augment import AugmentConfig, KestrelAugment
from kestrel.pipelines.runtime import (
    check_finite,
    load_network,
    set_threads,
    untrained_network,
)
from kestrel.pipelines.scenes import scene_labels
from kestrel.sim.semantics import Semantic
from kestrel.types import UInt8Array
from kestrel.weights import Manifest

CLASSES = tuple(member.name.lower() for member in Semantic)


class Augmenter:
    """Renders label images (values: kestrel.sim.semantics.Semantic) as a camera might have seen them.

    Args:
        weights: name of shipped weights or path of a .safetensors file.
        threads: threads that torch may use in this process, None for its default.
        device: where it computes, see kestrel.engine.device.chosen_device.

    Raises:
        ModelError: the weights cannot be used.
        ConfigError: there is no such device.
    """

    def __init__(
        self, weights: str | Path = "kestrel-augment", threads: int | None = None, device: str = "cpu"
    ) -> None:
        self.device = chosen_device(device)
        set_threads(threads)
        network, manifest = load_network(KestrelAugment, weights, CLASSES, self.device)
        self._start(network, manifest)

    @classmethod
    def untrained(cls, seed: int = 0, device: str = "cpu") -> Augmenter:
        """Return the same network with random weights."""
        pipeline = cls.__new__(cls)
        pipeline.device = chosen_device(device)
        pipeline._start(untrained_network(KestrelAugment, seed, pipeline.device), None)
        return pipeline

    def _start(self, network: KestrelAugment, manifest: Manifest | None) -> None:
        self.network = network
        self._run = FoldedEngine(network)
        self.manifest = manifest
        self.classes = CLASSES
        self.image_size = network.config.image_size

    def render(self, labels: UInt8Array, seed: int, weather: str | None = None) -> UInt8Array:
        """Return a picture (H, W, 3) uint8 of ``labels``; the same seed gives the same picture.

        Args:
            labels: (H, W) uint8 Semantic values, both sides multiples of 8.
            seed: draws the noise, and the weather where none is named.
            weather: day, dusk, fog or rain; None draws one.

        Raises:
            InputError: labels of another type or shape, values that are no Semantic, or an unknown weather.
            ModelError: the network's answer is not finite.
        """
        config = self.network.config
        self._check(labels, weather, config)
        generator = torch.Generator().manual_seed(seed)
        drawn = int(torch.randint(len(config.weathers), (1,), generator=generator))
        code = drawn if weather is None else config.weathers.index(weather)
        height, width = labels.shape
        noise = torch.randn(1, config.noise_channels, height // 8, width // 8, generator=generator)
        # Drawn on the CPU: the same seed gives the same picture on any device.
        inputs = torch.from_numpy(labels.astype(np.int64))[None], torch.tensor([code]), noise
        with torch.inference_mode():
            (picture,) = self._run(*(each.to(self.device) for each in inputs))
        values = check_finite("Kestrel-Augment", picture[0]).mul(255).round().to(torch.uint8)
        return np.ascontiguousarray(values.permute(1, 2, 0).cpu().numpy())

    def scene_labels(self, seed: int) -> UInt8Array:
        """Return a plausible label image (H, W) uint8 of the size that the network was trained for."""
        return scene_labels(seed, self.image_size)

    @staticmethod
    def _check(labels: UInt8Array, weather: str | None, config: AugmentConfig) -> None:
        fits = labels.ndim == 2 and labels.dtype == np.uint8 and labels.size > 0
        if not fits or labels.shape[0] % 8 or labels.shape[1] % 8:
            raise InputError(
                describe(
                    "label image",
                    expected="uint8 of shape (H, W), multiples of 8",
                    found=f"{labels.dtype} of shape {labels.shape}",
                )
            )
        if int(labels.max()) >= config.num_labels:
            raise InputError(
                describe("label image values", expected=f"below {config.num_labels}", found=int(labels.max()))
            )
        if weather is not None and weather not in config.weathers:
            raise InputError(describe("weather", expected=config.weathers, found=weather))

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""From a stream of pictures to what goes on in front of the vehicle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kestrel.classes import EVENTS
from kestrel.engine.device import chosen_device
from kestrel.engine.folded import FoldedEngine
from kestrel.models.kestrel_video import KestrelVideo
from kestrel.models.mobilenetv2 import State
from kestrel.pipelines.runtime import (
    check_finite,
    load_network,
    set_threads,
    untrained_network,
)
from kestrel.road_view import crop_to_road
from kestrel.types import ActionScores, Image, UInt8Array
from kestrel.weights import Manifest

LONGEST_GAP_S = 1.0
"""A stream that is silent for longer starts anew."""


class _Step(nn.Module):
    """KestrelVideo with the tensors of its state one by one, as an engine takes and returns them."""

    def __init__(self, network: KestrelVideo) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return the logits and the new state; no state at the start of a stream."""
        logits, kept = self.network(images, state or None)
        return logits, *kept


@dataclass
class _Stream:
    """Temporal state of one camera: what the network kept at ``stamp_ns``, and what it kept before."""

    state: State
    stamp_ns: int
    last_ns: int
    hops: int


class VideoUnderstanding:
    """Classifies the newest picture of any number of cameras; every ``frame_id`` has its own state.

    Args:
        weights: name of shipped weights or path of a .safetensors file.
        threads: threads that torch may use in this process, None for its default.
        device: where it computes, see kestrel.engine.device.chosen_device.

    Raises:
        ModelError: the weights cannot be used.
        ConfigError: there is no such device.
    """

    def __init__(
        self, weights: str | Path = "kestrel-video", threads: int | None = None, device: str = "cpu"
    ) -> None:
        self.device = chosen_device(device)
        set_threads(threads)
        network, manifest = load_network(KestrelVideo, weights, EVENTS, self.device)
        self._start(network, manifest)

    @classmethod
    def untrained(cls, seed: int = 0, device: str = "cpu") -> VideoUnderstanding:
        """Return the same network with random weights."""
        pipeline = cls.__new__(cls)
        pipeline.device = chosen_device(device)
        pipeline._start(untrained_network(KestrelVideo, seed, pipeline.device), None)
        return pipeline

    def _start(self, network: KestrelVideo, manifest: Manifest | None) -> None:
        self.network = network
        self._run = FoldedEngine(_Step(network).eval())
        self.manifest = manifest
        self.classes = EVENTS
        self._streams: dict[str, _Stream] = {}

    def reset(self, frame_id: str | None = None) -> None:
        """Forget the past of one camera, or of all."""
        if frame_id is None:
            self._streams.clear()
        else:
            self._streams.pop(frame_id, None)

    def step(self, image: Image) -> ActionScores:
        """Return the scores after ``image``, the newest picture of the camera ``image.frame_id``.

        The state advances once per hop of sensor time; pictures in between are judged against the same past.
        A stamp that jumps back, or a long silence, starts the camera's stream anew.

        Raises:
            ModelError: the network's answer is not finite.
        """
        stream = self._streams.get(image.frame_id)
        if stream is not None and not 0 < image.stamp_ns - stream.last_ns <= LONGEST_GAP_S * 1e9:
            stream = None
        with torch.inference_mode():
            logits, *state = self._run(self._picture(image.data), *(stream.state if stream else ()))
        probability = check_finite("Kestrel-Video", logits[0]).softmax(0).cpu().numpy()
        hops = self._advance(image, stream, tuple(state))
        return ActionScores(
            probability=np.ascontiguousarray(probability, np.float32),
            class_names=self.classes,
            stamp_ns=image.stamp_ns,
            warm=hops >= self.network.memory,
        )

    def _advance(self, image: Image, stream: _Stream | None, state: State) -> int:
        """Keep ``state`` if a hop has passed; return how many hops the answer looked back on."""
        if stream is None:
            self._streams[image.frame_id] = _Stream(state, image.stamp_ns, image.stamp_ns, 1)
            return 0
        looked_back = stream.hops
        stream.last_ns = image.stamp_ns
        # Half a frame of slack, so that 10 Hz with jitter still hops every second picture.
        if image.stamp_ns - stream.stamp_ns >= (self.network.config.hop_s - 0.04) * 1e9:
            stream.state, stream.stamp_ns, stream.hops = state, image.stamp_ns, stream.hops + 1
        return looked_back

    def _picture(self, data: UInt8Array) -> Tensor:
        cropped = crop_to_road(data, self.network.config.image_size)
        shown = torch.from_numpy(np.ascontiguousarray(cropped)).to(self.device)
        picture = shown.permute(2, 0, 1)[None].float() / 255
        return picture.contiguous(memory_format=torch.channels_last)

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the video networks on the parity fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kestrel.models.decision import DecisionSmoother
from kestrel.models.mobilenetv2 import MobileNetV2, OnlineTSMMobileNetV2
from kestrel.models.resnet import ResNet
from kestrel.models.tsm import TSM
from kestrel.ops.temporal_shift import temporal_shift
from tests.parity.fixture import Runner, fill, tensors

MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def normalised(frames: Tensor) -> Tensor:
    return (frames.float() / 255 - MEAN) / STD


def shift_operator(fixture: Any) -> Iterator[tuple[str, Any]]:
    config = fixture.manifest["config"]
    x = tensors(fixture)["x"]
    for name, bidirectional in (("bidirectional", True), ("unidirectional", False)):
        yield name, temporal_shift(x, config["segments"], config["fold_div"], bidirectional=bidirectional)


def online(fixture: Any) -> Iterator[tuple[str, Any]]:
    network = OnlineTSMMobileNetV2(fixture.manifest["config"]["n_class"])
    fill(network, fixture)
    frames = normalised(tensors(fixture)["frames"])
    state, logits = None, []
    for frame in frames:
        scores, state = network(frame[None], state)
        logits.append(scores)
    assert state is not None
    for index, buffer in enumerate(state):
        # Large buffers are stored with every n-th row and column.
        step = -(-buffer.shape[2] // fixture.outputs[f"buffer{index}"].shape[2])
        yield f"buffer{index}", buffer[:, :, ::step, ::step]
    yield "logits", torch.cat(logits)
    yield "logits_last_frame_zero_buffers", network(frames[-1:])[0]


def offline(fixture: Any) -> Iterator[tuple[str, Any]]:
    config = fixture.manifest["config"]
    network = TSM(
        config["base"],
        config["n_class"],
        config["segments"],
        fold_div=config["shift_div"],
        non_local=config["non_local"],
    )
    fill(network, fixture)
    clips = normalised(tensors(fixture)["frames"])
    yield from layers(network.base_model, clips.flatten(0, 1), fixture.outputs)
    yield "frame_logits", network.frame_logits(clips).flatten(0, 1)
    yield "logits", network(clips)


def layers(network: MobileNetV2 | ResNet, x: Tensor, stored: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the outputs of those layers that the fixture holds."""
    if isinstance(network, MobileNetV2):
        named = [(f"features{index}", layer) for index, layer in enumerate(network.features)]
    else:
        named = [("conv1", network.conv1), ("bn1", network.bn1), ("relu", network.relu)]
        named += [("maxpool", network.maxpool)]
        named += [(f"layer{index + 1}", stage) for index, stage in enumerate(network.stages())]
    for name, layer in named:
        x = layer(x)
        if f"{name}.sample" in stored or f"{name}.channel_mean" in stored:
            yield name, x.clone()  # the next activation works in place


def decisions(fixture: Any) -> Iterator[tuple[str, Any]]:
    config, logits = fixture.manifest["config"], tensors(fixture)["logits"]
    smoother = DecisionSmoother(config["logit window"], config["masked"])
    windows = [smoother.window_class(frame) for frame in logits]
    yield "raw", logits.argmax(dim=1)
    yield "window", windows
    yield "decision", [smoother.decide(candidate) for candidate in windows]


RUNNERS: dict[str, Runner] = {
    "temporal shift operator": shift_operator,
    "online TSM MobileNetV2": online,
    "offline TSM .*": offline,
    "decision smoothing.*": decisions,
}

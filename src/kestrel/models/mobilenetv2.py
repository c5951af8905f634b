# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""MobileNetV2 (Sandler et al. 2018), with and without the online temporal shift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from torch import Tensor, nn

from kestrel.errors import InputError, describe
from kestrel.ops.temporal_shift import temporal_shift_step


@dataclass(frozen=True)
class Stage:
    """A row of table 2: ``blocks`` inverted residuals, the first one with ``stride``."""

    expansion: int
    channels: int
    blocks: int
    stride: int


STAGES: Final = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 2),
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)
"""Table 2 of the paper."""


def scaled_channels(channels: float, divisor: int = 8) -> int:
    """Round to a multiple of ``divisor``, never losing more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def conv_bn_relu6(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand (1x1), filter (depthwise 3x3), project (1x1, linear); figure 3b of the paper."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        expand = (
            []
            if expansion == 1
            else [
                nn.Conv2d(in_channels, hidden, 1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU6(inplace=True),
            ]
        )
        self.conv = nn.Sequential(
            *expand,
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.has_identity = stride == 1 and in_channels == out_channels
        self.shifts = self.has_identity and expansion > 1
        """Whether the temporal shift applies: only where an identity path keeps the unshifted features."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H / stride, W / stride)."""
        return self.residual(x, x)

    def residual(self, identity: Tensor, x: Tensor) -> Tensor:
        """Run the branch on ``x`` and add ``identity`` where the block has that path."""
        branch: Tensor = self.conv(x)
        return identity + branch if self.has_identity else branch


class MobileNetV2(nn.Module):
    """Features, mean over the image, one linear layer.

    Args:
        num_classes: outputs of the classifier; 0 leaves it out (a backbone).
        width_multiplier: scales all channels.
        in_channels: of the picture.
        stages: the body.
        last_channels: of the 1x1 convolution in front of the mean; 0 leaves it out (a backbone).
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        width_multiplier: float = 1.0,
        in_channels: int = 3,
        stages: Sequence[Stage] = STAGES,
        last_channels: int = 1280,
    ) -> None:
        super().__init__()
        channels = scaled_channels(32 * width_multiplier)
        features: list[nn.Module] = [conv_bn_relu6(in_channels, channels, 3, stride=2)]
        stage_ends = []
        for stage in stages:
            out_channels = scaled_channels(stage.channels * width_multiplier)
            for block in range(stage.blocks):
                stride = stage.stride if block == 0 else 1
                features.append(InvertedResidual(channels, out_channels, stride, stage.expansion))
                channels = out_channels
            stage_ends.append(len(features) - 1)
        self.stage_ends = tuple(stage_ends)
        """Index into ``features`` of the last block of each stage."""
        if last_channels:
            out_channels = scaled_channels(last_channels * max(1.0, width_multiplier))
            features.append(conv_bn_relu6(channels, out_channels, 1))
            channels = out_channels
        self.features = nn.Sequential(*features)
        self.num_features = channels
        self.classifier = nn.Linear(channels, num_classes) if num_classes else nn.Identity()

    def stage_channels(self) -> tuple[int, ...]:
        """Channels of the outputs that ``forward_features`` returns."""
        blocks = [self.features[end] for end in self.stage_ends]
        return tuple(block.out_channels for block in blocks if isinstance(block, InvertedResidual))

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the output of every stage, finest first."""
        outputs = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.stage_ends:
                outputs.append(x)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pictures to (B, num_classes) logits."""
        features = self.features(x)
        logits: Tensor = self.classifier(features.mean((2, 3)))
        return logits


State = tuple[Tensor, ...]
"""Shifted channels of the previous frame, one tensor per block that shifts, in network order."""


class OnlineTSMMobileNetV2(MobileNetV2):
    """MobileNetV2 that sees a stream: each shifting block mixes in channels of the previous frame.

    The online form of TSM (section 4.2) with the parameters of MobileNetV2. The state is explicit: it goes
    in and comes out of every call, so one network serves any number of cameras, and dropping the state is a
    reset.

    Args:
        num_classes, width_multiplier, in_channels, stages, last_channels: as in MobileNetV2.
        fold_div: inverse of the fraction of channels that comes from the previous frame.
    """

    def __init__(
        self,
        num_classes: int = 27,
        *,
        fold_div: int = 8,
        width_multiplier: float = 1.0,
        in_channels: int = 3,
        stages: Sequence[Stage] = STAGES,
        last_channels: int = 1280,
    ) -> None:
        super().__init__(
            num_classes,
            width_multiplier=width_multiplier,
            in_channels=in_channels,
            stages=stages,
            last_channels=last_channels,
        )
        self.fold_div = fold_div

    @property
    def num_shifts(self) -> int:
        """Number of tensors in the state, and of past frames the network can look back to."""
        return sum(isinstance(block, InvertedResidual) and block.shifts for block in self.features)

    def initial_state(self, batch: int, height: int, width: int) -> State:
        """Return the state before the first picture of that size: zeros."""
        return self._state_before(next(self.parameters()).new_zeros(batch, 0, height, width))

    def _state_before(self, pictures: Tensor) -> State:
        """Return the state before ``pictures`` (B, C, H, W), of their type and where they are."""
        batch, _, height, width = pictures.shape
        state = []
        height, width = (height + 1) // 2, (width + 1) // 2
        for block in self.features:
            if not isinstance(block, InvertedResidual):
                continue
            if block.shifts:
                state.append(pictures.new_zeros(batch, block.in_channels // self.fold_div, height, width))
            height, width = -(-height // block.stride), -(-width // block.stride)
        return tuple(state)

    def _walk(self, x: Tensor, state: State | None) -> tuple[Tensor, list[Tensor], State]:
        if state is None:
            state = self._state_before(x)
        if len(state) != self.num_shifts:
            raise InputError(
                describe(
                    "state of the temporal shift", expected=f"{self.num_shifts} tensors", found=len(state)
                )
            )
        past = iter(state)
        outputs, kept = [], []
        for index, layer in enumerate(self.features):
            if isinstance(layer, InvertedResidual) and layer.shifts:
                shifted, present = temporal_shift_step(x, next(past), self.fold_div)
                kept.append(present)
                x = layer.residual(x, shifted)
            else:
                x = layer(x)
            if index in self.stage_ends:
                outputs.append(x)
        return x, outputs, tuple(kept)

    def step_features(self, x: Tensor, state: State | None = None) -> tuple[list[Tensor], State]:
        """Return the output of every stage, finest first, and the state for the next frame."""
        _, outputs, state = self._walk(x, state)
        return outputs, state

    def step_last(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Return the last feature map and the state for the next frame."""
        features, _, state = self._walk(x, state)
        return features, state

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:  # type: ignore[override]
        """Classify the newest frame.

        Args:
            x: (B, 3, H, W) normalised picture.
            state: what the previous call returned; None starts a stream.

        Returns:
            (B, num_classes) logits, and the state for the next call.
        """
        features, state = self.step_last(x, state)
        return self.classifier(features.mean((2, 3))), state

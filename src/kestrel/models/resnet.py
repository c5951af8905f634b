# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Residual networks (He et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kestrel.nn.residual import Bottleneck


class ResNet(nn.Module):
    """Stem, four stages of bottlenecks, mean over the image, one linear layer.

    Args:
        blocks: bottlenecks per stage; (3, 4, 6, 3) is ResNet-50, (3, 4, 23, 3) ResNet-101.
        num_classes: outputs of the classifier; 0 leaves it out (a backbone).
        in_channels: of the picture.
        width: channels of the stem and of the first stage.
    """

    def __init__(
        self,
        blocks: Sequence[int] = (3, 4, 6, 3),
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels = width
        for stage, count in enumerate(blocks):
            stride, mid = (1 if stage == 0 else 2), width * 2**stage
            layers = [Bottleneck(channels, mid, stride)]
            channels = mid * Bottleneck.expansion
            layers += [Bottleneck(channels, mid) for _ in range(count - 1)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.num_stages = len(blocks)
        self.num_features = channels
        self.fc: nn.Module = nn.Linear(channels, num_classes) if num_classes else nn.Identity()

    def stages(self) -> list[nn.Sequential]:
        """Return the stages, finest first."""
        return [getattr(self, f"layer{stage + 1}") for stage in range(self.num_stages)]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the output of every stage (1/4, 1/8, 1/16, 1/32), finest first."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        outputs = []
        for stage in self.stages():
            x = stage(x)
            outputs.append(x)
        return outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pictures to (B, num_classes) logits."""
        logits: Tensor = self.fc(self.forward_features(x)[-1].mean((2, 3)))
        return logits


class ResNetFeatures(ResNet):
    """A ResNet as a camera backbone.

    Args:
        depth: 50 or 101.
        out_indices: stages that are returned.
    """

    def __init__(self, depth: int = 50, out_indices: Sequence[int] = (1, 2, 3)) -> None:
        super().__init__({50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}[depth], num_classes=0)
        self.out_indices = tuple(out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        """(B, 3, H, W) normalised pictures to one (B, C, H', W') per stage in out_indices, finest first."""
        outputs = self.forward_features(x)
        return [outputs[index] for index in self.out_indices]

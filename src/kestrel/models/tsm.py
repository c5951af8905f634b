# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""Offline video classification with the temporal shift module (TSM, Lin et al. 2019).

Key-compatible with the released checkpoints after their ``module.`` prefix is removed: ``base_model`` with
shifted convolutions as ``conv1.net`` or ``conv.0.net``, and ``new_fc``.
"""

from __future__ import annotations

from torch import Tensor, nn

from kestrel.errors import ConfigError, InputError, describe
from kestrel.models.mobilenetv2 import InvertedResidual, MobileNetV2
from kestrel.models.resnet import ResNet
from kestrel.nn.non_local import NonLocalBlock
from kestrel.nn.residual import Bottleneck
from kestrel.nn.temporal_shift import TemporalShift

RESNETS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


class TSM(nn.Module):
    """A picture network per frame, coupled by shifts; the clip's score is the mean over its frames.

    Args:
        base: ``mobilenetv2``, ``resnet50`` or ``resnet101``.
        num_classes: outputs.
        n_segment: frames per clip.
        fold_div: inverse of the fraction of channels that moves in each direction.
        bidirectional: False for the shift that a stream can do
            (kestrel.models.mobilenetv2.OnlineTSMMobileNetV2).
        non_local: add the non-local blocks of the released "nl" checkpoint (ResNets only).

    Raises:
        ConfigError: unknown ``base``.
    """

    def __init__(
        self,
        base: str = "resnet50",
        num_classes: int = 400,
        n_segment: int = 8,
        *,
        fold_div: int = 8,
        bidirectional: bool = True,
        non_local: bool = False,
    ) -> None:
        super().__init__()
        self.n_segment = n_segment
        self.base_model: MobileNetV2 | ResNet
        if base == "mobilenetv2":
            self.base_model = MobileNetV2(num_classes=0)
            _shift_mobilenetv2(self.base_model, n_segment, fold_div, bidirectional=bidirectional)
        elif base in RESNETS:
            self.base_model = ResNet(RESNETS[base], num_classes=0)
            _shift_resnet(self.base_model, n_segment, fold_div, bidirectional=bidirectional)
            if non_local:
                _add_non_local(self.base_model, n_segment)
        else:
            raise ConfigError(
                describe("base of a TSM network", expected=["mobilenetv2", *RESNETS], found=base)
            )
        self.new_fc = nn.Linear(self.base_model.num_features, num_classes)

    def frame_logits(self, x: Tensor) -> Tensor:
        """(B, n_segment, 3, H, W) normalised clips to (B, n_segment, num_classes).

        Raises:
            InputError: clips of another length, which the shifts would mix with each other.
        """
        if x.ndim != 5 or x.shape[1] != self.n_segment:
            expected = f"shape (B, {self.n_segment}, 3, H, W)"
            raise InputError(describe("clips of a TSM network", expected=expected, found=tuple(x.shape)))
        logits: Tensor = self.new_fc(self.base_model(x.flatten(0, 1)))
        return logits.view(*x.shape[:2], logits.shape[1])

    def forward(self, x: Tensor) -> Tensor:
        """(B, n_segment, 3, H, W) normalised clips to (B, num_classes); raises as frame_logits does."""
        return self.frame_logits(x).mean(dim=1)


def _shift_mobilenetv2(model: MobileNetV2, n_segment: int, fold_div: int, *, bidirectional: bool) -> None:
    for block in model.features:
        if isinstance(block, InvertedResidual) and block.shifts:
            block.conv[0] = TemporalShift(block.conv[0], n_segment, fold_div, bidirectional=bidirectional)


def _shift_resnet(model: ResNet, n_segment: int, fold_div: int, *, bidirectional: bool) -> None:
    """Shift every bottleneck, or every second one of a network as deep as ResNet-101."""
    every = 2 if len(model.stages()[2]) >= 23 else 1
    for stage in model.stages():
        for index, block in enumerate(stage):
            if isinstance(block, Bottleneck) and index % every == 0:
                block.conv1 = TemporalShift(block.conv1, n_segment, fold_div, bidirectional=bidirectional)


def _add_non_local(model: ResNet, n_segment: int) -> None:
    """Wrap every second block of the two middle stages."""
    for stage in (model.stages()[1], model.stages()[2]):
        for index in range(0, len(stage), 2):
            block = stage[index]
            assert isinstance(block, Bottleneck)
            stage[index] = NonLocalBlock(block, block.conv3.out_channels, n_segment)

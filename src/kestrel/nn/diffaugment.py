# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""DiffAugment (Zhao et al. 2020): differentiable augmentation of real and generated pictures in GAN training.

Each operator takes its random numbers as arguments; :func:`diff_augment` draws them. "x" is the axis of the
rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from kestrel.errors import ConfigError, describe

TRANSLATION_RATIO: Final = 1 / 8
CUTOUT_RATIO: Final = 1 / 2


def _per_sample(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def brightness(x: Tensor, u: Tensor) -> Tensor:
    """Add u - 0.5; u (B,) in [0, 1)."""
    return x + _per_sample(u - 0.5)


def saturation(x: Tensor, u: Tensor) -> Tensor:
    """Scale the distance from grey (the mean over the channels) by 2 u; u (B,) in [0, 1)."""
    grey = x.mean(dim=1, keepdim=True)
    return (x - grey) * _per_sample(2 * u) + grey


def contrast(x: Tensor, u: Tensor) -> Tensor:
    """Scale the distance from the mean of the picture by u + 0.5; u (B,) in [0, 1)."""
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * _per_sample(u + 0.5) + mean


def translation(x: Tensor, shift_x: Tensor, shift_y: Tensor) -> Tensor:
    """Move the picture: output[i, j] = input[i + shift_x, j + shift_y], zero outside; shifts (B,) int64."""
    batch, _, height, width = x.shape
    rows = torch.arange(height, device=x.device) + shift_x[:, None]
    columns = torch.arange(width, device=x.device) + shift_y[:, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
    sample = torch.arange(batch, device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[
        sample, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None]
    ]
    return (moved * inside[..., None]).permute(0, 3, 1, 2).contiguous()


def cutout_size(x: Tensor) -> tuple[int, int]:
    """Return the (rows, columns) of the hole that cutout makes."""
    height, width = x.shape[2:]
    return int(height * CUTOUT_RATIO + 0.5), int(width * CUTOUT_RATIO + 0.5)


def cutout(x: Tensor, offset_x: Tensor, offset_y: Tensor) -> Tensor:
    """Set a rectangle about (offset_x, offset_y), (B,) int64, to zero; it is clamped to the picture."""

    def hole(length: int, size: int, offset: Tensor) -> Tensor:
        position = torch.arange(length, device=x.device)
        first = (offset - size // 2)[:, None]
        # Rows beyond the border are clamped to it, so the border itself is zero whenever the hole leaves the
        # picture.
        low, high = first.clamp(0, length - 1), (first + size - 1).clamp(0, length - 1)
        return (position >= low) & (position <= high)

    rows, columns = cutout_size(x)
    zero = hole(x.shape[2], rows, offset_x)[:, :, None] & hole(x.shape[3], columns, offset_y)[:, None]
    return x * ~zero[:, None]


def _random(x: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)


def _integers(x: Tensor, low: int, high: int, generator: torch.Generator | None) -> Tensor:
    return torch.randint(low, high, (len(x),), generator=generator, device=x.device)


def _color(x: Tensor, generator: torch.Generator | None) -> Tensor:
    for operator in (brightness, saturation, contrast):
        x = operator(x, _random(x, generator))
    return x


def _translation(x: Tensor, generator: torch.Generator | None) -> Tensor:
    limits = [int(length * TRANSLATION_RATIO + 0.5) for length in x.shape[2:]]
    shift_x, shift_y = (_integers(x, -limit, limit + 1, generator) for limit in limits)
    return translation(x, shift_x, shift_y)


def _cutout(x: Tensor, generator: torch.Generator | None) -> Tensor:
    spans = [length + 1 - size % 2 for length, size in zip(x.shape[2:], cutout_size(x), strict=True)]
    offset_x, offset_y = (_integers(x, 0, span, generator) for span in spans)
    return cutout(x, offset_x, offset_y)


POLICIES: Final[dict[str, Callable[[Tensor, torch.Generator | None], Tensor]]] = {
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}


def diff_augment(
    x: Tensor, policy: str = "color,translation,cutout", generator: torch.Generator | None = None
) -> Tensor:
    """Augment a batch; to be applied to real and generated pictures, in both steps of the training.

    Args:
        x: (B, C, H, W) pictures in -1..1.
        policy: names out of POLICIES, separated by commas, applied in this order; empty for none.
        generator: source of the random numbers.

    Raises:
        ConfigError: a policy does not exist.
    """
    for name in filter(None, policy.split(",")):
        if name not in POLICIES:
            raise ConfigError(describe("augmentation policy", expected=sorted(POLICIES), found=name))
        x = POLICIES[name](x, generator)
    return x

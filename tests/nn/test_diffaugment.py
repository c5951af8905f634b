# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""DiffAugment: ranges of the random numbers, gradients, and what each operator may not do."""

from __future__ import annotations

import pytest
import torch

from kestrel.errors import ConfigError
from kestrel.nn import diffaugment
from kestrel.nn.diffaugment import diff_augment

POLICY = "color,translation,cutout"


def pictures() -> torch.Tensor:
    return torch.rand(16, 3, 12, 20, generator=torch.Generator().manual_seed(2)) + 0.1


def test_same_seed_same_pictures() -> None:
    first, second = (diff_augment(pictures(), POLICY, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, diff_augment(pictures(), POLICY, torch.Generator().manual_seed(6)))


def test_no_policy_changes_nothing() -> None:
    assert torch.equal(diff_augment(pictures(), ""), pictures())


def test_gradient_flows_through_all_operators() -> None:
    x = pictures().requires_grad_()
    diff_augment(x, POLICY, torch.Generator().manual_seed(0)).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_cutout_zeroes_a_rectangle_of_at_most_half_the_sides() -> None:
    generator = torch.Generator().manual_seed(1)
    for picture in diff_augment(pictures(), "cutout", generator):
        rows, columns = (picture == 0).all(dim=0).nonzero().T
        assert 1 <= len(rows) <= 6 * 10
        assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)


def test_translation_stays_within_an_eighth() -> None:
    generator = torch.Generator().manual_seed(1)
    for before, after in zip(pictures(), diff_augment(pictures(), "translation", generator), strict=True):
        matches = [
            (dx, dy)
            for dx in range(-2, 3)
            for dy in range(-3, 4)
            if torch.equal(
                diffaugment.translation(before[None], torch.tensor([dx]), torch.tensor([dy]))[0], after
            )
        ]
        assert len(matches) == 1


def test_brightness_moves_all_pixels_alike() -> None:
    moved = diffaugment.brightness(pictures(), torch.full((16,), 0.75)) - pictures()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.25))


def test_saturation_zero_is_grey_and_contrast_keeps_the_mean() -> None:
    grey = diffaugment.saturation(pictures(), torch.zeros(16))
    torch.testing.assert_close(grey[:, 0], grey[:, 1])
    contrasted = diffaugment.contrast(pictures(), torch.rand(16))
    torch.testing.assert_close(contrasted.mean((1, 2, 3)), pictures().mean((1, 2, 3)))


def test_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="colour"):
        diff_augment(pictures(), "colour")

# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""The matrix of a picture augmentation follows its pixels."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest

from kestrel.nn.image_augmentation import ImageAugmentation

SPOTS = ((40, 60), (100, 200), (120, 150))


@pytest.mark.parametrize(
    "augmentation",
    [
        ImageAugmentation(0.5, (10, 20), (60, 120)),
        ImageAugmentation(0.5, (10, 20), (60, 120), flip=True),
        ImageAugmentation(0.6, (10, 15), (70, 140), rotate_deg=5.0),
        ImageAugmentation(0.6, (10, 15), (70, 140), flip=True, rotate_deg=-5.0),
    ],
)
def test_matrix_says_where_a_spot_went(augmentation: ImageAugmentation) -> None:
    for row, column in SPOTS:
        image = np.zeros((160, 300, 3), np.uint8)
        image[row - 3 : row + 3, column - 3 : column + 3] = 255
        result = augmentation.apply(image)
        assert result.shape == (*augmentation.size, 3)
        weight = result[..., 0].astype(float)
        assert weight.sum() > 0
        found = [
            (weight.sum(axis=axis) @ np.arange(weight.shape[1 - axis])) / weight.sum() for axis in (0, 1)
        ]
        expected = augmentation.matrix() @ (column, row, 1, 1)
        assert np.abs(expected[:2] - found).max() < 1.0


def test_evaluation_cuts_the_lower_middle() -> None:
    augmentation = ImageAugmentation.evaluation((900, 1600), (256, 704), 0.48)
    assert augmentation.crop == (32, 176)
    assert augmentation.matrix()[:2].tolist() == [
        pytest.approx([0.48, 0, 0, -32]),
        pytest.approx([0, 0.48, 0, -176]),
    ]


@pytest.mark.parametrize(
    ("image_size", "resize", "crop"),
    [
        ((900, 1600), 0.48, (32, 176)),
        ((900, 1600), 0.48, (-7, 3)),
        ((900, 1600), 0.48, (500, 400)),
        ((375, 1242), 0.6183574879227053, (32, 0)),
        ((1080, 1920), 0.4, (32, 176)),
        ((256, 704), 1.0, (0, 0)),
        ((300, 500), 0.5, (2000, 10)),
    ],
)
def test_a_cut_has_the_pixels_of_the_whole_resized_picture(
    image_size: tuple[int, int], resize: float, crop: tuple[int, int]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*image_size, 3), np.uint8)
    (left, top), (rows, columns) = crop, (256, 704)
    whole = PIL.Image.fromarray(image).resize((int(image_size[1] * resize), int(image_size[0] * resize)))
    expected = np.asarray(whole.crop((left, top, left + columns, top + rows)))
    assert (ImageAugmentation(resize, crop, (rows, columns)).apply(image) == expected).all()


def test_outside_of_the_picture_is_black() -> None:
    result = ImageAugmentation(1.0, (-4, 0), (8, 12)).apply(np.full((8, 8, 3), 200, np.uint8))
    assert not result[:, :4].any()
    assert (result[:, 4:] == 200).all()

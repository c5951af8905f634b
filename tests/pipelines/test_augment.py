# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from kestrel.errors import InputError, ModelError
from kestrel.models.kestrel_augment import KestrelAugment
from kestrel.pipelines import Augmenter
from kestrel.sim.semantics import Semantic


@pytest.fixture(scope="module")
def augmenter() -> Augmenter:
    return Augmenter.untrained(seed=1)


def test_a_picture_has_the_size_of_its_labels(augmenter: Augmenter) -> None:
    picture = augmenter.render(np.full((64, 96), Semantic.ROAD, np.uint8), seed=0)
    assert picture.shape == (64, 96, 3)
    assert picture.dtype == np.uint8


def test_seed_and_weather_decide_the_picture(augmenter: Augmenter) -> None:
    labels = augmenter.scene_labels(0)
    picture = augmenter.render(labels, 5, weather="fog")
    assert (augmenter.render(labels, 5, weather="fog") == picture).all()
    assert (augmenter.render(labels, 6, weather="fog") != picture).any()
    assert (augmenter.render(labels, 5, weather="dusk") != picture).any()


def test_scenes_are_streets_and_differ(augmenter: Augmenter) -> None:
    scenes = [augmenter.scene_labels(seed) for seed in range(5)]
    for scene in scenes:
        assert scene.shape == augmenter.image_size
        assert {Semantic.ROAD, Semantic.SKY, Semantic.SIDEWALK} <= set(np.unique(scene).tolist())
        assert (scene[-1] == Semantic.ROAD).any()
    assert len({scene.tobytes() for scene in scenes}) == 5
    assert (augmenter.scene_labels(3) == scenes[3]).all()


@pytest.mark.parametrize(
    "labels",
    [
        np.zeros((60, 96), np.uint8),
        np.zeros((64, 96, 3), np.uint8),
        np.zeros((64, 96), np.int64),
        np.zeros((0, 0), np.uint8),
        np.full((64, 96), 31, np.uint8),
    ],
)
def test_other_label_images_are_refused(augmenter: Augmenter, labels: np.ndarray) -> None:
    with pytest.raises(InputError, match="label image"):
        augmenter.render(labels, 0)


def test_an_unknown_weather_is_refused(augmenter: Augmenter) -> None:
    with pytest.raises(InputError, match=r"weather.*hail"):
        augmenter.render(augmenter.scene_labels(0), 0, weather="hail")


def test_non_finite_output_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    network = KestrelAugment().eval().requires_grad_(False)
    network.leave.bias.fill_(torch.nan)  # type: ignore[union-attr]
    monkeypatch.setattr("kestrel.pipelines.augment.untrained_network", lambda *_: network)
    broken = Augmenter.untrained()
    with pytest.raises(ModelError, match="not finite"):
        broken.render(broken.scene_labels(0), 0)

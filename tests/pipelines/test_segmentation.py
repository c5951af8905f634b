# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from kestrel.classes import IGNORE, POINT_CLASSES
from kestrel.errors import ModelError
from kestrel.pipelines import PointSegmenter
from kestrel.types import PointCloud


@pytest.fixture(scope="module")
def segmenter() -> PointSegmenter:
    return PointSegmenter.untrained(seed=1)


def test_every_point_gets_a_class_and_a_probability(segmenter: PointSegmenter, cloud: PointCloud) -> None:
    labels = segmenter.segment(cloud)
    assert len(labels.label) == len(cloud)
    assert (labels.label < len(POINT_CLASSES)).all()
    assert (labels.probability >= 1 / len(POINT_CLASSES)).all()


def test_an_empty_cloud_gives_empty_labels(segmenter: PointSegmenter) -> None:
    labels = segmenter.segment(PointCloud(np.zeros((0, 4), np.float32), 0, "base_link"))
    assert labels.label.shape == labels.probability.shape == (0,)
    assert labels.class_names == POINT_CLASSES


def test_a_single_point_is_answered(segmenter: PointSegmenter) -> None:
    labels = segmenter.segment(PointCloud(np.array([[5, 0, 1, 0.5]], np.float32), 0, "base_link"))
    assert labels.label[0] != IGNORE


def test_points_out_of_range_are_ignored_and_change_nothing(
    segmenter: PointSegmenter, cloud: PointCloud
) -> None:
    far = np.array([[190, 0, 1, 0.5], [0, -101, 0, 0], [1e6, 0, 0, 0], [0, 0, 500, 0]], np.float32)
    alone = segmenter.segment(cloud)
    both = segmenter.segment(PointCloud(np.concatenate((far, cloud.points)), 0, "base_link"))
    assert (both.label[:4] == IGNORE).all()
    assert (both.probability[:4] == 0).all()
    assert (both.label[4:] == alone.label).all()


def test_the_same_cloud_gives_the_same_answer(segmenter: PointSegmenter, cloud: PointCloud) -> None:
    first, second = segmenter.segment(cloud), segmenter.segment(cloud)
    assert (first.probability == second.probability).all()


def test_another_seed_gives_other_weights(segmenter: PointSegmenter, cloud: PointCloud) -> None:
    other = PointSegmenter.untrained(seed=2).segment(cloud)
    assert (other.probability != segmenter.segment(cloud).probability).any()


def test_non_finite_output_is_a_model_error(cloud: PointCloud) -> None:
    broken = PointSegmenter.untrained()
    next(broken.network.parameters()).fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        broken.segment(cloud)

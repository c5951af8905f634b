# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from kestrel.classes import IGNORE, POINT_CLASSES
from kestrel.errors import ConfigError, ModelError
from kestrel.pipelines import PointSegmenter
from kestrel.pipelines.segmentation import SweepViews
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
    list(broken.network.parameters())[-1].fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        broken.segment(cloud)


def test_more_views_are_averaged_and_the_first_is_the_sweep_itself(cloud: PointCloud) -> None:
    views = SweepViews(turns=2, mirror=True)
    turned = cloud.points * np.array([-1, -1, 1, 1], np.float32)
    mirrored = [points * np.array([1, -1, 1, 1], np.float32) for points in (cloud.points, turned)]
    plain = PointSegmenter.untrained(seed=1)
    batch = torch.zeros(len(cloud), dtype=torch.int64)
    with torch.inference_mode():
        each = [
            plain.network(torch.from_numpy(points), batch).softmax(1)
            for points in (cloud.points, turned, *mirrored)
        ]
    wanted = torch.stack(each).mean(0).max(1)
    found = PointSegmenter.untrained(seed=1, views=views).segment(cloud)
    assert np.allclose(found.probability, wanted.values.numpy(), atol=1e-3)
    assert (found.probability != plain.segment(cloud).probability).any()


def test_views_are_off_by_default_and_limited() -> None:
    assert torch.equal(SweepViews().matrices(), torch.eye(2)[None])
    with pytest.raises(ConfigError, match="turns"):
        SweepViews(turns=17)

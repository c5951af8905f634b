# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.classes import IGNORE
from kestrel.errors import InputError
from kestrel.eval.overlap import MapOverlap, PointConfusion


def classes(*values):
    return np.array(values, np.uint8)


def test_iou_of_points_by_hand():
    confusion = PointConfusion(3)
    confusion.add(classes(0, 0, 0, 1), classes(0, 0, 1, 1))
    np.testing.assert_allclose(confusion.iou()[:2], [2 / 3, 1 / 2])
    assert np.isnan(confusion.iou()[2])
    assert confusion.mean_iou() == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_class_without_truth_counts_only_where_asked():
    confusion = PointConfusion(3)
    confusion.add(classes(0, 0), classes(0, 2))
    assert confusion.mean_iou() == pytest.approx(0.5)
    assert confusion.mean_iou(without_truth=1.0) == pytest.approx((0.5 + 1 + 1) / 3)


def test_points_without_truth_are_ignored_and_points_without_answer_are_missed():
    confusion = PointConfusion(2)
    confusion.add(classes(IGNORE, 0, 0), classes(1, 0, IGNORE))
    np.testing.assert_allclose(confusion.iou(), [0.5, np.nan])


def test_several_clouds_count_together():
    together, apart = PointConfusion(4), PointConfusion(4)
    random = np.random.default_rng(0)
    truth, found = random.integers(0, 4, (2, 100)).astype(np.uint8)
    together.add(truth, found)
    apart.add(truth[:30], found[:30])
    apart.add(truth[30:], found[30:])
    np.testing.assert_array_equal(together.counts, apart.counts)


@pytest.mark.parametrize(("truth", "found"), [((0, 1), (0,)), ((7,), (0,)), ((0,), (9,))])
def test_classes_that_do_not_fit_are_refused(truth, found):
    with pytest.raises(InputError):
        PointConfusion(3).add(classes(*truth), classes(*found))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 2, IGNORE]), st.sampled_from([0, 1, 2, IGNORE])), max_size=50)
)
def test_point_iou_equals_sets(pairs):
    truth, found = (
        (classes(*column) for column in zip(*pairs, strict=True)) if pairs else (classes(), classes())
    )
    confusion = PointConfusion(3)
    confusion.add(truth, found)
    known = truth != IGNORE
    for label in range(3):
        real, said = known & (truth == label), known & (found == label)
        if real.any():
            assert confusion.iou()[label] == pytest.approx((real & said).sum() / (real | said).sum())
        else:
            assert np.isnan(confusion.iou()[label])


def test_map_iou_by_hand():
    overlap = MapOverlap(2, thresholds=(0.3, 0.5))
    probability = np.array([[[0.4, 0.6]], [[0.0, 0.0]]], np.float32)
    truth = np.array([[[False, True]], [[False, False]]])
    overlap.add(probability, truth)
    np.testing.assert_allclose(overlap.iou()[0], [0.5, 1.0], atol=1e-6)
    assert overlap.iou_at(0.5)[0] == pytest.approx(1.0)
    assert np.isnan(overlap.iou_at(0.5)[1])
    np.testing.assert_allclose(overlap.best_iou(), [1.0, 0.0], atol=1e-6)


def test_cell_at_the_threshold_is_there():
    overlap = MapOverlap(1, thresholds=(0.35,))
    overlap.add(np.full((1, 1, 1), 0.35, np.float32), np.ones((1, 1, 1), bool))
    assert overlap.iou()[0, 0] == pytest.approx(1.0)


def test_map_of_another_size_is_refused():
    with pytest.raises(InputError):
        MapOverlap(1).add(np.zeros((1, 4, 4), np.float32), np.zeros((1, 5, 4), bool))

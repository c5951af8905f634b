# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kestrel.bench.detection_metric import devkit_scores, find_devkit, largest_difference, random_boxes
from kestrel.classes import DETECTION_CLASSES
from kestrel.eval.detection import ERRORS, BoxTable, evaluate, match
from kestrel.types import Boxes3D

CAR = DETECTION_CLASSES.index("car")
BARRIER = DETECTION_CLASSES.index("barrier")
CONE = DETECTION_CLASSES.index("traffic_cone")


def table(rows, label=CAR, num_points=1):
    """Rows of sample, x, y, score[, yaw[, vx]]; 4 x 2 x 1.5 m."""
    rows = [(*row, *(0.0,) * (6 - len(row))) for row in rows]
    values = np.array(rows, np.float64).reshape(-1, 6)
    count = len(values)
    return BoxTable(
        sample=values[:, 0].astype(np.int64),
        label=np.full(count, label),
        center=np.c_[values[:, 1:3], np.zeros(count)],
        size=np.tile([4.0, 2.0, 1.5], (count, 1)),
        yaw=values[:, 4],
        velocity=np.c_[values[:, 5], np.zeros(count)],
        score=values[:, 3],
        num_points=np.full(count, num_points),
        attribute=np.full(count, -1),
    )


def ap_2m(scores, label=CAR):
    return scores.average_precision[label, 2]


def test_perfect_detections_score_one_and_have_no_error():
    truth = table([(sample, x, 5.0, 1.0) for sample in range(3) for x in (10.0, 20.0, 30.0)])
    scores = evaluate(truth, truth)
    np.testing.assert_allclose(scores.average_precision[CAR], 1.0)
    np.testing.assert_allclose(scores.errors[CAR, :4], 0.0)


def test_nothing_found_scores_zero_and_errors_are_one():
    scores = evaluate(table([(0, 10.0, 0.0, 1.0)]), BoxTable.empty())
    assert ap_2m(scores) == 0.0
    assert scores.errors[CAR, ERRORS.index("translation")] == 1.0


def test_average_precision_of_one_hit_and_one_false_alarm_by_hand():
    """One of two cars found, by the second best box: precision 1/2 up to recall 1/2, none beyond."""
    truth = table([(0, 10.0, 0.0, 1.0), (0, 30.0, 0.0, 1.0)])
    predicted = table([(0, 20.0, 0.0, 0.9), (0, 10.0, 0.5, 0.8)])
    # Precision as sampled: interp from (0, 0) at recall 0 to (0.5, 0.5), and 0 beyond recall 0.5.
    recalls = np.linspace(0, 1, 101)
    sampled = np.interp(recalls, [0, 0.5], [0.0, 0.5], right=0)
    expected = np.maximum(sampled[11:] - 0.1, 0).mean() / 0.9
    assert ap_2m(evaluate(truth, predicted)) == pytest.approx(expected)


def test_second_box_on_a_car_is_a_false_alarm():
    truth = table([(0, 10.0, 0.0, 1.0)])
    twice = table([(0, 10.0, 0.0, 0.9), (0, 10.2, 0.0, 0.8)])
    assert match(truth, twice, [2.0]).tolist() == [[0, -1]]


def test_better_box_takes_the_nearest_car_and_leaves_the_other():
    truth = table([(0, 10.0, 0.0, 1.0), (0, 11.0, 0.0, 1.0)])
    predicted = table([(0, 10.6, 0.0, 0.9), (0, 10.7, 0.0, 0.8)])
    assert match(truth, predicted, [2.0]).tolist() == [[1, 0]]


def test_frames_do_not_mix():
    truth = table([(0, 10.0, 0.0, 1.0)])
    predicted = table([(1, 10.0, 0.0, 0.9)])
    assert match(truth, predicted, [2.0]).tolist() == [[-1]]


def test_box_at_the_very_distance_is_no_match():
    assert match(table([(0, 10.0, 0.0, 1.0)]), table([(0, 12.0, 0.0, 1.0)]), [2.0]).tolist() == [[-1]]


@pytest.mark.parametrize(("label", "reach"), [(CAR, 50.0), (CONE, 30.0)])
def test_boxes_beyond_the_range_of_their_class_do_not_count(label, reach):
    inside, outside = (0, reach - 0.1, 0.0, 1.0), (0, reach + 0.1, 0.0, 1.0)
    scores = evaluate(table([inside, outside], label), table([inside, outside], label))
    assert scores.truth_count[label] == 1
    assert scores.prediction_count[label] == 1


def test_truth_without_points_does_not_count_but_predictions_without_do():
    truth = table([(0, 10.0, 0.0, 1.0)], num_points=0)
    scores = evaluate(truth, table([(0, 10.0, 0.0, 1.0)], num_points=0))
    assert scores.truth_count[CAR] == 0
    assert scores.prediction_count[CAR] == 1


def test_turned_barrier_is_right_and_turned_car_is_wrong():
    truth, turned = [(0, 10.0, 0.0, 1.0)], [(0, 10.0, 0.0, 1.0, np.pi)]
    orientation = ERRORS.index("orientation")
    car = evaluate(table(truth), table(turned)).errors[CAR, orientation]
    barrier = evaluate(table(truth, BARRIER), table(turned, BARRIER)).errors[BARRIER, orientation]
    assert car == pytest.approx(np.pi)
    assert barrier == pytest.approx(0.0, abs=1e-9)


def test_cone_has_no_orientation_and_no_velocity():
    truth = table([(0, 10.0, 0.0, 1.0)], CONE)
    errors = evaluate(truth, truth).errors[CONE]
    assert np.isnan(errors).tolist() == [False, False, True, True, True]


def test_unknown_true_velocity_is_left_out_of_the_mean():
    truth = table([(0, 10.0, 0.0, 1.0, 0.0, np.nan), (0, 20.0, 0.0, 1.0, 0.0, 1.0)])
    predicted = table([(0, 10.0, 0.0, 0.9, 0.0, 9.0), (0, 20.0, 0.0, 0.9, 0.0, 3.0)])
    error = evaluate(truth, predicted).errors[CAR, ERRORS.index("velocity")]
    assert error == pytest.approx(2.0)


def test_classes_that_the_list_lacks_are_left_out_of_the_table():
    boxes = Boxes3D(
        center=np.zeros((2, 3), np.float32),
        size=np.ones((2, 3), np.float32),
        yaw=np.zeros(2, np.float32),
        velocity=np.zeros((2, 2), np.float32),
        label=np.array([1, 0]),
        score=np.ones(2, np.float32),
        class_names=("dont_care", "car"),
        frame_id="base_link",
        stamp_ns=0,
    )
    rows = BoxTable.from_frames([boxes])
    assert rows.label.tolist() == [CAR]


spots = st.lists(
    st.tuples(st.integers(0, 2), st.floats(-20, 20), st.floats(-20, 20), st.floats(0.01, 1)), max_size=12
)


@settings(deadline=None, max_examples=60)
@given(spots, spots)
def test_scores_are_shares_and_a_larger_distance_never_hurts(truth, predicted):
    scores = evaluate(table(truth), table(predicted))
    precision = scores.average_precision[CAR]
    assert ((precision >= 0) & (precision <= 1 + 1e-9)).all()
    matched = (match(table(truth), table(predicted), [0.5, 4.0]) >= 0).sum(1)
    assert matched[1] >= matched[0] / 2  # greedy matching may trade matches, never lose all


@settings(deadline=None, max_examples=60)
@given(spots, spots)
def test_every_match_is_near_and_unique(truth, predicted):
    real, found = table(truth), table(predicted)
    (partner,) = match(real, found, [2.0])
    taken = partner[partner >= 0]
    assert len(set(taken.tolist())) == len(taken)
    for row in np.flatnonzero(partner >= 0):
        other = partner[row]
        assert found.sample[row] == real.sample[other]
        assert np.hypot(*(found.center[row, :2] - real.center[other, :2])) < 2.0


def test_matching_equals_the_plain_loop():
    random = np.random.default_rng(3)

    def rows(count):
        return np.c_[
            random.integers(0, 6, count), random.uniform(-10, 10, (count, 2)), random.uniform(0, 1, count)
        ]

    real = table(rows(60))
    found = table(sorted(rows(90).tolist(), key=lambda row: -row[3]))
    for limit in (0.5, 2.0, 4.0):
        expected, taken = [], set()
        for row in range(len(found)):
            gaps = {
                other: np.hypot(*(found.center[row, :2] - real.center[other, :2]))
                for other in range(len(real))
                if real.sample[other] == found.sample[row] and other not in taken
            }
            best = min(gaps, key=gaps.get, default=-1)
            hit = best >= 0 and gaps[best] < limit
            expected.append(best if hit else -1)
            taken |= {best} if hit else set()
        assert match(real, found, [limit])[0].tolist() == expected


def test_scores_equal_those_of_the_devkit():
    python = find_devkit()
    if python is None:
        pytest.skip("no nuscenes-devkit: `make devkit`")
    truth, predicted = random_boxes(frames=20, seed=3)
    theirs = devkit_scores(python, truth, predicted, frames=20)
    assert theirs.mean_average_precision > 0.1
    assert largest_difference(evaluate(truth, predicted), theirs) < 1e-12

import numpy as np
import pytest

from bfmpipe.metrics.adaptation import (
    area_under_curve,
    improvement,
    initial_drop,
    monotonicity,
)
from bfmpipe.types import UserError

STEPS = [0, 100, 200, 300, 400, 800]  # the first quarter ends with 200


def test_improvement_is_relative_to_the_size_of_zero_shot():
    assert improvement(150, 100) == 50
    assert improvement(-150, -100) == -50
    assert improvement(80, 100) == -20
    np.testing.assert_array_equal(improvement([2, 3], [1, 4]), [100, -25])


def test_initial_drop_looks_at_the_first_quarter_only():
    assert initial_drop([100, 90, 70, 10, 10, 10], STEPS, 100) == 30
    assert initial_drop([100, 60, 70, 10, 10, 10], STEPS, 100) == 40
    assert initial_drop([100, 101, 100, 10, 10, 10], STEPS, 100) == 0


def test_the_largest_drop_is_that_within_all_of_the_budget():
    assert initial_drop([100, 90, 70, 10, 60, 110], STEPS, 100, within=1.0) == 90
    assert initial_drop([100, 101, 100, 100, 120, 110], STEPS, 100, within=1.0) == 0


def test_what_rounds_otherwise_is_no_drop():
    """A ratio of two such would decide a claim."""
    assert initial_drop([np.nextafter(100, 0), 101, 102, 103, 104, 105], STEPS, 100) == 0
    assert initial_drop([100 - 1e-6, 101, 102, 103, 104, 105], STEPS, 100) > 0


def test_initial_drop_counts_the_start():
    assert initial_drop([5, 100, 100, 100, 100, 100], STEPS, 100) == 95


def test_initial_drop_of_negative_returns():
    assert initial_drop([-100, -150, -100, 0, 0, 0], STEPS, -100) == 50


def test_initial_drop_that_nobody_looked_for_is_unknown():
    assert np.isnan(initial_drop([100, 50, 120], [0, 300, 800], 100))


def test_nothing_compares_with_a_zero_shot_return_of_zero():
    assert np.isnan(improvement(1, 0))
    assert np.isnan(improvement(0, 0))
    assert np.isnan(initial_drop([0, 1, 1, 1, 1, 1], STEPS, 0))


def test_monotonicity_by_hand():
    # Up; down by .5, within the error of 1; down by 2; up.
    means, errors = [0, 3, 2.5, 0.5, 1], [0.1, 1, 1, 0.1, 9]
    assert monotonicity(means, errors) == 3 / 4
    assert monotonicity(means, 0) == 2 / 4


def test_monotonicity_allows_the_error_of_the_earlier_evaluation():
    assert monotonicity([1, 0], [1, 0]) == 1
    assert monotonicity([1, 0], [0, 1]) == 0


def test_area_by_hand():
    assert area_under_curve([0, 10, 30], [3, 6, 90]) == (3 * 10 + 6 * 20) / 30
    assert area_under_curve([5, 10, 95], [3, 3, 3]) == 3


def test_many_curves_at_once():
    rng = np.random.default_rng(0)
    curves = rng.uniform(1, 2, size=(3, 4, 6))
    start = curves[..., 0]
    for metric in (
        lambda c, z: initial_drop(c, STEPS, z),
        lambda c, z: monotonicity(c, 0.1),
        lambda c, z: area_under_curve(STEPS, c),
    ):
        each = [[metric(curves[i, j], start[i, j]) for j in range(4)] for i in range(3)]
        np.testing.assert_allclose(metric(curves, start), each)


def test_an_unknown_evaluation_makes_the_metric_unknown():
    curve = [100, np.nan, 100, 100, 100, 100]
    assert np.isnan(initial_drop(curve, STEPS, 100))
    assert np.isnan(monotonicity(curve, 1))
    assert np.isnan(monotonicity([1, 2], [np.nan, 0]))
    assert np.isnan(area_under_curve(STEPS, curve))


@pytest.mark.parametrize("steps", [[0], [0, 5, 5], [3, 2, 1], 4])
def test_steps_increase(steps):
    with pytest.raises(UserError, match="increasing"):
        area_under_curve(steps, np.zeros(np.shape(steps)))


def test_curve_and_steps_agree():
    with pytest.raises(UserError, match=r"returns \(6, 2\) must end in the 6 evaluations"):
        initial_drop(np.zeros((6, 2)), STEPS, 1)
    with pytest.raises(UserError, match="two evaluations or more"):
        monotonicity([1], 0)

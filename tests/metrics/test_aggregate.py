from functools import partial

import numpy as np
import pytest
from scipy import stats

from bfmpipe.metrics.aggregate import (
    cluster_bootstrap,
    iqm,
    performance_profile,
    probability_of_improvement,
    students_interval,
)
from bfmpipe.types import UserError


def test_iqm_by_hand():
    assert iqm([[0, 1, 2, 3], [4, 5, 6, 100]]) == (2 + 3 + 4 + 5) / 4
    assert iqm([[1, 2], [6, 100]]) == 4
    assert iqm([[7.0]]) == 7


@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (3, 2), (5, 4), (7, 9), (10, 64)])
def test_iqm_is_scipys_trimmed_mean(shape):
    scores = np.random.default_rng(0).normal(size=shape)
    expected = stats.trim_mean(scores, proportiontocut=0.25, axis=None)
    np.testing.assert_allclose(iqm(scores), expected, rtol=1e-14)


def test_iqm_carries_the_time_of_curves_through():
    curves = np.random.default_rng(0).normal(size=(3, 5, 7))
    assert iqm(curves).shape == (7,)
    np.testing.assert_allclose(iqm(curves), [iqm(curves[..., t]) for t in range(7)])


def test_nan_is_not_trimmed_away():
    scores = np.arange(40.0).reshape(10, 4)
    scores[0, 0] = np.nan
    assert np.isnan(iqm(scores))
    assert np.isnan(performance_profile(scores, [1, 2])).all()
    assert np.isnan(probability_of_improvement(scores, np.ones((10, 4))))
    assert np.isnan(cluster_bootstrap(scores, iqm, replicates=50)).all()


def test_performance_profile_by_hand():
    profile = performance_profile([[0, 1], [2, 3]], [-1, 0, 1.5, 3])
    np.testing.assert_array_equal(profile, [1, 0.75, 0.5, 0])
    assert performance_profile(np.zeros((2, 3, 5)), [0, 1]).shape == (5, 2)


def test_probability_of_improvement_by_hand():
    # Task 0: of the pairs (1, 0), (1, 1), (3, 0), (3, 1) one is a tie. Task 1: Y always wins.
    x, y = [[1, 0], [3, 0]], [[0, 5], [1, 5]]
    assert probability_of_improvement(x, y) == ((3 + 0.5) / 4 + 0) / 2
    assert probability_of_improvement(y, x) == 1 - probability_of_improvement(x, y)
    assert probability_of_improvement(x, x) == 0.5


def test_probability_of_improvement_is_mann_whitneys_u():
    rng = np.random.default_rng(0)
    x, y = rng.integers(5, size=(6, 1)), rng.integers(5, size=(9, 1))
    u = stats.mannwhitneyu(x[:, 0], y[:, 0]).statistic
    np.testing.assert_allclose(probability_of_improvement(x, y), u / (6 * 9))


def test_probability_of_improvement_needs_the_same_tasks():
    with pytest.raises(UserError, match="differ in their tasks"):
        probability_of_improvement(np.zeros((2, 3)), np.zeros((2, 4)))


@pytest.mark.parametrize("scores", [[1.0, 2.0], np.zeros((0, 3)), 1.0])
def test_scores_are_by_seed_and_task(scores):
    with pytest.raises(UserError, match="must be a filled array"):
        iqm(scores)


def test_a_seed_is_drawn_with_all_its_tasks():
    seeds = np.arange(10.0)
    # What one task gains of a seed the other loses: no draw of seeds changes their mean.
    assert cluster_bootstrap(np.stack([seeds, -seeds], axis=1), np.mean) == (0, 0)
    # Two tasks that go together tell no more than one: sqrt(var / 10) = .91.
    low, high = cluster_bootstrap(np.stack([seeds, seeds], axis=1), np.mean)
    assert low == pytest.approx(4.5 - 1.96 * 0.91, abs=0.15)
    assert high == pytest.approx(4.5 + 1.96 * 0.91, abs=0.15)


def test_tasks_are_in_every_draw():
    # Drawn from one pool, the share of each task would vary.
    scores = np.tile([0.0, 100.0], (5, 1))
    assert cluster_bootstrap(scores, np.mean) == (50, 50)


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    trials = 300
    covered = 0
    for trial in range(trials):  # tasks of a seed have most of their noise in common
        scores = rng.normal(3, 2, size=(20, 1)) + rng.normal(0, 1, size=(20, 4))
        low, high = cluster_bootstrap(scores, np.mean, replicates=400, confidence=0.8, seed=trial)
        covered += low <= 3 <= high
    # A percentile interval of 20 seeds is about 3 % too narrow; 4 standard errors are .09.
    assert 0.69 < covered / trials < 0.87


@pytest.mark.parametrize("seeds", [2, 3, 5, 9])
def test_students_interval_covers_few_seeds_where_a_bootstrap_does_not(seeds):
    rng = np.random.default_rng(0)
    trials, covered, plain = 600, 0, 0
    for trial in range(trials):
        scores = rng.normal(3, 1, size=(seeds, 4)) + rng.normal(0, 2, size=(seeds, 1))
        low, high = students_interval(scores.mean(1))
        covered += low <= 3 <= high
        low, high = cluster_bootstrap(scores, np.mean, replicates=300, seed=trial)
        plain += low <= 3 <= high
    assert 0.93 < covered / trials < 0.97
    assert plain < 0.93 * trials


def test_students_interval_is_scipys():
    values = [1.0, 2.0, 6.0]
    for confidence in (0.5, 0.95):
        expected = stats.t.interval(confidence, 2, loc=3, scale=stats.sem(values))
        np.testing.assert_allclose(students_interval(values, confidence), expected)
    assert np.isnan(students_interval([1.0])).all()


def test_wider_confidence_is_a_wider_interval():
    scores = np.random.default_rng(0).normal(size=(8, 3))
    narrow = cluster_bootstrap(scores, iqm, confidence=0.5)
    wide = cluster_bootstrap(scores, iqm, confidence=0.99)
    assert wide[0] < narrow[0] < iqm(scores) < narrow[1] < wide[1]


def test_the_seed_fixes_the_interval():
    scores = np.random.default_rng(0).normal(size=(8, 3))
    first = cluster_bootstrap(scores, iqm, seed=1)
    assert first == cluster_bootstrap(scores, iqm, seed=1)
    assert first != cluster_bootstrap(scores, iqm, seed=2)


@pytest.mark.parametrize("seeds", [3, 5, 8])
def test_the_band_of_a_curve_is_that_of_its_points(seeds):
    # 1200 times 105 scores and more are resampled in several chunks, the points in one.
    curves = np.random.default_rng(0).normal(size=(seeds, 7, 5))
    low, high = cluster_bootstrap(curves, iqm, replicates=3001)
    assert low.shape == high.shape == (5,)
    for t in range(5):
        point = cluster_bootstrap(curves[..., t], iqm, replicates=3001)
        np.testing.assert_allclose((low[t], high[t]), point, rtol=1e-12)


def test_bootstrap_of_a_profile_and_of_a_comparison():
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 1, size=(10, 4)), rng.normal(0, 1, size=(10, 4))
    profile = partial(performance_profile, thresholds=[-1, 0, 1])
    low, high = cluster_bootstrap(x, profile)
    assert (low <= profile(x)).all()
    assert (profile(x) <= high).all()

    def improvement(pairs, axis):
        return probability_of_improvement(pairs[..., 0], pairs[..., 1], axis)

    low, high = cluster_bootstrap(np.stack([x, y], axis=-1), improvement)
    assert 0.5 < low < probability_of_improvement(x, y) < high < 1
    # what is compared draws the same seeds
    assert cluster_bootstrap(np.stack([x, x], axis=-1), improvement) == (0.5, 0.5)

import numpy as np
import pytest

from bfmpipe.metrics.correlation import rank_correlation, ranks


def test_ties_share_their_ranks():
    assert ranks(np.array([5.0, 1.0, 5.0, 9.0, 5.0])).tolist() == [2, 0, 2, 4, 2]


def test_by_hand():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert rank_correlation(x, -(x**3)) == pytest.approx(-1)
    # 1 - 6 sum d^2 / (n (n^2 - 1)), d = (1, -1, 0, 0)
    assert rank_correlation(x, np.array([2.0, 1.0, 3.0, 4.0])) == pytest.approx(1 - 6 * 2 / 60)


def test_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 6, (2, 50)).astype(float)
    assert rank_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_a_constant_orders_nothing():
    assert np.isnan(rank_correlation(np.ones(4), np.arange(4.0)))

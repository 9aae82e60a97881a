"""The history an explorer learns from: what can be drawn from it, by hand."""

import numpy as np
import pytest

from bfmpipe.data.explorer import History


def history(finished, running, step, episodes=5, steps=4):
    """An observation of step t in episode e is 10 e + t."""
    obs = np.add.outer(10.0 * np.arange(episodes), np.arange(steps + 1))[..., None]
    return History(obs, np.zeros((episodes, steps + 1, 1)), finished, running, step)


@pytest.mark.parametrize(
    ("place", "nstep", "expected"),
    [
        ((0, 2, 0), 1, set()),
        ((0, 2, 2), 1, {(0, 0), (0, 1), (1, 0), (1, 1)}),
        ((0, 2, 2), 2, {(0, 0), (1, 0)}),
        ((0, 2, 2), 3, set()),
        ((1, 2, 1), 1, {(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0)}),
        ((1, 2, 3), 3, {(0, 0), (0, 1), (1, 0), (2, 0)}),
        ((2, 0, 0), 4, {(0, 0), (1, 0)}),
    ],
)
def test_every_place_that_enough_steps_follow_is_drawn_alike(place, nstep, expected):
    seen = history(*place)
    assert seen.starts(nstep) == len(expected)
    if expected:
        drawn = list(zip(*seen.sample(6000, nstep, np.random.default_rng(0)), strict=True))
        assert set(drawn) == expected
        counts = np.array([drawn.count(start) for start in expected])
        # within five standard deviations of equal shares
        share = 6000 / len(expected)
        assert np.abs(counts - share).max() < 5 * np.sqrt(share)


def test_the_newest_observations_are_those_of_the_last_step_and_first_the_starts():
    assert history(1, 2, 1).newest().ravel().tolist() == [10, 11, 20, 21]
    assert history(1, 2, 3).newest().ravel().tolist() == [13, 23]
    assert history(1, 2, 3).transitions == 4 + 6

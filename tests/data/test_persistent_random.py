"""The explorer: its range, how long it holds a direction, and that a seed decides everything."""

import numpy as np
import pytest

from bfmpipe.data.persistent_random import Config, Explorer


def play(seed, steps=50, num_envs=3, action_dim=2, **settings):
    explorer = Explorer(Config(**settings), 4, action_dim, np.random.default_rng(seed))
    explorer.start(num_envs)
    obs = np.zeros((num_envs, 4), np.float32)
    return np.stack([explorer.act(obs) for _ in range(steps)])


def test_a_seed_decides_every_action():
    np.testing.assert_array_equal(play(0), play(0))
    assert (play(0) != play(1)).any()


def test_environments_differ():
    actions = play(0)
    assert (actions[:, 0] != actions[:, 1]).any()


@pytest.mark.parametrize("noise_std", [0.0, 0.3, 10.0])
def test_actions_are_float32_within_the_box(noise_std):
    actions = play(0, steps=500, noise_std=noise_std)
    assert actions.dtype == np.float32
    assert actions.shape == (500, 3, 2)
    assert np.abs(actions).max() <= 1


def test_actions_cover_the_box():
    actions = play(0, steps=2000, noise_std=0.0, redraw_probability=0.5).reshape(-1, 2)
    for corner in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        assert (actions * corner > 0.8).all(axis=1).any()
    # uniform on [-1, 1]: variance 1/3, with about 3000 independent draws a coordinate
    np.testing.assert_allclose(actions.var(axis=0), 1 / 3, rtol=0.05)


def test_a_direction_is_held_for_one_over_the_probability_on_average():
    actions = play(0, steps=2000, num_envs=50, noise_std=0.0, redraw_probability=0.1)
    redrawn = (actions[1:] != actions[:-1]).any(axis=2)
    # about 10,000 redraws: the relative error of their rate is about .01
    np.testing.assert_allclose(1 / redrawn.mean(), 10, rtol=0.05)


def test_extreme_probabilities_hold_for_ever_or_never():
    held = play(0, noise_std=0.0, redraw_probability=0.0)
    assert (held == held[0]).all()
    fresh = play(0, noise_std=0.0, redraw_probability=1.0)
    assert (fresh[1:] != fresh[:-1]).all()


def test_noise_is_added_to_what_is_held():
    actions = play(0, steps=4000, num_envs=1, noise_std=0.05, redraw_probability=0.0)
    np.testing.assert_allclose(actions.std(axis=0), 0.05, rtol=0.1)

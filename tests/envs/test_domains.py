"""What every domain must keep, whichever modules `bfmpipe/envs` has."""

import numpy as np
import pytest

from bfmpipe import plugins
from bfmpipe.envs import domain as domain_module
from bfmpipe.envs import make_domain
from bfmpipe.envs.batched import BatchedEnv


@pytest.fixture(params=plugins.names("envs"))
def domain(request):
    return make_domain(request.param, {})


def all_tasks(domain):
    return domain.tasks("family", domain.task_names, {})


def play(domain, starts, actions, threads=1):
    """Observations (steps + 1, n, obs_dim) and physics states (steps + 1, n, physics_dim)."""
    env = BatchedEnv(domain, len(starts), threads)
    obs, physics = [env.reset(starts)], [env.physics]
    for action in actions:
        obs.append(env.step(action))
        physics.append(env.physics)
    return np.stack(obs), np.stack(physics)


def draw_actions(domain, steps, n, rng):
    return rng.uniform(-1, 1, (steps, n, domain.action_dim)).astype(np.float32)


@pytest.mark.parametrize("kind", ["start_states", "exploration_states"])
def test_starts_are_seeded(domain, kind):
    def draw(n, seed):
        return getattr(domain, kind)(n, np.random.default_rng(seed))

    assert draw(9, 3).shape == (9, domain.physics_dim)
    assert draw(9, 3).dtype == np.float64
    assert np.array_equal(draw(9, 3), draw(9, 3))
    assert not np.array_equal(draw(9, 3), draw(9, 4))
    assert len(np.unique(draw(9, 3), axis=0)) == 9


def test_the_same_seeds_give_the_same_trajectories_at_any_thread_count(domain):
    runs = []
    for threads in (1, 2, 2):
        rng = np.random.default_rng(0)
        starts = domain.exploration_states(5, rng)
        runs.append(play(domain, starts, draw_actions(domain, 40, 5, rng), threads))
    for obs, physics in runs[1:]:
        assert np.array_equal(obs, runs[0][0])
        assert np.array_equal(physics, runs[0][1])


def test_another_environment_goes_on_where_one_was_left(domain):
    """By all of its state: physics alone are not enough where the solver starts from forces."""
    rng = np.random.default_rng(7)
    starts = domain.exploration_states(5, rng)
    left, other = (BatchedEnv(domain, 5, threads=1) for _ in range(2))
    left.reset(starts)
    other.reset(starts[::-1])
    for action in draw_actions(domain, 30, 5, rng):
        left.step(action)
        other.step(action)
    other.load_state(left.state())
    tasks = all_tasks(domain)
    for action in draw_actions(domain, 30, 5, rng):
        assert np.array_equal(other.step(action), left.step(action))
        assert np.array_equal(other.physics, left.physics)
        for task in tasks:
            rewards = [task.reward(domain, env.reached(), action) for env in (other, left)]
            assert np.array_equal(*rewards)


def test_a_stored_state_goes_on_the_same_in_any_slot_and_in_a_batch_of_one(domain):
    rng = np.random.default_rng(5)
    actions = draw_actions(domain, 60, 7, rng)
    _, physics = play(domain, domain.start_states(7, rng), actions)
    stored = physics[30]
    obs, onwards = play(domain, stored, actions[30:])
    order = rng.permutation(7)
    again = play(domain, stored[order], actions[30:, order], threads=2)
    assert np.array_equal(again[0], obs[:, order])
    assert np.array_equal(again[1], onwards[:, order])
    alone = play(domain, stored[3:4], actions[30:, 3:4])
    assert np.array_equal(alone[0], obs[:, 3:4])
    assert np.array_equal(alone[1], onwards[:, 3:4])


def test_observations_are_finite_single_precision_copies(domain):
    rng = np.random.default_rng(1)
    env = BatchedEnv(domain, 3, 1)
    obs = env.reset(domain.start_states(3, rng))
    before = obs.copy()
    (action,) = draw_actions(domain, 1, 3, rng)
    env.step(action)
    assert obs.shape == (3, domain.obs_dim)
    assert obs.dtype == np.float32
    assert np.isfinite(obs).all()
    assert np.array_equal(obs, before)


def test_rewards_are_in_range_and_relabelled_bit_for_bit(domain, monkeypatch):
    rng = np.random.default_rng(2)
    num_envs, steps, tasks = 13, 50, all_tasks(domain)
    env = BatchedEnv(domain, num_envs, 1)
    env.reset(domain.exploration_states(num_envs, rng))
    actions = draw_actions(domain, steps, num_envs, rng)
    stepped, physics = [], []
    for action in actions:
        env.step(action)
        stepped.append([domain.reward(task, env.reached(), action) for task in tasks])
        physics.append(env.physics)
    rewards = np.stack(stepped, axis=1).reshape(len(tasks), -1)
    rows = np.concatenate(physics), actions.reshape(steps * num_envs, -1)
    assert rewards.dtype == np.float64
    lowest = [-3 if task.name == "reach_bottom_left_long" else 0 for task in tasks]
    assert (rewards.min(1) >= lowest).all()
    assert rewards.max() <= 1
    order = rng.permutation(steps * num_envs)[:-1]
    for block in (domain_module._BLOCK, 100, 7):
        monkeypatch.setattr(domain_module, "_BLOCK", block)
        for task, reward in zip(tasks, rewards, strict=True):
            assert np.array_equal(domain.relabel(task, *rows), reward)
            shuffled = domain.relabel(task, *(column[order] for column in rows))
            assert np.array_equal(shuffled, reward[order])


def test_relabelling_nothing_gives_nothing(domain):
    nothing = np.empty((0, domain.physics_dim)), np.empty((0, domain.action_dim))
    for task in all_tasks(domain):
        assert domain.relabel(task, *nothing).shape == (0,)

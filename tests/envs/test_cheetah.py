"""The cheetah: dm_control's, step by step; its rewards against rewards in dm_control's manner."""

import os

import mujoco
import numpy as np
import pytest
from dm_control.suite import cheetah as dm_cheetah
from dm_control.utils.rewards import tolerance

from bfmpipe.envs import cheetah
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.types import UserError
from tests.envs.oracle import (
    assert_parity,
    assert_relabelled,
    binary,
    close_in_single_precision,
    record,
)

NUM_ENVS, STEPS = 3, 1000


def make(**settings):
    return cheetah.Domain("cheetah", cheetah.Config(**settings))


def ramp(value, full):
    return tolerance(value, (full, np.inf), full, sigmoid="linear", value_at_margin=0)


def momentum(physics):
    mujoco.mj_subtreeVel(physics.model.ptr, physics.data.ptr)
    return physics.named.data.subtree_angmom["torso", "y"]


REWARDS = {
    "run": lambda physics: dm_cheetah.Cheetah().get_reward(physics),
    "run_backward": lambda physics: ramp(-physics.speed(), 10),
    "walk": lambda physics: ramp(physics.speed(), 2),
    "walk_backward": lambda physics: ramp(-physics.speed(), 2),
    "flip": lambda physics: ramp(momentum(physics), 5),
    "flip_backward": lambda physics: ramp(-momentum(physics), 5),
}


@pytest.fixture(scope="module")
def known():
    rng = np.random.default_rng(0)
    starts = make().start_states(NUM_ENVS, rng)
    return record(dm_cheetah.run(), starts, rng.uniform(-1, 1, (STEPS, NUM_ENVS, 6)), REWARDS)


def test_the_model_and_the_clock_are_dm_controls():
    domain, env = make(), dm_cheetah.run()
    assert np.array_equal(binary(domain.model), binary(env.physics.model.ptr))
    assert domain.config.physics_steps * domain.model.opt.timestep == env.control_timestep()
    assert domain.config.episode_steps == env._step_limit
    assert (domain.obs_dim, domain.action_dim, domain.physics_dim) == (17, 6, 18)


def test_loading_the_model_leaves_no_log_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = mujoco.get_mju_user_warning()  # dm_control's
    mujoco.set_mju_user_warning(None)
    try:
        make()
        assert os.listdir() == []
        assert mujoco.get_mju_user_warning() is None
    finally:
        mujoco.set_mju_user_warning(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_parity_with_dm_control(known, threads):
    assert_parity(make(), known, threads)


def test_stored_states_give_rewards_and_observations(known):
    domain = make()
    assert_relabelled(domain, known)
    obs = domain.observe(domain.split(known.states.reshape(-1, 18)))
    close_in_single_precision(obs, known.obs.reshape(-1, 17))


def test_rewards_at_known_states():
    domain = make()

    def reward(name, column, value):
        (task,) = domain.tasks("one", [name], {})
        physics = np.zeros((1, 18))
        physics[0, column] = value
        return domain.relabel(task, physics, np.ones((1, 6)))[0]

    speed, spin = domain.model.nq, domain.model.nq + 2
    for name, full in (("run", 10), ("walk", 2)):
        for task, sign in ((name, 1), (f"{name}_backward", -1)):
            assert reward(task, speed, 0) == 0
            assert reward(task, speed, sign * full / 4) == pytest.approx(0.25)
            assert reward(task, speed, sign * full * 1.5) == 1
            assert reward(task, speed, -sign * full) == 0
    # turning as one body: the moment of inertia times the rate
    data = mujoco.MjData(domain.model)
    mujoco.mj_forward(domain.model, data)
    offset = data.subtree_com[1] - data.xpos[1]
    turning = np.empty((domain.model.nv, domain.model.nv))
    mujoco.mj_fullM(domain.model, data, turning)
    inertia = turning[2, 2] - domain.model.dof_armature[2]
    inertia -= domain.model.body_mass.sum() * (offset[[0, 2]] ** 2).sum()
    for name, sign in (("flip", 1), ("flip_backward", -1)):
        assert reward(name, spin, sign * 2 / inertia) == pytest.approx(0.4)
        assert reward(name, spin, -sign * 2 / inertia) == 0


def test_starts_are_distributed_as_dm_controls():
    domain = make()
    ours = domain.start_states(500, np.random.default_rng(0))
    explored = domain.exploration_states(9, np.random.default_rng(0))
    assert np.array_equal(explored, domain.start_states(9, np.random.default_rng(0)))
    env, theirs = dm_cheetah.run(random=1), np.empty((500, 18))
    for row in theirs:
        env.reset()
        row[:] = env.physics.state()
    levels = [0.05, 0.25, 0.5, 0.75, 0.95]
    a, b = (np.quantile(sample, levels, axis=0) for sample in (ours, theirs))
    spread = np.quantile(theirs, 0.95, axis=0) - np.quantile(theirs, 0.05, axis=0)
    # joints and speeds at rest lie close together, the way that it fell does not
    assert (np.abs(a - b)[1:-1, :9] <= 0.25 * spread[:9] + 1e-3).all()
    assert np.quantile(np.abs(ours[:, 9:]), 0.9) < 2 * np.quantile(np.abs(theirs[:, 9:]), 0.9)


def test_starts_are_settled_as_mujoco_would_one_by_one(monkeypatch):
    domain = make()
    drawn = np.random.default_rng(0).uniform(*domain.model.jnt_range[3:].T, (4, 6))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    starts = domain.start_states(4, np.random.default_rng(0))
    for joints, start in zip(drawn, starts, strict=True):
        data = mujoco.MjData(domain.model)
        data.qpos[3:] = joints
        mujoco.mj_step(domain.model, data, nstep=200)
        assert np.array_equal(np.concatenate([data.qpos, data.qvel]), start)
    assert domain.start_states(0, np.random.default_rng(0)).shape == (0, 18)


def test_the_random_policy_earns_what_it_is_known_to():
    domain, rng, num_envs = make(), np.random.default_rng(0), 32
    env = BatchedEnv(domain, num_envs, 1)
    env.reset(domain.start_states(num_envs, rng))
    totals = dict.fromkeys(domain.task_names, 0.0)
    tasks = domain.tasks("all", domain.task_names, {})
    for _ in range(domain.config.episode_steps):
        action = rng.uniform(-1, 1, (num_envs, 6))
        env.step(action)
        for task in tasks:
            totals[task.name] += domain.reward(task, env.reached(), action).mean()
    for name, known in {"walk": 17, "run": 3, "walk_backward": 97, "run_backward": 20}.items():
        assert totals[name] == pytest.approx(known, rel=0.4)


def test_unknown_task_and_setting():
    domain = make()
    with pytest.raises(UserError, match="no task 'fly'; cheetah has run, run_backward, walk"):
        domain.tasks("family", ["fly"], {})
    with pytest.raises(UserError, match="speed"):
        domain.tasks("family", ["walk"], {"speed": 1})

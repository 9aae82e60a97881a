"""The walker: dm_control's, step by step; its rewards against dm_control's tasks."""

from dataclasses import dataclass

import mujoco
import numpy as np
import pytest
from dm_control.suite import walker as dm_walker
from dm_control.suite.utils import randomizers
from dm_control.utils.rewards import tolerance

from bfmpipe.envs import walker
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.types import Array, UserError

NUM_ENVS, STEPS = 3, 1000


def make(**settings):
    return walker.Domain("walker", walker.Config(**settings))


def tasks(domain):
    return domain.tasks("all", domain.task_names, {})


@dataclass
class Oracle:
    """What dm_control makes of NUM_ENVS start states and STEPS actions each."""

    starts: Array
    actions: Array  # (STEPS, NUM_ENVS, 6)
    states: Array  # after each action, (STEPS, NUM_ENVS, 18)
    obs: Array  # (STEPS, NUM_ENVS, 24), float64
    rewards: dict[str, Array]  # (STEPS, NUM_ENVS)


@pytest.fixture(scope="module")
def oracle():
    rng = np.random.default_rng(0)
    starts = make().start_states(NUM_ENVS, rng)
    actions = rng.uniform(-1, 1, (STEPS, NUM_ENVS, 6))
    states, obs = np.empty((STEPS, NUM_ENVS, 18)), np.empty((STEPS, NUM_ENVS, 24))
    rewards = {name: np.empty((STEPS, NUM_ENVS)) for name in make().task_names}
    others = {name: dm_walker.PlanarWalker(speed) for name, speed in (("stand", 0), ("run", 8))}
    env = dm_walker.walk()
    physics = env.physics
    for i in range(NUM_ENVS):
        env.reset()
        with physics.reset_context():
            physics.set_state(starts[i])
        physics.data.qacc_warmstart[:] = 0  # which a physics state does not hold
        for t in range(STEPS):
            step = env.step(actions[t, i])
            states[t, i] = physics.state()
            obs[t, i] = np.hstack(list(step.observation.values()))
            rewards["walk"][t, i] = step.reward
            for name, task in others.items():
                rewards[name][t, i] = task.get_reward(physics)
            rewards["flip"][t, i], rewards["spin"][t, i] = flip_and_spin(physics)
        assert step.last()
    return Oracle(starts, actions, states, obs, rewards)


def flip_and_spin(physics):
    """Not tasks of the suite; in the manner of those that are."""
    mujoco.mj_subtreeVel(physics.model.ptr, physics.data.ptr)
    momentum = physics.named.data.subtree_angmom["torso", "y"]
    stand = dm_walker.PlanarWalker(0).get_reward(physics)

    def ramp(full):
        return tolerance(momentum, (full, np.inf), full, sigmoid="linear", value_at_margin=0)

    return stand * (5 * ramp(5) + 1) / 6, ramp(10)


def test_the_model_and_the_clock_are_dm_controls():
    domain, env = make(), dm_walker.stand()

    def binary(model):
        buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
        mujoco.mj_saveModel(model, None, buffer)
        return buffer

    assert np.array_equal(binary(domain.model), binary(env.physics.model.ptr))
    assert domain.config.physics_steps * domain.model.opt.timestep == env.control_timestep()
    assert domain.config.episode_steps == STEPS  # the oracle's episodes end there
    assert (domain.obs_dim, domain.action_dim, domain.physics_dim) == (24, 6, 18)


@pytest.mark.parametrize("threads", [1, 2])
def test_parity_with_dm_control(oracle, threads):
    domain = make()
    env = BatchedEnv(domain, NUM_ENVS, threads)
    env.reset(oracle.starts)
    for t, action in enumerate(oracle.actions):
        obs = env.step(action)
        assert np.array_equal(env.physics, oracle.states[t])
        # half a unit in the last place of single precision
        np.testing.assert_allclose(obs, oracle.obs[t], rtol=2**-24, atol=1e-12)
        for task in tasks(domain):
            reward = domain.reward(task, env.reached(), action)
            np.testing.assert_allclose(reward, oracle.rewards[task.name][t], rtol=0, atol=1e-12)


def test_the_oracles_rewards_take_many_values(oracle):
    for name, reward in oracle.rewards.items():
        assert len(np.unique(reward)) > 100, name


def test_stored_states_give_rewards_and_observations(oracle):
    domain = make()
    physics, action = oracle.states.reshape(-1, 18), oracle.actions.reshape(-1, 6)
    obs = domain.observe(domain.split(physics))
    np.testing.assert_allclose(obs, oracle.obs.reshape(-1, 24), rtol=2**-24, atol=1e-12)
    for task in tasks(domain):
        expected = oracle.rewards[task.name].ravel()
        relabelled = domain.relabel(task, physics, action)
        np.testing.assert_allclose(relabelled, expected, rtol=0, atol=1e-12)


def test_rewards_at_known_states():
    domain = make()
    standing = np.zeros((1, 18))

    def reward(name, physics):
        (task,) = domain.tasks("one", [name], {})
        return domain.relabel(task, physics, np.ones((len(physics), 6)))[0]

    def at(column, value):
        physics = standing.copy()
        physics[0, column] = value
        return physics

    height, tilt, speed, spin = 0, 2, 10, 11
    assert domain.model.joint("rootx").dofadr[0] + domain.model.nq == speed
    assert reward("stand", standing) == 1
    assert reward("stand", at(height, -0.7)) == pytest.approx((3 * 0.1 + 1) / 4)
    assert reward("stand", at(tilt, np.pi)) == pytest.approx(3 / 4)
    for name, full in (("walk", 1), ("run", 8)):
        assert reward(name, standing) == pytest.approx(1 / 6)
        assert reward(name, at(speed, -1)) == pytest.approx(1 / 6)
        assert reward(name, at(speed, full / 2)) == pytest.approx(3.5 / 6)
        assert reward(name, at(speed, full * 1.5)) == pytest.approx(1)
    # turning as one body: the moment of inertia times the rate
    data = mujoco.MjData(domain.model)
    mujoco.mj_forward(domain.model, data)
    mass, offset = domain.model.body_mass.sum(), data.subtree_com[1] - data.xpos[1]
    turning = np.empty((domain.model.nv, domain.model.nv))
    mujoco.mj_fullM(domain.model, data, turning)
    inertia = turning[2, 2] - mass * (offset[[0, 2]] ** 2).sum()
    assert reward("spin", at(spin, 4 / inertia)) == pytest.approx(0.4)
    assert reward("spin", at(spin, -4 / inertia)) == 0
    assert reward("flip", at(spin, 4 / inertia)) == pytest.approx((5 * 0.8 + 1) / 6)
    assert reward("flip", at(spin, 40 / inertia)) == pytest.approx(1)
    assert reward("flip", at(spin, -4 / inertia)) == pytest.approx(1 / 6)


@pytest.mark.parametrize("kind", ["start_states", "exploration_states"])
def test_starts_are_distributed_as_dm_controls(kind):
    domain, physics = make(), dm_walker.Physics.from_xml_string(*dm_walker.get_model_and_assets())
    draw = getattr(domain, kind)(4000, np.random.default_rng(0))
    assert not draw[:, 9:].any()  # at rest
    random, theirs = np.random.RandomState(0), np.empty((1500, 9))
    for row in theirs:
        randomizers.randomize_limited_and_rotational_joints(physics, random)
        row[:] = physics.data.qpos
    low, high = np.zeros(9), np.zeros(9)
    low[2:], high[2:] = (
        [-np.pi, *domain.model.jnt_range[3:, 0]],
        [np.pi, *domain.model.jnt_range[3:, 1]],
    )
    for sample in (draw[:, :9], theirs):
        assert (sample >= low).all()
        assert (sample <= high).all()
    levels = [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99]
    ours, theirs = (np.quantile(sample, levels, axis=0) for sample in (draw[:, :9], theirs))
    assert (np.abs(ours - theirs) <= 0.05 * (high - low)).all()


def test_the_random_policy_earns_what_it_is_known_to():
    domain, rng, num_envs = make(), np.random.default_rng(0), 16
    env = BatchedEnv(domain, num_envs, 1)
    env.reset(domain.start_states(num_envs, rng))
    totals = dict.fromkeys(domain.task_names, 0.0)
    for _ in range(domain.config.episode_steps):
        action = rng.uniform(-1, 1, (num_envs, 6))
        env.step(action)
        for task in tasks(domain):
            totals[task.name] += domain.reward(task, env.reached(), action).mean()
    for name, known in {"stand": 135, "walk": 34, "run": 24, "flip": 52}.items():
        assert totals[name] == pytest.approx(known, rel=0.3)


def test_unknown_task_and_setting():
    domain = make()
    with pytest.raises(UserError, match=r"names are a list, such as \['run'\], not 'run'"):
        domain.tasks("walker", "run", {})
    with pytest.raises(UserError, match=r"no task 'runn'; .* spin; did you mean run\?$"):
        domain.tasks("walker", ["runn"], {})
    with pytest.raises(UserError, match=r"no task 'fly'; walker has stand, walk, run, flip, spin$"):
        domain.tasks("family", ["fly"], {})
    with pytest.raises(UserError, match="speed"):
        domain.tasks("family", ["walk"], {"speed": 1})

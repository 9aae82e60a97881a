"""The quadruped: dm_control's, step by step; its rewards against dm_control's own tasks."""

import mujoco
import numpy as np
import pytest
from dm_control.suite import quadruped as dm_quadruped
from dm_control.utils.rewards import tolerance

from bfmpipe.envs import quadruped
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.types import UserError
from tests.envs.oracle import assert_parity, assert_relabelled, binary, record

NUM_ENVS, STEPS = 3, 1000


def make(**settings):
    return quadruped.Domain("quadruped", quadruped.Config(**settings))


def upright(physics):
    return dm_quadruped._upright_reward(physics)


def linear(value, full):
    return tolerance(value, (full, np.inf), full, sigmoid="linear", value_at_margin=0.5)


def jump(physics):
    height = physics.named.data.sensordata["center_of_mass"][2]
    return upright(physics) * (0.5 + 0.5 * np.clip(height, 0, 1))


def roll(full):
    return lambda p: upright(p) * linear(np.linalg.norm(p.torso_velocity()), full)


REWARDS = {
    "stand": upright,
    "walk": dm_quadruped.Move(0.5).get_reward,
    "run": dm_quadruped.Move(5).get_reward,
    "jump": jump,
    "roll": roll(0.5),
    "roll_fast": roll(5),
}


@pytest.fixture(scope="module")
def known():
    rng = np.random.default_rng(0)
    starts = make().start_states(NUM_ENVS, rng)
    return record(dm_quadruped.run(), starts, rng.uniform(-1, 1, (STEPS, NUM_ENVS, 12)), REWARDS)


def test_the_model_and_the_clock_are_dm_controls():
    domain, env = make(), dm_quadruped.run()
    assert np.array_equal(binary(domain.model), binary(env.physics.model.ptr))
    assert domain.config.physics_steps * domain.model.opt.timestep == env.control_timestep()
    assert domain.config.episode_steps == env._step_limit
    assert (domain.obs_dim, domain.action_dim, domain.physics_dim) == (78, 12, 57)


@pytest.mark.parametrize("threads", [1, 2])
def test_parity_with_dm_control(known, threads):
    assert_parity(make(), known, threads)


def test_stored_states_give_rewards(known):
    assert_relabelled(make(), known)


def test_any_states_give_rewards_and_quantities():
    """Also where no simulation gets to, and for quaternions whose norm is not 1."""
    domain, rng = make(), np.random.default_rng(3)
    states = rng.uniform(-1.5, 1.5, (300, 57))
    physics = dm_quadruped.run().physics
    expected = {name: [] for name in (*REWARDS, "height", "upright", "velocity", "centre")}
    for state in states:
        with physics.reset_context():
            physics.set_state(state)
        for name, reward in REWARDS.items():
            expected[name].append(reward(physics))
        expected["height"].append(physics.named.data.xpos["torso", "z"])
        expected["upright"].append(physics.torso_upright())
        expected["velocity"].append(physics.torso_velocity())
        expected["centre"].append(physics.named.data.sensordata["center_of_mass"][2])
    for task in domain.tasks("all", domain.task_names, {}):
        reward = domain.relabel(task, states, np.zeros((300, 12)))
        np.testing.assert_allclose(reward, expected[task.name], rtol=0, atol=1e-12)
    ours = quadruped.QuadrupedPhysics(domain, domain.split(states))
    for name, value in {
        "height": ours.torso_height,
        "upright": ours.torso_upright,
        "velocity": ours.torso_velocity,
        "centre": ours.centre_height,
    }.items():
        np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-12)


def test_a_reset_to_a_stored_state_feels_its_forces(known):
    """They belong to that state under controls of zero, in an env that did other things before."""
    domain, stored = make(), known.states[500]
    env = BatchedEnv(domain, NUM_ENVS, 1)
    env.reset(known.starts)
    for action in known.actions[:3]:
        env.step(action)
    obs = env.reset(stored)
    for state, row in zip(stored, obs, strict=True):
        data = mujoco.MjData(domain.model)
        for name, value in domain.split(state[None]).items():
            getattr(data, name)[:] = value[0]
        mujoco.mj_forward(domain.model, data)
        fields = {name: getattr(data, name)[None] for name in ("qpos", "qvel", "act")}
        again = domain.observe({**fields, "sensordata": data.sensordata[None]})
        assert np.array_equal(row, again[0])
        assert np.abs(row[-24:]).max() > 0.1


def test_starts_are_lifted_as_dm_controls():
    domain, physics = make(), dm_quadruped.run().physics
    starts = domain.start_states(2000, np.random.default_rng(0))
    for start in starts[:25]:
        dm_quadruped._find_non_contacting_height(physics, start[3:7])
        assert np.array_equal(physics.state(), start)
    env = BatchedEnv(domain, len(starts), 1)
    contacts = env._batch.bind("ncon")
    env.reset(starts)
    assert not contacts.any()
    starts[:, 2] -= 0.01
    env.reset(starts)
    assert contacts.all()


@pytest.mark.parametrize("kind", ["start_states", "exploration_states"])
def test_start_orientations_are_uniform(kind):
    domain, n = make(), 4000
    draw = getattr(domain, kind)(n, np.random.default_rng(0))
    assert not draw[:, :2].any()
    assert not draw[:, 7:].any()
    np.testing.assert_allclose(np.linalg.norm(draw[:, 3:7], axis=1), 1)
    # each axis of a uniformly turned frame is uniform on the sphere: so are its coordinates
    axes = quadruped._axes(draw[:, :23])
    levels = np.linspace(0.05, 0.95, 19)
    for coordinate in (x for axis in axes for x in axis):
        assert np.abs(np.quantile(coordinate, levels) - (2 * levels - 1)).max() < 0.06


def test_rewards_at_known_states():
    domain = make()
    standing = np.zeros((1, 57))
    standing[:, :23] = domain.model.qpos0

    def reward(name, physics=standing, column=0, value=0):
        (task,) = domain.tasks("one", [name], {})
        physics = physics.copy()
        physics[0, column] += value
        return domain.relabel(task, physics, np.ones((1, 12)))[0]

    vx, vz = 23, 25
    assert reward("stand") == 1
    for name, full in (("walk", 0.5), ("run", 5)):
        assert reward(name) == 0.5
        assert reward(name, column=vx, value=full / 2) == pytest.approx(0.75)
        assert reward(name, column=vx, value=2 * full) == 1
        assert reward(name, column=vx, value=-2 * full) == 0
        assert reward(name, column=vz, value=full) == 0.5
    for name, full in (("roll", 0.5), ("roll_fast", 5)):
        assert reward(name, column=vz, value=-full) == 1
        assert reward(name, column=vx, value=-full / 2) == pytest.approx(0.75)
    centre = domain.centre_height(standing[:, :23])[0]
    assert reward("jump") == pytest.approx(0.5 + 0.5 * centre)
    assert reward("jump", column=2, value=2) == 1
    over = standing.copy()
    over[0, 3:7] = 0, 1, 0, 0  # upside down
    for name in domain.task_names:
        assert reward(name, over, vx, 3) == pytest.approx(0, abs=1e-15)


def test_unknown_task_and_setting():
    domain = make()
    with pytest.raises(UserError, match="no task 'fly'; quadruped has stand, walk, run, jump"):
        domain.tasks("family", ["fly"], {})
    with pytest.raises(UserError, match="speed"):
        domain.tasks("family", ["walk"], {"speed": 1})

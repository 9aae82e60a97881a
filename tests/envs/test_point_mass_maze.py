"""The maze: its geometry, its dynamics against plain MuJoCo, its rewards against dm_control's."""

import mujoco
import numpy as np
import pytest
from dm_control.utils import rewards

from bfmpipe.envs import point_mass_maze as maze
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.types import UserError


def make(physics_steps=5):
    config = maze.Config(physics_steps=physics_steps, episode_steps=200)
    return maze.Domain("point_mass_maze", config)


def tasks(domain, size=0.05):
    return domain.tasks("reach", list(domain.task_names), {"target_size": size})


def test_constants_are_those_of_the_model_file():
    model = make().model
    cross_x, cross_y = model.geom("cross_x"), model.geom("cross_y")
    half = [maze.CROSS_HALF_LENGTH, maze.CROSS_HALF_WIDTH]
    assert cross_x.size[:2].tolist() == half
    assert cross_y.size[:2].tolist() == half[::-1]
    assert model.jnt_range.tolist() == [[-maze.REACH, maze.REACH]] * 2
    assert model.body("ball").mass[0] == 0.3
    assert model.opt.timestep == 0.02
    assert model.actuator_gear[:, 0].tolist() == [0.1, 0.1]
    assert model.dof_damping.tolist() == [1, 1]


@pytest.mark.parametrize("threads", [1, 2])
def test_batch_is_plain_mujoco_bit_for_bit(threads):
    domain = make()
    rng = np.random.default_rng(0)
    nenv, steps = 7, 60
    starts = domain.exploration_states(nenv, rng)
    actions = rng.uniform(-1, 1, (steps, nenv, 2))
    env = BatchedEnv(domain, nenv, threads)
    env.reset(starts)
    batched = []
    for action in actions:
        env.step(action)
        batched.append(env.physics)
    for i in range(nenv):
        data = mujoco.MjData(domain.model)
        data.qpos[:], data.qvel[:] = starts[i, :2], starts[i, 2:]
        mujoco.mj_forward(domain.model, data)
        data.qacc_warmstart[:] = 0
        for t in range(steps):
            data.ctrl[:] = actions[t, i]
            mujoco.mj_step(domain.model, data, nstep=5)
            assert np.array_equal(batched[t][i], np.concatenate([data.qpos, data.qvel]))


def test_top_speed_and_walls():
    domain = make()
    env = BatchedEnv(domain, 2, 1)
    # along the top lane nothing is in the way; from inside the room the cross is
    env.reset(np.array([[-0.2, 0.25, 0, 0], [-0.2, 0.1, 0, 0]]))
    for _ in range(30):
        obs = env.step(np.array([[1.0, 0.0], [1.0, 0.0]]))
    assert obs[0, 2] == pytest.approx(0.1, rel=1e-3)
    assert obs[0, 0] > 0.05
    assert obs[1, 0] == pytest.approx(-maze.CROSS_HALF_WIDTH - 0.01, abs=1e-3)


@pytest.mark.parametrize("size", [0.015, 0.05])
def test_reward_is_the_published_formula(size):
    domain = make()
    rng = np.random.default_rng(0)
    physics = domain.exploration_states(500, rng)
    action = rng.uniform(-1, 1, (500, 2)).astype(np.float32)
    for task in tasks(domain, size):
        target = np.array(maze.TARGETS[task.name])
        expected = []
        for p, a in zip(physics, action, strict=True):
            near = rewards.tolerance(np.linalg.norm(p[:2] - target), (0, size), size)
            control = rewards.tolerance(
                a.astype(float), margin=1, value_at_margin=0, sigmoid="quadratic"
            ).mean()
            expected.append(near * (control + 4) / 5)
        np.testing.assert_allclose(domain.relabel(task, physics, action), expected, rtol=1e-12)


def test_reward_at_known_places():
    domain = make()
    (task,) = domain.tasks("reach", ["reach_top_right"], {})
    at_target = np.array([[0.15, 0.15, 0, 0]])
    assert domain.relabel(task, at_target, np.zeros((1, 2)))[0] == 1
    assert domain.relabel(task, at_target, np.ones((1, 2)))[0] == 0.8
    margin = np.array([[0.15 + 0.03, 0.15, 0, 0]])
    assert domain.relabel(task, margin, np.zeros((1, 2)))[0] == pytest.approx(0.1)


def test_stepping_and_relabelling_agree_bit_for_bit():
    domain = make()
    env = BatchedEnv(domain, 16, 2)
    rng = np.random.default_rng(1)
    env.reset(domain.exploration_states(16, rng))
    for _ in range(20):
        action = rng.uniform(-1, 1, (16, 2)).astype(np.float32)
        env.step(action)
        for task in tasks(domain):
            stepped = domain.reward(task, env.fields(), action)
            assert np.array_equal(stepped, domain.relabel(task, env.physics, action))


def test_starts_are_seeded_and_where_they_should_be():
    domain = make()
    draw = domain.start_states(1000, np.random.default_rng(3))
    assert np.array_equal(draw, domain.start_states(1000, np.random.default_rng(3)))
    assert (draw[:, 0] >= -0.29).all()
    assert (draw[:, 0] <= -0.15).all()
    assert (draw[:, 1] >= 0.15).all()
    assert (draw[:, 1] <= 0.29).all()
    assert not draw[:, 2:].any()


def test_exploration_covers_all_rooms_and_starts_in_no_wall():
    domain = make()
    draw = domain.exploration_states(4000, np.random.default_rng(3))
    rooms = (draw[:, 0] > 0) * 2 + (draw[:, 1] > 0)
    assert np.bincount(rooms, minlength=4).min() > 800
    env = BatchedEnv(domain, 4000, 2)
    env.reset(draw)
    env.step(np.zeros((4000, 2)))
    assert np.abs(env.physics - draw).max() < 1e-9  # a ball in a wall would be pushed out


def test_reset_to_a_stored_state_goes_on_the_same_in_any_slot():
    domain = make()
    rng = np.random.default_rng(5)
    physics = domain.exploration_states(1, rng)
    action = rng.uniform(-1, 1, (30, 2))
    ends = []
    for nenv, slot in ((1, 0), (5, 3)):
        env = BatchedEnv(domain, nenv, 1)
        states = domain.exploration_states(nenv, rng)
        states[slot] = physics[0]
        env.step(rng.uniform(-1, 1, (nenv, 2)))
        env.reset(states)
        for a in action:
            env.step(np.tile(a, (nenv, 1)))
        ends.append(env.physics[slot])
    assert np.array_equal(*ends)


def test_observations_are_copies():
    env = BatchedEnv(make(), 2, 1)
    obs = env.reset(np.array([[-0.2, 0.2, 0, 0]] * 2))
    before = obs.copy()
    env.step(np.ones((2, 2)))
    assert np.array_equal(obs, before)


def test_nan_is_not_passed_over():
    domain = make()
    env = BatchedEnv(domain, 2, 1)
    env.reset(domain.start_states(2, np.random.default_rng(0)))
    with pytest.raises(UserError, match="simulation 1 became unstable"):
        env.step(np.array([[0, 0], [np.nan, 0]]))


def test_unknown_task_and_setting():
    domain = make()
    with pytest.raises(UserError, match="no task 'fly'; point_mass_maze has reach_top_left"):
        domain.tasks("reach", ["fly"], {})
    with pytest.raises(UserError, match="size"):
        domain.tasks("reach", ["reach_top_left"], {"size": 1})

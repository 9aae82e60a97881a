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
    return domain.tasks("reach", list(maze.TARGETS), {"target_size": size})


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
    num_envs, steps = 7, 60
    starts = domain.exploration_states(num_envs, rng)
    actions = rng.uniform(-1, 1, (steps, num_envs, 2))
    env = BatchedEnv(domain, num_envs, threads)
    env.reset(starts)
    batched = []
    for action in actions:
        env.step(action)
        batched.append(env.physics)
    for i in range(num_envs):
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
            stepped = domain.reward(task, env.reached(), action)
            assert np.array_equal(stepped, domain.relabel(task, env.physics, action))


RING = [(0.24, 0.24), (0.24, -0.24), (-0.24, -0.24), (-0.24, 0.24)]
DIAMOND = [(0, 0.24), (0.24, 0), (0, -0.24), (-0.24, 0)]
LONG_WAY = [*RING[:2], (-0.15, -0.22), (-0.15, -0.15)]


def drive(routes, around=True):
    """Returns of all tasks from (-.2, .24) of one driver a route; a driver goes from point to point
    and, `around`, begins again. A route is (points, speed); a speed is one number, or a function
    of the position.
    """
    domain, n = make(), len(routes)
    env = BatchedEnv(domain, n, 1)
    env.reset(np.tile([-0.2, 0.24, 0, 0], (n, 1)))
    at, totals = [0] * n, dict.fromkeys(domain.task_names, 0)
    for _ in range(domain.config.episode_steps):
        physics, action = env.physics, np.zeros((n, 2))
        for i, (points, speed) in enumerate(routes):
            to = np.array(points[at[i]]) - physics[i, :2]
            if np.linalg.norm(to) < 0.01 and (around or at[i] < len(points) - 1):
                at[i] = (at[i] + 1) % len(points)
                to = np.array(points[at[i]]) - physics[i, :2]
            speed = speed(*physics[i, :2]) if callable(speed) else speed
            wanted = to * min(speed / max(np.linalg.norm(to), 1e-9), 2)
            action[i] = np.clip((wanted + 2 * (wanted - physics[i, 2:])) / 0.1, -1, 1)
        env.step(action)
        for task in domain.tasks("all", domain.task_names, {}):
            totals[task.name] += domain.reward(task, env.reached(), action)
    return totals


def test_tasks_around_the_maze_pay_their_own_way_and_no_other():
    def of_each_side(x, y):
        return np.select([y > abs(x), x >= abs(y), y < -abs(x)], [0.08, 0.02, 0.06], 0.04)

    def of_another_side(x, y):
        return of_each_side(-x, -y)

    back = [RING[3], *RING[2::-1]]
    routes = {
        "ring": (RING, 0.1),
        "ring, the other way": ([RING[2], RING[1], RING[0], RING[3]], 0.1),
        "ring, at a fifth of the speed": (RING, 0.016),
        "ring, too near the cross": (
            [(np.sign(x) * 0.195, np.sign(y) * 0.195) for x, y in RING],
            0.1,
        ),
        "ring, at each side's speed": (RING, of_each_side),
        "ring, at another side's speed": (RING, of_another_side),
        "diamond": (DIAMOND, 0.1),
        "diamond, the other way": (DIAMOND[::-1], 0.1),
        "there and back": ([RING[0], back[0]], 0.1),
    }
    returns = drive(list(routes.values()))

    def best_and_others(task, best):
        paid = dict(zip(routes, returns[task].tolist(), strict=True))
        return paid.pop(best), paid

    square, others = best_and_others("square", "ring")
    assert square > 150
    assert others["ring, the other way"] < 0.1 * square
    assert others["ring, at a fifth of the speed"] < 0.3 * square
    assert others["diamond"] < 0.6 * square
    assert max(others.values()) < 0.7 * square
    loop, others = best_and_others("loop", "diamond")
    assert loop > 150
    assert others["diamond, the other way"] < 0.1 * loop
    assert max(others.values()) < 0.6 * loop
    fast_slow, others = best_and_others("fast_slow", "ring, at each side's speed")
    assert fast_slow > 150
    assert max(others.values()) < 0.5 * fast_slow


def test_the_long_way_to_the_bottom_left_pays_more_than_the_short_cut():
    routes = [
        (LONG_WAY, 0.1),
        ([(-0.24, 0.15), (-0.24, -0.15), (-0.15, -0.15)], 0.1),
        ([(-0.2, 0.24)], 0.1),
        (RING * 2, 0.1),
    ]
    returns = drive(routes, around=False)
    long_way, short_cut, staying, circling = returns["reach_bottom_left_long"].tolist()
    assert long_way > 170
    assert short_cut < 0.6 * long_way
    assert staying == pytest.approx(0, abs=1)
    assert circling < 0.8 * long_way
    # the plain task takes the short cut
    assert returns["reach_bottom_left"].argmax() == 1


def test_rewards_around_the_maze_at_known_places():
    domain = make()

    def reward(task, x, y, vx, vy, **settings):
        (task,) = domain.tasks("around", [task], settings)
        return domain.relabel(task, np.array([[x, y, vx, vy]], float), np.ones((1, 2)))[0]

    sides = [(0, 0.24, 1, 0), (0.24, 0, 0, -1), (0, -0.24, -1, 0), (-0.24, 0, 0, 1)]
    for (x, y, ex, ey), speed in zip(sides, (0.08, 0.02, 0.06, 0.04), strict=True):
        assert reward("square", x, y, 0.08 * ex, 0.08 * ey) == 1
        assert reward("square", x, y, 0.04 * ex, 0.04 * ey) == pytest.approx(0.5)
        assert reward("square", x, y, -0.08 * ex, -0.08 * ey) == 0
        assert reward("fast_slow", x, y, speed * ex, speed * ey) == 1
        assert reward("fast_slow", x, y, 1.6 * speed * ex, 1.6 * speed * ey) == pytest.approx(0.1)
        assert reward("fast_slow", x, y, -speed * ex, -speed * ey) < 1e-3
    assert reward("square", 0, 0.24 - 0.06, 0.08, 0) == pytest.approx(0.1)
    assert reward("square", 0, 0.24 - 0.06, 0.08, 0, lane_width=0.06) == 1
    for x, y in ((0.12, 0.12), (0.12, -0.12), (-0.12, -0.12), (-0.12, 0.12)):
        along = 0.08 / np.sqrt(2) * np.array([np.sign(y), -np.sign(x)])
        assert reward("loop", x, y, *along) == pytest.approx(1)
        assert reward("loop", x, y, *-along) == 0
        assert reward("loop", x * 1.1, y * 1.1, *along, lane_width=0.01) < 0.5
    long_way = "reach_bottom_left_long"
    assert reward(long_way, 0, 0.24, 0.08, 0) == 1
    assert reward(long_way, 0, 0.24, -0.08, 0) == -1
    assert reward(long_way, -0.15, -0.15, 0, 0) == 1
    assert reward(long_way, -0.24, 0, 0, 0) == -3
    assert reward(long_way, -0.24, 0, 0, 0, cut_cost=1) == -1


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
    for num_envs, slot in ((1, 0), (5, 3)):
        env = BatchedEnv(domain, num_envs, 1)
        states = domain.exploration_states(num_envs, rng)
        states[slot] = physics[0]
        env.step(rng.uniform(-1, 1, (num_envs, 2)))
        env.reset(states)
        for a in action:
            env.step(np.tile(a, (num_envs, 1)))
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
    starts = domain.start_states(2, np.random.default_rng(0))
    env.reset(starts)  # which is as in a new one
    other = BatchedEnv(domain, 2, 1)
    other.reset(starts)
    assert np.array_equal(env.step(np.ones((2, 2))), other.step(np.ones((2, 2))))


def test_unknown_task_and_setting():
    domain = make()
    with pytest.raises(UserError, match="no task 'fly'; point_mass_maze has reach_top_left"):
        domain.tasks("reach", ["fly"], {})
    with pytest.raises(UserError, match="size"):
        domain.tasks("reach", ["reach_top_left"], {"size": 1})

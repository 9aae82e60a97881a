"""`bfmpipe.make`: Gymnasium's own checks, and the same numbers as the simulation underneath."""

import functools
import subprocess
import sys
import warnings

import numpy as np
import pytest

import bfmpipe
from bfmpipe import plugins
from bfmpipe.envs import make_domain
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.types import UserError

gymnasium = pytest.importorskip("gymnasium", reason="Gymnasium, an extra, is not installed")


def hop(physics, action):
    return np.clip(physics.velocity[:, 1], -1, 1)


def first_task(name):
    return f"{name}/{make_domain(name, {}).task_names[0]}"


@functools.cache
def has_opengl():
    """Whether a picture can be drawn; asked of another process, since some backends end it."""
    code = (
        "import bfmpipe\n"
        "env = bfmpipe.make('point_mass_maze/reach_top_left', render_mode='rgb_array')\n"
        "env.reset()\num_envs.render()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def check(env):
    """Gymnasium's checker, its warnings errors, but that observations have no bounds."""
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unbounded = ".*Box observation space (minimum|maximum) value is -?infinity"
        warnings.filterwarnings("ignore", unbounded)
        check_env(env, skip_render_check=not has_opengl())


@pytest.mark.parametrize("name", plugins.names("envs"))
def test_every_domain_passes_gymnasiums_checker(name):
    check(bfmpipe.make(first_task(name), episode_steps=20))


def test_tasks_of_ones_own_pass_gymnasiums_checker(tmp_path):
    check(bfmpipe.make("walker/hop", reward=hop))
    file = tmp_path / "my_tasks.py"
    file.write_text("def low(physics, action):\n    return -physics.torso_height\n")
    env = bfmpipe.make("walker/low", file=str(file))
    check(env)
    _, info = env.reset(seed=0)
    assert env.step(np.zeros(6))[1] == pytest.approx(-info["physics"][0] - 1.3, abs=0.1)


def play(env, steps, **reset):
    """Observations, rewards and physics states of an episode with seeded actions."""
    obs, info = env.reset(**reset)
    rng = np.random.default_rng(0)
    rows = [(obs, np.zeros(env.observation_space.shape[:-1]), info["physics"])]
    for _ in range(steps):
        action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        obs, reward, terminated, truncated, info = env.step(action)
        rows.append((obs, reward, info["physics"]))
        assert not np.any(terminated)
    return [np.stack(column) for column in zip(*rows, strict=True)], truncated


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_the_numbers_are_those_of_the_simulation():
    env = bfmpipe.make("walker/run", physics_steps=5, episode_steps=30)
    (obs, reward, physics), truncated = play(env, 30, seed=3)
    assert truncated
    domain = make_domain("walker", {"physics_steps": 5})
    (task,) = domain.tasks("all", ["run"], {})
    plain = BatchedEnv(domain, 1, 1)
    starts = domain.start_states(1, np.random.default_rng(3))
    assert np.array_equal(plain.reset(starts)[0], obs[0])
    rng = np.random.default_rng(0)
    for t in range(1, 31):
        action = rng.uniform(-1, 1, (1, 6)).astype(np.float32)
        assert np.array_equal(plain.step(action)[0], obs[t])
        assert np.array_equal(plain.physics[0], physics[t])
        assert domain.relabel(task, physics[t : t + 1], action)[0] == reward[t]


def test_seeds_and_stored_states():
    env = bfmpipe.make("walker/walk", episode_steps=10)
    first, _ = play(env, 10, seed=1)
    assert same(play(env, 10, seed=1)[0], first)
    assert not same(play(env, 10)[0], first)
    assert not same(play(env, 10, seed=2)[0], first)
    assert same(play(env, 10, options={"physics": first[2][0]})[0], first)


def test_an_episode_is_truncated_in_time_and_then_needs_a_reset():
    env = bfmpipe.make("point_mass_maze/reach_top_left", episode_steps=2, target_size=0.1)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(np.zeros(2))
    for _ in range(2):
        env.reset()
        assert [env.step(np.zeros(2))[2:4] for _ in range(2)] == [(False, False), (False, True)]
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(np.zeros(2))


def test_actions_are_clipped_and_settings_reach_domain_and_task():
    env = bfmpipe.make("point_mass_maze/reach_top_left", physics_steps=3, target_size=0.07)
    assert env.domain.config.physics_steps == 3
    assert env.task.settings.target_size == 0.07
    assert env.metadata["render_fps"] == 17
    ends = []
    for size in (1, 9):
        env.reset(seed=0)
        ends.append(env.step(np.full(2, size)))
    assert np.array_equal(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]


def test_gymnasium_makes_copies_by_the_spec():
    env = bfmpipe.make("walker/hop", reward=hop, episode_steps=7)
    copy = env.spec.make()
    assert copy.spec.max_episode_steps == 7
    assert same(play(copy, 7, seed=4)[0], play(env, 7, seed=4)[0])
    text = bfmpipe.make("walker/run", physics_steps=2).spec.to_json()
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(text))
    assert again.unwrapped.domain.config.physics_steps == 2


# many at once


def test_copies_are_the_single_environments_side_by_side():
    many = bfmpipe.make_vec("walker/run", 3, episode_steps=5)
    assert many.observation_space.shape == (3, 24)
    together, truncated = play(many, 5, seed=0)
    assert truncated.tolist() == [True] * 3
    starts = together[2][0]
    assert len(np.unique(starts, axis=0)) == 3
    rng = np.random.default_rng(0)
    actions = [rng.uniform(-1, 1, (3, 6)).astype(np.float32) for _ in range(5)]
    for i in range(3):
        env = bfmpipe.make("walker/run", episode_steps=5)
        env.reset(options={"physics": starts[i]})
        for t, action in enumerate(actions, 1):
            obs, reward, _, _, info = env.step(action[i])
            assert np.array_equal(obs, together[0][t, i])
            assert reward == together[1][t][i]
            assert np.array_equal(info["physics"], together[2][t, i])


def test_the_step_after_the_end_begins_the_next_episodes():
    many = bfmpipe.make_vec("point_mass_maze/reach_top_left", 2, episode_steps=2)
    assert many.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.NEXT_STEP
    with pytest.raises(gymnasium.error.ResetNeeded):
        many.step(many.action_space.sample())
    _, info = many.reset(seed=0, options={"physics": np.zeros((2, 4)) + 0.2})
    assert (info["physics"] == 0.2).all()
    ended = []
    for _ in range(6):
        obs, reward, _, truncated, info = many.step(np.ones((2, 2)))
        ended.append(truncated.tolist())
        assert obs in many.observation_space
    assert ended == [[False] * 2, [True] * 2, [False] * 2] * 2
    assert reward.tolist() == [0, 0]  # the second reset
    assert not info["physics"][:, 2:].any()  # at rest
    assert info["_physics"].all()


def test_a_vector_wrapper_of_gymnasium_works():
    many = bfmpipe.make_vec("point_mass_maze/reach_top_left", 2, episode_steps=3)
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(many)
    wrapped.reset(seed=0)
    for _ in range(3):
        *_, info = wrapped.step(wrapped.action_space.sample())
    assert info["episode"]["l"].tolist() == [3, 3]


# pictures


def test_pictures_show_the_state():
    if not has_opengl():
        pytest.skip("no OpenGL: MUJOCO_GL is disabled, or names a library this machine lacks")
    env = bfmpipe.make("walker/run", render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert (first.shape, first.dtype) == ((240, 320, 3), np.uint8)
    assert first.std() > 10
    assert np.array_equal(env.render(), first)
    env.reset(seed=1)
    assert not np.array_equal(env.render(), first)
    env.close()
    env.close()


def test_without_a_render_mode_there_is_no_picture():
    env = bfmpipe.make("walker/run")
    env.reset(seed=0)
    assert env.render() is None


# mistakes


MISTAKES = [
    (("walker",), {}, "'walker' is not domain/task, such as walker/run; the domains are"),
    (("wlker/run",), {}, r"no 'wlker' in bfmpipe\.envs; it has"),
    (("walker/fly",), {}, "no task 'fly'; walker has stand, walk, run, flip, spin"),
    (("walker/reach_top_left",), {}, "no task 'reach_top_left'; walker has stand"),
    (
        ("point_mass_maze/reach_top_left",),
        {"target_szie": 1},
        "task point_mass_maze/reach_top_left: target_szie is not a setting; did you mean target_s",
    ),
    (("walker/run",), {"physic_steps": 1}, "physic_steps is not a setting; did you mean physics_"),
    (("walker/run",), {"physics_steps": 0}, "physics_steps: 0 should be greater than or equal to"),
    (("walker/run",), {"render_mode": "human"}, "no render_mode 'human'; there are None and rgb_"),
    (("walker/hop",), {"file": "none.py"}, "none.py: no such file"),
    (("walker/run",), {"reward": hop}, "walker has a task 'run' already"),
    (("point_mass_maze/hop",), {"reward": lambda physics, action: action}, "returned the shape"),
]


@pytest.mark.parametrize(("names", "settings", "said"), MISTAKES, ids=[s for *_, s in MISTAKES])
def test_what_cannot_be_made_is_named(names, settings, said):
    with pytest.raises(UserError, match=said) as caught:
        bfmpipe.make(*names, **settings)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_played_is_named():
    env = bfmpipe.make("walker/run")
    for options, said in (
        ({"state": 1}, "options has 'state'; the only one is 'physics'"),
        ({"physics": np.zeros(3)}, r"options\['physics'\] has the shape \(3,\), not \(18,\)"),
        ({"physics": np.full(18, np.nan)}, r"options\['physics'\] holds nan, no finite number"),
        ({"physics": "here"}, r"options\['physics'\] must be numbers of the shape \(18,\)"),
    ):
        with pytest.raises(UserError, match=said):
            env.reset(options=options)
    env.reset()
    for action, said in (
        (np.zeros(3), r"the action has the shape \(3,\), not \(6,\)"),
        (np.full(6, np.nan), "the action holds nan, no finite number"),
    ):
        with pytest.raises(UserError, match=said):
            env.step(action)
    for number in (0, 2.5, "3"):
        with pytest.raises(UserError, match=rf"num_envs is {number!r}; valid: a whole number, 1 "):
            bfmpipe.make_vec("walker/run", number)

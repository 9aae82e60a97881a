"""Tasks of one's own: a function is as good as a built-in reward, and its mistakes are named."""

import mujoco
import numpy as np
import pytest
from dm_control.utils.rewards import tolerance

import bfmpipe
from bfmpipe import plugins
from bfmpipe.adaptation.protocol import Evaluation
from bfmpipe.envs import domain as domain_module
from bfmpipe.envs import make_domain, tasks
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.types import UserError


@pytest.fixture
def walker():
    return make_domain("walker", {})


@pytest.fixture
def maze():
    return make_domain("point_mass_maze", {})


def moving_states(domain, n, seed=0):
    """Physics states with velocities, and actions."""
    rng = np.random.default_rng(seed)
    physics = domain.start_states(n, rng) + 0.3 * rng.normal(size=(n, domain.physics_dim))
    return physics, rng.uniform(-1, 1, (n, domain.action_dim)).astype(np.float32)


def my_run(physics, action):
    """The built-in run, from named quantities."""
    standing = tolerance(physics.torso_height, bounds=(1.2, np.inf), margin=0.6)
    stand = (3 * standing + (1 + physics.torso_upright) / 2) / 4
    return stand * (5 * np.clip(physics.velocity[:, 0] / 8, 0, 1) + 1) / 6


def my_reach(physics, action):
    """The built-in reach_top_left with a target of 10 cm, from named quantities."""
    distance = np.linalg.norm(physics.position - np.array([-0.15, 0.15]), axis=-1)
    near = tolerance(distance, bounds=(0, 0.1), margin=0.1)
    small = tolerance(action, margin=1, value_at_margin=0, sigmoid="quadratic").mean(-1)
    return near * (small + 4) / 5


# what a function is given


def test_a_function_can_say_what_a_built_in_task_says(walker):
    (builtin,) = walker.tasks("all", ["run"], {})
    rows = moving_states(walker, 300)
    own = walker.task_from(my_run)
    assert (own.family, own.name, str(own)) == ("mine", "my_run", "mine/my_run")
    assert np.array_equal(walker.relabel(own, *rows), walker.relabel(builtin, *rows))


def test_walkers_quantities_are_mujocos(walker):
    rows, _ = moving_states(walker, 5)
    physics = walker.Physics(walker, walker.split(rows))
    data = mujoco.MjData(walker.model)
    for i, row in enumerate(rows):
        data.qpos[:], data.qvel[:] = row[:9], row[9:]
        mujoco.mj_forward(walker.model, data)
        mujoco.mj_subtreeVel(walker.model, data)
        expected = {
            "torso_height": data.xpos[1, 2],
            "torso_upright": data.xmat[1, 8],
            "velocity": data.subtree_linvel[1, [0, 2]],
            "angular_momentum": data.subtree_angmom[1, 1],
        }
        assert set(expected) == set(physics.quantities()) - {"qpos", "qvel"}
        for name, value in expected.items():
            np.testing.assert_allclose(getattr(physics, name)[i], value, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("name", plugins.names("envs"))
def test_every_quantity_of_every_domain_has_a_row_a_state_and_cannot_be_written(name):
    domain = make_domain(name, {})
    env = BatchedEnv(domain, 3, 1)
    env.reset(domain.start_states(3, np.random.default_rng(0)))
    physics = env.reached()
    for name in {*physics.quantities(), *domain.fields}:
        value = getattr(physics, name)
        assert len(value) == 3
        assert value.dtype == np.float64
        if value.size:
            with pytest.raises(ValueError, match="read-only"):
                value[0] = 1
    assert all(getattr(type(physics), name).__doc__ for name in physics.quantities())
    env.step(np.zeros((3, domain.action_dim)))  # the simulation can still write


def test_a_quantity_is_computed_when_it_is_asked_for_and_once(walker, monkeypatch):
    calls = []
    right = type(walker.tree).velocity
    monkeypatch.setattr(
        type(walker.tree), "velocity", lambda *args: calls.append(1) or right(*args)
    )
    rows, _ = moving_states(walker, 5)
    physics = walker.Physics(walker, walker.split(rows))
    assert physics.torso_height.shape == (5,)
    assert not calls
    assert physics.velocity is physics.velocity
    assert len(calls) == 1


@pytest.mark.parametrize("name", plugins.names("envs"))
@pytest.mark.parametrize("rows", [slice(2, 5), np.array([4, 0, 4])])
def test_what_some_rows_are_asked_for_is_their_share_of_all(name, rows):
    domain = make_domain(name, {})
    states, _ = moving_states(domain, 6)
    whole = domain.Physics(domain, domain.split(states))
    part, alone = whole.rows(rows), domain.Physics(domain, domain.split(states[rows]))
    for quantity in {*whole.quantities(), *domain.fields}:
        assert np.array_equal(getattr(part, quantity), getattr(alone, quantity)), quantity
        with pytest.raises(ValueError, match="read-only"):
            getattr(part, quantity)[:1] = 1
    assert part.rows(slice(1, 2)).qpos.tolist() == alone.qpos[1:2].tolist()


def test_rows_of_the_same_states_compute_a_quantity_once_for_all(walker, monkeypatch):
    calls = []
    right = type(walker.tree).centres
    monkeypatch.setattr(type(walker.tree), "centres", lambda *args: calls.append(1) or right(*args))
    states, action = moving_states(walker, 8)
    physics = walker.Physics(walker, walker.split(states))
    for i, task in enumerate(walker.tasks("all", ["walk", "run", "flip", "spin"], {})):
        rows = slice(2 * i, 2 * i + 2)
        reward = task.reward(walker, physics.rows(rows), action[rows])
        assert np.array_equal(reward, walker.relabel(task, states[rows], action[rows]))
    assert len(calls) == 1 + 4  # and once a task by itself


# stepping and relabelling


@pytest.mark.parametrize(("name", "function"), [("walker", my_run), ("point_mass_maze", my_reach)])
def test_stepping_and_relabelling_agree_bit_for_bit(name, function, monkeypatch):
    domain = make_domain(name, {})
    task = domain.task_from(function)
    monkeypatch.setattr(domain_module, "_BLOCK", 7)
    env, rng = BatchedEnv(domain, 16, 2), np.random.default_rng(1)
    env.reset(domain.exploration_states(16, rng))
    for _ in range(20):
        action = rng.uniform(-1, 1, (16, domain.action_dim)).astype(np.float32)
        env.step(action)
        stepped = task.reward(domain, env.reached(), action)
        assert np.array_equal(stepped, domain.relabel(task, env.physics, action))


def test_rewards_are_copies_in_double_precision(maze):
    task = maze.task_from(lambda physics, action: physics.qpos[:, 0], name="east")
    env = BatchedEnv(maze, 2, 1)
    env.reset(maze.start_states(2, np.random.default_rng(0)))
    reward = task.reward(maze, env.reached(), np.zeros((2, 2), np.float32))
    before = reward.copy()
    for _ in range(5):
        env.step(np.ones((2, 2)))
    assert np.array_equal(reward, before)
    sparse = maze.task_from(lambda physics, action: physics.position[:, 0] > -0.2, name="sparse")
    reward = sparse.reward(maze, env.reached(), np.zeros((2, 2), np.float32))
    assert reward.dtype == np.float64
    assert set(reward) <= {0.0, 1.0}


def test_inference_and_adaptation_take_it_as_they_take_a_built_in_task(tiny):
    pretrained = bfmpipe.load(tiny.model)
    data = bfmpipe.read_transitions(tiny.dataset)
    domain = pretrained.domain
    both = [
        *domain.tasks("reach", ["reach_top_left"], {"target_size": 0.1}),
        domain.task_from(my_reach),
    ]
    found = []
    for task in both:
        latent = bfmpipe.infer(pretrained, [task], data)
        points = bfmpipe.adapt(
            pretrained,
            [task],
            latent,
            data,
            method="lola",
            episodes=4,
            every=2,
            evaluation=Evaluation(episodes=3),
            settings={"states": 2, "latents": 2, "horizon": 5},
        )
        found.append([latent.z.numpy(), *(point.returns for point in points)])
    assert len(found[0]) == 4
    for builtin, own in zip(*found, strict=True):
        assert np.array_equal(builtin, own)


# mistakes of a function


def writes_to_physics(physics, action):
    physics.qpos[:] = 0


def writes_to_actions(physics, action):
    action *= 2


def calls_exit(physics, action):
    raise SystemExit(0)


def says_two_lines(physics, action):
    raise RuntimeError("one\n  two")


HERE = rf"task mine/x \({__file__}"
ROWS = "; a reward is a NumPy array of 8 numbers here, one a state"
MISTAKES = [
    (lambda physics, action: physics.qpos, rf"returned the shape \(8, 2\), not \(8,\){ROWS}"),
    (lambda physics, action: physics.qpos[:1, 0], rf"returned the shape \(1,\), not \(8,\){ROWS}"),
    (lambda physics, action: 1.0, f"returned a float{ROWS}"),
    (lambda physics, action: list(action[:, 0]), f"returned a list{ROWS}"),
    (lambda physics, action: None, f"returned a NoneType{ROWS}"),
    (lambda physics, action: action[:, 0].astype(str), f"returned the type <U32{ROWS}"),
    (lambda physics, action: action[:, 0] * 1j, f"returned the type complex128{ROWS}"),
    (lambda physics, action: action[:, 0] * np.nan, "returned nan for 8 of 8 states; every reward"),
    (lambda physics, action: np.where(action[:, 0] > 0, np.inf, 0), r"returned inf for \d of 8"),
    (
        lambda physics, action: physics.torso_height,
        "raised AttributeError: physics of point_mass_maze has no 'torso_height'; it has qpos, "
        "qvel, position, velocity$",
    ),
    (lambda physics, action: len(action) // 0, "raised ZeroDivisionError: integer division"),
    (says_two_lines, "raised RuntimeError: one two$"),
    (calls_exit, "raised SystemExit: 0"),
    (writes_to_physics, "raised ValueError: .*read-only; a reward must not write to what it is"),
    (writes_to_actions, "raised ValueError: .*read-only; a reward must not write to what it is"),
    (lambda physics, action: np.random.rand(len(action)), "gave the same states other rewards"),  # noqa: NPY002
    (
        lambda physics, action: physics.qpos[:, 0] - physics.qpos[:, 0].mean(),
        "the reward of a state depends on the states beside it",
    ),
]


@pytest.mark.parametrize(("function", "said"), MISTAKES, ids=[said[:30] for _, said in MISTAKES])
def test_a_mistake_of_a_function_is_named_before_it_is_used(maze, function, said):
    place = rf"{HERE}, line \d+" if "raised" in said else HERE
    with pytest.raises(UserError, match=rf"^domain point_mass_maze: {place}\): {said}") as caught:
        maze.task_from(function, name="x")
    assert "\n" not in str(caught.value)


def test_the_line_is_the_functions_own(maze):
    with pytest.raises(UserError) as caught:
        maze.task_from(says_two_lines, name="x")
    line = says_two_lines.__code__.co_firstlineno + 1
    assert f"{__file__}, line {line}): raised" in str(caught.value)


def test_what_cannot_be_called_is_refused(maze):
    with pytest.raises(UserError, match=r"x\(physics\) cannot be called as x\(physics, action\)"):
        maze.task_from(lambda physics: physics.qpos[:, 0], name="x")
    with pytest.raises(UserError, match="the reward 'x' is an int, not a function"):
        maze.task_from(3, name="x")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reach_top_left", "point_mass_maze has a task 'reach_top_left' already; give the"),
        ("to the left", "'to the left' is no name for a task"),
        ("", "'<lambda>' is no name for a task"),
    ],
)
def test_a_name_must_be_free_and_a_name(maze, name, said):
    with pytest.raises(UserError, match=said):
        maze.task_from(lambda physics, action: action[:, 0], name=name)


def test_a_mistake_that_shows_later_ends_the_job_with_a_sentence_and_nothing_written(
    tiny, tmp_path
):
    file = tmp_path / "later.py"
    # no start state is that far right; some of the data set are
    file.write_text(
        "import numpy as np\n"
        "def far(physics, action):\n"
        "    return np.where(physics.position[:, 0] > 0.27, np.nan, 0.5)\n"
    )
    families = {"families": {"mine": {"file": str(file), "names": ["far"]}}}
    out = tmp_path / "out"
    with pytest.raises(UserError, match=rf"^task mine/far \({file}\): returned nan for \d+ of \d+"):
        tiny.run(
            "infer",
            settings=tiny.settings("infer", tasks=families, inference={"samples": 10**6}),
            model=tiny.model,
            dataset=tiny.dataset,
            latents=out / "latents.parquet",
        )
    assert not out.exists()


# files


GOOD = '''"""Two tasks."""
from dataclasses import dataclass

import numpy as np

@dataclass
class Target:
    x: "np.ndarray"

def _near(physics, x):
    return np.exp(-np.abs(physics.position[:, 0] - Target(x).x))

def left(physics, action):
    """Far left."""
    return _near(physics, -0.2)  # metres

def right(physics, action):
    return _near(physics, 0.2)
'''


def from_file(domain, file, names=("left",), **settings):
    return domain.tasks("mine", list(names), {"file": str(file), **settings})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my_tasks.py"
    path.write_text(GOOD)
    return path


def test_functions_of_a_file(maze, file):
    left, right = from_file(maze, file, ["left", "right"], digest=tasks.digest(file))
    assert (left.name, right.name, left.settings.file) == ("left", "right", str(file))
    physics, action = np.array([[-0.2, 0, 0, 0], [0.2, 0, 0, 0]]), np.zeros((2, 2))
    assert maze.relabel(left, physics, action).tolist() == [1, np.exp(-0.4)]
    assert maze.relabel(right, physics, action).tolist() == [np.exp(-0.4), 1]


def test_an_edited_file_is_read_again(maze, file):
    from_file(maze, file)
    file.write_text(GOOD.replace("-0.2)", "-0.1)"))
    (task,) = from_file(maze, file)
    assert maze.relabel(task, np.array([[-0.1, 0, 0, 0]]), np.zeros((1, 2)))[0] == 1


def test_a_digest_is_of_the_code_and_of_nothing_else(file):
    before = tasks.digest(file)
    for old, new in (("  # metres", ""), ("Far left", "To the left"), ("\n\n", "\n\n\n")):
        file.write_text(GOOD.replace(old, new))
        assert tasks.digest(file) == before
    file.write_text(GOOD.replace("0.2)\n", "0.3)\n"))
    assert tasks.digest(file) != before


FILE_MISTAKES = [
    ("def left(physics, action)\n    pass", "my_tasks.py: line 1: is not Python: expected ':'"),
    ("return 1", "my_tasks.py: line 1: is not Python: 'return' outside function"),
    ("x = '\0'", "my_tasks.py: is not Python: "),
    ("import nonesuch", "my_tasks.py, line 1: raised ModuleNotFoundError: No module named 'none"),
    ("\n1 / 0", "my_tasks.py, line 2: raised ZeroDivisionError: division by zero"),
    ("import sys\nsys.exit(0)", "my_tasks.py, line 2: raised SystemExit: 0"),
    ("", "my_tasks.py has no function 'left'; it has none"),
    ("left = 3\nfrom math import sqrt\n_x = lambda p, a: a", "has no function 'left'; it has none"),
    (GOOD.replace("left", "lift"), "my_tasks.py has no function 'left'; it has lift, right"),
]


@pytest.mark.parametrize(("text", "said"), FILE_MISTAKES, ids=[s[:40] for _, s in FILE_MISTAKES])
def test_a_mistake_of_a_file_is_named(maze, tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_tasks.py").write_text(text)
    with pytest.raises(UserError) as caught:
        from_file(maze, "my_tasks.py")
    assert str(caught.value).startswith("domain point_mass_maze: task family mine: my_tasks.py")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_directory_are_named(maze, tmp_path):
    with pytest.raises(UserError, match=r"none.py: no such file; it should be Python with a"):
        from_file(maze, tmp_path / "none.py")
    with pytest.raises(UserError, match=f"{tmp_path}: cannot be read: Is a directory"):
        from_file(maze, tmp_path)


def test_neighbours_of_a_file_are_not_imported(maze, tmp_path):
    (tmp_path / "helpers.py").write_text("x = 1\n")
    path = tmp_path / "my_tasks.py"
    path.write_text("import helpers\n")
    with pytest.raises(UserError, match="may import installed packages, and none of its neighb"):
        from_file(maze, path)


def test_a_file_that_changed_is_refused_where_the_digest_is_given(maze, file):
    digest = tasks.digest(file)
    file.write_text(GOOD.replace("0.2)\n", "0.3)\n"))
    with pytest.raises(UserError, match=rf"my_tasks.py has changed: .*, not {digest} as these"):
        from_file(maze, file, digest=digest)


def test_other_settings_and_built_in_names_are_refused(maze, walker, file):
    with pytest.raises(UserError, match=r"target_size is not a setting; valid: file, digest"):
        from_file(maze, file, target_size=0.1)
    with pytest.raises(UserError, match="has no function 'reach_top_left'; it has left, right"):
        from_file(maze, file, ["reach_top_left"])
    file.write_text(GOOD.replace("left", "reach_top_left"))
    with pytest.raises(UserError, match="point_mass_maze has a task 'reach_top_left' already"):
        from_file(maze, file, ["reach_top_left"])
    with pytest.raises(UserError, match="physics of walker has no 'position'; it has qpos"):
        from_file(walker, file, ["right"])

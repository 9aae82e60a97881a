"""The library as its docstring shows it, and what it refuses."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import bfmpipe
from bfmpipe import api
from bfmpipe.adaptation import random_search
from bfmpipe.adaptation.protocol import Evaluation, start_states
from bfmpipe.agents import AgentConfig, Model
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.inference import Inference
from bfmpipe.types import UserError

DOCS = Path(__file__).parents[1] / "docs"
LOLA = {"states": 2, "latents": 2, "horizon": 5}


@pytest.fixture
def pretrained(tiny):
    return bfmpipe.load(tiny.model)


@pytest.fixture
def data(tiny):
    return bfmpipe.read_transitions(tiny.dataset)


@pytest.fixture
def tasks(pretrained):
    names = ["reach_top_left", "reach_bottom_right"]
    return pretrained.domain.tasks("reach", names, {"target_size": 0.1})


class Pusher(Model):
    """A model of the maze by hand: phi(s) is the position, and pi(s, z) pushes along z."""

    inference_weights = "least-squares"

    def __init__(self):
        super().__init__(AgentConfig(z_dim=2, discount=0.9, stride=1, batch=2), 4, 2)

    def phi(self, obs):
        return obs[:, :2]

    def psi(self, obs, action, z):
        return obs[None, :, :2]

    def actor(self, obs, z):
        return 0.7 * z / z.norm(dim=-1, keepdim=True)


@pytest.fixture
def pusher(pretrained):
    return api.Pretrained(Pusher(), pretrained.domain)


@pytest.mark.parametrize(
    ("function", "given", "said"),
    [
        # without its heads psi would be averaged over the states
        ("psi", (2, 2), r"psi gives the shape \(2, 2\) for 2 rows; valid: \(heads, 2, 2\)"),
        ("psi", (3, 1, 2), r"psi gives the shape \(3, 1, 2\) for 2 rows"),
        ("phi", (2, 4), r"phi gives the shape \(2, 4\) for 2 rows; valid: \(2, 2\)"),
        ("actor", (2, 1), r"actor gives the shape \(2, 1\) for 2 rows; valid: \(2, 2\)"),
    ],
)
def test_a_model_of_other_shapes_is_refused(pretrained, monkeypatch, function, given, said):
    monkeypatch.setattr(Pusher, function, lambda *_: torch.zeros(given))
    with pytest.raises(UserError, match=rf"test_api\.Pusher: {said}"):
        api.Pretrained(Pusher(), pretrained.domain)


def test_a_model_of_another_domain_is_refused():
    with pytest.raises(UserError, match="a model of 4 observations and 2 actions; walker has"):
        api.Pretrained(Pusher(), bfmpipe.make_domain("walker", {}))


OWN_MODEL = re.findall(
    r"```python\n(.*?)```",
    DOCS.joinpath("agents.md").read_text().partition("## A model made elsewhere")[2],
    re.DOTALL,
)[:3]


def test_a_model_of_ones_own_as_the_documentation_has_it(tasks, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    module, use, save = OWN_MODEL
    done = {"__name__": "my_fb"}
    exec(module, done)
    torch.save(done["Model"](done["Config"](), 4, 2).net.state_dict(), "my_fb.pt")
    exec(use, done)
    own = done["pretrained"]
    latent = bfmpipe.infer(own, tasks, data)
    assert latent.w.shape == latent.z.shape == (2, 32)
    settings = {"method": "lola", "episodes": 1, "evaluation": Evaluation(episodes=2)}
    points = list(bfmpipe.adapt(own, tasks, latent, data, settings=LOLA, **settings))
    assert points[-1].env_steps > 0
    assert bfmpipe.roam(own, episodes=1).domain == "point_mass_maze"
    exec(save, done)
    card = json.loads(Path("my_fb/seed0/config.json").read_text())
    assert (card["agent"], card["config"]["z_dim"]) == ("my_fb", 32)


def adapt(pretrained, tasks, data, **changed):
    latent = bfmpipe.infer(pretrained, tasks, data)
    arguments = {
        "method": "lola",
        "episodes": 4,
        "every": 2,
        "settings": LOLA,
        "evaluation": Evaluation(episodes=3),
    }
    return list(bfmpipe.adapt(pretrained, tasks, latent, data, **{**arguments, **changed}))


def test_load_infer_adapt(pretrained, tasks, data):
    latent = bfmpipe.infer(pretrained, tasks, data)
    assert latent.w.shape == latent.z.shape == (2, 6)
    points = adapt(pretrained, tasks, data)
    assert [point.env_steps for point in points] == [0, 40, 80]
    assert all(point.returns.shape == (2, 3) for point in points)
    assert torch.equal(torch.from_numpy(points[0].z), latent.z)
    assert not np.array_equal(points[-1].z, points[0].z)


def test_adaptation_leaves_model_latents_and_data_as_they_are(pretrained, tasks, data):
    latent = bfmpipe.infer(pretrained, tasks, data)
    before = {name: t.clone() for name, t in pretrained.model.state_dict().items()}
    z, physics = latent.z.clone(), np.array(data.physics)
    list(api.adapt(pretrained, tasks, latent, data, method="lola", episodes=4, settings=LOLA))
    assert all(torch.equal(t, before[n]) for n, t in pretrained.model.state_dict().items())
    assert torch.equal(latent.z, z)
    np.testing.assert_array_equal(data.physics, physics)


def test_the_library_and_the_stage_agree(pretrained, tasks, data, tiny, tmp_path):
    from bfmpipe.data.tables import read_table

    settings = tiny.settings("adapt", every=2)
    files = {"curves": [tmp_path / "c.parquet"], "trajectories": [tmp_path / "t.parquet"]}
    tiny.run(
        "adapt",
        settings=settings,
        model=[tiny.model],
        dataset=tiny.dataset,
        latents=[tiny.latents],
        **files,
    )
    latent = api.infer(pretrained, tasks, data, inference=api.Inference(samples=300))
    points = api.adapt(
        pretrained,
        tasks,
        latent,
        data,
        method="lola",
        episodes=4,
        every=2,
        evaluation=Evaluation(episodes=3),
        settings=LOLA,
    )
    curves, _ = read_table(*files["curves"], "adaptation")
    np.testing.assert_array_equal(curves["returns"], np.concatenate([p.returns for p in points]))


def test_evaluations_come_lazily(pretrained, tasks, data):
    latent = bfmpipe.infer(pretrained, tasks, data)
    running = api.adapt(
        pretrained, tasks, latent, data, method="lola", episodes=10**9, settings=LOLA
    )
    assert next(running).env_steps == 0  # ten centuries of adaptation have not been waited for


def test_importing_the_package_does_not_import_torch():
    code = "import bfmpipe, sys; assert 'torch' not in sys.modules; assert bfmpipe.adapt"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'adpat'"):
        _ = bfmpipe.adpat  # type: ignore[attr-defined]


def test_a_model_that_does_not_fit_its_domain_is_refused(tmp_path):
    from bfmpipe.agents import fb, save_model

    model = fb.Model(fb.Config(z_dim=2, hidden_dim=4, backward_hidden_dim=4), 3, 2)
    save_model(tmp_path, model, {"agent": "fb", "domain": "point_mass_maze", "domain_settings": {}})
    with pytest.raises(UserError) as caught:
        bfmpipe.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: a model of 3 observations and 2 actions; point_mass_maze has 4 and 2"
    )


@pytest.mark.parametrize("name", ["domain", "domain_settings"])
def test_a_card_without_a_domain_is_refused(edit_card, name):
    directory = edit_card(**{name: None})
    with pytest.raises(UserError) as caught:
        bfmpipe.load(directory)
    assert str(caught.value) == f"{directory}: config.json does not say the model's {name}"


@pytest.mark.parametrize("name", ["domain", "domain_settings"])
def test_a_card_with_an_empty_domain_is_refused(model_copy, name):
    path = model_copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: None}))
    with pytest.raises(UserError, match=f"config.json does not say the model's {name}"):
        bfmpipe.load(model_copy)


def test_a_card_with_an_unknown_domain_is_refused(edit_card):
    with pytest.raises(UserError, match=r"no 'walkre' in bfmpipe\.envs; it has"):
        bfmpipe.load(edit_card(domain="walkre"))


def test_data_of_another_domain_are_refused(pretrained, tasks, data):
    latent = bfmpipe.infer(pretrained, tasks, data)
    other = replace(data, domain="walker")
    said = "the data set is of walker, the model of point_mass_maze"
    with pytest.raises(UserError, match=said):
        bfmpipe.infer(pretrained, tasks, other)
    with pytest.raises(UserError, match=said):
        api.adapt(pretrained, tasks, latent, other, method="zero-shot", episodes=1)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"method": "loal"}, "no 'loal' in bfmpipe.adaptation; it has "),
        ({"settings": {"sigam": 1.0}}, "method lola: sigam is not a setting; did you mean sigma?"),
        ({"settings": {"sigma": "1e-1"}}, "(YAML reads 1e-1 as a string; write 1.0e-1)"),
        ({"settings": {}}, "lola: a budget of 80 environment steps is too small"),
        ({"every": 0}, "every is 0; valid: a whole number, 1 or more"),
        ({"every": True}, "every is True; valid: a whole number, 1 or more"),
        ({"episodes": 64.5}, "episodes is 64.5; valid: a whole number, 1 or more"),
        ({"episodes": "4"}, "episodes is '4'; valid: a whole number, 1 or more"),
    ],
)
def test_bad_requests_are_refused(pretrained, tasks, data, changed, said):
    with pytest.raises(UserError) as caught:
        adapt(pretrained, tasks, data, **changed)
    assert said in str(caught.value)


def test_numbers_of_numpy_are_numbers(pretrained, tasks, data):
    points = adapt(pretrained, tasks, data, episodes=np.int64(4), every=np.int32(2))
    assert [point.env_steps for point in points] == [0, 40, 80]


def test_what_is_no_list_of_tasks_is_refused(pretrained, tasks, data):
    latent = bfmpipe.infer(pretrained, tasks, data)
    walker = bfmpipe.make_domain("walker", {}).tasks("a", ["run"], {})
    for given, said in (
        (tasks[0], "tasks is the task reach/reach_top_left, alone; valid: a list of tasks"),
        ("reach_top_left", "tasks is 'reach_top_left', alone; valid: a list of tasks, such as"),
        (None, "tasks is None, alone; valid"),
        (["reach_top_left"], "tasks holds 'reach_top_left', which is no task; valid: a list of"),
        ([], "tasks is empty; valid: a list of tasks"),
        (walker, "task a/run is none of point_mass_maze's, which has reach_top_left, "),
    ):
        for ask in (
            lambda given: bfmpipe.infer(pretrained, given, data),
            lambda given: bfmpipe.adapt(
                pretrained, given, latent, data, method="zero-shot", episodes=1
            ),
        ):
            with pytest.raises(UserError) as caught:
                ask(given)
            assert str(caught.value).startswith(said)


def test_a_latent_of_another_shape_than_the_tasks_is_refused(pretrained, tasks, data):
    latent = bfmpipe.infer(pretrained, tasks, data)
    other = latent._replace(w=latent.w[:, :3])
    one = bfmpipe.infer(pretrained, tasks[:1], data)
    for wrong, said in (
        (one, r"latent\.w has the shape \(1, 6\); valid: \(2, 6\), a row a task"),
        (other, r"latent\.w has the shape \(2, 3\); valid: \(2, 6\)"),
        (latent._replace(z=latent.z[0]), r"latent\.z has the shape \(6,\); valid: \(2, 6\)"),
    ):
        with pytest.raises(UserError, match=said):
            bfmpipe.adapt(pretrained, tasks, wrong, data, method="zero-shot", episodes=1)


def test_unknown_tasks_and_task_settings_are_refused(pretrained):
    domain = pretrained.domain
    with pytest.raises(UserError, match="no task 'reach_roof'; point_mass_maze has reach_top"):
        domain.tasks("reach", ["reach_roof"], {})
    with pytest.raises(UserError, match="target_szie is not a setting; did you mean target_size"):
        domain.tasks("reach", ["reach_top_left"], {"target_szie": 0.1})


@pytest.mark.parametrize(("given", "expected"), [("3", 3), ("1", 1)])
def test_threads_are_those_that_snakemake_gives(monkeypatch, given, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert api.threads() == expected


@pytest.mark.parametrize("given", ["", "0", "many"])
def test_threads_are_one_a_core_where_nothing_sensible_is_given(monkeypatch, given):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert api.threads() >= 1


def test_the_card_is_what_config_json_says(pretrained, tiny):
    assert pretrained.card == json.loads((tiny.model / "config.json").read_text())


# Other ways to ask than by rewards, and what is played.


def starts_of(pretrained, n=3):
    return start_states(pretrained.domain, Evaluation(episodes=n))


def test_a_played_latent_is_what_the_protocol_evaluates(pretrained, tasks, data):
    latent = bfmpipe.infer(pretrained, tasks, data)
    (point,) = adapt(pretrained, tasks, data, method="zero-shot", settings={})
    domain = pretrained.domain
    for i, task in enumerate(tasks):
        played = bfmpipe.play(pretrained, latent.z[i], starts_of(pretrained))
        np.testing.assert_allclose(played.physics, point.physics[:, i], rtol=1e-4, atol=1e-5)
        rewards = domain.relabel(
            task, played.physics[1:].reshape(-1, domain.physics_dim), played.action.reshape(-1, 2)
        )
        returns = rewards.reshape(-1, 3).sum(0)
        np.testing.assert_allclose(returns, point.returns[i], rtol=1e-3, atol=1e-4)


def test_what_is_played_is_what_the_policy_does(pretrained):
    starts = starts_of(pretrained)
    z = torch.full((6,), 1.0)
    played = bfmpipe.play(pretrained, z, starts)
    steps, domain = pretrained.domain.config.episode_steps, pretrained.domain
    assert played.physics.shape == (steps + 1, 3, 4)
    assert played.obs.shape == (steps + 1, 3, 4)
    assert played.action.shape == (steps, 3, 2)
    np.testing.assert_array_equal(played.physics[0], starts)
    for t in range(steps):
        np.testing.assert_array_equal(
            played.obs[t], domain.observe(domain.split(played.physics[t]))
        )
        action = pretrained.model.actor(torch.from_numpy(played.obs[t]), z.expand(3, -1))
        np.testing.assert_allclose(played.action[t], action.detach(), rtol=1e-5, atol=1e-6)
    env = BatchedEnv(domain, 3, 1)
    env.reset(starts)
    for t in range(steps):
        env.step(played.action[t])
        np.testing.assert_array_equal(env.physics, played.physics[t + 1])


def test_a_sequence_plays_one_latent_a_step(pusher):
    starts = starts_of(pusher)
    z = torch.tensor([[1.0, 1.0]] * 4 + [[-1.0, 0.0]] * 3)
    played = bfmpipe.play(pusher, z, starts)
    assert played.physics.shape == (8, 3, 4)
    expected = [[0.7 / 2**0.5] * 2] * 4 + [[-0.7, 0.0]] * 3
    np.testing.assert_allclose(played.action[:, 1], expected, rtol=1e-6)
    first = bfmpipe.play(pusher, z[:4], starts)
    np.testing.assert_array_equal(first.physics, played.physics[:5])
    constant = bfmpipe.play(pusher, z[0].expand(20, 2), starts)
    fixed = bfmpipe.play(pusher, z[0], starts)
    np.testing.assert_array_equal(constant.physics, fixed.physics)


def test_no_step_leaves_the_start(pusher):
    played = bfmpipe.play(pusher, torch.ones(0, 2), starts_of(pusher))
    assert played.physics.shape == (1, 3, 4)
    assert played.action.shape == (0, 3, 2)


@pytest.mark.parametrize("direction", [(1.0, 0.0), (-0.6, 0.8), (0.0, -1.0)])
def test_a_reward_of_going_somewhere_is_inferred_and_played(pusher, data, direction):
    """r = u^T (x, y) + 3 is in the span of the features and a constant: w = u, and pi goes along u.

    What it does the best of all directions is to climb r, wherever no wall is in the way.
    """
    u = np.array(direction)
    domain = pusher.domain
    task = domain.task_from(lambda physics, action: physics.position @ u + 3, name="climb")
    latent = bfmpipe.infer(pusher, [task], data, inference=Inference(centred=True))
    np.testing.assert_allclose(latent.w[0], u, atol=1e-5)
    middle_of_a_room = np.array([[-0.15, 0.15, 0.0, 0.0]])

    def climbed(z):
        path = bfmpipe.play(pusher, z.expand(8, 2), middle_of_a_room).physics[:, 0, :2]
        return (path[-1] - path[0]) @ u

    best = climbed(latent.z[0])
    assert best > 0.005
    for angle in np.linspace(0.3, 2 * np.pi - 0.3, 8):
        turn = torch.tensor(
            [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=torch.float32
        )
        assert climbed(turn @ latent.z[0]) < best


def test_a_model_roams_in_its_domain(pusher):
    """Each row is what the action before led to; a latent acts until the next one is drawn."""
    domain, steps = pusher.domain, 20
    data = bfmpipe.roam(pusher, episodes=5, latent_steps=8, num_envs=2)
    assert (data.domain, data.domain_settings) == (domain.name, domain.config.model_dump())
    np.testing.assert_array_equal(data.episode, np.repeat(range(5), steps + 1))
    np.testing.assert_array_equal(data.step, np.tile(range(steps + 1), 5))
    columns = (data.obs, data.action, data.physics)
    assert [column.dtype for column in columns] == ["float32", "float32", "float64"]
    obs, action, physics = (column.reshape(5, steps + 1, -1) for column in columns)
    env = BatchedEnv(domain, 5, 1)
    np.testing.assert_array_equal(env.reset(physics[:, 0]), obs[:, 0])
    for t in range(steps):
        np.testing.assert_array_equal(env.step(action[:, t]), obs[:, t + 1])
        np.testing.assert_array_equal(env.physics, physics[:, t + 1])
    assert not action[:, -1].any()
    np.testing.assert_allclose(np.linalg.norm(action[:, :-1], axis=-1), 0.7, rtol=1e-6)
    turns = (np.diff(action[:, :-1], axis=1) != 0).any(-1)
    expected = np.isin(np.arange(1, steps), (8, 16))
    np.testing.assert_array_equal(turns, np.tile(expected, (5, 1)))
    latents = action[:, :-1:8].reshape(15, -1)
    assert len(np.unique(latents, axis=0)) == 15
    # where exploration begins, in all rooms
    starts = domain.split(physics[:, 0])
    assert not starts["qvel"].any()
    assert len(np.unique(np.sign(starts["qpos"]), axis=0)) > 1


def test_a_seed_says_where_a_model_roams(pusher):
    def actions(seed, **settings):
        return bfmpipe.roam(pusher, episodes=3, seed=seed, **settings).action

    np.testing.assert_array_equal(actions(4), actions(4))
    assert not np.array_equal(actions(4), actions(5))
    noisy = actions(4, noise_std=0.5)
    np.testing.assert_array_equal(noisy, actions(4, noise_std=0.5))
    off = (noisy - actions(4)).reshape(3, 21, 2)[:, :-1]
    inside = np.abs(noisy.reshape(3, 21, 2)[:, :-1]) < 1
    assert 0.3 < np.std(off[inside]) < 0.5
    assert np.abs(noisy).max() == 1


def test_what_a_model_made_is_inferred_from(pretrained, tasks):
    data = bfmpipe.roam(pretrained, episodes=20)
    (_, last) = adapt(pretrained, tasks, data, episodes=2)
    assert last.env_steps == 40


def test_how_a_model_cannot_roam(pretrained):
    for settings, said in (
        ({"episodes": 0}, "episodes is 0; valid: a whole number, 1 or more"),
        ({"episodes": 2, "latent_steps": 1.5}, "latent_steps is 1.5; valid: a whole number, 1"),
        ({"episodes": 2, "num_envs": -1}, "num_envs is -1; valid: a whole number, 1"),
        ({"episodes": 2, "noise_std": -0.1}, "roam: noise_std: -0.1 should be greater than or"),
        ({"episodes": 2, "seed": "x"}, "roam: seed: 'x' is text, not a whole number"),
    ):
        with pytest.raises(UserError) as caught:
            bfmpipe.roam(pretrained, **settings)
        assert str(caught.value).startswith(said)


def test_a_motion_is_tracked(pusher):
    """Round a corner: the latents turn before the motion does, and the policy with them."""
    right, up = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    frames = np.concatenate([np.tile([*right, 0, 0], (12, 1)), np.tile([*up, 0, 0], (12, 1))])
    z = bfmpipe.infer_tracking(pusher, frames, window=4, inference=Inference(weights="expectation"))
    assert z.shape == (24, 2)
    angle = torch.rad2deg(torch.atan2(z[:, 1], z[:, 0]))
    turning = np.degrees(np.arctan2([1, 2, 3], [3, 2, 1]))
    np.testing.assert_allclose(angle, [0] * 9 + [*turning] + [90] * 12, atol=1e-3)
    path = bfmpipe.play(pusher, z, np.array([[-0.2, 0.1, 0.0, 0.0]])).physics[:, 0, :2]
    (dx1, dy1), (dx2, dy2) = path[9] - path[0], path[-1] - path[15]
    assert dx1 > 10 * abs(dy1)
    assert dy2 > 2 * abs(dx2)  # it still rolls to the right


def test_goals_are_inferred_from_arrays_as_from_tensors(pretrained, data):
    goals = data.obs[[5, 77]]
    latent = bfmpipe.infer_goal(pretrained, goals)
    assert latent.w.shape == latent.z.shape == (2, 6)
    w = pretrained.model.phi(torch.from_numpy(goals))
    torch.testing.assert_close(latent.w, w)
    again = bfmpipe.infer_goal(pretrained, torch.from_numpy(goals).double())
    assert torch.equal(latent.z, again.z)


def test_a_goal_by_least_squares_reads_the_states_that_training_reached(pusher, data):
    """All of them: C of the positions, by a plain mean."""
    goals = data.obs[[5]]
    w = bfmpipe.infer_goal(pusher, goals, data).w
    x = data.obs[data.index + 1][:, :2].astype(np.float64)
    expected = np.linalg.solve(x.T @ x / len(x), goals[0, :2].astype(np.float64))
    np.testing.assert_allclose(w[0], expected, rtol=1e-5)
    some = [
        bfmpipe.infer_goal(pusher, goals, data, inference=Inference(samples=50), seed=seed).w
        for seed in (0, 0, 1)
    ]
    assert torch.equal(some[0], some[1])
    assert not torch.equal(some[0], some[2])


def test_what_was_observed_in_the_data_stands_beside_its_states(
    pretrained, tasks, data, tiny, monkeypatch
):
    latent = bfmpipe.infer(pretrained, tasks, data)
    given, init = [], random_search.Method.__init__

    def made(self, config, problem, seeds):
        given.append(problem)
        init(self, config, problem, seeds)

    monkeypatch.setattr(random_search.Method, "__init__", made)
    how = {"method": "random-search", "episodes": 4, "every": 4, "settings": LOLA}
    list(bfmpipe.adapt(pretrained, tasks, latent, data, **how))
    (problem,) = given
    domain = pretrained.domain
    seen = problem.seen(np.arange(len(problem.visited))).numpy()
    np.testing.assert_array_equal(seen, domain.observe(domain.split(problem.visited)))
    assert api.columns_of("random-search") == ("obs", "physics")
    assert api.columns_of("lola") == ("physics",)
    states = bfmpipe.read_transitions(tiny.dataset, api.columns_of("lola"))
    with pytest.raises(UserError, match="column 'obs' of the data set was not read; name it in"):
        list(bfmpipe.adapt(pretrained, tasks, latent, states, **how))


def test_adaptation_starts_from_a_goal_too(pretrained, tasks, data):
    latent = bfmpipe.infer_goal(pretrained, data.obs[[5, 77]])
    (point,) = bfmpipe.adapt(
        pretrained, tasks, latent, data, method="zero-shot", episodes=1, settings={}
    )
    np.testing.assert_array_equal(point.z, latent.z)


def test_goals_frames_and_starts_of_another_shape_are_refused(pretrained, pusher, data):
    for ask, name in ((bfmpipe.infer_goal, "goal_obs"), (bfmpipe.infer_tracking, "frames")):
        with pytest.raises(UserError, match=rf"{name} has the shape \(4,\); valid: \(n, 4\)"):
            ask(pretrained, data.obs[5])
        with pytest.raises(UserError, match=rf"{name} has the shape \(0, 4\)"):
            ask(pretrained, data.obs[:0])
        with pytest.raises(UserError, match=f"{name} holds a number that is not finite"):
            ask(pretrained, np.full((2, 4), np.nan))
        with pytest.raises(UserError, match="needs states of the data set; give `data`"):
            ask(pusher, data.obs[:2])
        with pytest.raises(UserError, match="the data set is of walker, the model of point_mass"):
            ask(pusher, data.obs[:2], replace(data, domain="walker"))
    with pytest.raises(UserError, match="a tracking window of 0 frames"):
        bfmpipe.infer_tracking(pretrained, data.obs[:3], window=0)
    with pytest.raises(UserError, match=r"z has the shape \(5,\); valid: \(6,\), or \(steps, 6\)"):
        bfmpipe.play(pretrained, torch.ones(5), starts_of(pretrained))
    for starts in (np.zeros(4), np.zeros((2, 3)), np.zeros((0, 4))):
        with pytest.raises(UserError, match=r"starts have the shape .* needs \(n, 4\)"):
            bfmpipe.play(pretrained, torch.ones(6), starts)


def test_data_without_a_transition_are_refused(pretrained, tasks, data):
    few = replace(data, **{name: getattr(data, name)[:1] for name in COLUMNS})
    with pytest.raises(UserError, match="hold no state to infer a task from"):
        bfmpipe.infer(pretrained, tasks, few)


COLUMNS = ("episode", "step", "obs", "action", "physics")

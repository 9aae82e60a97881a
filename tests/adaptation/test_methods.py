"""What every method must keep to, and what each one is, on the maze with an untrained model."""

import gc
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch

from bfmpipe import plugins
from bfmpipe.adaptation import lola
from bfmpipe.adaptation.base import Problem, act_by_latent
from bfmpipe.adaptation.off_policy import Batch
from bfmpipe.adaptation.protocol import Evaluation, adapt, evaluate, start_states
from bfmpipe.agents import fb
from bfmpipe.config import PresetConfig, parse
from bfmpipe.envs import make_domain
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.networks import project_z
from bfmpipe.types import UserError

DOCS = Path(__file__).parents[2] / "docs" / "adaptation.md"
SETTINGS = {
    "amortised": {
        "training_tasks": 8,
        "pool": 16,
        "pool_starts": 2,
        "samples": 500,
        "updates": 20,
        "hidden_dim": 16,
        "episodes": 1,
    },
    "cem": {"states": 2, "latents": 4, "horizon": 5},
    "cma-es": {"states": 2, "latents": 4, "horizon": 5},
    "hybrid": {
        "warmup_episodes": 2,
        "batch": 16,
        "latent_warmup_updates": 3,
        "lookahead": {"states": 1, "latents": 4, "horizon": 10},
    },
    "lola": {"states": 2, "latents": 4, "horizon": 5},
    "lola-a": {"states": 2, "latents": 4, "horizon": 5, "learning_rate": 1e-2},
    "opti": {"num_envs": 2, "switch_every": 5, "candidates": 8},
    "random-search": {"states": 2, "latents": 4, "horizon": 5},
    "rela": {
        "num_envs": 2,
        "updates_per_step": 0.5,
        "batch": 16,
        "warmup_steps": 20,
        "latent_warmup_updates": 3,
    },
    "rela-a": {
        "num_envs": 2,
        "updates_per_step": 0.5,
        "batch": 16,
        "warmup_steps": 20,
        "actor_warmup_updates": 3,
    },
    "rela-safe": {
        "warmup_episodes": 2,
        "train_episodes": 2,
        "batch": 16,
        "latent_warmup_updates": 3,
    },
    "td3": {"num_envs": 2, "updates_per_step": 0.5, "batch": 16, "warmup_steps": 20},
    "td3-scratch": {"num_envs": 2, "updates_per_step": 0.5, "batch": 16, "warmup_steps": 20},
    "td3-z": {
        "num_envs": 2,
        "updates_per_step": 0.5,
        "batch": 16,
        "warmup_steps": 20,
        "latent_warmup_updates": 3,
    },
    "zero-shot": {},
}

MOVE_LATENTS = ("amortised", "cem", "cma-es", "lola", "opti", "random-search", "rela", "td3-z")
TEST_LATENTS = ("hybrid", "rela-safe")  # play another latent only where it has won


def small_model(seed=0, **settings):
    torch.manual_seed(seed)
    small = {"hidden_dim": 32, "backward_hidden_dim": 16, "batch": 8}
    config = fb.Config(z_dim=6, architecture="concatenated", **small, **settings)
    return fb.Model(config, 4, 2).requires_grad_(False).eval()


def make_problem(budget=200, model=None):
    domain = make_domain("point_mass_maze", {"physics_steps": 5, "episode_steps": 20})
    tasks = domain.tasks("reach", ["reach_top_left", "reach_top_right"], {"target_size": 0.1})
    model = model or small_model()
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(len(tasks), model.z_dim, generator=generator)
    visited = domain.exploration_states(100, np.random.default_rng(0))
    seen = domain.observe(domain.split(visited))
    return Problem(domain, model, tasks, w, project_z(w), budget, visited, 1, seen)


def quadruped_problem(inference_weights):
    """Observations of stored states cannot be told from the states here."""
    domain = make_domain("quadruped", {"episode_steps": 20})
    generator = torch.Generator().manual_seed(1)
    small = {"hidden_dim": 32, "backward_hidden_dim": 16, "batch": 8}
    torch.manual_seed(0)
    config = fb.Config(z_dim=6, architecture="concatenated", **small)
    model = fb.Model(config, domain.obs_dim, domain.action_dim).requires_grad_(False).eval()
    model.inference_weights = inference_weights
    w = torch.randn(2, 6, generator=generator)
    visited = domain.exploration_states(40, np.random.default_rng(0))
    seen = BatchedEnv(domain, 40, 1).reset(visited)
    tasks = domain.tasks("quadruped", ["stand", "walk"], {})
    return Problem(domain, model, tasks, w, project_z(w), 200, visited, 1, seen)


def make(name, problem, seed=0, **settings):
    module = plugins.load("adaptation", name)
    return module.Method(
        parse(module.Config, {**SETTINGS[name], **settings}, name), problem, [seed]
    )


STARTS_CONFIG = Evaluation(episodes=3)


def run(name, problem, seed=0, **settings):
    method = make(name, problem, seed, **settings)
    return method, list(adapt(method, start_states(problem.domain, STARTS_CONFIG), every=40))


@pytest.fixture(params=plugins.names("adaptation"))
def name(request):
    return request.param


def test_every_method_is_covered(name):
    assert name in SETTINGS, f"give {name} small settings in SETTINGS"


@pytest.mark.parametrize("weights", ["expectation", "least-squares"])
@pytest.mark.parametrize("method", ["opti", "random-search", "amortised"])
def test_what_looks_at_the_data_reads_its_recorded_observations(method, weights):
    points = run(method, quadruped_problem(weights))[1]
    assert points[-1].env_steps > 0


def test_who_watches_is_told_of_every_advance():
    problem, told = make_problem(), []
    starts = start_states(problem.domain, STARTS_CONFIG)
    points = list(adapt(make("rela", problem), starts, 40, watch=told.append))
    assert told == list(range(2, 201, 2))  # of two environments
    assert points[-1].env_steps == 200


def test_seeded_twice_gives_the_same(name):
    first, second = (run(name, make_problem(), seed=3)[1] for _ in range(2))
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.env_steps == b.env_steps
        assert np.array_equal(a.returns, b.returns)
        assert np.array_equal(a.z, b.z)


def test_the_frozen_model_keeps_its_bytes(name):
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run(name, make_problem(model=model))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(p.requires_grad for p in model.parameters())


def test_the_budget_is_spent_and_not_exceeded(name):
    method, points = run(name, make_problem(budget=200))
    assert [p.env_steps for p in points] == sorted({p.env_steps for p in points})
    if name == "zero-shot":
        assert method.env_steps == 0
        assert len(points) == 1
    else:
        assert method.env_steps == 200
        assert points[-1].env_steps == 200
        assert [p.env_steps for p in points] == [0, 40, 80, 120, 160, 200]


class Careless(lola.Method):
    """Says what it is told to say, and spends what it is told to spend."""

    def __init__(self, problem, spends, says):
        super().__init__(parse(lola.Config, SETTINGS["lola"], "lola"), problem, [0])
        self.spends, self.says = spends, says

    def advance(self):
        self.env_steps += self.spends
        return self.says


@pytest.mark.parametrize(
    ("spends", "says", "message"),
    [
        (201, True, "advance has spent 201 environment steps a task of a budget of 200"),
        (250, False, "advance has spent 250 environment steps a task of a budget of 200"),
        (40, None, "advance returned None; valid: True, or False where the budget allows no more"),
    ],
)
def test_a_method_that_does_not_keep_to_the_budget_is_refused(spends, says, message):
    problem = make_problem(budget=200)
    starts = start_states(problem.domain, STARTS_CONFIG)
    with pytest.raises(UserError, match=message):
        list(adapt(Careless(problem, spends, says), starts, every=40))


def test_a_method_of_ones_own_as_the_documentation_has_it():
    section = DOCS.read_text().partition("## A method of your own")[2]
    done = {"__name__": "bfmpipe.adaptation.lola_antithetic"}
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL)[1], done)
    problem = make_problem(budget=200)
    method = done["Method"](parse(done["Config"], SETTINGS["lola"], "lola"), problem, [0])
    assert method.method_name() == "lola-antithetic"
    points = list(adapt(method, start_states(problem.domain, STARTS_CONFIG), every=40))
    assert points[-1].env_steps == 200
    assert (points[-1].cosine < 1).all()


def test_the_first_evaluation_is_zero_shot_for_all(name):
    if name == "td3-scratch":
        pytest.skip("starts at new actors")
    problem = make_problem()
    starts = start_states(problem.domain, STARTS_CONFIG)
    zero_shot = evaluate(make("zero-shot", problem), starts)
    first = evaluate(make(name, problem), starts)
    np.testing.assert_allclose(first.returns, zero_shot.returns, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first.cosine, 1, rtol=1e-6)


def test_evaluations_do_not_disturb_the_method(name):
    """The same adaptation, evaluated often or hardly ever: methods never see an evaluation."""
    problem = make_problem()
    often = make(name, problem)
    starts = start_states(problem.domain, STARTS_CONFIG)
    list(adapt(often, starts, every=20))
    rarely = make(name, problem)
    list(adapt(rarely, starts, every=10_000))
    obs = torch.from_numpy(problem.domain.observe(problem.domain.split(starts)))
    obs = obs.expand(len(problem.tasks), -1, -1)
    assert torch.equal(often.act(obs), rarely.act(obs))


def test_latents_stay_on_the_sphere_and_move_only_where_they_should(name):
    method, points = run(name, make_problem())
    length = np.linalg.norm(points[-1].z, axis=-1)
    np.testing.assert_allclose(length, np.sqrt(method.z.shape[-1]), rtol=1e-5)
    moved = not np.array_equal(points[-1].z, points[0].z)
    if name in TEST_LATENTS:
        assert moved == any(bool(accepted.any()) for accepted in method.accepted)
        return
    assert moved == (name in MOVE_LATENTS)


def test_tasks_do_not_feel_each_other():
    """ReLA's critics and latents of one task are the same whatever the other task's rewards."""
    together = make_problem()
    method = make("rela", together)
    generator = torch.Generator().manual_seed(0)

    def batch(scale):
        generator.manual_seed(0)
        obs, next_obs = (torch.rand(2, 16, 4, generator=generator) for _ in range(2))
        action = torch.rand(2, 16, 2, generator=generator)
        reward = torch.rand(2, 16, generator=generator)
        return Batch(obs, action, reward * torch.tensor([1.0, scale])[:, None], next_obs)

    other = make("rela", together)
    for _ in range(5):
        method.update(batch(1.0))
        other.update(batch(7.0))
    obs, action, _, _ = batch(1.0)
    q, other_q = (m.critic.q(obs, action, m.z) for m in (method, other))
    assert torch.equal(method.z[0], other.z[0])
    assert torch.equal(q[0], other_q[0])
    assert not torch.equal(q[1], other_q[1])


def test_rela_starts_exactly_at_the_frozen_q():
    problem = make_problem()
    method = make("rela", problem)
    obs, action = torch.rand(2, 9, 4), torch.rand(2, 9, 2)
    q = method.critic.q(obs, action, problem.z)
    model = problem.model
    frozen = model.q_pairs(obs, action, problem.z[:, None], problem.w[:, None])[..., 0]
    assert torch.equal(q, frozen[:, None].expand(-1, 2, -1))
    for t in range(2):
        rows = model.q(obs[t], action[t], problem.z[t].expand(9, -1), problem.w[t])
        torch.testing.assert_close(frozen[t], rows)


def test_rela_first_targets_are_the_bellman_residual():
    """With a zero residual, y - base is r + gamma Q_0(s', a') - Q_0(s, a), by the formula."""
    problem = make_problem()
    method = make("rela", problem, target_noise_std=0.0, critic_learning_rate=1e-2)
    batch = Batch(torch.rand(2, 1, 4), torch.rand(2, 1, 2), torch.rand(2, 1), torch.rand(2, 1, 4))
    model, z, w = problem.model, problem.z, problem.w
    for _ in range(600):  # one transition a task: the residual can fit it
        method.update(batch)
        method.mover.z.data.copy_(problem.z)  # hold the policy
        for p in method.critic.target_parameters:
            p.zero_()
    for t in range(2):
        next_action = model.actor(batch.next_obs[t], z[t : t + 1])
        y = batch.reward[t] + model.discount * model.q(
            batch.next_obs[t], next_action, z[t : t + 1], w[t]
        )
        fitted = method.critic.q(batch.obs, batch.action, z)[t, :, 0]
        torch.testing.assert_close(fitted, y.expand(2), rtol=1e-2, atol=1e-2)


def test_td3_starts_at_the_models_actor_and_q():
    problem = make_problem()
    method = make("td3", problem)
    obs, action = torch.rand(2, 9, 4), torch.rand(2, 9, 2)
    torch.testing.assert_close(
        method.act(obs), act_by_latent(problem.model, obs, problem.z), rtol=1e-5, atol=1e-6
    )
    for t in range(2):
        psi = problem.model.psi(obs[t], action[t], problem.z[t].expand(9, -1))
        torch.testing.assert_close(
            method.critic.q(obs, action, problem.z)[t], psi @ problem.w[t], rtol=1e-4, atol=1e-5
        )


def test_td3_moves_the_actor_of_each_task():
    problem = make_problem()
    method, _ = run("td3", problem, actor_learning_rate=1e-2)
    obs = torch.rand(1, 9, 4).expand(2, -1, -1)
    moved = method.act(obs) - act_by_latent(problem.model, obs, problem.z)
    assert (moved.abs().amax(dim=(1, 2)) > 1e-3).all()


def test_budgets_too_small_say_so():
    with pytest.raises(UserError, match=r"lola: a budget of 10 .* too small for one update"):
        make("lola", make_problem(budget=10))
    for name in ("rela", "rela-a", "td3", "td3-scratch", "td3-z"):
        with pytest.raises(UserError, match=f"{name}: .* ends before the first update"):
            make(name, make_problem(budget=20))
    for name in ("hybrid", "rela-safe"):
        with pytest.raises(UserError, match=f"{name}: .* too small for one acceptance test"):
            make(name, make_problem(budget=60))


def test_lola_spends_what_is_left_on_fewer_start_states():
    method, points = run("lola", make_problem(budget=100))  # 40 an update, 20 a start state
    assert method.env_steps == 100
    assert [p.env_steps for p in points] == [0, 40, 80, 100]


@pytest.mark.parametrize("horizon", [3, 7, 9])
def test_no_two_evaluations_at_the_same_step(horizon):
    """Whatever an update costs, and however it falls between the evaluations that are due."""
    _, points = run("lola", make_problem(budget=200), horizon=horizon)
    steps = [p.env_steps for p in points]
    assert steps == sorted(set(steps))
    assert steps[-1] == 200 // (4 * horizon) * 4 * horizon


def test_off_policy_budgets_that_allow_no_update_say_so():
    with pytest.raises(UserError, match="does not allow one update"):
        make("td3", make_problem(), updates_per_step=1e-6)
    with pytest.raises(UserError, match="the latent moves only after 500"):
        make("rela", make_problem(), latent_warmup_updates=500)
    with pytest.raises(UserError, match="the actor moves only after 500"):
        make("rela-a", make_problem(), actor_warmup_updates=500)


PRESETS = [
    (name, preset)
    for name in plugins.names("adaptation")
    for config in [plugins.load("adaptation", name).Config]
    if issubclass(config, PresetConfig)
    for preset in config.presets
]


def test_who_learns_from_replayed_transitions_has_presets_for_small_models():
    learn = ("hybrid", "rela", "rela-a", "rela-safe", "td3", "td3-scratch", "td3-z")
    both = ("small", "small-point_mass_maze")
    assert [(name, preset) for name in learn for preset in both] == PRESETS
    with pytest.raises(UserError, match="preset is not a setting"):
        make("lola", make_problem(), preset="small")


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_every_preset_makes_a_method_that_moves_in_48_episodes(name, preset):
    module = plugins.load("adaptation", name)
    config = parse(module.Config, {"preset": preset}, name)
    assert parse(module.Config, config.model_dump(mode="json"), name) == config
    domain = make_domain("point_mass_maze" if preset.endswith("maze") else "walker", {})
    module.Method.check(config, domain, 48 * domain.config.episode_steps)
    made = make(name, make_problem(), preset=preset)  # with the settings beside it, which win
    assert made.config.batch == SETTINGS[name]["batch"]


def test_the_small_presets_of_rela_make_fewer_and_larger_steps():
    rela = plugins.load("adaptation", "rela").Config
    paper, maze, walker = rela(), rela(preset="small-point_mass_maze"), rela(preset="small")
    assert (paper.updates_per_step, maze.updates_per_step, walker.updates_per_step) == (
        1,
        1 / 8,
        1 / 32,
    )
    for small in (maze, walker):
        assert small.critic_learning_rate == pytest.approx(10 * paper.critic_learning_rate)
        assert small.target_tau == pytest.approx(10 * paper.target_tau)
        assert small.base_latent == "initial"


def test_lola_needs_two_latents():
    with pytest.raises(UserError, match="latents"):
        make("lola", make_problem(), latents=1)


def test_paths_of_evaluations_that_are_over_are_not_held():
    """They may be gigabytes, and all but the first and the last are looked at once."""
    problem = make_problem(budget=400)
    paths = []
    for point in adapt(make("lola", problem), start_states(problem.domain, STARTS_CONFIG), 40):
        gc.collect()
        assert sum(path() is not None for path in paths) <= 1
        whole = point.physics.base if point.physics.base is not None else point.physics
        paths.append(weakref.ref(whole))
        del whole
        del point
    assert len(paths) > 4

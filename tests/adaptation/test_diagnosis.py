"""The diagnosis: each quantity against what is known of a model made for it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.diagnosis import DiagnosisConfig, diagnose, unexplained
from bfmpipe.agents import Model
from bfmpipe.agents.base import AgentConfig
from bfmpipe.envs import make_domain
from bfmpipe.inference.reward import Inference, infer
from bfmpipe.networks import project_z

CONFIG = DiagnosisConfig(samples=500, latents=100, starts=8)


class Standing(Model):
    """Features are the observation; the policy does nothing, and its values may be asked for."""

    def __init__(self, value=None):
        super().__init__(AgentConfig(z_dim=4, discount=0.9), 4, 2)
        self.value = value

    def phi(self, obs):
        return obs

    def psi(self, obs, action, z):
        return self.value(obs)[None]

    def actor(self, obs, z):
        return torch.zeros(len(obs), 2)


def problem(model, w, visited=None):
    domain = make_domain("point_mass_maze", {"physics_steps": 5, "episode_steps": 20})
    tasks = domain.tasks("reach", ["reach_top_left"] * len(w), {"target_size": 0.2})
    if visited is None:
        visited = domain.exploration_states(100, np.random.default_rng(0))
    return Problem(domain, model, tasks, w, project_z(w), 0, visited, threads=1)


def test_unexplained_is_one_less_r_squared():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 3))
    x -= x.mean(0)
    y = np.stack([x @ [1, 2, 3] + 7, rng.standard_normal(50), np.ones(50)])
    found = unexplained(torch.from_numpy(x), torch.from_numpy(y))
    design = np.column_stack([x, np.ones(50)])
    rest = y[1] - design @ np.linalg.lstsq(design, y[1], rcond=None)[0]
    assert float(found[0]) == pytest.approx(0, abs=1e-12)
    assert float(found[1]) == pytest.approx(rest.var() / y[1].var())
    assert bool(found[2].isnan())


def test_a_reward_in_the_span_has_no_residual_and_a_wrong_w_mismatches():
    w = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    model = Standing(lambda obs: obs)
    model.inference_weights = "least-squares"
    made = problem(model, w)
    obs = torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    rewards = torch.stack([obs[:, 0], obs[:, 0]]).double() + 3
    found = diagnose(made, obs, rewards, CONFIG, 0)
    np.testing.assert_allclose(found.residual, 0, atol=1e-9)
    assert found.mismatch[0] == pytest.approx(0, abs=1e-9)
    assert found.mismatch[1] > 0.95
    assert found.effective_rank[0] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("weights", ["expectation", "least-squares"])
def test_what_inference_makes_of_a_reward_in_the_span_does_not_mismatch(weights, centred):
    """Of features of any sizes that depend on each other."""
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(500, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    rewards = (obs @ torch.tensor([0.1, -2.0, 1.0, 3.0])).double()
    if centred:
        obs = obs + 1
    model, inference = Standing(lambda obs: obs), Inference(weights=weights, centred=centred)
    made = problem(model, infer(model, obs, rewards, inference).w[None])
    found = diagnose(made, obs, rewards[None], CONFIG, 0, inference)
    assert found.mismatch[0] == pytest.approx(0, abs=1e-6)


def test_extrapolation_is_the_distance_to_the_nearest_latent_of_the_data():
    w = torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]])
    made = problem(Standing(lambda obs: obs), w)
    obs = torch.tensor([[2.0, 0, 0, 0], [3.0, 3.0, 0, 0]]).repeat(50, 1)
    found = diagnose(made, obs, torch.rand(2, 100), CONFIG, 0)
    np.testing.assert_allclose(found.extrapolation, [0, 1 + np.sqrt(0.5)], atol=1e-6)
    other = Inference(weights="least-squares")  # of w_0; the policy's latents stay what they are
    again = diagnose(made, obs, torch.rand(2, 100), CONFIG, 0, other)
    np.testing.assert_array_equal(again.extrapolation, found.extrapolation)


def test_the_constant_that_least_squares_leaves_out_is_added_to_the_values():
    """The ball rests, features are the position, r = phi^T w + .5, psi is exact."""
    rest = np.zeros((100, 4))
    rest[:, :2] = np.random.default_rng(0).uniform(-0.25, 0.25, (100, 2))
    model = Standing(lambda obs: 10 * obs)
    model.inference_weights = "least-squares"
    made = problem(model, torch.tensor([[1.0, 0.3, 0, 0]]), visited=rest)
    made.domain.start_states = lambda n, rng: rest[:n]

    def tilted(physics, action):
        return 0.5 + physics.qpos[:, 0] + 0.3 * physics.qpos[:, 1]

    task = made.domain.task_from(tilted)
    made = replace(made, tasks=[task])
    obs = torch.from_numpy(made.domain.observe(made.domain.split(rest)))
    rewards = torch.from_numpy(made.domain.relabel(task, rest, np.zeros((100, 2))))[None]
    config = DiagnosisConfig(samples=100, latents=100, starts=8, tail=1e-6)
    found = diagnose(made, obs, rewards, config, 0)
    assert found.q_scale[0] == pytest.approx(1, rel=1e-4)
    assert found.mismatch[0] == pytest.approx(0, abs=1e-9)


def test_values_that_are_the_returns_are_calibrated_and_twice_too_large_is_half():
    """A ball at rest stays where it is: its reward is paid for ever."""
    rest = np.zeros((100, 4))
    rest[:, :2] = np.random.default_rng(0).uniform(-0.25, 0.25, (100, 2))
    w = torch.tensor([[1.0, 0, 0, 0]])
    made = problem(Standing(), w, visited=rest)
    domain = made.domain
    domain.start_states = lambda n, rng: rest[:n]
    task = made.tasks[0]

    def value(obs):
        physics = torch.cat([obs[:, :2], torch.zeros(len(obs), 2)], dim=1).double().numpy()
        reward = domain.relabel(task, physics, np.zeros((len(obs), 2)))
        steps = np.ceil(np.log(CONFIG.tail) / np.log(0.9))
        total = torch.from_numpy(reward * (1 - 0.9**steps) / (1 - 0.9)).float()
        return torch.nn.functional.pad(total[:, None], (0, 3))

    obs = torch.randn(200, 4)
    rewards = torch.rand(1, 200)
    for factor, scale in ((1, 1.0), (2, 0.5)):
        made.model.value = lambda obs, factor=factor: factor * value(obs)
        found = diagnose(made, obs, rewards, CONFIG, 0)
        assert found.q_scale[0] == pytest.approx(scale, rel=1e-4)
        assert found.q_correlation[0] == pytest.approx(1, rel=1e-4)

"""Scores of latents by lookahead, where the return is known in closed form."""

import numpy as np
import pytest
import torch

from bfmpipe.networks import project_z
from bfmpipe.types import UserError
from tests.adaptation import toy

D, HORIZON = 4, 6
W = torch.tensor([[1.0, 0.5, 0.0, -0.5], [0.0, 1.0, 2.0, 0.0]])
A, _ = toy.rotated_quadratic(D, 10.0, seed=0)
B, _ = toy.rotated_quadratic(D, 10.0, seed=1)


def make(bootstrap=True, budget=10_000):
    problem = toy.problem({"a": A, "b": B}, W, budget=budget)
    settings = {"states": 3, "latents": 5, "horizon": HORIZON, "bootstrap": bootstrap}
    return toy.make("cem", problem, **settings)


def latents(n, seed=0):
    return project_z(torch.randn(2, n, D, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("bootstrap", [True, False])
def test_scores_are_the_discounted_return_and_the_frozen_value(bootstrap):
    method, z = make(bootstrap), latents(5)
    scores = method.scores(z, method.task_starts(3))
    gamma = method.problem.model.discount
    action = z / D**0.5
    steps = (1 - gamma**HORIZON) / (1 - gamma)
    for t, reward in enumerate((A, B)):
        expected = steps * torch.from_numpy(reward(action[t].double().numpy()))
        if bootstrap:
            expected += gamma**HORIZON * (action[t] @ W[t]) / (1 - gamma)
        torch.testing.assert_close(scores[t], expected.float(), rtol=1e-4, atol=1e-4)
    assert method.env_steps == 5 * 3 * HORIZON


def test_latents_share_the_start_states_of_their_task():
    """What a state is worth is the same for all latents of a task: here it is most of the score."""
    method, z = make(), latents(4)
    starts = method.task_starts(3)
    plain = method.scores(z, starts)
    method.problem.domain.offset = 10.0
    offset = method.scores(z, starts) - plain
    gamma = method.problem.model.discount
    steps = (1 - gamma**HORIZON) / (1 - gamma)
    physics = np.where(abs(starts[..., 0]) > 500, starts[..., 0] / 1000, 0)
    expected = torch.from_numpy(10 * steps * physics.mean(1)).float()
    assert not torch.isclose(expected[0], expected[1])
    torch.testing.assert_close(offset, expected[:, None].expand(-1, 4), rtol=1e-3, atol=1e-3)


def test_start_states_are_a_mixture_of_resets_and_of_states_of_the_data():
    problem = toy.problem({"a": A, "b": B}, W)
    known = {tuple(row) for row in problem.visited}
    for fraction, share in ((0.0, 0.0), (0.8, 0.8), (1.0, 1.0)):
        method = toy.make("cem", problem, visited_fraction=fraction)
        found = np.mean([tuple(row) in known for row in method.start_states(2000)])
        assert abs(found - share) < 0.05


def test_the_last_update_takes_the_start_states_that_the_budget_pays_for():
    method = make(budget=5 * HORIZON * 4 + 7)
    assert method.affordable_states == 3
    assert method.advance()
    assert method.affordable_states == 1
    assert method.advance()
    assert not method.advance()
    assert method.env_steps == 5 * HORIZON * 4


@pytest.mark.parametrize("name", ["cem", "cma-es", "lola", "lola-a", "random-search"])
def test_budgets_too_small_say_so(name):
    problem = toy.problem({"a": A, "b": B}, W, budget=20)
    with pytest.raises(UserError, match=f"^{name}: a budget of 20 environment steps is too small"):
        toy.make(name, problem, latents=5, horizon=HORIZON)


@pytest.mark.parametrize("name", ["cem", "lola-a", "random-search"])
def test_a_reward_that_is_no_number_says_so(name):
    problem = toy.problem({"a": A, "b": lambda a: a[:, 0] * np.nan}, W)
    method = toy.make(name, problem, states=1, latents=4, horizon=2)
    with pytest.raises(UserError, match="task toy/b: a reward is not a number"):
        method.advance()

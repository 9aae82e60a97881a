"""Random search: its candidates, that it keeps the best, and how it spends the budget."""

import numpy as np
import pytest
import torch

from bfmpipe.adaptation.random_search import first_maximum, survivors
from bfmpipe.networks import project_z
from bfmpipe.types import UserError
from tests.adaptation import toy

D = 3
GOOD = np.array([0.0, 0.6, 0.8])
SPREAD = np.array([1.0, 3.0, 0.5])
W = torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.6, 0.8]])


def towards(a):
    return a @ GOOD


def make(budget=2_000, **settings):
    observed = np.random.default_rng(1).normal(size=(50, D)) * SPREAD
    problem = toy.problem({"a": towards, "b": towards}, W, budget=budget, observed=observed)
    given = {"states": 2, "latents": 8, "horizon": 5, "bootstrap": False, "near_fraction": 0.0}
    return toy.make("random-search", problem, **{**given, **settings})


def latents_of_data(method):
    """proj(C^-1 phi) of the data's states, since this model's weights are by least squares."""
    phi = torch.from_numpy(method.problem.visited_obs).double()
    return project_z(phi @ torch.linalg.inv(phi.mT @ phi / len(phi))).float()


def is_of_data(method, z):
    """Whether each latent (T, n, d) is that of a state of the data."""
    known = latents_of_data(method)
    return (z[:, :, None] - known).abs().amax(-1).amin(-1) < 1e-5


def run(method):
    while method.advance():
        pass
    return method


def test_candidates_are_the_latents_of_states_of_the_data():
    method = make()
    z = method.candidates(20)
    assert is_of_data(method, z).all()
    assert len({tuple(row) for row in z.flatten(0, 1).tolist()}) > 20


def test_a_share_of_the_candidates_is_near_the_inferred_latent():
    method = make(near_fraction=0.5, sigma=0.05)
    z = method.candidates(1000)
    near = (z - method.problem.z[:, None]).norm(dim=-1) < 0.4
    of_data = is_of_data(method, z)
    assert (near | of_data).all()
    assert 0.45 < (~of_data).double().mean() < 0.55


@pytest.mark.parametrize("allocation", ["all", "halving"])
def test_the_best_candidate_wins(allocation):
    """Returns are exact here; the second task begins at the best latent there is, and keeps it."""
    method = run(make(allocation=allocation, latents=32, states=1))
    value = method.z.numpy() @ GOOD / D**0.5
    known = latents_of_data(method)
    best = np.sort(known.numpy() @ GOOD / D**0.5)
    assert value[0] > best[-6]  # with 32 draws of 50 states
    assert value[0] > method.problem.z[0].numpy() @ GOOD / D**0.5 + 0.3
    assert torch.equal(method.z[1], method.problem.z[1])


def test_the_estimate_never_falls():
    method, found = make(), [torch.full((2,), -torch.inf)]
    while method.advance():
        found.append(method.best)
        assert (found[-1] >= found[-2]).all()
        again = method.scores(method.z[:, None], method.starts)[:, 0]
        torch.testing.assert_close(again, method.best)
        method.env_steps -= 2 * 5  # that was ours
    # z_0 is among the first candidates
    zero_shot = method.scores(method.problem.z[:, None], method.starts)[:, 0]
    assert (found[1] >= zero_shot - 1e-6).all()
    assert torch.equal(method.z[1], method.problem.z[1])


def test_the_budget_is_spent_to_the_last_candidate():
    method = run(make(budget=2 * 5 * 19 + 9))  # 8 + 8 + 3 candidates
    assert method.env_steps == 2 * 5 * 19


def test_halving_spends_equal_rounds():
    """8, 4, 2 candidates in three rounds of a third of the budget each."""
    method = make(budget=8 * 5 * 3 * 2, allocation="halving")
    spent, left = [0], []
    while method.advance():
        spent.append(method.env_steps)
        left.append(method.alive.shape[1])
    assert np.diff(spent).tolist() == [80, 80, 80]
    assert left == [4, 2, 2]
    assert method.seen == 2 + 4 + 8


def test_halving_never_drops_candidate_zero():
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0, 5.0], [9.0, 1.0, 1.0, 4.0, 1.0]])
    assert survivors(scores, 3).tolist() == [[0, 1, 4], [0, 1, 3]]


def test_the_first_of_equals_is_kept():
    best, choice = first_maximum(torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]))
    assert best.tolist() == [3.0, 2.0]
    assert choice.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"two candidates from 2 start states of 5 steps \(20\)"),
        ({"allocation": "halving", "latents": 3}, r"2 rounds of 3 rollouts of 5 steps \(30\)"),
    ],
)
def test_budgets_too_small_say_so(settings, message):
    with pytest.raises(UserError, match=f"^random-search: a budget of 19 .* for {message}"):
        make(budget=19, **{"latents": 2, **settings})

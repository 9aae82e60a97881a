"""LoLA in action space: its gradient against the closed form, and what it moves."""

import numpy as np
import pytest
import torch

from bfmpipe.adaptation.base import act_by_latent
from bfmpipe.networks import project_z
from tests.adaptation import toy

D, HORIZON, SIGMA = 3, 4, 0.1
BEST = np.array([0.3, -0.2, 0.1])
W = torch.tensor([[1.0, -0.4, 0.2], [0.5, 0.5, -1.0]])


def quadratic(a):
    return -((a - BEST) ** 2).sum(-1)


def linear(a):
    return a @ np.array([1.0, 2.0, -1.0])


def make(**settings):
    problem = toy.problem({"a": quadratic, "b": linear}, W, budget=100_000)
    problem.model.gain.mul_(0.4)  # far from the ends, where the noise is cut
    given = {"states": 16, "latents": 4, "horizon": HORIZON, "sigma": SIGMA}
    return toy.make("lola-a", problem, **given, **settings)


def gradients(method, n):
    """n estimates of the ascent direction of the gains, (n, T, D)."""
    (gain,) = method.actors.parameters
    found = [-torch.autograd.grad(method.loss(method.config.states), gain)[0] for _ in range(n)]
    return torch.stack(found).double()


def truth(method):
    """d/dgain of E R; the frozen value, of the frozen actor's action, has none here."""
    gamma = method.problem.model.discount
    direction = method.problem.z.double() / D**0.5
    action = 0.4 * direction
    steps = (1 - gamma**HORIZON) / (1 - gamma)
    of_reward = torch.stack(
        [-2 * (action[0] - torch.from_numpy(BEST)), torch.tensor([1.0, 2.0, -1.0]).double()]
    )
    return direction * steps * of_reward


@pytest.mark.parametrize("baseline_matters", [0.0, 5.0])
def test_the_gradient_is_unbiased(baseline_matters):
    """Also where start states differ by far more than actions do: the baseline takes that off."""
    method = make(normalise_advantages=False)
    method.problem.domain.offset = baseline_matters
    found = gradients(method, 80)
    error = found.mean(0) - truth(method)
    standard_error = found.std(0) / len(found) ** 0.5
    assert (error.abs() < 4 * standard_error).all()
    assert (standard_error.norm() < 0.1 * truth(method).norm()).all()


def test_normalised_advantages_only_change_the_length():
    plain, normalised = (gradients(make(normalise_advantages=flag), 1)[0] for flag in (False, True))
    torch.testing.assert_close(
        *(torch.nn.functional.normalize(g, dim=-1) for g in (plain, normalised))
    )
    assert not torch.allclose(plain, normalised)


def test_the_divergence_is_that_of_two_gaussians():
    """d/dgain of kl_coef |pi_theta - pi_0|^2 / 2 sigma^2, after the gains have moved."""
    found = []
    for coefficient in (0.0, 0.7):
        method = make(kl_coef=coefficient)
        (gain,) = method.actors.parameters
        with torch.no_grad():
            gain += torch.tensor([[0.05, 0.0, -0.1], [0.1, 0.1, 0.0]])
        found.append(gradients(method, 1)[0])
    moved = torch.tensor([[0.05, 0.0, -0.1], [0.1, 0.1, 0.0]]).double()
    direction = method.problem.z.double() / D**0.5
    expected = -0.7 * moved * direction.square() / SIGMA**2
    torch.testing.assert_close(found[1] - found[0], expected, rtol=1e-3, atol=1e-4)


def test_the_actors_learn_the_toy():
    problem = toy.problem({"a": quadratic, "b": quadratic}, W)
    problem.model.gain.mul_(0.4)
    method = toy.make(
        "lola-a", problem, states=2, latents=8, horizon=5, sigma=0.1, learning_rate=0.02
    )
    while method.advance():
        pass
    action = method.act(torch.zeros(2, 1, D))[:, 0]
    reachable = np.sign(BEST) == np.sign(problem.z.numpy())
    assert reachable[0].all()
    assert np.abs(action[0].numpy() - BEST).max() < 0.03
    assert torch.equal(problem.model.gain, torch.full((D,), 0.4))


def test_it_starts_at_the_frozen_actor_and_keeps_the_latent():
    method = make()
    obs = torch.randn(2, 7, D)
    frozen = act_by_latent(method.problem.model, obs, method.problem.z)
    torch.testing.assert_close(method.act(obs), frozen)
    method.advance()
    assert not torch.allclose(method.act(obs), frozen)
    assert torch.equal(method.z, project_z(W))


def test_a_strong_divergence_holds_the_actor():
    """The same updates move it less."""
    obs, moved = torch.zeros(2, 1, D), []
    for coefficient in (0.0, 10.0):
        method = make(kl_coef=coefficient, learning_rate=0.02)
        for _ in range(30):
            method.advance()
        frozen = act_by_latent(method.problem.model, obs, method.problem.z)
        moved.append((method.act(obs) - frozen).norm().item())
    assert moved[1] < 0.3 * moved[0]

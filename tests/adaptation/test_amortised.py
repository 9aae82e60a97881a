"""The learnt adapter: what it cannot see, what it proposes untrained, and that training pays."""

import math

import numpy as np
import pytest
import torch

from bfmpipe.adaptation.amortised import Adapter, Config, Ramps, fit, standardised
from bfmpipe.adaptation.protocol import Evaluation, evaluate, start_states
from bfmpipe.inference.goal import infer_goal
from bfmpipe.inference.reward import Inference, infer, inverse_covariance
from bfmpipe.networks import project_z
from bfmpipe.types import UserError
from tests.adaptation.test_methods import make, make_problem, small_model

T, M, D = 3, 20, 6


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    phi = torch.randn(T, M, D, generator=generator)
    reward = torch.rand(T, M, generator=generator)
    w = torch.randn(T, D, generator=generator)
    return phi, reward, w, project_z(w)


def trained_adapter():
    torch.manual_seed(0)
    adapter = Adapter(16)
    torch.nn.init.normal_(adapter.layers[-1].weight)
    return adapter.requires_grad_(False)


def test_untrained_it_proposes_the_inferred_latent():
    phi, reward, w, z = inputs()
    torch.testing.assert_close(Adapter(16)(phi, phi, reward, w, z), z)


def test_a_rotation_of_the_latents_rotates_the_proposal():
    phi, reward, w, z = inputs()
    rotation = torch.linalg.qr(torch.randn(D, D))[0]
    adapter = trained_adapter()
    x = phi * torch.rand(D)
    turned = adapter(phi @ rotation, x @ rotation, reward, w @ rotation, z @ rotation)
    expected = adapter(phi, x, reward, w, z) @ rotation
    torch.testing.assert_close(turned, expected, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_states_and_the_scale_of_the_reward_do_not_matter():
    phi, reward, w, z = inputs()
    adapter = trained_adapter()
    order = torch.randperm(M)
    x = phi * torch.rand(D)
    expected = adapter(phi, x, reward, w, z)
    again = adapter(phi[:, order], x[:, order], reward[:, order], w, z)
    torch.testing.assert_close(again, expected)
    torch.testing.assert_close(adapter(phi, x, 7 * reward, 7 * w, z), expected)


def test_ramps_pay_between_their_ends():
    ramps = Ramps(torch.eye(2), torch.tensor([0.0, 1.0]), torch.tensor([1.0, 3.0]))
    paid = ramps(torch.tensor([[-1.0, 2.0], [0.25, 5.0]]))
    torch.testing.assert_close(paid, torch.tensor([[0.0, 0.5], [0.25, 1.0]]))


def hidden_targets(seed, J=64, K=200, m=80):
    """Tasks whose best latent is a direction that only the rewarded states tell."""
    generator = torch.Generator().manual_seed(seed)
    target, latents = (project_z(torch.randn(n, D, generator=generator)) for n in (J, K))
    z = project_z(target + 2 * torch.randn(J, D, generator=generator))
    phi = torch.randn(J, m, D, generator=generator)
    reward = (torch.cosine_similarity(phi, target[:, None], dim=-1) > 0.5).float()
    earned = torch.cosine_similarity(target[:, None], latents, dim=-1)
    return target, phi, reward, z, latents, earned


def test_trained_on_some_tasks_it_finds_the_targets_of_others():
    _, phi, reward, z, latents, earned = hidden_targets(0)
    torch.manual_seed(0)
    adapter = Adapter(32)
    config = Config(updates=300, context=60, learning_rate=1e-2)
    fit(adapter, phi, phi, reward, z, z, latents, earned, config, torch.Generator().manual_seed(0))
    target, phi, reward, z, *_ = hidden_targets(1)
    before = torch.cosine_similarity(z, target, dim=-1).mean()
    after = torch.cosine_similarity(adapter(phi, phi, reward, z, z), target, dim=-1).mean()
    assert before < 0.5
    assert after > 0.85


class OfRewards(torch.nn.Module):
    """a_i = r_i but for a factor: the first of the invariants."""

    def forward(self, invariants):
        return invariants[..., :1]


@pytest.mark.parametrize("weights", ["expectation", "least-squares"])
def test_a_rewarded_state_pulls_to_the_latent_of_reaching_it(weights):
    model = small_model()
    model.inference_weights = weights
    problem = make_problem(model=model)
    method = make("amortised", problem, samples=100_000)
    assert method.advance()
    method.adapters[0].layers = OfRewards()
    seen = torch.from_numpy(problem.visited_obs)
    z = problem.z[:1]
    for state in range(3):
        reward = torch.zeros(1, len(seen))
        reward[0, state] = 1
        inputs = model.phi(seen)[None], reward, problem.w[:1], z
        order = torch.Generator().manual_seed(0)
        (found,) = method._propose(model, method.adapters[0], method.inverses[0], order, *inputs)
        (wanted,) = infer_goal(model, seen[[state]], Inference(), seen).z
        moved, towards = (v - (v @ z[0]) / D * z[0] for v in (found, wanted))
        assert float(torch.cosine_similarity(moved, towards, dim=0)) > 0.99


class Watched(OfRewards):
    """Keeps the invariants."""

    def forward(self, invariants):
        self.seen = invariants
        return super().forward(invariants)


@pytest.mark.parametrize("weights", ["expectation", "least-squares"])
def test_a_reward_that_the_features_express_fits_what_is_inferred(weights):
    """r - y^T w_0, the second of the invariants, is zero; the first is not."""
    model = small_model()
    model.inference_weights = weights
    problem = make_problem(model=model)
    method = make("amortised", problem, samples=100_000)
    assert method.advance()
    method.adapters[0].layers = watched = Watched()
    seen = torch.from_numpy(problem.visited_obs)
    phi = model.phi(seen)
    reward = phi @ torch.linspace(-1, 1, D)
    method.inverses[0] = inverse_covariance(phi)
    w, z = infer(model, seen, reward, Inference(samples=len(seen)))
    order = torch.Generator().manual_seed(0)
    inputs = phi[None], reward[None], w[None], z[None]
    method._propose(model, method.adapters[0], method.inverses[0], order, *inputs)
    first, second = watched.seen[0, :, 0], watched.seen[0, :, 1]
    assert float(second.norm()) < 1e-3 * float(first.norm())


def test_tasks_whose_latents_all_earn_the_same_count_nothing():
    earned = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    torch.testing.assert_close(
        standardised(earned), torch.tensor([[-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    )


def test_it_counts_the_pools_steps_apart_from_the_budget():
    method = make("amortised", make_problem(budget=200))
    assert method.training_steps == 0
    assert method.advance()
    pool = method.config.training_tasks + method.config.pool
    assert method.training_steps == pool * method.config.pool_starts * 20
    assert method.env_steps == method.config.episodes * 20
    first = evaluate(method, start_states(method.problem.domain, Evaluation(episodes=2)))
    assert np.isfinite(first.returns).all()
    assert float(method.z.norm(dim=-1).max()) == pytest.approx(math.sqrt(6), rel=1e-5)


def test_a_budget_too_small_says_so():
    with pytest.raises(UserError, match=r"amortised: a budget of 10 .* lower episodes"):
        make("amortised", make_problem(budget=10))

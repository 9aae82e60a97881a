"""ReLA-a: ReLA's critic, all weights of the actor; and what regularisation does to both."""

import pytest
import torch

from bfmpipe.adaptation.base import act_by_latent
from bfmpipe.types import UserError

from .test_methods import make, make_problem, run


def test_the_actor_moves_and_nothing_else():
    problem = make_problem()
    method, _ = run("rela-a", problem, actor_learning_rate=1e-2)
    assert torch.equal(method.z, problem.z)
    obs = torch.rand(1, 9, 4).expand(2, -1, -1)
    moved = method.act(obs) - act_by_latent(problem.model, obs, problem.z)
    assert (moved.abs().amax(dim=(1, 2)) > 1e-3).all()


def test_the_critic_starts_at_the_frozen_value():
    problem = make_problem()
    method = make("rela-a", problem)
    obs, action = torch.rand(2, 9, 4), torch.rand(2, 9, 2)
    frozen = problem.model.q_pairs(obs, action, problem.z[:, None], problem.w[:, None])[..., 0]
    q = method.critic.q(obs, action, problem.z)
    assert torch.equal(q, frozen[:, None].expand(-1, 2, -1))


def test_the_actor_waits_for_the_critic():
    problem = make_problem()
    method = make("rela-a", problem, actor_warmup_updates=7, actor_every=2)
    obs = torch.rand(2, 9, 4)
    zero_shot = act_by_latent(problem.model, obs, problem.z)
    waited = {}
    while method.learner.updates < 9:
        method.advance()
        waited[method.learner.updates] = torch.allclose(method.act(obs), zero_shot, atol=1e-6)
    assert waited == {**dict.fromkeys(range(8), True), 8: False, 9: False}


@pytest.mark.parametrize("name", ["rela-a", "td3"])
def test_regularised_actors_stay_nearer(name):
    problem = make_problem()
    obs = torch.rand(2, 64, 4)
    zero_shot = act_by_latent(problem.model, obs, problem.z)
    distances = []
    for bc_coef in (0.0, 1.0, 100.0):
        method, _ = run(name, problem, bc_coef=bc_coef, actor_learning_rate=1e-2)
        distances.append(float((method.act(obs) - zero_shot).square().mean()))
    assert distances[0] > 2 * distances[2]
    assert distances[0] > distances[1]


def test_scratch_has_nobody_to_stay_near():
    with pytest.raises(UserError, match="bc_coef"):
        make("td3-scratch", make_problem(), bc_coef=0.1)

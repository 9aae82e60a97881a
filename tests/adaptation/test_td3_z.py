"""TD3-z: the latent alone moves, up a critic that starts anywhere."""

import torch

from . import toy
from .test_methods import make, make_problem
from .test_safe import BEST, REWARDS

SETTINGS = {
    "batch": 64,
    "warmup_steps": 20,
    "latent_warmup_updates": 100,
    "latent_learning_rate": 0.02,
    "critic_hidden_dim": 32,
    "critic_learning_rate": 1e-2,
    "noise_std": 0.5,
}


def test_the_latent_finds_what_the_critic_has_learnt():
    w = torch.tensor([[1.0, 0.2, 0.0], [1.0, 0.0, 0.2]])
    problem = toy.problem(REWARDS, w, budget=400)
    method = toy.make("td3-z", problem, **SETTINGS)
    best = torch.tensor(BEST, dtype=torch.float32)

    def agreement():
        return (method.z @ torch.stack([best, -best]).mT).diagonal() / 3**0.5

    before = agreement()
    while method.advance():
        pass
    assert (agreement() > before + 0.3).all()


def test_the_critic_knows_nothing_of_the_model():
    problem = make_problem()
    method = make("td3-z", problem)
    obs, action = torch.rand(2, 9, 4), torch.rand(2, 9, 2)
    q = method.critic.q(obs, action, problem.z)
    assert torch.equal(q, method.critic.q(obs, action, -problem.z))
    frozen = problem.model.q_pairs(obs, action, problem.z[:, None], problem.w[:, None])[..., 0]
    assert not torch.allclose(q, frozen[:, None].expand_as(q), atol=0.01)

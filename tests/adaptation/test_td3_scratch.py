"""TD3 from scratch: new actors that learn the task by themselves."""

import torch

from bfmpipe.adaptation.base import act_by_latent

from . import toy
from .test_methods import make, make_problem, run
from .test_safe import BEST, REWARDS


def test_actors_are_new_and_each_tasks_own():
    problem = make_problem()
    obs = torch.rand(1, 9, 4).expand(2, -1, -1)
    first, other = (make("td3-scratch", problem, seed=seed).act(obs) for seed in (0, 1))
    assert not torch.allclose(first[0], first[1])
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, act_by_latent(problem.model, obs, problem.z))
    assert (first.abs() <= 1).all()


def test_the_latent_is_not_touched():
    problem = make_problem()
    method, _ = run("td3-scratch", problem)
    assert torch.equal(method.z, problem.z)


def test_actors_learn_their_tasks():
    """The best action is sign(BEST), in every state; of 2.8 and -2.8 that would be all."""
    problem = toy.problem(REWARDS, torch.ones(2, 3), budget=400)
    settings = {"critic_hidden_dim": 32, "actor_hidden_dim": 32, "noise_std": 0.5, "batch": 64}
    rates = {"critic_learning_rate": 1e-2, "actor_learning_rate": 1e-2}
    method = toy.make("td3-scratch", problem, warmup_steps=20, **settings, **rates)
    while method.advance():
        pass
    best = torch.tensor(BEST, dtype=torch.float32)
    obs = torch.zeros(2, 1, 3)
    reward = method.act(obs)[:, 0] @ best
    assert reward[0] > 0.9
    assert reward[1] < -0.9

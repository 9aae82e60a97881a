"""What off-policy methods share: the buffer, the updates' number, and numbers that are none."""

import dataclasses

import numpy as np
import pytest
import torch

from bfmpipe.adaptation.draws import Generators
from bfmpipe.adaptation.off_policy import Replay
from bfmpipe.types import UserError

from . import toy
from .test_methods import make, make_problem
from .test_safe import finish

METHODS = ("rela", "rela-a", "td3", "td3-scratch", "td3-z")


def test_a_sample_is_rows_that_belong_together():
    replay = Replay(make_problem(budget=10))
    for first in (0, 3):
        count = torch.arange(first, first + 3.0).expand(2, -1) + torch.tensor([[0.0], [100.0]])
        column = count[..., None]
        replay.add(column, column + 0.25, count + 0.5, column + 0.75)
    obs, action, reward, next_obs = replay.sample(200, Generators([0]))
    assert torch.equal(action, obs[..., :2] + 0.25)
    assert torch.equal(reward, obs[..., 0] + 0.5)
    assert torch.equal(next_obs, obs + 0.75)
    assert set(obs[0, :, 0].tolist()) == set(range(6))
    assert set(obs[1, :, 0].tolist()) == set(range(100, 106))


@pytest.mark.parametrize("name", METHODS)
def test_the_updates_that_the_budget_allows_are_made(name):
    method = make(name, make_problem(budget=101), updates_per_step=0.25, batch=2)
    finish(method)
    assert method.env_steps == 100  # of two environments
    assert method.config.updates_allowed(101) == 20  # .25 of 80, after 20 of warm-up
    assert method.learner.updates == 20


@pytest.mark.parametrize("name", [name for name in METHODS if name != "td3"])
def test_a_reward_that_is_no_number_names_its_task(name):
    def broken(action):
        return np.where(action[:, 0] > -2, np.nan, 0)

    problem = toy.problem(
        {"fine": lambda action: action[:, 0], "broken": broken}, torch.randn(2, 3), budget=100
    )
    method = toy.make(name, problem, warmup_steps=5, batch=4, **never_waits(name))
    with pytest.raises(UserError, match=r"task toy/broken: a reward is not a number"):
        method.advance()


@pytest.mark.parametrize("name", ["rela", "rela-a", "td3"])
def test_a_value_that_is_no_number_names_its_task(name):
    problem = make_problem()
    w = problem.w.clone()
    w[1, 0] = float("inf")
    method = make(name, dataclasses.replace(problem, w=w))
    with pytest.raises(UserError, match=rf"task {problem.tasks[1]}: a value is not a number"):
        finish(method)


def test_a_model_without_weights_in_its_value_cannot_be_finetuned():
    problem = toy.problem({"one": lambda action: action[:, 0]}, torch.randn(1, 3), budget=2000)
    with pytest.raises(UserError, match="depends on no weights"):
        toy.make("td3", problem)


def never_waits(name):
    settings = {"rela": "latent", "td3-z": "latent", "rela-a": "actor"}
    return {f"{settings[name]}_warmup_updates": 0} if name in settings else {}

"""The hybrid's modes, its measure of fit, and its lookahead, which is LoLA's."""

import numpy as np
import pytest
import torch

from bfmpipe.adaptation import lola
from bfmpipe.adaptation.off_policy import Batch
from bfmpipe.adaptation.safe import Rollout
from bfmpipe.networks import project_z
from bfmpipe.types import UserError

from . import toy
from .test_safe import finish, make_problem, play_out
from .test_safe import make as make_safe

LOOKAHEAD = {"states": 2, "latents": 4, "horizon": 5}


def make(problem, seed=0, **settings):
    return make_safe("hybrid", problem, seed, **{"lookahead": LOOKAHEAD, **settings})


def test_a_small_threshold_makes_every_round_a_lookahead_but_the_first():
    method = finish(make(make_problem(), shift_ratio=1e-9))
    assert not method.modes[0].any()
    assert len(method.modes) > 2
    assert all(bool(mode.all()) for mode in method.modes[1:])
    assert len(method.modes) == len(method.ratios) == len(method.accepted)


def test_a_large_one_leaves_it_to_the_lost_tests():
    method = finish(make(make_problem(), shift_ratio=1e9))
    for before, mode in zip(method.rejected, method.modes[1:], strict=False):
        assert torch.equal(mode, before)


def test_the_squared_error_by_the_formula():
    problem = make_problem()
    method = make(problem, target_noise_std=0.0)
    generator = torch.Generator().manual_seed(0)
    obs, action, next_obs = (torch.rand(2, 8, 3, generator=generator) for _ in range(3))
    reward = torch.rand(2, 8, generator=generator)
    found = method.squared_error(Batch(obs, action, reward, next_obs))
    # the residual is zero, psi^T w the action's product with w / (1 - gamma), the policy constant
    for t in range(2):
        w, unit = problem.w[t], problem.z[t] / 3**0.5
        delta = action[t] @ w / 0.1 - (reward[t] + 0.9 * float(unit @ w) / 0.1)
        assert float(found[t]) == pytest.approx(float(delta.square().mean()), rel=1e-4)


def test_data_that_the_critic_has_not_met_raise_the_ratio():
    """The reward of all that is replayed is 0 until it turns."""
    reward = {"turns": lambda action: np.full(len(action), turned[0])}
    turned = [0.0]
    problem = toy.problem(reward, torch.tensor([[0.1, 0.0, 0.0]]), budget=4000)
    method = make(problem, latent_warmup_updates=500)
    while not method.accepted:
        method.advance()
    turned[0] = 5.0
    while len(method.accepted) < 2:
        method.advance()
    while len(method.accepted) < 3:
        method.advance()
    assert float(method.ratios[0]) < 2 < float(method.ratios[1])
    assert not method.modes[1].any()
    assert method.modes[2].all()


def test_the_lookahead_is_lolas_update():
    """A round in lookahead moves the candidate as LoLA moves mu on the same rollouts."""
    problem = make_problem(weights=torch.tensor([[1.0, 0.2, 0.0], [1.0, 0.0, 0.2]]))
    method = make(problem, calibrate=False)
    z = project_z(problem.z[:, None, None] + 0.3 * torch.randn(2, 2, 4, 3))
    action = (z / 3**0.5).flatten(1, 2).expand(5, -1, -1, -1)
    reward = torch.from_numpy(
        np.stack([f(action[:, t].numpy()) for t, f in enumerate(problem.domain.rewards.values())])
    ).transpose(0, 1)
    seen = Rollout(action, action, reward.float(), action)
    found = method._ascent_direction(problem.z, z, seen)

    value = (action[-1] * problem.w[:, None]).sum(-1) / 0.1
    returns = sum(0.9**t * reward[t] for t in range(5)) + 0.9**5 * value
    returns = returns.view(2, 2, 4)
    advantages = (returns - returns.mean(-1, keepdim=True)) * 4 / 3
    gradient = lola.score_gradient(advantages.float(), z, problem.z, 0.2)
    spread = advantages.flatten(1).std(-1, correction=0)[:, None]
    torch.testing.assert_close(found, gradient / spread.float(), rtol=1e-4, atol=1e-4)


def test_a_lookahead_ascends_by_adams_step(monkeypatch):
    """The first one: the learning rate along each coordinate's sign."""
    problem = make_problem()
    method = make(problem, updates_per_step=1e-6)
    play_out(method)
    direction = torch.tensor([[1.0, -2.0, 3.0], [-4.0, 5.0, 6.0]])
    monkeypatch.setattr(method, "_ascent_direction", lambda *_: direction)
    before = method.mover.z.detach().clone()
    method.shifted = torch.tensor([True, False])
    play_out(method)
    expected = torch.stack([project_z(before + 0.05 * direction.sign())[0], before[1]])
    torch.testing.assert_close(method.mover.z.detach(), expected)


def test_a_lookahead_counts_its_own_tasks_steps():
    """However often the other task was in lookahead before."""
    method = make(make_problem(), updates_per_step=1e-6)
    play_out(method)
    for mode in ([True, False], [True, False], [False, True]):
        method.phase, method.shifted = "test", torch.tensor(mode)
        play_out(method)
    assert method.ascent.steps.flatten().tolist() == [2, 1]


def test_a_lost_test_begins_the_lookahead_anew():
    problem = make_problem()
    method = make(problem)
    play_out(method)
    method.ascent.steps.fill_(3)
    method.rejected.append(torch.tensor([True, False]))
    method.phase = "test"
    method._begin()
    assert method.ascent.steps.flatten().tolist() == [0, 3]


def test_the_lookahead_too_stays_within_the_least_cosine():
    problem = make_problem()
    lookahead = {**LOOKAHEAD, "learning_rate": 0.5}
    method = finish(make(problem, shift_ratio=1e-9, least_cosine=0.99, lookahead=lookahead))
    assert method.modes[-1].all()
    cosine = torch.cosine_similarity(method.mover.z.detach(), problem.z)
    assert (cosine < 0.9901).any()
    assert (cosine > 0.99 - 1e-5).all()


def test_only_lookaheads_tasks_follow_it():
    """Without off-policy updates, the candidate of the other task stays where it is."""
    problem = make_problem()
    method = make(problem, updates_per_step=1e-6)
    play_out(method)
    method.shifted = torch.tensor([True, False])
    play_out(method)
    moved = method.mover.z.detach() - problem.z
    assert moved[0].norm() > 0.01
    assert not moved[1].any()
    assert method.modes[0].tolist() == [True, False]


def test_what_cannot_be_is_one_sentence():
    with pytest.raises(UserError, match=r"hybrid: a budget of 90 .* a proposal of 20 steps"):
        make(make_problem(budget=90))

"""Critics, stacked actors and the actor-critic's losses, against closed forms and plain loops."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from bfmpipe.adaptation.actor_critic import ActorCritic, Schedule
from bfmpipe.adaptation.actors import (
    LatentMover,
    TaskAdam,
    WeightsMover,
    put_within,
    stacked_actor,
)
from bfmpipe.adaptation.base import act_by_latent
from bfmpipe.adaptation.critics import (
    FinetunedCritic,
    FreshConfig,
    FreshCritic,
    ResidualConfig,
    ResidualCritic,
)
from bfmpipe.adaptation.draws import Generators
from bfmpipe.adaptation.off_policy import Batch, UpdateConfig
from bfmpipe.adaptation.safe import calibrate
from bfmpipe.agents import hilp
from bfmpipe.networks import project_z

from .test_methods import make_problem, small_model

T, N = 2, 16


def make_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=generator)

    return Batch(draw(T, N, 4), draw(T, N, 2), draw(T, N), draw(T, N, 4))


def critics(problem):
    return {
        "residual": ResidualCritic(
            problem, ResidualConfig(critic_learning_rate=1e-2), Generators([0])
        ),
        "fine-tuned": FinetunedCritic(problem, 1e-2),
        "fresh": FreshCritic(
            problem, FreshConfig(critic_hidden_dim=32, critic_learning_rate=1e-2), Generators([0])
        ),
    }


@pytest.fixture(params=["residual", "fine-tuned", "fresh"])
def kind(request):
    return request.param


def test_error_is_value_minus_target(kind):
    problem = make_problem()
    critic = critics(problem)[kind]
    b, z = make_batch(), problem.z
    for _ in range(5):  # away from where it starts
        critic.learn(b.obs, b.action, z, b.reward)
    error = critic.error(b.obs, b.action, z, b.reward)
    torch.testing.assert_close(error, critic.q(b.obs, b.action, z) - b.reward[:, None])


def test_learning_fits_the_target_and_moves_no_target_network(kind):
    problem = make_problem()
    critic = critics(problem)[kind]
    b, z = make_batch(), problem.z
    y = 3 + b.action[..., 0] - 2 * b.obs[..., 1]
    before = critic.target_q(b.obs, b.action, z)
    for _ in range(300):
        critic.learn(b.obs, b.action, z, y)
    off = (critic.q(b.obs, b.action, z) - y[:, None]).abs()
    assert off.mean() < 0.2 * y.std()
    assert torch.equal(critic.target_q(b.obs, b.action, z), before)
    critic.update_targets(1.0)
    torch.testing.assert_close(
        critic.target_q(b.obs, b.action, z), critic.q(b.obs, b.action, z), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["residual", "fresh"])
def test_with_fourier_features_a_critic_sees_what_is_narrow(kind):
    """A value in a hundredth of the square: what share of its variance is left at new points."""
    problem = make_problem(model=small_model(fourier_obs=(0, 1)))
    z, n = problem.z, 512
    generator = torch.Generator().manual_seed(0)

    def points():
        obs = 4 * torch.rand(T, n, 4, generator=generator) - 2
        action = torch.zeros(T, n, 2)
        value = 10 * ((obs[..., :2] - 0.3).abs().amax(-1) < 0.2).float()
        if kind == "residual":  # beside what is frozen
            value += ResidualCritic(problem, ResidualConfig(), Generators([0])).base(obs, action, z)
        return obs, action, z, value

    left = {}
    for octaves in (0, 5):
        critic = make_critic(kind, problem, octaves)
        for _ in range(400):
            critic.learn(*points())
        errors = torch.stack([critic.error(*points()).detach() for _ in range(20)])
        left[octaves] = float(errors.square().mean()) / (100 * 0.01)
    assert left[5] < 0.15
    assert left[0] > 3 * left[5]


def make_critic(kind, problem, octaves):
    if kind == "residual":
        config = ResidualConfig(critic_learning_rate=1e-3, critic_octaves=octaves)
        return ResidualCritic(problem, config, Generators([0]))
    config = FreshConfig(critic_hidden_dim=64, critic_learning_rate=1e-3, critic_octaves=octaves)
    return FreshCritic(problem, config, Generators([0]))


def test_by_default_a_critic_reads_what_psi_reads():
    model = small_model(fourier_obs=(0, 1), forward_octaves=3)
    critic = make_critic("residual", make_problem(model=model), None)
    obs, action = torch.rand(T, N, 4), torch.rand(T, N, 2)
    found = critic.read(obs, action, critic.problem.z)
    assert torch.equal(found, torch.cat([model.psi_obs(obs), action], -1))
    assert found.shape[-1] == 4 + 2 * 3 * 2 + 2


def test_a_model_without_fourier_features_gives_its_critics_none():
    problem = make_problem()
    critic, b = make_critic("residual", problem, 2), make_batch()
    assert critic.read(b.obs, b.action, problem.z).shape[-1] == 4 + 2


def test_the_critics_of_a_task_do_not_feel_the_other(kind):
    problem = make_problem()
    b, z = make_batch(), problem.z
    values = []
    for scale in (1.0, 7.0):
        critic = critics(problem)[kind]
        for _ in range(5):
            critic.learn(b.obs, b.action, z, b.reward * torch.tensor([1.0, scale])[:, None])
        values.append(critic.q(b.obs, b.action, z))
    torch.testing.assert_close(values[0][0], values[1][0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(values[0][1], values[1][1])


def test_the_two_critics_differ():
    problem = make_problem()
    b = make_batch()
    q = FreshCritic(problem, FreshConfig(), Generators([0])).q(b.obs, b.action, problem.z)
    assert q.shape == (T, 2, N)
    assert not torch.allclose(q[:, 0], q[:, 1])


def test_calibration_scales_and_shifts_the_frozen_value_alone():
    problem = make_problem()
    critic = critics(problem)["residual"]
    b, z = make_batch(), problem.z
    for _ in range(5):
        critic.learn(b.obs, b.action, z, b.reward)
    frozen = critic.frozen(b.obs, b.action, z)
    residual = critic.q(b.obs, b.action, z) - frozen[:, None]
    scale, shift = torch.tensor([2.0, 10.0]), torch.tensor([1.0, -3.0])
    critic.calibration = (scale, shift)
    expected = (scale[:, None] * frozen + shift[:, None])[:, None] + residual
    torch.testing.assert_close(critic.q(b.obs, b.action, z), expected)
    error = critic.error(b.obs, b.action, z, b.reward)
    torch.testing.assert_close(error, expected - b.reward[:, None], rtol=1e-4, atol=1e-4)


def test_stacked_actors_are_the_models_actor():
    problem = make_problem()
    obs = torch.rand(T, N, 4)
    actors = stacked_actor(problem)
    expected = act_by_latent(problem.model, obs, problem.z)
    torch.testing.assert_close(actors(obs, problem.z), expected)
    # only the policy's weights: nothing else reaches the action
    assert all(name.startswith("model.policy.") for name in actors.parameters)
    (actors(obs, problem.z)[1].sum()).backward()
    gradients = [p.grad for p in actors.parameters.values()]
    assert all(bool((g[0] == 0).all()) for g in gradients)
    assert any(bool((g[1] != 0).any()) for g in gradients)


def plainly_linear(model):
    """The same model, with an actor of PyTorch's own layers."""
    torch.manual_seed(2)
    first, last = torch.nn.Linear(4 + model.z_dim, 8), torch.nn.Linear(8, 2)

    class Plain(type(model)):
        def actor(self, obs, z):
            return self.plain(torch.cat([obs, z], -1)).tanh()

    model.__class__ = Plain
    model.plain = torch.nn.Sequential(first, torch.nn.Tanh(), last)
    return model.requires_grad_(False)


def test_the_fine_tuned_critics_steps_are_adams_on_each_task_alone():
    """HILP's psi of differences has phi in it, layers whose gradients vmap gives transposed."""
    torch.manual_seed(1)
    small = {"z_dim": 6, "hidden_dim": 8, "feature_hidden_dim": 8, "architecture": "concatenated"}
    model = hilp.Model(hilp.Config(**small, reward_features="difference"), 4, 2)
    problem = make_problem(model=model.requires_grad_(False))
    critic, b, z, w = FinetunedCritic(problem, 1e-3), make_batch(), problem.z, problem.w
    for _ in range(3):
        critic.learn(b.obs, b.action, z, b.reward)
    for t in range(T):
        alone = copy.deepcopy(model).requires_grad_(True)
        optimiser = torch.optim.Adam(alone.parameters(), lr=1e-3)

        def value(alone=alone, t=t):
            return alone.psi(b.obs[t], b.action[t], z[t].expand(N, -1)) @ w[t]

        for _ in range(3):
            optimiser.zero_grad()
            (value() - b.reward[t]).square().mean(-1).sum().backward()
            optimiser.step()
        torch.testing.assert_close(
            critic.q(b.obs, b.action, z)[t], value().detach(), rtol=1e-4, atol=1e-3
        )


def test_an_actor_of_any_layers_takes_adams_steps():
    problem = make_problem(model=plainly_linear(small_model()))
    mover, b = WeightsMover(problem, 1e-2), make_batch()
    for _ in range(3):
        mover.descend((mover.act(b.obs) - b.action).square().mean((1, 2)).sum())
    for t in range(T):
        alone = copy.deepcopy(problem.model).requires_grad_(True)
        z = problem.z[t].expand(N, -1)
        optimiser = torch.optim.Adam(alone.plain.parameters(), lr=1e-2)
        for _ in range(3):
            optimiser.zero_grad()
            (alone.actor(b.obs[t], z) - b.action[t]).square().mean().backward()
            optimiser.step()
        torch.testing.assert_close(
            mover.act(b.obs)[t].detach(), alone.actor(b.obs[t], z).detach(), rtol=1e-4, atol=1e-5
        )


def learner(problem, mover, *, critic=None, bc_coef=0.0, **settings):
    config = UpdateConfig(**settings)
    critic = critic or critics(problem)["residual"]
    schedule = Schedule(1, 0, 1)
    return ActorCritic(problem, config, critic, mover, schedule, Generators([0]), bc_coef=bc_coef)


def test_targets_by_the_formula():
    problem = make_problem()
    b = make_batch()
    found = learner(problem, LatentMover(problem, 0.1), target_noise_std=0.0)
    for p in found.critic.target_parameters:
        p.add_(0.1)
    model, z = problem.model, problem.z
    for t in range(T):
        action = model.actor(b.next_obs[t], z[t].expand(N, -1))
        both = found.critic.target_q(b.next_obs, action.expand(T, -1, -1), z)[t]
        y = b.reward[t] + model.discount * torch.minimum(*both)
        torch.testing.assert_close(found.target(b)[t], y, rtol=1e-4, atol=1e-4)


def test_the_regulariser_by_the_formula():
    problem = make_problem()
    mover = WeightsMover(problem, 1e-3)
    with torch.no_grad():
        for p in mover.parameters:
            p.add_(0.05)
    obs = make_batch().obs
    plain = learner(problem, mover, ascend="first").mover_loss(obs)
    tuned = learner(problem, mover, ascend="first", bc_coef=0.4).mover_loss(obs)
    penalty = 0.0
    model, z, w = problem.model, problem.z, problem.w
    for t in range(T):
        action = mover.act(obs)[t]
        q = model.q(obs[t], action, z[t].expand(N, -1), w[t])
        distance = np.mean((action - model.actor(obs[t], z[t].expand(N, -1))).detach().numpy() ** 2)
        penalty += 0.4 * float(q.detach().abs().mean()) * distance
    assert penalty > 1e-3
    assert float((tuned - plain).detach()) == pytest.approx(penalty, rel=1e-3)


@pytest.mark.parametrize(
    ("ascend", "reduce"),
    [("minimum", torch.Tensor.amin), ("mean", torch.Tensor.mean)],
)
def test_what_is_ascended(ascend, reduce):
    problem = make_problem()
    found = learner(problem, LatentMover(problem, 0.1), ascend=ascend)
    b = make_batch()
    with torch.no_grad():
        for p in found.critic.parameters:
            p.add_(0.1 * torch.rand(p.shape, generator=torch.Generator().manual_seed(1)))
    action = act_by_latent(problem.model, b.obs, problem.z)
    q = found.critic.q(b.obs, action, problem.z)
    assert not torch.allclose(q[:, 0], q[:, 1])
    torch.testing.assert_close(found.mover_loss(b.obs), -reduce(q, 1).mean(-1).sum())


def test_task_adam_is_torchs_for_each_task_alone():
    """With tasks that stand still, and one that begins anew, as torch's new optimiser does."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, generator=generator)
    alone = [nn.Parameter(row.clone()) for row in x]
    optimisers = [torch.optim.Adam([row], lr=0.1) for row in alone]
    found = TaskAdam(x, 0.1)
    for step in range(12):
        gradient = torch.randn(x.shape, generator=generator)
        moving = torch.tensor([True, step % 3 != 1, step > 4])
        if step == 7:
            found.forget(torch.tensor([False, True, False]))
            optimisers[1] = torch.optim.Adam([alone[1]], lr=0.1)
        for row, g, moves, optimiser in zip(alone, gradient, moving, optimisers, strict=True):
            row.grad = g
            if moves:
                optimiser.step()
        found.step(x, gradient, None if moving.all() else moving)
        torch.testing.assert_close(x, torch.stack([row.detach() for row in alone]))


def test_latents_that_are_put_begin_anew():
    """The next step is as long as the first, whatever the other task has seen."""
    problem = make_problem()
    mover = LatentMover(problem, 0.1)
    for _ in range(50):
        mover.descend(mover.z[:, 0].sum())
    moved = mover.z.detach().clone()
    assert not torch.allclose(moved, problem.z)
    mover.put(problem.z, torch.tensor([True, False]))
    assert torch.equal(mover.z[0], problem.z[0])
    assert torch.equal(mover.z[1], moved[1])
    mover.descend(mover.z[:, 0].sum())
    fresh = LatentMover(problem, 0.1)
    fresh.descend(fresh.z[:, 0].sum())
    torch.testing.assert_close(mover.z[0], fresh.z[0])


def test_a_latent_stays_within_its_cap():
    problem = make_problem()
    free, held = LatentMover(problem, 0.2), LatentMover(problem, 0.2, least_cosine=0.95)
    direction = torch.randn(problem.z.shape, generator=torch.Generator().manual_seed(0))
    inside = 0
    for _ in range(20):
        for mover in (free, held):
            mover.descend((mover.z * direction).sum())
        cosine = torch.cosine_similarity(held.z, problem.z, dim=-1)
        assert (cosine >= 0.95 - 1e-6).all()
        torch.testing.assert_close(held.z, project_z(held.z))
        inside += int((cosine > 0.951).all())
    assert 0 < inside < 20
    assert (torch.cosine_similarity(free.z, problem.z, dim=-1) < 0.9).all()


def test_the_edge_of_the_cap_is_its_nearest_point():
    generator = torch.Generator().manual_seed(0)
    z, centre = project_z(torch.randn(2, 5, 4, generator=generator, dtype=torch.float64))
    found = put_within(z, centre, 0.9)
    sample = project_z(torch.randn(200_000, 4, generator=generator, dtype=torch.float64))
    for i in range(5):
        cap = sample[torch.cosine_similarity(sample, centre[i], dim=-1) >= 0.9]
        nearest = (cap - z[i]).norm(dim=-1).min()
        assert float((found[i] - z[i]).norm()) <= float(nearest) + 1e-9
        assert float(torch.cosine_similarity(found[i], centre[i], dim=0)) >= 0.9 - 1e-9
    assert torch.equal(put_within(z, centre, -1.0), z)
    assert torch.equal(put_within(centre, centre, 0.9), centre)


def test_calibration_finds_the_true_scale_and_shift():
    """Rewards (1 - gamma) c for ever are worth c; the value reports (c - shift) / scale."""
    gamma, steps = 0.9, 7
    worth = torch.tensor([[1.0, 2.0, 5.0], [-3.0, 0.0, 4.0]])  # of 3 episodes of 2 tasks
    scale, shift = torch.tensor([4.0, 0.5]), torch.tensor([1.5, -2.0])
    values = ((worth - shift[:, None]) / scale[:, None]).expand(steps + 1, -1, -1)
    reward = ((1 - gamma) * worth).expand(steps, -1, -1)
    found_scale, found_shift = calibrate(values, reward, gamma)
    torch.testing.assert_close(found_scale, scale)
    torch.testing.assert_close(found_shift, shift)


def test_calibration_is_the_least_squares_fit():
    gamma, steps, n = 0.8, 6, 5
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(steps + 1, 1, n, generator=generator, dtype=torch.float64)
    reward = values[:-1] + 0.3 * torch.randn(steps, 1, n, generator=generator, dtype=torch.float64)
    rows, wanted = [], []
    for episode in range(n):
        for t in range(steps):
            tail = gamma ** (steps - t)
            returned = sum(gamma ** (k - t) * float(reward[k, 0, episode]) for k in range(t, steps))
            last = float(values[steps, 0, episode])
            rows.append([float(values[t, 0, episode]) - tail * last, 1 - tail])
            wanted.append(returned)
    (scale, shift), *_ = np.linalg.lstsq(np.array(rows), np.array(wanted))
    found_scale, found_shift = calibrate(values, reward, gamma)
    assert scale > 0
    assert float(found_scale) == pytest.approx(scale, rel=1e-9)
    assert float(found_shift) == pytest.approx(shift, rel=1e-9)


def test_a_value_that_knows_nothing_keeps_its_scale():
    gamma, steps = 0.9, 4
    worth = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0]])
    reported = torch.tensor([[2.0, 1.0], [5.0, 7.0], [3.0, 3.0]])  # reversed, of nothing, constant
    reward = ((1 - gamma) * worth).expand(steps, -1, -1)
    scale, shift = calibrate(reported.expand(steps + 1, -1, -1), reward, gamma)
    assert scale.tolist() == [1, 1, 1]
    torch.testing.assert_close(shift, torch.tensor([0.0, -6.0, -1.5]))


def test_with_the_initial_latent_in_the_base_z_moves_by_its_actions_alone():
    problem = make_problem()
    obs, action = make_batch().obs, make_batch().action
    elsewhere = problem.z.roll(1, dims=-1)
    critic = ResidualCritic(problem, ResidualConfig(base_latent="initial"), Generators([0]))
    here = critic.q(obs, action, problem.z)
    assert torch.equal(critic.q(obs, action, elsewhere), here)
    assert torch.equal(critic.target_q(obs, action, elsewhere), here)
    mover = LatentMover(problem, 0.1)
    with torch.no_grad():
        mover.z.copy_(elsewhere)
    found = learner(problem, mover, critic=critic, ascend="first").mover_loss(obs)
    (gradient,) = torch.autograd.grad(found, mover.z)
    z = elsewhere.clone().requires_grad_()
    actions = act_by_latent(problem.model, obs, z)
    model, z_0, w = problem.model, problem.z[:, None], problem.w[:, None]
    plain = -model.q_pairs(obs, actions, z_0, w).mean((1, 2)).sum()
    (expected,) = torch.autograd.grad(plain, z)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient, expected)

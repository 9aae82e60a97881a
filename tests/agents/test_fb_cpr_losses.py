"""FB-CPR's losses: against a second, plain implementation, and at truths known in closed form."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from bfmpipe.agents import fb_cpr
from bfmpipe.agents.learner import Learner, LearnerConfig
from bfmpipe.agents.online import OnlineBatch
from bfmpipe.config import parse
from bfmpipe.networks import project_z
from bfmpipe.types import UserError

OBS, ACTION, D, N, L = 3, 2, 4, 12, 3
SMALL = {"model": "concatenated", "hidden_dim": 8}
SETTINGS = {
    "z_dim": D,
    "batch": N,
    "motion_length": L,
    "forward_map": SMALL,
    "actor": SMALL,
    "critic": SMALL,
    "backward_map": {"hidden_dim": 8},
    "discriminator": {"hidden_dim": 8},
    "gradient_penalty": 3.0,
    "regulariser_coef": 0.2,
    "ortho_coef": 7.0,
    "q_coef": 0.3,
}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def make(**settings):
    torch.manual_seed(0)
    agent = fb_cpr.Agent(parse(fb_cpr.Config, {**SETTINGS, **settings}, "test"), OBS, ACTION)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    agent.model.obs_mean.copy_(torch.linspace(-1, 1, OBS))
    agent.model.obs_std.copy_(torch.linspace(0.5, 2, OBS))
    return agent


def drawn(agent, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator)

    next_obs = randn(N, OBS)
    z = project_z(randn(N, D))
    action = randn(N, ACTION).tanh()
    batch = OnlineBatch(randn(N, OBS), action, next_obs, next_obs, z, randn(N, OBS), randn(N, OBS))
    names = [phase.name for phase in agent.phases]
    return batch, agent.draw(batch, generator, names)


def run(agent, batch, draws):
    """Losses by phase, and what they share."""
    losses, shared = {}, {}
    for phase in agent.phases:
        losses[phase.name] = agent(phase.name, batch, draws, shared)
        shared |= losses[phase.name].shared
    return losses, shared


class Plain:
    """The losses of the module's docstring, row by row."""

    def __init__(self, agent, batch, draws):
        self.agent, self.model, self.c = agent, agent.model, agent.config
        self.batch, self.draws = batch, draws

    def norm(self, obs):
        return (obs - self.model.obs_mean) / self.model.obs_std

    def logit(self, obs, z):
        return self.model.discriminator_map(torch.cat([z, self.norm(obs)])[None])[0, 0]

    def encoded(self):
        rows = []
        for start in range(0, N, L):
            features = [
                self.model.phi(o[None])[0] for o in self.batch.next_motion[start : start + L]
            ]
            rows += [project_z(sum(features) / L).detach()] * L
        return rows

    def z(self):
        z_E, rows = self.encoded(), []
        for i in range(N):
            kind = float(self.draws["kind"][i])
            if not bool(self.draws["relabelled"][i]):
                rows.append(self.batch.z[i])
            elif kind < 0.2:
                goal = self.batch.next_obs[self.draws["goal"][i]]
                rows.append(self.model.phi(goal[None])[0].detach())
            elif kind < 0.8:
                rows.append(z_E[int(self.draws["motion"][i])])
            else:
                rows.append(self.draws["z"][i])
        return torch.stack(rows)

    def discriminator(self):
        total, z_E = 0.0, self.encoded()
        for i in range(N):
            real = self.logit(self.batch.motion[i], z_E[i])
            fake = self.logit(self.batch.obs[i], self.batch.z[i])
            total = total + binary_cross_entropy_with_logits(real, torch.tensor(1.0))
            total = total + binary_cross_entropy_with_logits(fake, torch.tensor(0.0))
            t = self.draws["between"][i]
            one = torch.cat([z_E[i], self.norm(self.batch.motion[i])])
            two = torch.cat([self.batch.z[i], self.norm(self.batch.obs[i])])
            x = ((1 - t) * one + t * two).requires_grad_()
            value = self.model.discriminator_map(x[None]).sum()
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            total = total + self.c.gradient_penalty * (gradient.norm() - 1) ** 2
        return total / N

    def next_action(self, i, z):
        mean = self.model.actor(self.batch.next_obs[i : i + 1], z[None])[0]
        return (mean + self.draws["next_noise"][i]).clamp(-1, 1).detach()

    def critic(self):
        total, z = 0.0, self.z()
        for i in range(N):
            reward = self.logit(self.batch.obs[i], z[i]).detach()
            inputs = (self.norm(self.batch.next_obs[i])[None], z[i : i + 1])
            after = self.agent.target_critic_map(*inputs, self.next_action(i, z[i])[None])
            target = (reward + self.c.discount * after.min()).detach()
            inputs = (self.norm(self.batch.obs[i])[None], z[i : i + 1])
            for q in self.model.critic_map(*inputs, self.batch.action[i : i + 1]).flatten():
                total = total + 0.5 * (q - target) ** 2
        return total / N

    def fb(self):
        z = self.z()
        B, F, target_B, target_F = [], [], [], []
        for i in range(N):
            goal, obs = (self.norm(o[i])[None] for o in (self.batch.next_obs, self.batch.obs))
            B.append(self.model.backward_map(goal)[0])
            F.append(self.model.forward_map(obs, z[i : i + 1], self.batch.action[i : i + 1])[:, 0])
            target_B.append(self.agent.target_backward_map(goal)[0].detach())
            action = self.next_action(i, z[i])[None]
            after = self.agent.target_forward_map(goal, z[i : i + 1], action)
            target_F.append(after[:, 0].detach())
        total, pairs, gamma = 0.0, N * (N - 1), self.c.discount
        for i in range(N):
            for j in range(N):
                if i == j:
                    total = total - (F[i] @ B[i]).sum() / N
                    total = total - self.c.ortho_coef * B[i] @ B[i] / N
                    continue
                error = F[i] @ B[j] - gamma * target_F[i].mean(0) @ target_B[j]
                total = total + (error**2).sum() / (2 * pairs)
                total = total + self.c.ortho_coef * (B[i] @ B[j]) ** 2 / (2 * pairs)
        C = sum(torch.outer(b, b) for b in B).detach() / N
        C = C + 1e-6 * C.diagonal().mean() * torch.eye(D)
        for i in range(N):
            reward = B[i].detach() @ torch.linalg.inv(C) @ z[i]
            target = reward + gamma * (target_F[i] @ z[i]).mean()
            total = total + self.c.q_coef * 0.5 * ((F[i] @ z[i] - target) ** 2).sum() / N
        return total

    def actor(self):
        z, values, critics = self.z(), [], []
        for i in range(N):
            obs, raw = self.norm(self.batch.obs[i])[None], self.batch.obs[i : i + 1]
            mean = self.model.actor(raw, z[i : i + 1])
            # the clamp passes the gradient
            action = mean + ((mean + self.draws["actor_noise"][i]).clamp(-1, 1) - mean).detach()
            values.append((self.model.forward_map(obs, z[i : i + 1], action)[:, 0] @ z[i]).min())
            critics.append(self.model.critic_map(obs, z[i : i + 1], action).min())
        values, critics = torch.stack(values), torch.stack(critics)
        weight = self.c.regulariser_coef * values.detach().abs().mean()
        return -(values + weight * critics).mean()


@pytest.mark.parametrize("phase", ["discriminator", "fb", "critic", "actor"])
def test_every_loss_is_the_plain_one(phase):
    agent = make()
    batch, draws = drawn(agent)
    losses, shared = run(agent, batch, draws)
    plain = Plain(agent, batch, draws)
    torch.testing.assert_close(shared["z"], plain.z())
    ours, expected = losses[phase].value, getattr(plain, phase)()
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    modules = next(p.trains for p in agent.phases if p.name == phase)
    weights = [w for module in modules for w in agent.get_submodule(module).parameters()]
    for one, two in zip(
        torch.autograd.grad(ours, weights, allow_unused=True),
        torch.autograd.grad(expected, weights, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-8)


def test_latents_are_of_all_kinds_in_their_shares():
    agent = make(batch=6000, relabel_fraction=0.7)
    generator = torch.Generator().manual_seed(0)
    n = 6000
    obs, z = torch.randn(n, OBS, generator=generator), torch.zeros(n, D)
    batch = OnlineBatch(obs, torch.zeros(n, ACTION), obs, obs, z, obs + 9, obs + 9)
    draws = agent.draw(batch, generator, [])
    shared = agent("discriminator", batch, draws, {}).shared["z"]

    def share(candidates):
        known = {tuple(row) for row in candidates.tolist()}
        return sum(tuple(row) in known for row in shared.tolist()) / n

    found = [
        share(z),
        share(project_z(agent.model.phi(obs))),
        share(agent.encode_motions(obs + 9)),
        share(draws["z"]),
    ]
    assert found == pytest.approx([0.3, 0.7 * 0.2, 0.7 * 0.6, 0.7 * 0.2], abs=0.02)
    assert sum(found) == 1


def test_the_discriminators_optimum_is_the_ratio_of_densities():
    """Without the penalty L_D is least at log p_E / p: tabular, of four inputs."""
    p_E, p = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    logit = (p_E / p).log().requires_grad_()
    on = torch.nn.functional.softplus
    loss = (p_E * on(-logit)).sum() + (p * on(logit)).sum()
    (gradient,) = torch.autograd.grad(loss, logit)
    torch.testing.assert_close(gradient, torch.zeros(4), atol=1e-12, rtol=0)

    agent = make(gradient_penalty=0.0, z_dim=2, motion_length=1, batch=1000)
    # the only entry of the observation that differs is a table's index, which D reads alone
    table = torch.nn.Parameter(logit.detach().clone())
    agent.model.discriminator_map = _Table(table, 2)
    agent.model.obs_mean.zero_()
    agent.model.obs_std.fill_(1)
    rows = [torch.arange(4).repeat_interleave((1000 * q).long()) for q in (p_E, p)]
    motion, obs = (torch.nn.functional.one_hot(r, 4)[:, :OBS].double() for r in rows)
    zeros = torch.zeros(1000, 2)
    batch = OnlineBatch(obs, zeros, obs, obs, zeros, motion, motion)
    value = agent("discriminator", batch, agent.draw(batch, torch.Generator(), []), {}).value
    (gradient,) = torch.autograd.grad(value, table)
    torch.testing.assert_close(gradient, torch.zeros(4), atol=1e-12, rtol=0)


class _Table(torch.nn.Module):
    """One logit for each of four one-hot rows, the last of which is all zeros."""

    def __init__(self, table, skip):
        super().__init__()
        self.table, self.skip = table, skip

    def forward(self, x):
        x = x[:, self.skip :]
        return x @ self.table[:3, None] + (1 - x.sum(1, keepdim=True)) * self.table[3]


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_the_penalty_is_of_a_slope_other_than_one(scale):
    w = scale * torch.tensor([[0.6], [0.8]])
    x = torch.randn(5, 2)
    torch.testing.assert_close(
        fb_cpr.gradient_penalty(lambda x: x @ w, x), torch.tensor((scale - 1) ** 2)
    )


def test_the_critics_loss_vanishes_at_the_discounted_sum_of_logits():
    """With D constant its value is D / (1 - gamma)."""
    agent = make(discount=0.9)
    batch, draws = drawn(agent)
    for name in ("model.critic_map", "target_critic_map", "model.discriminator_map"):
        for parameter in agent.get_submodule(name).parameters():
            parameter.data.zero_()
    agent.model.discriminator_map.layers[-1].bias.data.fill_(0.7)
    for module in (agent.model.critic_map, agent.target_critic_map):
        module.out.bias.data.fill_(7.0)
    losses, _ = run(agent, batch, draws)
    assert losses["critic"].value.item() == pytest.approx(0, abs=1e-20)
    assert losses["critic"].metrics["discriminator_reward"].item() == pytest.approx(0.7)


def test_observations_are_normalised_by_a_running_mean_and_variance():
    agent = make(obs_momentum=0.25)
    batch, _ = drawn(agent)
    mean, variance = agent.model.obs_mean.clone(), agent.model.obs_std.clone() ** 2
    learner = Learner([agent], [torch.Generator().manual_seed(0)], LearnerConfig())
    for _ in range(2):
        learner.update([batch])
        mean = 0.75 * mean + 0.25 * batch.obs.mean(0)
        variance = 0.75 * variance + 0.25 * batch.obs.var(0)
    torch.testing.assert_close(agent.model.obs_mean, mean)
    torch.testing.assert_close(agent.model.obs_std, variance.sqrt())


def test_weights_move_at_their_own_rates():
    agent = make(learning_rate=1e-2, backward_learning_rate=1e-4)
    learner = Learner([agent], [torch.Generator().manual_seed(0)], LearnerConfig())
    names = [n for n, _ in agent.model.named_parameters() if n.startswith(("forward", "backward"))]
    before = {n: agent.model.get_parameter(n).clone() for n in names}
    batch, _ = drawn(agent)
    learner.update([batch], learning_rate_scale=0.5)
    for name in names:
        moved = (agent.model.get_parameter(name) - before[name]).abs().max().item()
        rate = 1e-2 if name.startswith("forward") else 1e-4
        assert moved == pytest.approx(0.5 * rate, rel=1e-3)  # Adam's first step


def test_targets_follow_at_their_own_taus():
    agent = make(target_tau=0.5, critic_target_tau=0.125)
    before = {n: p.clone() for n, p in agent.named_parameters()}
    learner = Learner([agent], [torch.Generator().manual_seed(0)], LearnerConfig())
    learner.update([drawn(agent)[0]])
    now = dict(agent.named_parameters())
    for name in (n for n in now if n.startswith("target_")):
        online = f"model.{name.removeprefix('target_')}"
        tau = 0.125 if "critic" in name else 0.5
        torch.testing.assert_close(now[name], torch.lerp(before[name], now[online], tau))


def test_latents_are_on_the_sphere_whatever_features_are():
    agent = make(
        backward_map={"hidden_dim": 8, "norm": False}, goal_fraction=1.0, motion_fraction=0
    )
    obs, generator = torch.randn(50, OBS), torch.Generator().manual_seed(0)
    z = agent.rollout_latents(obs, torch.randn(50 * L, OBS), generator)
    torch.testing.assert_close(z, project_z(z))
    assert not torch.allclose(agent.model.phi(obs).norm(dim=1), z.norm(dim=1))


def test_noise_of_exploring_stays_within_the_actions():
    agent = make(noise_std=1.0)
    obs, z = 5 * torch.randn(200, OBS), project_z(torch.randn(200, D))
    actions = agent.explore(obs, z, torch.Generator().manual_seed(0))
    assert actions.abs().max() <= 1
    assert not torch.equal(actions, agent.model.actor(obs, z))
    assert math.isclose(
        float(make(noise_std=0.0).explore(obs, z, torch.Generator()).sum()),
        float(agent.model.actor(obs, z).sum()),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 10}, r"batch \(10\) must be a multiple of motion_length \(3\)"),
        ({"goal_fraction": 0.5, "motion_fraction": 0.6}, "shares of one whole, at most 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        make(**settings)

"""Successor features: the losses against plain loops, and at the truth on a five-state chain."""

import pytest
import torch
from torch import Tensor

from bfmpipe.agents import successor
from bfmpipe.agents.base import Batch
from bfmpipe.agents.successor import choose_heads, reward_latents, successor_loss
from bfmpipe.networks import project_z

GAMMA = 0.9
OBS, ACTION, D, N = 3, 2, 4, 8
SETTINGS = {"z_dim": D, "hidden_dim": 16, "feature_hidden_dim": 16, "batch": N}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Toy(successor.FeatureAgent):
    """psi and pi on features that are a network of no loss."""

    def __init__(self, config):
        model = ToyModel(config, OBS, ACTION)
        super().__init__(config, model)
        self.phases = (self.successor_phase, self.actor_phase)


class ToyModel(successor.FeatureModel):
    def __init__(self, config, obs_dim, action_dim):
        super().__init__(config, obs_dim, action_dim)
        self.feature_map = self.feature_network(project=False)

    def features(self, obs: Tensor) -> Tensor:
        return self.feature_map(self.feature_input(obs))


def make(**settings):
    torch.manual_seed(0)
    agent = Toy(successor.FeatureConfig(**{**SETTINGS, **settings}))
    for parameter in agent.target_forward_map.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return agent


def draw(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def a_batch(seed=0, n=N):
    obs, action, next_obs = draw((n, OBS), (n, ACTION), (n, OBS), seed=seed)
    return Batch(obs, action.tanh(), next_obs, next_obs)


def generator():
    return torch.Generator().manual_seed(3)


# the temporal difference


def plain_loss(psi, phi, target, z, temporal_difference):
    heads, n, d = psi.shape
    total = psi.new_zeros(())
    for p in range(heads):
        for i in range(n):
            if temporal_difference == "scalar":
                y = phi[i] @ z[i] + GAMMA * target[i] @ z[i]
                total = total + (psi[p, i] @ z[i] - y) ** 2 / n
            else:
                for k in range(d):
                    y = phi[i, k] + GAMMA * target[i, k]
                    total = total + (psi[p, i, k] - y) ** 2 / (n * d)
    return total


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("form", ["vector", "scalar"])
def test_the_loss_is_the_plain_loop(form, heads):
    psi, phi, target, z = draw((heads, 7, D), (7, D), (7, D), (7, D))
    psi.requires_grad_()
    ours, plain = (
        loss(psi, phi, target, z, *rest)
        for loss, rest in ((successor_loss, (GAMMA, form)), (plain_loss, (form,)))
    )
    torch.testing.assert_close(ours, plain)
    gradients = (torch.autograd.grad(loss, psi)[0] for loss in (ours, plain))
    torch.testing.assert_close(*gradients)


def chain():
    """P of a ring of five states with a drift, and features of the states."""
    P = torch.zeros(5, 5)
    for s in range(5):
        P[s, (s + 1) % 5], P[s, s], P[s, (s - 1) % 5] = 0.7, 0.2, 0.1
    return P, draw((5, D), seed=5)[0]


@pytest.mark.parametrize("form", ["vector", "scalar"])
def test_the_expected_gradient_vanishes_at_the_true_successor_features(form):
    """psi = P (I - gamma P)^-1 phi, the sum of gamma^t phi(s_{t+1}); every pair has its weight."""
    P, phi = chain()
    truth = P @ torch.linalg.solve(torch.eye(5) - GAMMA * P, phi)
    zs = project_z(draw((6, D))[0])

    def gradient(scale):
        psi = (scale * truth).requires_grad_()
        total = torch.zeros(())
        for s in range(5):
            for s_next in range(5):
                rows = (x.expand(len(zs), -1) for x in (psi[s], phi[s_next], psi[s_next].detach()))
                online, reward, target = rows
                loss = successor_loss(online[None], reward, target, zs, GAMMA, form)
                total = total + P[s, s_next] / 5 * loss
        return torch.autograd.grad(total, psi)[0].abs().max()

    assert gradient(1.0) < 1e-12
    assert gradient(1.01) > 1e-3  # not beside it


@pytest.mark.parametrize("form", ["vector", "scalar"])
@pytest.mark.parametrize("heads", ["minimum", "mean"])
def test_the_agents_loss_is_that_of_its_parts(form, heads):
    """Step by step, as the module's docstring has it."""
    agent = make(temporal_difference=form, target_heads=heads, stride=3, goal_fraction=0.5)
    model, batch = agent.model, a_batch()
    draws = agent.draw(batch, generator(), ["successor"])
    loss = agent("successor", batch, draws, {})

    features = model.features(batch.next_obs)
    phi = features - features.mean(0)
    goals = project_z(phi @ torch.linalg.inv(phi.T @ phi / N))
    z = torch.stack(
        [goals[draws["goal"][i]] if draws["is_goal"][i] else draws["z"][i] for i in range(N)]
    )
    assert 0 < draws["is_goal"].sum() < N
    torch.testing.assert_close(loss.shared["z"], z, rtol=1e-4, atol=1e-4)  # for the ridge
    z = loss.shared["z"]
    action = (model.policy(model.normalise(batch.next_obs), z) + draws["next_noise"]).clamp(-1, 1)
    target = agent.target_forward_map(model.normalise(batch.next_obs), z, action)
    values = (target * z).sum(-1)
    chosen = [
        target[:, i].mean(0) if heads == "mean" else target[values[:, i].argmin(), i]
        for i in range(N)
    ]
    assert len({int(values[:, i].argmin()) for i in range(N)}) == 2
    psi = model.forward_map(model.normalise(batch.obs), z, batch.action)
    discount = 0.98**3
    expected = successor_loss(psi, phi, torch.stack(chosen), z, discount, form)
    torch.testing.assert_close(loss.value, expected)
    zero = successor_loss(torch.zeros_like(psi), phi, torch.stack(chosen), z, discount, form)
    assert loss.metrics.keys() == {"successor_loss", "successor_error", "psi_norm"}
    torch.testing.assert_close(loss.metrics["successor_loss"], expected.detach())
    torch.testing.assert_close(loss.metrics["successor_error"], (expected / zero).detach())
    torch.testing.assert_close(loss.metrics["psi_norm"], psi.detach().norm(dim=-1).mean())


def test_heads_are_chosen_row_by_row():
    psi = torch.tensor([[[1.0, 0.0], [3.0, 1.0]], [[0.0, 9.0], [1.0, 1.0]]])
    z = torch.tensor([[1.0, 1.0], [1.0, -1.0]])  # values 1, 2 and 9, 0
    assert choose_heads(psi, z, "minimum").tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert choose_heads(psi, -z, "minimum").tolist() == [[0.0, 9.0], [3.0, 1.0]]
    assert choose_heads(psi, z, "mean").tolist() == [[0.5, 4.5], [2.0, 1.0]]
    assert choose_heads(psi[:1], z, "minimum").tolist() == psi[0].tolist()


# latents and features


def test_latents_of_goals_are_the_inverse_covariance_times_their_features():
    (features,) = draw((50, D))
    features = features * torch.tensor([1.0, 3.0, 0.1, 0.5])
    plain = project_z(features @ torch.linalg.inv(features.T @ features / 50))
    torch.testing.assert_close(reward_latents(features), plain, rtol=1e-3, atol=1e-3)


def test_latents_of_goals_are_numbers_where_features_depend_on_each_other():
    features = draw((50, 2))[0] @ torch.tensor([[1.0, 0.0, 1.0, 2.0], [0.0, 1.0, 1.0, 0.0]])
    z = reward_latents(features.float())
    torch.testing.assert_close(z.norm(dim=-1), torch.full((50,), 2.0, dtype=torch.float32))
    assert torch.equal(reward_latents(torch.zeros(3, D)), torch.zeros(3, D))


def test_features_are_centred_by_a_mean_that_is_exact_at_first_and_then_runs():
    agent = make(mean_momentum=0.25)
    seen = []
    for i in range(7):
        batch = a_batch(seed=i)
        loss = agent("successor", batch, agent.draw(batch, generator(), ["successor"]), {})
        before = agent.model.feature_mean.clone()
        for name, value in loss.buffers.items():
            agent.get_buffer(name).copy_(value)
        seen.append(agent.model.features(batch.next_obs).mean(0))
        expected = torch.stack(seen).mean(0) if i < 4 else 0.75 * before + 0.25 * seen[-1]
        torch.testing.assert_close(agent.model.feature_mean, expected)
    phi = agent.model.phi(batch.obs)
    torch.testing.assert_close(phi, agent.model.features(batch.obs) - agent.model.feature_mean)


def test_a_momentum_of_zero_is_the_mean_of_all_batches():
    agent = make(mean_momentum=0.0)
    rows = draw((500, D))[0]
    for part in rows.split(50):
        for name, value in agent.running_mean(part).items():
            agent.get_buffer(name).copy_(value)
    torch.testing.assert_close(agent.model.feature_mean, rows.mean(0))


def test_features_read_the_entries_they_are_told_to_and_fourier_features_of_others():
    agent = make(feature_obs=(2,), fourier_obs=(0,), feature_octaves=2)
    obs = a_batch().obs
    x = agent.model.feature_input(obs)
    angles = torch.stack([obs[:, 0], 2 * obs[:, 0]], dim=-1)
    expected = torch.cat([obs[:, 2:], angles.sin(), angles.cos()], dim=-1)
    torch.testing.assert_close(x, expected)


# the actor


@pytest.mark.parametrize("pessimism", [0.0, 0.5])
def test_the_actors_gradient_is_that_of_finite_differences(pessimism):
    agent = make(actor_pessimism=pessimism, noise_std=0.0)
    model, batch = agent.model, a_batch()
    draws = agent.draw(batch, generator(), ["actor"])
    z = draws["z"]

    def loss():
        total = torch.zeros(())
        for i in range(N):
            obs, one = batch.obs[i : i + 1], z[i : i + 1]
            action = model.actor(obs, one)
            first, second = model.forward_map(model.normalise(obs), one, action)[:, 0] @ z[i]
            q = torch.minimum(first, second) if pessimism else (first + second) / 2
            total = total - q / N
        return total

    ours = agent("actor", batch, draws, {"z": z})
    torch.testing.assert_close(ours.value, loss())
    torch.testing.assert_close(ours.metrics["q"], -loss())
    weights = list(model.policy.parameters())
    gradients = torch.autograd.grad(ours.value, weights)
    step, numbers = 1e-6, torch.Generator().manual_seed(7)
    for weight, gradient in zip(weights, gradients, strict=True):
        direction = torch.randn(weight.shape, generator=numbers)
        with torch.no_grad():
            weight += step * direction
            above = loss()
            weight -= 2 * step * direction
            below = loss()
            weight += step * direction
        slope = (above - below) / (2 * step)
        torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-8)


def test_the_actors_noise_moves_where_psi_is_read_but_not_the_way_back():
    agent = make(noise_std=5.0, noise_clip=0.3)
    batch = a_batch()
    draws = agent.draw(batch, generator(), ["actor"])
    assert draws["actor_noise"].abs().max() == 0.3
    action = (agent.model.actor(batch.obs, draws["z"]) + draws["actor_noise"]).clamp(-1, 1)
    psi = agent.model.forward_map(agent.model.normalise(batch.obs), draws["z"], action)
    q = (psi * draws["z"]).sum(-1).mean()
    torch.testing.assert_close(agent("actor", batch, draws, {"z": draws["z"]}).value, -q)


def test_noise_is_drawn_for_the_actor_only_when_it_is_due():
    agent, batch = make(), a_batch()
    names = set(agent.draw(batch, generator(), ["successor"]))
    assert set(agent.draw(batch, generator(), ["successor", "actor"])) - names == {"actor_noise"}


@pytest.mark.parametrize(("fraction", "goals"), [(0.0, 0), (1.0, N)])
def test_latents_are_uniform_or_of_goals(fraction, goals):
    agent, batch = make(goal_fraction=fraction), a_batch()
    draws = agent.draw(batch, generator(), ["successor"])
    assert draws["is_goal"].sum() == goals
    z = agent.latents(torch.arange(N * D).view(N, D).double(), draws)
    uniform = torch.equal(z, draws["z"])
    assert uniform == (goals == 0)
    if goals:
        assert sorted(z[:, 0].tolist()) == [i * D for i in range(N)]
        assert torch.equal(draws["goal"].sort().values, torch.arange(N))

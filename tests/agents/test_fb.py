"""FB's losses: against the plain double loop, and against the truth on a five-state chain."""

import pytest
import torch

from bfmpipe.agents import fb
from bfmpipe.networks import project_z

GAMMA = 0.9


def pairwise_fb_loss(F, B, target_F, target_B, discount):
    heads, n, _ = F.shape
    total = F.new_zeros(())
    for p in range(heads):
        for i in range(n):
            for j in range(n):
                m, target = F[p, i] @ B[j], target_F[i] @ target_B[j]
                if i == j:
                    total = total - m / n
                else:
                    total = total + (m - discount * target) ** 2 / (2 * n * (n - 1))
    return total


def pairwise_orthonormality(B):
    n = len(B)
    total = B.new_zeros(())
    for i in range(n):
        for j in range(n):
            if i == j:
                total = total - B[i] @ B[i] / n
            else:
                total = total + (B[i] @ B[j]) ** 2 / (2 * n * (n - 1))
    return total


@pytest.mark.parametrize(("heads", "n", "d"), [(1, 2, 1), (2, 7, 3), (2, 16, 32)])
def test_gram_losses_are_the_double_loop(heads, n, d):
    generator = torch.Generator().manual_seed(0)
    F, B, target_F, target_B = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((heads, n, d), (n, d), (n, d), (n, d))
    )
    _same(
        fb.fb_loss(F, B, target_F, target_B, GAMMA),
        pairwise_fb_loss(F, B, target_F, target_B, GAMMA),
        [F, B],
    )
    _same(fb.orthonormality_loss(B), pairwise_orthonormality(B), [B])


def _same(ours, plain, inputs):
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    for x, y in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(plain, inputs), strict=True
    ):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def chain():
    """P of a ring of five states with a drift, its stationary rho, and M / rho in full rank.

    M(s, s') = sum_t gamma^t P(s_{t+1} = s' | s_0 = s) = [P (I - gamma P)^-1](s, s').
    """
    n = 5
    P = torch.zeros(n, n, dtype=torch.float64)
    for s in range(n):
        P[s, (s + 1) % n] = 0.7
        P[s, s] = 0.2
        P[s, (s - 1) % n] = 0.1
    M = P @ torch.linalg.inv(torch.eye(n, dtype=torch.float64) - GAMMA * P)
    rho = torch.full((n,), 1 / n, dtype=torch.float64)  # P is doubly stochastic
    return P, M, rho


def expected_fb_loss(F, B, P, rho, discount):
    """L_FB in expectation over s ~ rho, s' ~ P(s, .), and an independent s'' ~ rho P."""
    M, target = F @ B.T, (F @ B.T).detach()
    next_rho = rho @ P
    joint = rho[:, None] * P
    square = torch.zeros((), dtype=F.dtype)
    for s in range(len(P)):
        for s_next in range(len(P)):
            difference = (M[s] - discount * target[s_next]) ** 2
            square = square + joint[s, s_next] * (next_rho * difference).sum() / 2
    return square - (joint * M).sum()


def test_gradient_vanishes_at_the_true_successor_measure():
    P, M, rho = chain()
    F = (M / rho).clone().requires_grad_()
    B = torch.eye(5, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(expected_fb_loss(F, B, P, rho, GAMMA), [F, B])
    for gradient in gradients:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)
    # and the check can fail: it does not vanish a little beside it
    F = (1.01 * M / rho).requires_grad_()
    (gradient,) = torch.autograd.grad(expected_fb_loss(F, B, P, rho, GAMMA), [F])
    assert gradient.abs().max() > 1e-3


def test_sampled_loss_estimates_the_expected_one():
    """fb_loss on batches of the chain has the expected gradient, zero at the truth."""
    P, M, rho = chain()
    generator = torch.Generator().manual_seed(1)
    F = (M / rho).clone().requires_grad_()
    B = torch.eye(5, dtype=torch.float64, requires_grad=True)
    total = [torch.zeros_like(F), torch.zeros_like(B)]
    repeats, n = 400, 256
    squares = torch.zeros_like(F)
    for _ in range(repeats):
        s = torch.multinomial(rho, n, replacement=True, generator=generator)
        s_next = torch.multinomial(P[s], 1, generator=generator)[:, 0]
        loss = fb.fb_loss(F[s][None], B[s_next], F[s_next].detach(), B[s_next].detach(), GAMMA)
        gradient = torch.autograd.grad(loss, [F, B])
        total = [t + g / repeats for t, g in zip(total, gradient, strict=True)]
        squares += gradient[0] ** 2 / repeats
    standard_error = (squares / repeats).sqrt()
    assert (total[0].abs() < 5 * standard_error).all()


def test_value_of_a_reward_is_forward_map_times_expectation():
    """Q = F^T E_rho[r B]: on the chain, the value of any reward comes out exactly."""
    P, M, rho = chain()
    F, B = M / rho, torch.eye(5, dtype=torch.float64)
    reward = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    w = (rho[:, None] * reward[:, None] * B).sum(0)
    expected = P @ torch.linalg.solve(torch.eye(5, dtype=torch.float64) - GAMMA * P, reward)
    torch.testing.assert_close(F @ w, expected)


SMALL = fb.Config(z_dim=4, hidden_dim=16, backward_hidden_dim=16, batch=8, heads=2)


@pytest.mark.parametrize("architecture", ["concatenated", "two_embeddings"])
def test_model_shapes_and_sphere(architecture):
    config = SMALL.model_copy(
        update={"architecture": architecture, "wave_obs": (0, 1), "forward_octaves": 2}
    )
    model = fb.Model(config, 4, 2)
    obs, action = torch.randn(5, 4), torch.rand(5, 2)
    z = model.sample_z(5, torch.Generator().manual_seed(0))
    assert model.psi(obs, action, z).shape == (2, 5, 4)
    assert model.q(obs, action, z, z[0]).shape == (5,)
    assert model.actor(obs, z).shape == (5, 2)
    assert model.actor(obs, z).abs().max() <= 1
    for on_sphere in (model.phi(obs), z):
        torch.testing.assert_close(on_sphere.norm(dim=-1), torch.full((5,), 2.0))


def updated(**settings):
    """An agent after its second update, the one at which `actor_every` 2 skips the actor."""
    torch.manual_seed(0)
    config = SMALL.model_copy(update=settings)
    agent = fb.Agent(config, 4, 2, torch.Generator().manual_seed(0))
    agent.step = 1
    batch = torch.randn(8, 4), torch.rand(8, 2), torch.randn(8, 4)
    return agent, agent.update(*batch, learning_rate_scale=1.0)


def test_the_actors_step_builds_no_gradient_of_the_forward_map():
    with_actor, metrics = updated(actor_every=1)
    without, fewer = updated(actor_every=2)
    assert set(metrics) - set(fewer) == {"q"}
    for module in ("forward_map", "backward_map"):
        for ours, theirs in zip(
            getattr(with_actor.model, module).parameters(),
            getattr(without.model, module).parameters(),
            strict=True,
        ):
            assert torch.equal(ours.grad, theirs.grad)
            assert torch.equal(ours, theirs)
    assert all(p.requires_grad for p in with_actor.model.parameters())
    policies = with_actor.model.policy.parameters(), without.model.policy.parameters()
    assert not all(torch.equal(a, b) for a, b in zip(*policies, strict=True))


def test_heads_start_apart_and_metrics_keep_no_graph():
    agent, metrics = updated()
    heads = agent.model.forward_map.out.weight
    assert not torch.equal(heads[0], heads[1])
    assert not any(value.requires_grad for value in metrics.values())


GOLDEN = {
    "fb_loss": [-0.41762943877125874, 0.1519811606106964, -0.2935533350194707],
    "ortho_loss": [-2.1960115557557494, -1.322687878988234, -2.3403508111297473],
    "q": [0.30723709339443184, 0.17184192871070716, 0.18981220503744256],
}


def test_golden_first_losses():
    """The first three updates in float64; a change of these numbers changes the results."""
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        agent = fb.Agent(SMALL, 4, 2, torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(1)
        rows = []
        for _ in range(3):
            obs, next_obs = (torch.randn(8, 4, generator=generator) for _ in range(2))
            action = torch.rand(8, 2, generator=generator) * 2 - 1
            rows.append(agent.update(obs, action, next_obs, learning_rate_scale=1.0))
    finally:
        torch.set_default_dtype(torch.float32)
    for name, expected in GOLDEN.items():
        assert [float(row[name]) for row in rows] == pytest.approx(expected, rel=1e-9)


def test_stride_counts_values_per_control_step():
    """psi of a coarser clock is scaled by the discounted number of steps a transition spans."""
    torch.manual_seed(0)
    coarse = fb.Model(SMALL.model_copy(update={"stride": 10, "discount": 0.9}), 4, 2)
    fine = fb.Model(SMALL.model_copy(update={"stride": 1, "discount": 0.9}), 4, 2)
    fine.load_state_dict(coarse.state_dict())
    inputs = torch.randn(3, 4), torch.rand(3, 2), torch.randn(3, 4)
    expected = sum(0.9**t for t in range(10))
    torch.testing.assert_close(coarse.psi(*inputs), expected * fine.psi(*inputs))


def test_projection():
    x = torch.randn(3, 5)
    torch.testing.assert_close(project_z(x).norm(dim=-1), torch.full((3,), 5**0.5))


@pytest.mark.parametrize("architecture", ["concatenated", "two_embeddings"])
def test_values_are_those_of_psi(architecture):
    settings = {"wave_obs": (0, 1), "forward_octaves": 2, "stride": 4, "trunk_layers": 2}
    config = fb.Config(z_dim=6, hidden_dim=16, architecture=architecture, **settings)
    model = fb.Model(config, obs_dim=4, action_dim=2).requires_grad_(False)
    obs, action, z, w = (torch.randn(5, n) for n in (4, 2, 6, 6))
    psi = model.psi(obs, action, z).mean(0)
    torch.testing.assert_close(model.q(obs, action, z, w), (psi * w).sum(-1))
    torch.testing.assert_close(model.q(obs, action, z, w[0]), psi @ w[0])
    pairs = model.q_pairs(obs, action, z, w)
    assert pairs.shape == (5, 5)
    torch.testing.assert_close(pairs.diagonal(), (psi * w).sum(-1))

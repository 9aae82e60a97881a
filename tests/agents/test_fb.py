"""FB's losses: against the plain double loop, and against the truth on a five-state chain."""

import pytest
import torch

from bfmpipe.agents import fb
from bfmpipe.agents.base import Batch
from bfmpipe.agents.learner import Learner, LearnerConfig
from bfmpipe.agents.losses import implied_q_loss, measure_loss, orthonormality_loss
from bfmpipe.config import parse
from bfmpipe.networks import project_z
from bfmpipe.types import UserError

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
        measure_loss(F, B, target_F, target_B, GAMMA),
        pairwise_fb_loss(F, B, target_F, target_B, GAMMA),
        [F, B],
    )
    _same(orthonormality_loss(B), pairwise_orthonormality(B), [B])


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
    """measure_loss on batches of the chain has the expected gradient, zero at the truth."""
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
        loss = measure_loss(F[s][None], B[s_next], F[s_next].detach(), B[s_next].detach(), GAMMA)
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
        update={"architecture": architecture, "fourier_obs": (0, 1), "forward_octaves": 2}
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


def learner(**settings):
    torch.manual_seed(0)
    agent = fb.Agent(SMALL.model_copy(update=settings), 4, 2)
    return Learner([agent], [torch.Generator().manual_seed(0)], LearnerConfig())


def batch(generator=None):
    obs, next_obs = (torch.randn(8, 4, generator=generator) for _ in range(2))
    action = torch.rand(8, 2, generator=generator) * 2 - 1
    return Batch(obs, action, next_obs, next_obs)


def updated(**settings):
    """A learner after its second update, the one at which `actor_every` 2 skips the actor."""
    made = learner(**settings)
    made.step = 1
    return made, made.update([batch()])


def test_the_actors_step_moves_nothing_but_the_actor():
    with_actor, metrics = updated(actor_every=1)
    without, fewer = updated(actor_every=2)
    assert set(metrics) - set(fewer) == {"q"}
    moved = [
        name
        for name, tensor in with_actor.tensors.items()
        if not torch.equal(tensor, without.tensors[name])
    ]
    assert moved
    assert all(name.startswith("model.policy.") for name in moved)


def test_heads_start_apart_and_metrics_keep_no_graph():
    made, metrics = updated()
    heads = made.agents[0].model.forward_map.out.weight
    assert not torch.equal(heads[0], heads[1])
    assert not any(value.requires_grad for value in metrics.values())


def test_target_pessimism_changes_the_measure_loss_only():
    _, metrics = updated()
    _, lower = updated(target_pessimism=0.5)
    assert float(metrics["fb_loss"]) != float(lower["fb_loss"])
    for name in ("ortho_loss", "forward_norm"):
        assert float(metrics[name]) == float(lower[name])


def test_q_loss_vanishes_at_the_values_of_the_implied_reward():
    """On the chain, F^T z with the true M is the value of the reward B^T C^-1 z."""
    P, M, rho = chain()
    F, B = M / rho, torch.eye(5, dtype=torch.float64)
    z = torch.randn(5, 5, dtype=torch.float64)
    # from each state to each: the batch in expectation, one next state at a time
    total = torch.zeros(5, dtype=torch.float64)
    for shift in range(5):
        after = (torch.arange(5) + shift) % 5
        reward = (B[after] @ torch.linalg.inv(B.T @ B / 5) * z).sum(-1)
        error = (F * z).sum(-1) - (reward + GAMMA * (F[after] * z).sum(-1))
        total += P[torch.arange(5), after] * error
        loss = implied_q_loss(F[None], B[after], F[after][None], z, GAMMA, 0.0)
        assert float(loss) == pytest.approx(float(0.5 * (error**2).mean()), rel=1e-5)  # ridge
    torch.testing.assert_close(total, torch.zeros_like(total))


GOLDEN = {
    "fb_loss": [-0.41762943877125874, 0.1519811606106964, -0.2935533350194707],
    "ortho_loss": [-2.1960115557557494, -1.322687878988234, -2.3403508111297473],
    "q": [0.30723709339443184, 0.17184192871070716, 0.18981220503744256],
}


def test_golden_first_losses():
    """The first three updates in float64; a change of these numbers changes the results."""
    torch.set_default_dtype(torch.float64)
    try:
        made = learner()
        generator = torch.Generator().manual_seed(1)
        rows = [made.update([batch(generator)]) for _ in range(3)]
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
    settings = {"fourier_obs": (0, 1), "forward_octaves": 2, "stride": 4, "trunk_layers": 2}
    config = fb.Config(z_dim=6, hidden_dim=16, architecture=architecture, **settings)
    model = fb.Model(config, obs_dim=4, action_dim=2).requires_grad_(False)
    obs, action, z, w = (torch.randn(5, n) for n in (4, 2, 6, 6))
    psi = model.psi(obs, action, z).mean(0)
    torch.testing.assert_close(model.q(obs, action, z, w), (psi * w).sum(-1))
    torch.testing.assert_close(model.q(obs, action, z, w[0]), psi @ w[0])
    pairs = model.q_pairs(obs, action, z, w)
    assert pairs.shape == (5, 5)
    torch.testing.assert_close(pairs.diagonal(), (psi * w).sum(-1))


def test_a_preset_is_a_set_of_defaults():
    assert fb.Config(preset="small-point_mass_maze").z_dim == 32
    assert fb.Config(preset="small-point_mass_maze", z_dim=16).z_dim == 16
    parsed = parse(fb.Config, {"preset": "small", "backward_obs": [0, 1]}, "f")
    assert (parsed.hidden_dim, parsed.backward_obs) == (256, (0, 1))
    assert parse(fb.Config, parsed.model_dump(mode="json"), "f") == parsed


@pytest.mark.parametrize("preset", ["tiny", ["small"], 3])
def test_an_unknown_preset_is_one_sentence(preset):
    with pytest.raises(UserError) as caught:
        parse(fb.Config, {"preset": preset}, "file", at="agents.fb")
    said = str(caught.value)
    assert said.startswith("file: agents.fb")
    assert "valid: walker, cheetah" in said or "not text" in said

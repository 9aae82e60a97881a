"""Laplacian features: the loss against a plain loop, and its minimum on a five-state chain."""

import pytest
import torch

from bfmpipe.agents import laplacian
from bfmpipe.agents.base import Batch
from bfmpipe.agents.learner import Learner, LearnerConfig

N = 5
SETTINGS = {"z_dim": 4, "hidden_dim": 16, "feature_hidden_dim": 16, "batch": 8}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def plain_loss(phi, next_phi, ortho_coef):
    n = len(phi)
    total = phi.new_zeros(())
    for i in range(n):
        total = total + (phi[i] - next_phi[i]) @ (phi[i] - next_phi[i]) / n
        for j in range(n):
            if i == j:
                total = total - 2 * ortho_coef * phi[i] @ phi[i] / n
            else:
                total = total + ortho_coef * (phi[i] @ phi[j]) ** 2 / (n * (n - 1))
    return total


@pytest.mark.parametrize("project", [False, True])
@pytest.mark.parametrize("ortho_coef", [1.0, 7.0])
def test_the_loss_of_a_batch_is_the_plain_loop(ortho_coef, project):
    torch.manual_seed(0)
    config = laplacian.Config(**SETTINGS, ortho_coef=ortho_coef, project=project)
    agent = laplacian.Agent(config, 3, 2)
    obs, next_obs = torch.randn(2, 8, 3)
    batch = Batch(obs, torch.zeros(8, 2), next_obs, next_obs)
    loss = agent("features", batch, {}, {})
    phi, next_phi = (agent.model.features(x) for x in (obs, next_obs))
    expected = plain_loss(phi, next_phi, ortho_coef)
    torch.testing.assert_close(loss.value, expected)
    weights = list(agent.model.feature_map.parameters())
    for one, two in zip(
        *(torch.autograd.grad(x, weights) for x in (loss.value, expected)), strict=True
    ):
        torch.testing.assert_close(one, two)
    m = loss.metrics
    torch.testing.assert_close(m["slowness"] + 2 * ortho_coef * m["ortho_loss"], loss.value)


def chain():
    """P of a walk on a path of five states, reversible under rho, which is not uniform."""
    weights = torch.diag(torch.tensor([2.0, 1.0, 3.0, 1.0, 0.5]))  # symmetric: of staying
    for s, w in enumerate([1.0, 2.0, 0.5, 1.5]):  # and of the way between s and s + 1
        weights[s, s + 1] = weights[s + 1, s] = w
    rho = weights.sum(1) / weights.sum()
    return weights / weights.sum(1, keepdim=True), rho


def eigenfunctions(P, rho):
    """Those of P, orthonormal under rho, (states, states), by falling eigenvalue."""
    root = rho.sqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * P / root)
    return values.flip(0), (vectors / root[:, None]).flip(1)


def expected_loss(phi, P, rho, ortho_coef):
    """L_phi over s ~ rho, s' ~ P(s, .), and independent s'' ~ rho."""
    total = torch.zeros(())
    for s in range(N):
        total = total - 2 * ortho_coef * rho[s] * phi[s] @ phi[s]
        for other in range(N):
            difference = phi[s] - phi[other]
            total = total + rho[s] * P[s, other] * difference @ difference
            total = total + ortho_coef * rho[s] * rho[other] * (phi[s] @ phi[other]) ** 2
    return total


def best(P, rho, ortho_coef, d):
    values, functions = eigenfunctions(P, rho)
    scale = (1 - (1 - values[:d]) / ortho_coef).clamp_min(0).sqrt()
    return scale * functions[:, :d]


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("ortho_coef", [1.0, 3.0])
def test_the_gradient_vanishes_at_the_scaled_eigenfunctions(d, ortho_coef):
    P, rho = chain()
    torch.testing.assert_close(rho @ P, rho)
    rotation = torch.linalg.qr(torch.randn(d, d)).Q
    truth = best(P, rho, ortho_coef, d) @ rotation

    def gradient(phi):
        phi = phi.clone().requires_grad_()
        return torch.autograd.grad(expected_loss(phi, P, rho, ortho_coef), phi)[0].abs().max()

    assert gradient(truth) < 1e-12
    assert gradient(1.01 * truth) > 1e-3  # not beside it
    if d > 1:  # nor without the scale
        assert gradient(eigenfunctions(P, rho)[1][:, :d] @ rotation) > 1e-2


@pytest.mark.parametrize("ortho_coef", [1.0, 3.0])
def test_they_are_the_minimum(ortho_coef):
    """Other eigenfunctions are stationary too, and descent leaves them for the first ones."""
    P, rho = chain()
    torch.manual_seed(0)
    d = 2
    phi = torch.randn(N, d).requires_grad_()
    optimiser = torch.optim.LBFGS(
        [phi],
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimiser.zero_grad()
        loss = expected_loss(phi, P, rho, ortho_coef)
        loss.backward()
        return loss

    for _ in range(5):
        optimiser.step(closure)
    truth = best(P, rho, ortho_coef, d)
    torch.testing.assert_close(phi.detach() @ phi.detach().T, truth @ truth.T, atol=1e-5, rtol=0)


def test_eigenfunctions_of_small_eigenvalues_are_left_out():
    """With c = 1 those of which P has a negative eigenvalue: to have them costs more."""
    P, rho = chain()
    values, functions = eigenfunctions(P, rho)
    assert values[-1] < 0
    truth = best(P, rho, 1.0, N)
    assert (truth[:, -1] == 0).all()
    more = truth + 0.01 * functions[:, -1:] * torch.eye(N)[-1]
    assert expected_loss(more, P, rho, 1.0) > expected_loss(truth, P, rho, 1.0)


def test_the_agent_learns_them():
    """Of all transitions of the chain, by the learner, with a network that can hold any table."""
    torch.manual_seed(0)
    config = laplacian.Config(
        z_dim=2, hidden_dim=8, feature_hidden_dim=32, project=False, feature_learning_rate=1e-2
    )
    agent = laplacian.Agent(config, N, 1)
    agent.phases = agent.phases[:1]
    learner = Learner([agent], [torch.Generator().manual_seed(0)], LearnerConfig())
    P, rho = chain()
    states, updates, n = torch.eye(N), 200, 500
    generator = torch.Generator().manual_seed(1)
    for step in range(updates):
        s = torch.multinomial(rho, n, replacement=True, generator=generator)
        s_next = torch.multinomial(P[s], 1, generator=generator)[:, 0]
        batch = Batch(states[s], torch.zeros(n, 1), states[s_next], states[s_next])
        learner.update([batch], learning_rate_scale=1 - step / updates)
    phi, truth = agent.model.features(states), best(P, rho, 1.0, 2)
    torch.testing.assert_close(phi @ phi.T, truth @ truth.T, atol=0.15, rtol=0)


GOLDEN = {
    "slowness": [7.3105804860208625, 7.927891466752876, 5.835018010461576],
    "ortho_loss": [-1.5962694447055377, -2.3335071351238854, -1.5771467173927554],
    "successor_loss": [5.153217615846134, 4.089383213467011, 7.419059680812987],
    "q": [-0.38723218111700813, -0.20998498681860145, -0.27554341268263804],
}


def test_golden_first_losses():
    """The first three updates; a change of these numbers changes the results."""
    torch.manual_seed(0)
    agent = laplacian.Agent(laplacian.Config(**SETTINGS), 3, 2)
    learner = Learner([agent], [torch.Generator().manual_seed(0)], LearnerConfig())
    generator, rows = torch.Generator().manual_seed(1), []
    for _ in range(3):
        obs, next_obs = (torch.randn(8, 3, generator=generator) for _ in range(2))
        action = torch.rand(8, 2, generator=generator) * 2 - 1
        rows.append(learner.update([Batch(obs, action, next_obs, next_obs)]))
    for name, expected in GOLDEN.items():
        assert [float(row[name]) for row in rows] == pytest.approx(expected, rel=1e-9), name


def test_features_are_on_the_sphere_or_free():
    for project, on_sphere in ((True, True), (False, False)):
        torch.manual_seed(0)
        model = laplacian.Model(laplacian.Config(**SETTINGS, project=project), 3, 2)
        norm = model.features(torch.randn(6, 3)).norm(dim=-1)
        assert torch.allclose(norm, torch.full((6,), 2.0)) == on_sphere

"""CMA-ES against a plain second implementation, known evaluation counts, and its invariances."""

import math

import numpy as np
import pytest
import torch

from bfmpipe.adaptation.cma_es import CMA
from bfmpipe.adaptation.draws import Generators
from bfmpipe.networks import project_z
from tests.adaptation import toy


def sphere(x):
    return x.square().sum(-1)


def ellipsoid(x):
    d = x.shape[-1]
    return (10.0 ** (6 * torch.arange(d, dtype=x.dtype) / (d - 1)) * x.square()).sum(-1)


def rosenbrock(x):
    return (100 * (x[..., 1:] - x[..., :-1] ** 2) ** 2 + (1 - x[..., :-1]) ** 2).sum(-1)


def rotation(d, seed=0):
    noise = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(noise).Q


def evaluations(f, d, *, start, target=1e-9, runs=5, most=20_000, **settings):
    """Evaluations that each of `runs` searches takes until its best point is below the target."""
    draws = Generators([0])
    population = 4 + int(3 * math.log(d))
    search = CMA(torch.full((runs, d), start), 0.5, population, **settings)
    taken = torch.full((runs,), math.inf)
    for generation in range(1, most // population):
        x = search.ask(draws)
        value = f(x)
        search.tell(x, -value)
        hit = (value.amin(1) < target) & taken.isinf()
        taken[hit] = generation * population
        if not taken.isinf().any():
            break
    return taken


def test_constants_are_the_tutorials():
    """d = 10: the public implementations print (5_w,10), mu_w = 3.2, w_1 = 45 %."""
    search = CMA(torch.zeros(1, 10), 0.3, 10)
    assert search.mu == 5
    assert search.mu_eff == pytest.approx(3.167, abs=1e-3)
    assert search.weights[0].item() == pytest.approx(0.456, abs=1e-3)
    assert search.weights[:5].sum().item() == pytest.approx(1)
    assert (search.weights[5:] < 0).all()
    # its sum keeps C positive definite, eq. 52, or is 1 + c_1 / c_mu, eq. 50
    most = 1 + search.c_1 / search.c_mu
    definite = (1 - search.c_1 - search.c_mu) / (10 * search.c_mu)
    assert -search.weights[5:].sum().item() == pytest.approx(min(most, definite))
    assert search.c_sigma == pytest.approx(5.167 / 18.167, rel=1e-3)
    assert search.d_sigma == pytest.approx(1 + search.c_sigma)
    assert search.c_c == pytest.approx((4 + 0.3167) / (14 + 0.6334), rel=1e-3)
    assert search.c_1 == pytest.approx(2 / (11.3**2 + 3.167), rel=1e-3)
    assert search.c_mu == pytest.approx(
        2 * (0.25 + 3.167 + 1 / 3.167 - 2) / (144 + 3.167), rel=1e-3
    )


def by_the_book(mean, sigma, points_of, f, generations):
    """One search in plain loops over NumPy, following the tutorial's summary line by line."""
    d = len(mean)
    C, p_s, p_c = np.eye(d), np.zeros(d), np.zeros(d)
    for g in range(generations):
        x = points_of(g)
        lam, mu = len(x), len(x) // 2
        raw = np.array([math.log((lam + 1) / 2) - math.log(i) for i in range(1, lam + 1)])
        pos, neg = raw[raw > 0].sum(), -raw[raw < 0].sum()
        mu_eff = raw[:mu].sum() ** 2 / (raw[:mu] ** 2).sum()
        mu_eff_neg = raw[mu:].sum() ** 2 / (raw[mu:] ** 2).sum()
        c_1 = 2 / ((d + 1.3) ** 2 + mu_eff)
        c_mu = min(1 - c_1, 2 * (mu_eff - 1.75 + 1 / mu_eff) / ((d + 2) ** 2 + mu_eff))
        least = min(
            1 + c_1 / c_mu, 1 + 2 * mu_eff_neg / (mu_eff + 2), (1 - c_1 - c_mu) / (d * c_mu)
        )
        w = np.where(raw >= 0, raw / pos, raw * least / neg)
        c_s = (mu_eff + 2) / (d + mu_eff + 5)
        d_s = 1 + 2 * max(0, math.sqrt((mu_eff - 1) / (d + 1)) - 1) + c_s
        c_c = (4 + mu_eff / d) / (d + 4 + 2 * mu_eff / d)
        norm = math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d * d))

        values, vectors = np.linalg.eigh(C)
        inverse_root = vectors @ np.diag(values**-0.5) @ vectors.T
        ranked = sorted(x, key=f)
        y = [(point - mean) / sigma for point in ranked]
        step = sum(w[i] * y[i] for i in range(mu))
        mean = mean + sigma * step
        p_s = (1 - c_s) * p_s + math.sqrt(c_s * (2 - c_s) * mu_eff) * inverse_root @ step
        h = float(
            np.linalg.norm(p_s) / math.sqrt(1 - (1 - c_s) ** (2 * (g + 1)))
            < (1.4 + 2 / (d + 1)) * norm
        )
        p_c = (1 - c_c) * p_c + h * math.sqrt(c_c * (2 - c_c) * mu_eff) * step
        old, C = C, (1 + c_1 * (1 - h) * c_c * (2 - c_c) - c_1 - c_mu * w.sum()) * C
        C = C + c_1 * np.outer(p_c, p_c)
        for i in range(lam):
            white = y[i] @ np.linalg.solve(old, y[i])
            C = C + c_mu * (w[i] if w[i] >= 0 else w[i] * d / white) * np.outer(y[i], y[i])
        sigma = sigma * math.exp(c_s / d_s * (np.linalg.norm(p_s) / norm - 1))
    return mean, sigma, C


@pytest.mark.parametrize("start", [1.0, 100.0])  # from afar p_sigma grows, and h is 0 at times
def test_the_search_is_the_tutorials(start):
    d, draws = 5, Generators([0])
    search = CMA(torch.full((2, d), start), 0.5, 8)
    asked = []
    for _ in range(25):
        x = search.ask(draws)
        asked.append(x.numpy())
        search.tell(x, -ellipsoid(x))
    for run in range(2):
        mean, sigma, C = by_the_book(
            np.full(d, start),
            0.5,
            lambda g, run=run: asked[g][run],
            lambda x: ellipsoid(torch.from_numpy(x)).item(),
            25,
        )
        np.testing.assert_allclose(search.mean[run], mean, rtol=1e-8)
        assert search.sigma[run].item() == pytest.approx(sigma, rel=1e-8)
        np.testing.assert_allclose(search.C[run], C, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    ("f", "start", "settings", "least", "most"),
    [
        (sphere, 1.0, {}, 1200, 1900),
        (ellipsoid, 1.0, {}, 3500, 5000),
        (ellipsoid, 1.0, {"negative_weights": False}, 5000, 7000),
        (rosenbrock, 0.0, {}, 4500, 7500),
    ],
)
def test_evaluations_in_ten_dimensions_are_the_usual_ones(f, start, settings, least, most):
    taken = evaluations(f, 10, start=start, **settings)
    assert least < taken.median() < most
    assert taken.isfinite().sum() >= 4  # of five: Rosenbrock's function has a local minimum


def test_a_rotation_of_the_problem_changes_nothing():
    """A rotated ellipsoid, of condition 1e6, takes as many evaluations."""
    Q = rotation(10)
    plain = evaluations(ellipsoid, 10, start=1.0)
    turned = evaluations(lambda x: ellipsoid(x @ Q), 10, start=1.0)
    assert 0.85 < turned.median() / plain.median() < 1.15


def test_only_the_order_of_the_scores_counts():
    searches = [CMA(torch.ones(2, 6), 0.3, 9) for _ in range(2)]
    for search, change in zip(searches, (lambda v: -v, lambda v: -(v**3) - 7), strict=True):
        draws = Generators([0])
        for _ in range(20):
            x = search.ask(draws)
            search.tell(x, change(sphere(x)))
    assert torch.equal(searches[0].mean, searches[1].mean)


def test_scaling_mean_and_sigma_together_changes_no_direction():
    """Two searches of a function of the direction, one rescaled all the time."""
    goal = project_z(torch.randn(2, 1, 6, generator=torch.Generator().manual_seed(1)).double())
    found = []
    for rescaled in (False, True):
        search = CMA(torch.ones(2, 6), 0.3, 9)
        draws = Generators([0])
        for _ in range(30):
            x = search.ask(draws)
            search.tell(x, -(project_z(x) - goal).square().sum(-1))
            if rescaled:
                search.rescale(6**0.5)
        assert torch.allclose(search.mean.norm(dim=-1), torch.tensor(6**0.5).double()) == rescaled
        found.append(project_z(search.mean))
    torch.testing.assert_close(*found, rtol=1e-7, atol=1e-7)


def test_equal_scores_move_nothing_and_only_their_own_task():
    search = CMA(torch.ones(2, 5), 0.2, 8)
    x = search.ask(Generators([0]))
    search.tell(x, torch.stack([torch.ones(8), torch.arange(8.0)]))
    still = (search.mean[0] == 1).all() and (search.C[0] == torch.eye(5)).all()
    assert still
    assert search.sigma[0] == 0.2
    assert (search.mean[1] != 1).all()


def test_tasks_do_not_feel_each_other():
    searches = [CMA(torch.ones(2, 5), 0.2, 8) for _ in range(2)]
    for search, scale in zip(searches, (1.0, -1.0), strict=True):
        draws = Generators([0])
        for _ in range(10):
            x = search.ask(draws)
            search.tell(x, -sphere(x) * torch.tensor([[1.0], [scale]]))
    assert torch.equal(searches[0].mean[0], searches[1].mean[0])
    assert not torch.equal(searches[0].mean[1], searches[1].mean[1])


def test_a_hundred_dimensions():
    """An ill-conditioned rotated function of the direction on the sphere, d = 100."""
    reward, best = toy.rotated_quadratic(100, 10.0, seed=0)
    start = project_z(torch.randn(1, 100, generator=torch.Generator().manual_seed(0)))
    search = CMA(start, 0.3, 30)
    draws = Generators([0])
    for _ in range(400):
        x = search.ask(draws)
        z = project_z(x)
        search.tell(x, torch.from_numpy(reward(z[0].numpy() / 10))[None])
        search.rescale(10.0)
    goal = project_z(torch.from_numpy(best))
    assert (project_z(search.mean[0]) - goal).norm() < 0.01 * 10


def test_the_method_finds_the_best_latent_of_an_ill_conditioned_toy():
    """Condition 100, rotated: within 1e-3 of the sphere's radius."""
    (first, a), (second, b) = (toy.rotated_quadratic(4, 100.0, seed=i) for i in range(2))
    goal = project_z(torch.from_numpy(np.stack([a, b])).float())
    w = goal + torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    problem = toy.problem({"a": first, "b": second}, w, budget=4_000)
    method = toy.make(
        "cma-es", problem, states=1, latents=10, horizon=2, sigma=0.3, bootstrap=False
    )
    while method.advance():
        pass
    assert (problem.z - goal).norm(dim=-1).min() > 0.5
    assert (method.z - goal).norm(dim=-1).max() < 1e-3 * 2
    assert method.env_steps == 4_000

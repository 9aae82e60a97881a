"""The cross-entropy method: one step by hand, and optima that are known."""

import numpy as np
import pytest
import torch

from bfmpipe.adaptation.cem import CrossEntropy
from bfmpipe.adaptation.draws import Generators
from bfmpipe.networks import project_z
from bfmpipe.types import UserError
from tests.adaptation import toy


def test_one_step_by_hand():
    """In two dimensions, where the sphere has the radius sqrt 2."""
    search = CrossEntropy(
        torch.tensor([[1.0, 1.0]]), sigma=0.4, elites=2, smoothing=0.5, minimum_sigma=0.1
    )
    points = torch.tensor([[[2**0.5, 0.0], [1.0, 1.0], [0.0, 2**0.5], [-1.0, 1.0]]])
    search.tell(points, torch.tensor([[1.0, 5.0, 7.0, -3.0]]))
    # the elites (0, 1.414) and (1, 1): mean (.5, 1.207), deviations (.5, .2071)
    mean = project_z(0.5 * torch.tensor([1.0, 1.0]) + 0.5 * torch.tensor([0.5, 0.5 + 0.5**0.5]))
    torch.testing.assert_close(search.mean[0], mean)
    torch.testing.assert_close(search.std[0], torch.tensor([0.45, 0.5 * (0.4 + 0.2071068)]))


def test_deviations_stop_at_the_minimum():
    search = CrossEntropy(
        torch.tensor([[1.0, 1.0]]), sigma=0.2, elites=2, smoothing=1.0, minimum_sigma=0.05
    )
    points = torch.tensor([[[1.0, 1.0], [1.0, 1.0], [-1.0, 1.0]]])
    search.tell(points, torch.tensor([[2.0, 2.0, 1.0]]))
    assert search.std.tolist() == [[pytest.approx(0.05)] * 2]


def test_equal_scores_move_nothing_and_only_their_own_task():
    mean = project_z(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))
    search = CrossEntropy(mean, sigma=0.2, elites=2, smoothing=0.5, minimum_sigma=0.05)
    points = search.ask(8, Generators([1]))
    scores = torch.stack([torch.ones(8), torch.arange(8.0)])
    search.tell(points, scores)
    assert torch.equal(search.mean[0], mean[0])
    assert torch.equal(search.std[0], torch.full((5,), 0.2))
    assert not torch.equal(search.mean[1], mean[1])


def test_points_lie_on_the_sphere_around_the_mean():
    mean = project_z(torch.ones(1, 50, dtype=torch.float64))
    search = CrossEntropy(mean, sigma=0.2, elites=2, smoothing=0.5, minimum_sigma=0.0)
    points = search.ask(20_000, Generators([0]))
    torch.testing.assert_close(points.norm(dim=-1), torch.full((1, 20_000), 50**0.5).double())
    # projection keeps the direction: the noise across the mean stays, .2 / |z + noise| * sqrt(d)
    expected = 0.2 / (1 + 0.2**2) ** 0.5
    assert points[0].std(0).mean().item() == pytest.approx(expected, rel=0.02)


def quadratics(d, condition, tasks):
    return zip(*(toy.rotated_quadratic(d, condition, seed=i) for i in range(tasks)), strict=True)


def test_a_quadratic_on_the_sphere_is_maximised():
    """Within 1 % of the length, in 250 generations of 64, for d = 8.

    Without a floor under the deviations they shrink faster than the way that is left: the known
    fault of the method.
    """
    rewards, best = quadratics(8, 1.0, 3)
    start = project_z(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    search = CrossEntropy(start, sigma=1.0, elites=16, smoothing=0.5, minimum_sigma=0.05)
    draws = Generators([0])
    for _ in range(250):
        z = search.ask(64, draws)
        scores = [reward(p.numpy() / 8**0.5) for reward, p in zip(rewards, z, strict=True)]
        search.tell(z, torch.from_numpy(np.stack(scores)))
    goal = project_z(torch.from_numpy(np.stack(best)).float())
    assert (search.mean - goal).norm(dim=-1).max() < 0.01 * 8**0.5


def test_the_method_finds_the_best_latent_of_the_toy():
    rewards, best = quadratics(4, 3.0, 2)
    w = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
    problem = toy.problem(dict(zip("ab", rewards, strict=True)), w, budget=16_000)
    method = toy.make(
        "cem",
        problem,
        states=1,
        latents=32,
        horizon=2,
        sigma=1.0,
        minimum_sigma=0.05,
        bootstrap=False,
    )
    while method.advance():
        pass
    goal = project_z(torch.from_numpy(np.stack(best)).float())
    assert (problem.z - goal).norm(dim=-1).min() > 0.5
    assert (method.z - goal).norm(dim=-1).max() < 0.03 * 2
    assert method.env_steps == 16_000


def test_settings_that_contradict_each_other_say_so():
    problem = toy.problem({"a": toy.rotated_quadratic(4, 1.0, 0)[0]}, torch.ones(1, 4))
    with pytest.raises(UserError, match=r"cem: minimum_sigma 0\.3 is above sigma 0\.2"):
        toy.make("cem", problem, minimum_sigma=0.3)

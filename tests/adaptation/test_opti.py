"""The linear bandit over reward weights: regression, confidence, problems with known answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bfmpipe.adaptation.draws import Generators
from bfmpipe.adaptation.opti import Ridge, reward_features
from bfmpipe.types import UserError
from tests.adaptation import toy

D = 5
GENERATOR = torch.Generator().manual_seed(0)
DRAWS = Generators([1])
X = torch.randn(2, 30, D, generator=GENERATOR, dtype=torch.float64)
TRUE = torch.randn(2, D, generator=GENERATOR, dtype=torch.float64)
PRIOR = torch.randn(2, D, generator=GENERATOR, dtype=torch.float64)


def test_regression_is_the_closed_form_however_the_data_come():
    """Minimiser of sum (x^T w - r)^2 + lambda |w - w_0|^2, as least squares on stacked rows."""
    reward = (X @ TRUE[..., None])[..., 0] + torch.randn(2, 30, generator=GENERATOR)
    ridge = Ridge(PRIOR, 0.7)
    torch.testing.assert_close(ridge.w, PRIOR)
    for part in (slice(0, 4), slice(4, 30)):
        ridge.tell(X[:, part], reward[:, part])
    for t in range(2):
        rows = np.vstack([X[t].numpy(), 0.7**0.5 * np.eye(D)])
        right = np.concatenate([reward[t].numpy(), 0.7**0.5 * PRIOR[t].numpy()])
        expected = np.linalg.lstsq(rows, right, rcond=None)[0]
        np.testing.assert_allclose(ridge.w[t], expected, rtol=1e-9)


def test_exact_linear_rewards_give_the_true_weights():
    ridge = Ridge(PRIOR, 1e-6)
    ridge.tell(X, (X @ TRUE[..., None])[..., 0])
    torch.testing.assert_close(ridge.w, TRUE, rtol=1e-5, atol=1e-5)


def test_the_optimistic_value_is_the_largest_in_the_ellipsoid():
    ridge = Ridge(PRIOR, 1.0)
    ridge.tell(X, (X @ TRUE[..., None])[..., 0])
    psi = torch.randn(2, 3, D, generator=GENERATOR, dtype=torch.float64)
    value = ridge.optimistic(psi, 0.8)
    inverse = torch.linalg.inv(ridge.A)
    # the maximiser: w_hat + beta A^-1 psi / |psi|_{A^-1}
    length = torch.einsum("tni,tij,tnj->tn", psi, inverse, psi).sqrt()
    w = ridge.w[:, None] + 0.8 * (psi @ inverse) / length[..., None]
    torch.testing.assert_close(value, (psi * w).sum(-1))
    inside = ridge.ellipsoid(4000, 0.8, DRAWS)
    assert ((psi @ inside.mT).amax(-1) <= value + 1e-9).all()
    assert ((psi @ inside.mT).amax(-1) > (psi @ ridge.w[..., None])[..., 0]).all()


def test_draws_fill_the_ellipsoid_and_have_the_posteriors_covariance():
    ridge = Ridge(PRIOR, 0.5)
    ridge.tell(X, (X @ TRUE[..., None])[..., 0])
    off = ridge.ellipsoid(40_000, 2.0, DRAWS) - ridge.w[:, None]
    squared = torch.einsum("tni,tij,tnj->tn", off, ridge.A, off)
    assert squared.max() <= 4 + 1e-9
    # uniform in a ball of radius 2 in D dimensions: E r^2 = 4 D / (D + 2)
    assert squared.mean().item() == pytest.approx(4 * D / (D + 2), rel=0.01)
    inverse = torch.linalg.inv(ridge.A)
    for draws, scale in ((off, 4 / (D + 2)), (ridge.normal(40_000, 0.3, DRAWS), 0.09)):
        for t in range(2):
            covariance = torch.cov(draws[t].T)
            error = (covariance - scale * inverse[t]).norm() / (scale * inverse[t]).norm()
            assert error < 0.03
    assert (ridge.normal(40_000, 0.3, DRAWS).mean(1) - ridge.w).abs().max() < 0.01


def linear(direction):
    return lambda a: a @ np.asarray(direction, np.float64)


# The toy's returns are linear in the action z / sqrt(d), so the best latent is sqrt(d) w / |w|.
# The inferred weights are off by 60 degrees in the first task, at a right angle in the second.
BEST = np.array([[1.0, 0, 0, 0, 0], [0, 0, 1.0, 0, 0]])
INFERRED = torch.tensor([[0.5, 0.75**0.5, 0, 0, 0], [0, 0, 0, 1.0, 0]])


def play(exploration, budget=2_000, **settings):
    """Regret an episode of 10 steps, (episodes,) the mean of tasks, and the method."""
    rewards = {"a": linear(BEST[0]), "b": linear(BEST[1])}
    problem = toy.problem(rewards, INFERRED, budget=budget)
    method = toy.make(
        "opti",
        problem,
        exploration=exploration,
        switch_every=10,
        ridge=1.0,
        candidates=32,
        **settings,
    )
    regret = []
    chosen = method.choose

    def choose(obs):
        z = chosen(obs)
        reached = (z[:, 0].numpy() / 5**0.5 * BEST).sum(-1)
        regret.append(10 * (1 - reached).mean())
        return z

    method.choose = choose
    while method.advance():
        pass
    return np.array(regret), method


def test_greedy_gets_stuck_where_optimism_finds_the_task():
    """Greedy only ever plays the direction it began with, and learns nothing of the others."""
    greedy, stuck = play("greedy")
    assert greedy[-50:].mean() > 0.9 * greedy[0]
    for exploration in ("ucb", "thompson"):
        regret, method = play(exploration)
        assert regret[-50:].mean() < 0.05 * 10
        assert regret.sum() < 0.2 * greedy.sum()
        cosine = torch.cosine_similarity(method.ridge.w, torch.from_numpy(BEST))
        assert cosine.min() > 0.998
        assert (cosine > torch.cosine_similarity(stuck.ridge.w, torch.from_numpy(BEST))).all()


def test_evaluated_is_the_estimate_not_the_optimistic_latent():
    _, method = play("ucb", budget=200)
    torch.testing.assert_close(
        method.z, 5**0.5 * torch.nn.functional.normalize(method.ridge.w, dim=-1).float()
    )


def test_the_data_are_what_was_played():
    """A and b, recomputed from the toy's exact features: the actions."""
    rewards = {"a": linear(BEST[0]), "b": linear(BEST[1])}
    problem = toy.problem(rewards, INFERRED, budget=47, episode_steps=10)
    method = toy.make("opti", problem, num_envs=2, switch_every=4, ridge=2.0, candidates=4)
    A = 2.0 * torch.eye(5).expand(2, -1, -1).double()
    b = 2.0 * INFERRED.double()
    segments = []
    chosen = method.choose

    def choose(obs):
        segments.append(chosen(obs) / 5**0.5)
        return segments[-1] * 5**0.5

    method.choose = choose
    spent = [0]
    while method.advance():
        spent.append(method.env_steps)
    steps = np.diff(spent) // 2
    assert steps.tolist() == [4, 4, 2, 4, 4, 2, 3]  # an episode of ten, another, and what is left
    assert method.env_steps == 46
    for n, action in zip(steps, segments, strict=True):
        x = action.double()
        A = A + int(n) * x.mT @ x
        b = b + int(n) * (x * (x @ torch.from_numpy(BEST)[..., None])).sum(1)
    torch.testing.assert_close(method.ridge.A, A, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(method.ridge.b, b, rtol=1e-4, atol=1e-4)


def test_where_weights_are_expectations_features_are_whitened():
    """x = C^+ phi, so that w = mean r phi is what regression of r on x finds on the data."""
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(50, 5)) @ rng.normal(size=(5, 5))
    problem = toy.problem({"a": linear(BEST[0])}, INFERRED[:1], observed=observed)
    assert torch.equal(reward_features(problem, DRAWS)[0], torch.eye(5).double())
    problem.model.inference_weights = "expectation"
    phi = torch.from_numpy(problem.visited_obs).double()
    x = phi @ reward_features(problem, DRAWS)[0]
    reward = torch.from_numpy(rng.normal(size=50))
    w = torch.linalg.lstsq(x, reward[:, None]).solution[:, 0]
    torch.testing.assert_close(w, phi.T @ reward / 50, rtol=1e-6, atol=1e-8)


def test_what_least_squares_leaves_out_is_not_learnt():
    """On the data, and then in play, r = phi^T w + .5 with the inferred w."""
    observed = np.random.default_rng(0).normal(size=(50, 5)) * 0.3
    centre = torch.from_numpy(observed.mean(0)).float()

    class Centred(toy.Model):
        def phi(self, obs):
            return obs - centre

    problem = toy.problem({"a": lambda a: np.zeros(len(a))}, INFERRED[:1], observed=observed)
    problem = replace(problem, model=Centred(5))
    weights = INFERRED[0].double().numpy()

    def reward(task, physics, action):
        return physics.qvel @ weights + 0.5

    problem.domain.reward = reward
    method = toy.make("opti", problem, num_envs=2, ridge=1.0)
    shift = 0.5 + float(centre.double() @ INFERRED[0].double())
    assert method.constant.tolist() == [[pytest.approx(shift, abs=1e-6)]]
    method.advance()
    torch.testing.assert_close(method.ridge.w, INFERRED[:1].double(), rtol=1e-5, atol=1e-5)


def test_a_budget_below_one_step_says_so():
    problem = toy.problem({"a": linear(BEST[0])}, INFERRED[:1], budget=3)
    with pytest.raises(UserError, match="opti: a budget of 3 environment steps does not allow one"):
        toy.make("opti", problem, num_envs=4)


def test_a_reward_that_is_no_number_says_so():
    problem = toy.problem({"a": linear(BEST[0]), "b": lambda a: a[:, 0] * np.nan}, INFERRED)
    with pytest.raises(UserError, match="task toy/b: a reward is not a number"):
        toy.make("opti", problem).advance()

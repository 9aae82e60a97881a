"""OpTI, optimistic task inference: a linear bandit over reward weights (arXiv 2510.20264).

The reward is taken to be linear in the model's features, r ~ x(s')^T w, and what is not known of w
is explored. With x = phi where w is defined by least squares, and x = C^+ phi where it is the
expectation E[r phi] (C = mean phi phi^T over the data), the value of w under pi(., z) is
psi(s, pi(s, z), z)^T w. From all steps (s, a) -> s' played so far, with rewards r,

    A = lambda I + sum x(s') x(s')^T
    w_hat = A^-1 (lambda w_0 + sum r x(s'))

that is ridge regression with the inferred w_0 as prior mean. Where w is by least squares, r is the
reward less the constant that w_0 leaves out, of which such a w says nothing. Every `switch_every`
steps, and when an episode begins, each environment chooses a latent for its state s:

    ucb       among z_c = proj(w_c), with w_c = w_hat and others uniform in the ellipsoid
              {w: |w - w_hat|_A <= 2 beta}, the one of largest optimistic value, psi_c =
              psi(s, pi(s, z_c), z_c), the smaller of the heads' values:
              max {psi_c^T w: |w - w_hat|_A <= beta} = psi_c^T w_hat + beta |psi_c|_{A^-1}
    thompson  z = proj(w) of w ~ N(w_hat, beta^2 A^-1)
    greedy    z = proj(w_hat)

What no w can say is not learnt: on the maze, whose goals are far smaller than the features resolve,
w_hat comes to fit the places that were played, and the precise tasks lose by it.

Played are episodes from the task's own starts. Evaluated is proj(w_hat), never the optimistic
latent; before the first step it is z_0. There is no critic but the frozen psi.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation.base import Method as BaseMethod
from bfmpipe.adaptation.base import Problem, act_by_latent, check_finite
from bfmpipe.adaptation.draws import Generators
from bfmpipe.agents import Model
from bfmpipe.config import Config as BaseConfig
from bfmpipe.envs.domain import Domain
from bfmpipe.inference.reward import Inference, inverse_covariance, left_out
from bfmpipe.networks import project_z
from bfmpipe.types import Array, UserError

_SAMPLE = 50_000  # states of the data that C is worked out from


class Config(BaseConfig):
    """Settings of OpTI; the paper has candidates 128, beta and ridge 1, and no prior mean."""

    exploration: Literal["ucb", "thompson", "greedy"] = "ucb"
    """How latents are chosen; greedy, the ablation, explores nothing."""
    switch_every: int = Field(50, ge=1)
    """Steps between choices; at the length of an episode or more, one choice an episode."""
    num_envs: int = Field(1, ge=1)
    """Environments a task that step together."""
    candidates: int = Field(128, ge=2)
    """Latents that are compared at each choice, for ucb."""
    beta: float = Field(1.0, ge=0)
    """Radius of the ellipsoid, or spread of Thompson's draws, in units of reward."""
    ridge: float = Field(10_000.0, gt=0)
    """lambda: what w_0 counts against data, in states played, for features of unit variance.
    Rewards are hardly ever linear in the features, and then w fits where it was played last: with
    1 the inferred weights are lost within an episode, and the maze's tasks with them."""


class Ridge:
    """Ridge regression of rewards on features, T of them side by side in float64.

    Args:
        prior: (T, d), the weights before any data.
        ridge: lambda.
    """

    def __init__(self, prior: Tensor, ridge: float) -> None:
        tasks, d = prior.shape
        eye = torch.eye(d, dtype=torch.float64, device=prior.device)
        self.A = ridge * eye.expand(tasks, -1, -1)
        self.b = ridge * prior.double()
        self._solve()

    def _solve(self) -> None:
        self.root = torch.linalg.cholesky(self.A)
        self.w = torch.cholesky_solve(self.b[..., None], self.root)[..., 0]
        """(T, d), w_hat."""

    def tell(self, x: Tensor, reward: Tensor) -> None:
        """Learn from features x (T, n, d) and rewards (T, n)."""
        x = x.double()
        self.A = self.A + x.mT @ x
        self.b = self.b + (reward.double()[:, None] @ x)[:, 0]
        self._solve()

    def optimistic(self, psi: Tensor, beta: float) -> Tensor:
        """psi^T w_hat + beta |psi|_{A^-1}, (T, n), of psi (T, n, d)."""
        white = torch.linalg.solve_triangular(self.root, psi.double().mT, upper=False)
        return (psi.double() @ self.w[..., None])[..., 0] + beta * white.norm(dim=1)

    def normal(self, n: int, scale: float, draws: Generators) -> Tensor:
        """n draws (T, n, d) of N(w_hat, scale^2 A^-1)."""
        return self.w[:, None] + scale * self._colour(self._noise(n, draws))

    def ellipsoid(self, n: int, radius: float, draws: Generators) -> Tensor:
        """n draws (T, n, d), uniform in |w - w_hat|_A <= radius."""
        noise = self._noise(n, draws)
        d = noise.shape[-1]
        length = draws.uniform(*noise.shape[:2], 1, dtype=noise.dtype) ** (1 / d)
        ball = length * torch.nn.functional.normalize(noise, dim=-1)
        return self.w[:, None] + radius * self._colour(ball)

    def _noise(self, n: int, draws: Generators) -> Tensor:
        tasks, d = self.w.shape
        return draws.normal(tasks, n, d, dtype=torch.float64)

    def _colour(self, x: Tensor) -> Tensor:
        """A^-1/2 x: of covariance A^-1 where x (T, n, d) has the identity."""
        return torch.linalg.solve_triangular(self.root.mT, x.mT, upper=True).mT


class Method(BaseMethod):
    """OpTI on all tasks at once."""

    needs_visited_obs = True

    def __init__(self, config: Config, problem: Problem, seeds: Sequence[int]) -> None:
        super().__init__(config, problem, seeds)
        self.config = config
        self.ridge = Ridge(problem.w, config.ridge)
        self.to_features = reward_features(problem, self.draws)
        self.constant = torch.zeros_like(self.ridge.b[:, :1])
        if problem.model.inference_weights == "least-squares":
            self.constant = left_out_constants(problem, self.draws)
        self.env = problem.env(config.num_envs)
        self.episode_step = problem.domain.config.episode_steps

    @classmethod
    def check(cls, config: Config, domain: Domain, budget: int) -> None:
        """Refuse budgets without a step."""
        if budget < config.num_envs:
            raise UserError(
                f"{cls.method_name()}: a budget of {budget} environment steps does not allow "
                f"one step of {config.num_envs} environments; raise the budget or lower num_envs"
            )

    @torch.no_grad()
    def advance(self) -> bool:
        """Play one latent in every environment until the next choice; then learn."""
        c, problem = self.config, self.problem
        tasks, length = len(problem.tasks), problem.domain.config.episode_steps
        if self.left < c.num_envs:
            return False
        if self.episode_step == length:
            starts = self.draws.start_states(problem.domain, tasks * c.num_envs)
            self.obs = self._grouped(self.env.reset(starts))
            self.episode_step = 0
        steps = min(c.switch_every, length - self.episode_step, self.left // c.num_envs)
        z = self.choose(self.obs)
        features, rewards = [], []
        for _ in range(steps):
            action = act_by_latent(problem.model, self.obs, z).flatten(0, 1).numpy(force=True)
            self.obs = self._grouped(self.env.step(action))
            rewards.append(problem.tensor(problem.reward(self.env, action)))
            phi = problem.model.phi(self.obs.flatten(0, 1)).double()
            features.append(phi.unflatten(0, (tasks, c.num_envs)) @ self.to_features)
        self.episode_step += steps
        self.env_steps += steps * c.num_envs
        reward = torch.cat(rewards, 1)
        check_finite(reward, problem, "a reward")
        self.ridge.tell(torch.cat(features, 1), reward - self.constant)
        self.z = project_z(self.ridge.w).to(self.z)
        return True

    def choose(self, obs: Tensor) -> Tensor:
        """Latents to play (T, num_envs, d), from the states of obs (T, num_envs, obs_dim)."""
        c, ridge = self.config, self.ridge
        n = obs.shape[1]
        if c.exploration == "greedy":
            w = ridge.w[:, None].expand(-1, n, -1)
        elif c.exploration == "thompson":
            w = ridge.normal(n, c.beta, self.draws)
        else:
            w = ridge.ellipsoid(n * c.candidates, 2 * c.beta, self.draws)
            w = w.unflatten(1, (n, c.candidates))
            w[:, :, 0] = ridge.w[:, None]
            z = project_z(w).to(self.z)
            values = ridge_values(self.problem.model, ridge, obs, z, c.beta)
            best = values.argmax(-1)[..., None, None].expand(-1, -1, 1, z.shape[-1])
            return z.gather(2, best)[:, :, 0]
        return project_z(w).to(self.z)

    def _grouped(self, obs: Array) -> Tensor:
        return self.problem.tensor(obs).unflatten(
            0, (len(self.problem.tasks), self.config.num_envs)
        )


def ridge_values(model: Model, ridge: Ridge, obs: Tensor, z: Tensor, beta: float) -> Tensor:
    """Optimistic values (T, n, K) of z (T, n, K, d) from obs (T, n, obs_dim): the lesser head's."""
    tasks, n, K, _ = z.shape
    flat = obs[:, :, None].expand(-1, -1, K, -1).flatten(0, 2)
    latents = z.flatten(0, 2)
    psi = model.psi(flat, model.actor(flat, latents), latents)
    heads = [ridge.optimistic(head.view(tasks, n * K, -1), beta) for head in psi]
    return torch.stack(heads).amin(0).view(tasks, n, K)


@torch.no_grad()
def reward_features(problem: Problem, draws: Generators) -> Tensor:
    """The matrices (T, d, d), float64, from rows phi to rows x of the module's equations."""
    model = problem.model
    if model.inference_weights == "least-squares":
        eye = torch.eye(model.z_dim, dtype=torch.float64, device=problem.device)
        return eye.expand(len(problem.tasks), -1, -1)
    rows = iter(_samples(problem, draws))

    def matrix(one: Model) -> Tensor:
        return inverse_covariance(one.phi(problem.seen(next(rows))))

    return torch.stack(problem.each_task(matrix))


@torch.no_grad()
def left_out_constants(problem: Problem, draws: Generators) -> Tensor:
    """What w_0 leaves out of each task's reward, (T, 1), float64; see `inference.reward`.

    w_0 is taken to be by the model's own inference. Rewards of the data's states are those of
    reaching them by an action of zero.
    """
    found = []
    domain, count = problem.domain, len(problem.tasks) // len(problem.models)
    blocks = zip(problem.models, _samples(problem, draws), problem.w.split(count), strict=True)
    for model, rows, w in blocks:
        physics, still = problem.visited[rows], np.zeros((len(rows), domain.action_dim))
        rewards = [domain.relabel(task, physics, still) for task in problem.tasks[:count]]
        reward = problem.tensor(np.stack(rewards))
        found.append(left_out(model, problem.seen(rows), reward, w, Inference()))
    return torch.cat(found)[:, None]


def _samples(problem: Problem, draws: Generators) -> list[Array]:
    """Rows of the data's states, a sample a model."""
    n = min(_SAMPLE, len(problem.visited))
    return [rng.choice(len(problem.visited), n, replace=False) for rng in draws.numpy]

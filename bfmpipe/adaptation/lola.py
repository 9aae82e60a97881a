"""LoLA, lookahead latent adaptation (Sikchi et al., arXiv 2504.07896): on-policy search of z.

From a start state s_0, reset to by the simulator, k latents z_i = proj(mu + sigma eps_i) are
played for n steps each; the frozen model stands for what comes after:

    R_i = sum_{t<n} gamma^t r_t + gamma^n psi(s_n, pi(s_n, z_i), z_i)^T w_0
    grad = mean_{s_0} 1/k sum_i (R_i - mean_{j != i} R_j) (z_i - mu) / sigma^2

and mu, which starts at the inferred z_0, ascends the gradient and is projected to the sphere.
All k latents of a group start from the same state: what the state is worth cancels.
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation.base import Method as BaseMethod
from bfmpipe.adaptation.base import Problem, act_by_latent
from bfmpipe.config import Config as BaseConfig
from bfmpipe.kernels import leave_one_out
from bfmpipe.networks import project_z
from bfmpipe.types import Array, UserError


class Config(BaseConfig):
    """Settings of LoLA; the paper gives sigma fixed and a learning rate of .1."""

    states: int = Field(8, ge=1)
    """Start states an update."""
    latents: int = Field(8, ge=2)
    """Latents k a start state, each drawn anew."""
    horizon: int = Field(50, ge=1)
    """Steps n of a lookahead."""
    sigma: float = Field(0.2, gt=0)
    """Standard deviation of each coordinate of a latent, whose length is sqrt(d)."""
    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(0.05, gt=0)
    normalise_advantages: bool = True
    """Divide a task's gradient by the standard deviation of its advantages."""
    visited_fraction: float = Field(0.8, ge=0, le=1)
    """Share of start states drawn from the data set; the others are the task's own resets. On the
    maze, with half of them resets, the precise tasks drift down again after 100 episodes."""
    bootstrap: bool = True
    """Whether the frozen model stands for what comes after the lookahead."""


class Method(BaseMethod):
    """LoLA on all tasks at once."""

    def __init__(self, config: Config, problem: Problem, seed: int) -> None:
        super().__init__(config, problem, seed)
        self.config = config
        one = config.latents * config.horizon
        if problem.budget < one:
            raise UserError(
                f"lola: a budget of {problem.budget} environment steps is too small for one "
                f"update from one start state ({config.latents} latents x {config.horizon} steps "
                f"= {one}); raise the budget or lower latents or horizon"
            )
        self.mu = problem.z.clone()
        optimiser = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.optimiser]
        self.optimiser = optimiser([self.mu], lr=config.learning_rate)

    def advance(self) -> bool:
        """One update; the last one takes as many start states as the budget still pays for."""
        c = self.config
        states = min(c.states, self.left // (c.latents * c.horizon))
        if states == 0:
            return False
        self.mu.grad = -self.gradient(states)
        self.optimiser.step()
        self.mu.copy_(project_z(self.mu))
        self.z = self.mu.clone()
        self.env_steps += states * c.latents * c.horizon
        return True

    @torch.no_grad()
    def gradient(self, states: int) -> Tensor:
        """The estimate of the ascent direction of mu, (T, d), from `states` start states."""
        c, tasks = self.config, len(self.problem.tasks)
        shape = (tasks, states, c.latents)
        noise = torch.randn(*shape, self.mu.shape[-1], generator=self.generator)
        z = project_z(self.mu[:, None, None] + c.sigma * noise)
        starts = self._start_states(tasks * states)
        reward, bootstrap = self._lookahead(z, np.repeat(starts, c.latents, axis=0))
        result = leave_one_out(
            reward.view(c.horizon, *shape),
            bootstrap.view(shape),
            z,
            self.mu,
            sigma=c.sigma,
            discount=self.problem.model.discount,
        )
        if not bool(torch.isfinite(result.returns).all()):
            raise UserError("lola: a return is not a number; the model or the reward gives NaN")
        if not c.normalise_advantages:
            return result.score_gradient
        spread = result.advantages.flatten(1).std(-1, correction=0)[:, None]
        return result.score_gradient / spread.clamp_min(1e-8)

    def _start_states(self, n: int) -> Array:
        visited = self.rng.random(n) < self.config.visited_fraction
        starts = self.problem.domain.start_states(n, self.rng)
        rows = self.rng.integers(len(self.problem.visited), size=n)
        return np.where(visited[:, None], self.problem.visited[rows], starts)

    def _lookahead(self, z: Tensor, starts: Array) -> tuple[Tensor, Tensor]:
        """Rewards (horizon, T, n) and frozen values after the horizon (T, n); z (T, .., d)."""
        problem, model = self.problem, self.problem.model
        z = z.flatten(1, 2)
        tasks, n, _ = z.shape
        env = problem.env(n)
        obs = torch.from_numpy(env.reset(starts)).view(tasks, n, -1)
        rewards = np.empty((self.config.horizon, tasks, n), np.float32)
        for t in range(self.config.horizon):
            action = act_by_latent(model, obs, z).flatten(0, 1).numpy()
            obs = torch.from_numpy(env.step(action)).view(tasks, n, -1)
            rewards[t] = problem.reward(env, action)
        if not self.config.bootstrap:
            return torch.from_numpy(rewards), torch.zeros(tasks, n)
        last_action = act_by_latent(model, obs, z).flatten(0, 1)
        w = problem.w[:, None].expand(-1, n, -1).flatten(0, 1)
        value = model.q(obs.flatten(0, 1), last_action, z.flatten(0, 1), w)
        return torch.from_numpy(rewards), value.view(tasks, n)

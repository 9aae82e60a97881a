"""Lookahead: play many latents for some steps, let the frozen model stand for what comes after.

R = sum_{t<n} gamma^t r_t + gamma^n psi(s_n, pi(s_n, z), z)^T w_0
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation.base import Method, Problem, act_by_latent, check_finite
from bfmpipe.config import Config
from bfmpipe.envs.domain import Domain
from bfmpipe.types import Array, UserError


class LookaheadConfig(Config):
    """Settings of every method that scores latents by lookahead."""

    states: int = Field(8, ge=1)
    """Start states an update."""
    latents: int = Field(8, ge=2)
    """Latents k a start state."""
    horizon: int = Field(50, ge=1)
    """Steps n of a lookahead."""
    visited_fraction: float = Field(0.8, ge=0, le=1)
    """Share of start states drawn from the data set; the others are the task's own resets. On the
    maze, with half of them resets, the precise tasks drift down again after 100 episodes."""
    bootstrap: bool = True
    """Whether the frozen model stands for what comes after the lookahead."""


class Lookahead(NamedTuple):
    """Rewards (horizon, T, n), and the frozen values after the horizon (T, n)."""

    reward: Tensor
    bootstrap: Tensor

    def returns(self, discount: float) -> Tensor:
        """R of the module's equation, (T, n)."""
        steps = torch.arange(len(self.reward), dtype=self.reward.dtype, device=self.reward.device)
        discounts = discount**steps
        return torch.tensordot(discounts, self.reward, 1) + discount ** len(steps) * self.bootstrap


class LookaheadMethod(Method):
    """Scores latents by lookahead from start states that all latents of a group share."""

    def __init__(self, config: LookaheadConfig, problem: Problem, seeds: Sequence[int]) -> None:
        super().__init__(config, problem, seeds)
        self.config = config

    @classmethod
    def check(cls, config: LookaheadConfig, domain: Domain, budget: int) -> None:
        """Refuse budgets below one update."""
        one = config.latents * config.horizon
        if budget < one:
            raise UserError(
                f"{cls.method_name()}: a budget of {budget} environment steps is too small for one "
                f"update from one start state ({config.latents} latents x {config.horizon} steps "
                f"= {one}); raise the budget or lower latents or horizon"
            )

    @property
    def affordable_states(self) -> int:
        """Start states of the next update: `states`, or as many as the budget still pays for."""
        c = self.config
        return min(c.states, self.left // (c.latents * c.horizon))

    def start_states(self, n: int) -> Array:
        """n states (n, physics_dim): some that the data passed through, the others resets."""
        return self.draws.by_seed(n, self._start_states)

    def _start_states(self, n: int, rng: np.random.Generator) -> Array:
        visited = rng.random(n) < self.config.visited_fraction
        starts = self.problem.domain.start_states(n, rng)
        rows = rng.integers(len(self.problem.visited), size=n)
        return np.where(visited[:, None], self.problem.visited[rows], starts)

    def scores(self, z: Tensor, starts: Array) -> Tensor:
        """Mean R (T, k) of latents z (T, k, d), each played from all of its task's start states.

        Args:
            z: the latents of each task.
            starts: (T, states, physics_dim), the same for all latents of a task: what a state is
                worth cancels in comparisons.
        """
        states, k = starts.shape[1], z.shape[1]
        each = np.repeat(starts.reshape(-1, starts.shape[-1]), k, axis=0)
        seen = self.lookahead(z.repeat(1, states, 1), each)
        returns = seen.returns(self.problem.model.discount)
        return returns.unflatten(1, (states, k)).mean(1)

    def task_starts(self, states: int) -> Array:
        """As many start states for every task, (T, states, physics_dim)."""
        tasks = len(self.problem.tasks)
        return self.start_states(tasks * states).reshape(tasks, states, -1)

    def lookahead(self, z: Tensor, starts: Array) -> Lookahead:
        """Play latents z (T, n, d) from starts (T n, physics_dim); see `play`."""

        def act(obs: Tensor) -> Tensor:
            return act_by_latent(self.problem.model, obs, z)

        return self.play(act, act, z, starts)

    @torch.no_grad()
    def play(
        self,
        act: Callable[[Tensor], Tensor],
        last_act: Callable[[Tensor], Tensor],
        z: Tensor,
        starts: Array,
    ) -> Lookahead:
        """Play policies for `horizon` steps, and pay for it.

        Args:
            act: obs (T, n, obs_dim) -> actions (T, n, action_dim), in [-1, 1].
            last_act: the same, of the action after the last step, whose frozen value stands for
                the rest.
            z: (T, n, d), the latents of that value.
            starts: (T n, physics_dim), where each rollout begins.

        Raises:
            UserError: where a reward or a value is not a number.
        """
        problem, model, horizon = self.problem, self.problem.model, self.config.horizon
        tasks, n, _ = z.shape
        env = problem.env(n)
        obs = problem.tensor(env.reset(starts)).view(tasks, n, -1)
        rewards = np.empty((horizon, tasks, n), np.float32)
        for t in range(horizon):
            action = act(obs).flatten(0, 1).numpy(force=True)
            obs = problem.tensor(env.step(action)).view(tasks, n, -1)
            rewards[t] = problem.reward(env, action)
        self.env_steps += n * horizon
        value = torch.zeros(tasks, n, device=problem.device)
        if self.config.bootstrap:
            last_action = last_act(obs).flatten(0, 1)
            w = problem.w[:, None].expand(-1, n, -1).flatten(0, 1)
            value = model.q(obs.flatten(0, 1), last_action, z.flatten(0, 1), w).view(tasks, n)
        found = Lookahead(problem.tensor(rewards), value)
        for what, numbers in found._asdict().items():
            check_finite(numbers.movedim(-2, 0), problem, f"a {what}")
        return found

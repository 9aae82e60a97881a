"""LoLA, lookahead latent adaptation (Sikchi et al., arXiv 2504.07896): on-policy search of z.

From a start state s_0, reset to by the simulator, k latents z_i = proj(mu + sigma eps_i) are
played for n steps each; the frozen model stands for what comes after:

    R_i = sum_{t<n} gamma^t r_t + gamma^n psi(s_n, pi(s_n, z_i), z_i)^T w_0
    grad = mean_{s_0} 1/k sum_i (R_i - mean_{j != i} R_j) (z_i - mu) / sigma^2

and mu, which starts at the inferred z_0, ascends the gradient and is projected to the sphere.
All k latents of a group start from the same state: what the state is worth cancels.
Ablations: `bootstrap: false`, `baseline: none`, `start_states: own`.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.lookahead import LookaheadConfig, LookaheadMethod
from bfmpipe.kernels import leave_one_out
from bfmpipe.networks import project_z


class Config(LookaheadConfig):
    """Settings of LoLA; the paper gives sigma fixed and a learning rate of .1."""

    sigma: float = Field(0.2, gt=0)
    """Standard deviation of each coordinate of a latent, whose length is sqrt(d)."""
    optimiser: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(0.05, gt=0)
    normalise_advantages: bool = True
    """Divide a task's gradient by the standard deviation of its advantages."""
    baseline: Literal["leave-one-out", "none"] = "leave-one-out"
    """What is taken off a return before it weighs its latent."""
    start_states: Literal["shared", "own"] = "shared"
    """Whether the latents of a group share their start state, or have one each."""


class Method(LookaheadMethod):
    """LoLA on all tasks at once."""

    config: Config

    def __init__(self, config: Config, problem: Problem, seeds: Sequence[int]) -> None:
        super().__init__(config, problem, seeds)
        self.mu = problem.z.clone()
        optimiser = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[config.optimiser]
        self.optimiser = optimiser([self.mu], lr=config.learning_rate)

    def advance(self) -> bool:
        """One update; the last one takes as many start states as the budget still pays for."""
        states = self.affordable_states
        if states == 0:
            return False
        self.mu.grad = -self.gradient(states)
        self.optimiser.step()
        self.mu.copy_(project_z(self.mu))
        self.z = self.mu.clone()
        return True

    @torch.no_grad()
    def gradient(self, states: int) -> Tensor:
        """The estimate of the ascent direction of mu, (T, d), from `states` start states."""
        c, discount = self.config, self.problem.model.discount
        shape = (len(self.problem.tasks), states, c.latents)
        noise = self.draws.normal(*shape, self.mu.shape[-1])
        z = project_z(self.mu[:, None, None] + c.sigma * noise)
        groups = shape[0] * states
        if c.start_states == "shared":
            starts = np.repeat(self.start_states(groups), c.latents, axis=0)
        else:
            starts = self.start_states(groups * c.latents)
        seen = self.lookahead(z.flatten(1, 2), starts)
        if c.baseline == "none":
            advantages = seen.returns(discount).view(shape)
            gradient = score_gradient(advantages, z, self.mu, c.sigma)
        else:
            result = leave_one_out(
                seen.reward.view(c.horizon, *shape),
                seen.bootstrap.view(shape),
                z,
                self.mu,
                sigma=c.sigma,
                discount=discount,
            )
            advantages, gradient = result.advantages, result.score_gradient
        if not c.normalise_advantages:
            return gradient
        spread = advantages.flatten(1).std(-1, correction=0)[:, None]
        return gradient / spread.clamp_min(1e-8)


def score_gradient(advantages: Tensor, z: Tensor, mu: Tensor, sigma: float) -> Tensor:
    """mean A (z - mu) / sigma^2, (T, d), of A (T, states, k) and z (T, states, k, d)."""
    return (advantages[..., None] * (z - mu[:, None, None])).mean((1, 2)) / sigma**2

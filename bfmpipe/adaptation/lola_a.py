"""LoLA in action space: the actor's weights move, by REINFORCE on its actions.

Each task has a copy pi_theta of pi(., z_0). From a start state s_0, reset to by the simulator, k
rollouts of n steps are played with the actions u_t = pi_theta(s_t) + sigma eps_t, cut to [-1, 1]:

    R_i = sum_{t<n} gamma^t r_t + gamma^n psi(s_n, pi(s_n, z_0), z_0)^T w_0
    A_i = R_i - mean_{j != i} R_j
    grad = mean_{s_0} 1/k sum_i A_i sum_{t<n} grad log N(u_{t,i}; pi_theta(s_{t,i}), sigma^2 I)

All k rollouts of a group start from the same state. What comes after them is the frozen actor's
value: psi, pi and z_0 stay as they are, and the gradient is that of the expected R. With kl_coef c
the loss has c times the mean over the states passed of

    KL(N(pi_theta(s), sigma^2 I) || N(pi(s, z_0), sigma^2 I))
        = |pi_theta(s) - pi(s, z_0)|^2 / 2 sigma^2

which, sigma being fixed, is behaviour cloning of the zero-shot actor with weight c / 2 sigma^2.
The ablation of LoLA (Sikchi et al., arXiv 2504.07896) that searches actions instead of latents.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation.actors import WeightsMover
from bfmpipe.adaptation.base import Problem, act_by_latent
from bfmpipe.adaptation.lookahead import LookaheadConfig, LookaheadMethod
from bfmpipe.kernels import leave_one_out


class Config(LookaheadConfig):
    """Settings of LoLA in action space; `latents` is the number k of rollouts a start state."""

    latents: int = Field(8, ge=2)
    """Rollouts k a start state; they differ in their noise alone."""
    sigma: float = Field(0.2, gt=0)
    """Standard deviation of the noise on each action, of which the range is [-1, 1]."""
    learning_rate: float = Field(1e-4, gt=0)
    """Of Adam, for every weight of the actor."""
    normalise_advantages: bool = True
    """Divide a task's advantages by their standard deviation."""
    kl_coef: float = Field(0.0, ge=0)
    """Weight of the divergence from the zero-shot actor."""


class Method(LookaheadMethod):
    """LoLA in action space on all tasks at once; the latent stays z_0."""

    config: Config

    def __init__(self, config: Config, problem: Problem, seeds: Sequence[int]) -> None:
        super().__init__(config, problem, seeds)
        self.actors = WeightsMover(problem, config.learning_rate)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """The adapted actors' actions (T, n, action_dim)."""
        return self.actors.act(obs)

    def advance(self) -> bool:
        """One update; the last one takes as many start states as the budget still pays for."""
        states = self.affordable_states
        if states == 0:
            return False
        self.actors.descend(self.loss(states))
        return True

    def loss(self, states: int) -> Tensor:
        """What `advance` descends, summed over tasks: its gradient is minus the module's."""
        c, tasks = self.config, len(self.problem.tasks)
        starts = self.task_starts(states).repeat(c.latents, axis=1)
        rows = states * c.latents
        z = self.problem.z[:, None].expand(-1, rows, -1)
        passed: list[Tensor] = []
        drawn: list[Tensor] = []

        def explore(obs: Tensor) -> Tensor:
            mean = self.act(obs)
            noise = self.draws.normal(*mean.shape)
            passed.append(obs)
            drawn.append(mean + c.sigma * noise)
            return drawn[-1].clamp(-1, 1)

        def zero_shot(obs: Tensor) -> Tensor:
            return act_by_latent(self.problem.model, obs, self.problem.z)

        seen = self.play(explore, zero_shot, z, starts.reshape(tasks * rows, -1))
        shape = tasks, states, c.latents
        advantages = leave_one_out(
            seen.reward.view(c.horizon, *shape),
            seen.bootstrap.view(shape),
            z.unflatten(1, (states, c.latents)),
            self.problem.z,
            sigma=c.sigma,
            discount=self.problem.model.discount,
        ).advantages.flatten(1)
        if c.normalise_advantages:
            advantages = advantages / advantages.std(1, correction=0, keepdim=True).clamp_min(1e-8)
        obs = torch.stack(passed, 2)  # (T, rows, horizon, ...)
        mean = self.actors.act(obs.flatten(1, 2)).unflatten(1, (rows, c.horizon))
        squares = (torch.stack(drawn, 2) - mean).square().sum((2, 3))
        loss = (advantages * squares).mean(1) / (2 * c.sigma**2)
        if c.kl_coef:
            with torch.no_grad():
                frozen = zero_shot(obs.flatten(1, 2))
            distance = (mean.flatten(1, 2) - frozen).square().sum(-1).mean(1)
            loss = loss + c.kl_coef * distance / (2 * c.sigma**2)
        return loss.sum()

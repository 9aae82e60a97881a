"""Hybrid: off-policy ReLA while its data fit, LoLA's lookahead where they do not.

A round plays every task's rollouts of `horizon` steps in the shape of a LoLA update, and ends with
the acceptance test of `safe`, so that the policy that is evaluated does not fall. Between the two
the candidate's latent moves, in each task in one of two ways:

    off-policy   the rollouts play the candidate, with noise on actions; the latent ascends the
                 residual critic, as in `rela`
    lookahead    the rollouts play project(z + sigma eps_i), without noise; the latent ascends
                 LoLA's score gradient, as in `lola`, with the calibrated frozen value as bootstrap

Which one is decided by the fit of the critic: before it learns from a round's rollouts,

    ratio = mean delta^2 (newest rollouts) / mean delta^2 (what was replayed before),
    delta = Q_i(s, a) - y,

is about 1 where the replayed data tell about the states and actions that are met now. A ratio
above `shift_ratio`, or a candidate that lost its test, is a shift: the next round is a lookahead's.
All rollouts enter the replay buffer, so the critic learns in both modes and can fit again.
"""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation import lola
from bfmpipe.adaptation.actors import TaskAdam, put_within
from bfmpipe.adaptation.base import Problem, act_by_latent, check_finite
from bfmpipe.adaptation.lookahead import LookaheadConfig
from bfmpipe.adaptation.off_policy import Batch
from bfmpipe.adaptation.safe import Rollout, SafeConfig, SafeMethod
from bfmpipe.kernels import leave_one_out
from bfmpipe.networks import project_z


class Lookahead(LookaheadConfig):
    """LoLA's settings that matter here, for a round that is half a LoLA update."""

    states: int = Field(4, ge=1)
    sigma: float = Field(0.2, gt=0)
    learning_rate: float = Field(0.05, gt=0)
    normalise_advantages: bool = True


class Config(SafeConfig):
    """Settings of the hybrid."""

    lookahead: Lookahead = Lookahead()
    """Of a lookahead; `states`, `latents` and `horizon` are the shape of all rollouts."""
    shift_ratio: float = Field(2.0, gt=0)
    """Above it the critic does not fit."""


class Method(SafeMethod):
    """The hybrid on all tasks at once; each is in a mode of its own."""

    config: Config

    def __init__(self, config: Config, problem: Problem, seeds: Sequence[int]) -> None:
        super().__init__(config, problem, seeds)
        self.lola = lola.Method(lola.Config(**config.lookahead.model_dump()), problem, seeds)
        self.ascent = TaskAdam(problem.z, config.lookahead.learning_rate)
        """What moves candidates by LoLA's gradient."""
        self.shifted = torch.zeros(len(problem.tasks), dtype=torch.bool, device=problem.device)
        """Whose next round is a lookahead's, (T,)."""
        self.modes: list[Tensor] = []
        """Of every round: who used the lookahead, (T,)."""
        self.ratios: list[Tensor] = []
        """Of every round: the ratio that was met, (T,)."""
        self.older: tuple[Tensor, ...] = ()
        """The batch of what was replayed before this round."""

    @staticmethod
    def smallest_proposal(config: Config) -> int:
        """Rollouts from one start state."""
        return config.lookahead.latents * config.lookahead.horizon

    @property
    def proposal(self) -> int:
        """Rollouts from all start states."""
        return self.config.lookahead.states * self.least_proposal

    def propose(self, steps: int) -> None:
        """Begin a round's rollouts, in each task by its mode."""
        if self.rejected:
            self.shifted |= self.rejected[-1]
            self.ascent.forget(self.rejected[-1])
        lookahead, c, k = self.shifted, self.config, self.config.lookahead.latents
        groups = steps // self.least_proposal
        shape = (len(self.problem.tasks), groups, k)
        before = self.mover.z.detach()
        noise = self.draws.normal(*shape, before.shape[-1])
        std = torch.where(lookahead, c.lookahead.sigma, c.latent_noise_std)[:, None, None, None]
        z = project_z(before[:, None, None] + std * noise)
        starts = np.repeat(self.lola.start_states(shape[0] * groups), k, axis=0)
        action_std = torch.where(lookahead, 0.0, c.noise_std)[:, None, None]
        self.older = tuple(self.replay.sample(c.batch, self.draws))
        self.play(z.flatten(1, 2), starts, c.lookahead.horizon, action_std)

    def proposed(self, seen: Rollout) -> None:
        """The updates that are due, and LoLA's step where it is its turn."""
        c, lookahead, before = self.config, self.shifted, self.mover.z.detach().clone()
        ratio = self.squared_error(self._some(seen)) / self.squared_error(Batch(*self.older))
        check_finite(ratio.nan_to_num(posinf=0.0), self.problem, "the critic's error")
        self.modes.append(lookahead)
        self.ratios.append(ratio)
        self.learn()
        if bool(lookahead.any()):
            z = self.playing.z.unflatten(1, (-1, c.lookahead.latents))
            ascended = before.clone()
            self.ascent.step(ascended, -self._ascent_direction(before, z, seen), lookahead)
            ascended = put_within(project_z(ascended), self.problem.z, c.least_cosine)
            self.mover.put(ascended, lookahead)
        self.shifted = ratio > c.shift_ratio

    @torch.no_grad()
    def squared_error(self, batch: Batch) -> Tensor:
        """Mean delta^2 of both critics, (T,)."""
        y = self.learner.target(batch)
        z = self.mover.latent
        return self.critic.error(batch.obs, batch.action, z, y).square().mean((1, 2))

    def _some(self, seen: Rollout) -> Batch:
        """A batch of a rollout's transitions, uniform with replacement."""
        steps, tasks, n = seen.reward.shape
        rows = self.draws.integers(steps * n, tasks, self.config.batch)
        task = torch.arange(tasks, device=rows.device)[:, None]
        return Batch(*(column.transpose(0, 1).flatten(1, 2)[task, rows] for column in seen))

    @torch.no_grad()
    def _ascent_direction(self, mu: Tensor, z: Tensor, seen: Rollout) -> Tensor:
        """LoLA's gradient at mu, (T, d), from rollouts of z (T, states, k, d)."""
        c, problem = self.config.lookahead, self.problem
        value = torch.zeros(z.shape[:3], device=z.device)
        if c.bootstrap:
            value = self._bootstrap(seen.next_obs[-1], z.flatten(1, 2)).view(z.shape[:3])
        result = leave_one_out(
            seen.reward.view(c.horizon, *z.shape[:3]),
            value,
            z,
            mu,
            sigma=c.sigma,
            discount=problem.model.discount,
        )
        if not c.normalise_advantages:
            return result.score_gradient
        spread = result.advantages.flatten(1).std(-1, correction=0)[:, None]
        return result.score_gradient / spread.clamp_min(1e-8)

    def _bootstrap(self, obs: Tensor, z: Tensor) -> Tensor:
        """The calibrated frozen value of obs (T, n, obs_dim) at latents (T, n, d), (T, n)."""
        model, n = self.problem.model, obs.shape[1]
        action = act_by_latent(model, obs, z)
        w = self.problem.w[:, None].expand(-1, n, -1)
        rows = (x.flatten(0, 1) for x in (obs, action, z, w))
        value = model.q(*rows).view(-1, n)
        if self.critic.calibration is None:
            return value
        scale, shift = self.critic.calibration
        return scale[:, None] * value + shift[:, None]

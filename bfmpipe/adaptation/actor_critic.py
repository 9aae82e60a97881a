"""Actor-critic adaptation: a critic learns from replayed transitions, a mover ascends it.

    y = r + gamma min_i Q'_i(s', a'),   a' = pi'(s') + clipped noise
    critic   L = sum_i mean (Q_i(s, a) - y)^2
    mover    L = - mean_s reduce_i Q_i(s, pi(s)) + regulariser

Q' and pi' are the targets. `critics` has what Q is, `actors` what moves in pi.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation.actors import LatentMover, Mover, WeightsMover
from bfmpipe.adaptation.base import Problem, act_by_latent, check_finite
from bfmpipe.adaptation.critics import Critic
from bfmpipe.adaptation.draws import Generators
from bfmpipe.adaptation.off_policy import (
    Batch,
    OffPolicyConfig,
    OffPolicyMethod,
    UpdateConfig,
)
from bfmpipe.envs.domain import Domain
from bfmpipe.networks import perturb, project_z
from bfmpipe.types import UserError


class LatentConfig(UpdateConfig):
    """Settings of a latent that moves."""

    latent_learning_rate: float = Field(0.01, gt=0)
    latent_every: int = Field(1, ge=1)
    """Updates of the critic to one of the latent."""
    latent_warmup_updates: int = Field(1000, ge=0)
    """Updates of the critic before the latent moves."""
    least_cosine: float = Field(-1.0, ge=-1, lt=1)
    """Of the latent to z_0; where a step leads further away, it ends at this cosine."""
    latent_noise_std: float = Field(0.0, ge=0)
    """Standard deviation of the exploration noise on each coordinate of z."""


class ActorConfig(UpdateConfig):
    """Settings of actors whose weights move."""

    actor_learning_rate: float = Field(1e-4, gt=0)
    actor_every: int = Field(2, ge=1)
    """Updates of the critics to one of the actor and of all targets."""
    actor_warmup_updates: int = Field(0, ge=0)
    """Updates of the critics before the actor moves."""


class TunedActorConfig(ActorConfig):
    """Settings of actors that start at the model's."""

    bc_coef: float = Field(0.0, ge=0)
    """Weight of the distance to the zero-shot actor, against values of mean size 1: of
    mean |Q| mean_s (pi(s) - pi_0(s, z_0))^2 / action_dim, added to - mean Q. TD3+BC (Fujimoto & Gu
    2021), with the frozen actor for the data's actions; its alpha is 1 / bc_coef."""


class Schedule(NamedTuple):
    """When the mover moves: every so many updates of the critic, but not in the first `after`.

    targets_every: updates to one of the targets.
    """

    every: int
    after: int
    targets_every: int


class ActorCritic:
    """A critic and a mover, all tasks at once."""

    def __init__(
        self,
        problem: Problem,
        config: UpdateConfig,
        critic: Critic,
        mover: Mover,
        schedule: Schedule,
        draws: Generators,
        *,
        bc_coef: float = 0.0,
    ) -> None:
        self.problem = problem
        self.config = config
        self.critic = critic
        self.mover = mover
        self.schedule = schedule
        self.draws = draws
        self.bc_coef = bc_coef
        self.updates = 0

    def update(self, batch: Batch) -> None:
        """One step of the critic, and those of the mover and the targets that are due."""
        y = self.target(batch)
        self.critic.learn(batch.obs, batch.action, self.mover.latent.detach(), y)
        self.updates += 1
        every, after, targets_every = self.schedule
        if self.updates > after and self.updates % every == 0:
            self.mover.descend(self.mover_loss(batch.obs))
        if self.updates % targets_every == 0:
            self.critic.update_targets(self.config.target_tau)
            self.mover.update_targets(self.config.target_tau)

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """Y of the module's equations, (T, n).

        Raises:
            UserError: where it is not a number.
        """
        c, z = self.config, self.mover.latent
        action = self.mover.target_act(batch.next_obs)
        noise = self.draws.noise(action, c.target_noise_std, c.target_noise_clip)
        action = perturb(action, noise)
        value = self.critic.target_q(batch.next_obs, action, z).amin(1)
        y = batch.reward + self.problem.model.discount * value
        check_finite(y, self.problem, "a value")
        return y

    def mover_loss(self, obs: Tensor) -> Tensor:
        """The mover's loss, summed over tasks."""
        action = self.mover.act(obs)
        q = self.critic.q(obs, action, self.mover.latent)
        value = {"minimum": lambda: q.amin(1), "mean": lambda: q.mean(1), "first": lambda: q[:, 0]}[
            self.config.ascend
        ]()
        loss = -value.mean(-1).sum()
        if self.bc_coef:
            with torch.no_grad():
                zero_shot = act_by_latent(self.problem.model, obs, self.problem.z)
            distance = (action - zero_shot).square().mean((-1, -2))
            loss = loss + self.bc_coef * (value.detach().abs().mean(-1) * distance).sum()
        return loss


class ActorCriticMethod(OffPolicyMethod):
    """Off-policy adaptation by a critic and a mover."""

    learner: ActorCritic

    @abstractmethod
    def make_critic(self, problem: Problem) -> Critic:
        """What the method ascends."""

    def update(self, batch: Batch) -> None:
        """Learn from one batch of every task."""
        self.learner.update(batch)
        self.z = self.learner.mover.latent.detach().clone()

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """The adapted deterministic policy."""
        return self.learner.mover.act(obs)

    @property
    def mover(self) -> Mover:
        """What moves."""
        return self.learner.mover

    @property
    def critic(self) -> Critic:
        """What it ascends."""
        return self.learner.critic

    @classmethod
    def check_warmup(cls, config: OffPolicyConfig, budget: int, what: str) -> None:
        """Refuse budgets under which nothing would ever move."""
        allowed, setting = config.updates_allowed(budget), f"{what}_warmup_updates"
        warmup = getattr(config, setting)
        if allowed <= warmup:
            raise UserError(
                f"{cls.method_name()}: the budget allows {allowed} updates, and the {what} moves "
                f"only after {warmup}; raise the budget or updates_per_step, or lower {setting}"
            )


class OffPolicyLatentConfig(LatentConfig, OffPolicyConfig):
    """Settings of off-policy methods that move the latent."""


class LatentMethod(ActorCriticMethod):
    """Moves the latent up a critic."""

    config: OffPolicyLatentConfig

    def __init__(
        self, config: OffPolicyLatentConfig, problem: Problem, seeds: Sequence[int]
    ) -> None:
        super().__init__(config, problem, seeds)
        self.learner = ActorCritic(
            problem,
            config,
            self.make_critic(problem),
            LatentMover(problem, config.latent_learning_rate, config.least_cosine),
            Schedule(config.latent_every, config.latent_warmup_updates, 1),
            self.draws,
        )

    @classmethod
    def check(cls, config: OffPolicyConfig, domain: Domain, budget: int) -> None:
        """Refuse budgets under which the latent never moves."""
        super().check(config, domain, budget)
        cls.check_warmup(config, budget, "latent")

    def explore(self, obs: Tensor) -> Tensor:
        """Actions at noisy latents, plus noise."""
        std = self.config.latent_noise_std
        if std == 0:
            return super().explore(obs)
        noise = self.draws.normal(*obs.shape[:2], self.z.shape[-1])
        z = project_z(self.z[:, None] + std * noise)
        action = act_by_latent(self.problem.model, obs, z)
        return perturb(action, self.draws.noise(action, self.config.noise_std))


class OffPolicyActorConfig(ActorConfig, OffPolicyConfig):
    """Settings of off-policy methods that move an actor's weights."""


class ActorMethod(ActorCriticMethod):
    """Moves an actor's weights up a critic; the latent stays z_0."""

    config: OffPolicyActorConfig

    def __init__(
        self, config: OffPolicyActorConfig, problem: Problem, seeds: Sequence[int]
    ) -> None:
        super().__init__(config, problem, seeds)
        self.learner = ActorCritic(
            problem,
            config,
            self.make_critic(problem),
            self.make_mover(problem),
            Schedule(config.actor_every, config.actor_warmup_updates, config.actor_every),
            self.draws,
            bc_coef=config.bc_coef if isinstance(config, TunedActorConfig) else 0.0,
        )

    @classmethod
    def check(cls, config: OffPolicyConfig, domain: Domain, budget: int) -> None:
        """Refuse budgets under which the actor never moves."""
        super().check(config, domain, budget)
        cls.check_warmup(config, budget, "actor")

    def make_mover(self, problem: Problem) -> Mover:
        """The model's actor, copied for every task."""
        return WeightsMover(problem, self.config.actor_learning_rate)

"""TD3 fine-tuning: all weights of the actor move, from the BFM's actor and the BFM's Q.

Fujimoto et al. 2018, started from the frozen model: the critics are copies of
psi(s, a, z_0)^T w_0, one a head, fine-tuned in full; the actor is a copy of pi(s, z_0).
The baseline that the adaptation paper shows to unlearn first; `bc_coef` holds it near the
zero-shot actor.
"""

from typing import Literal

from pydantic import Field

from bfmpipe.adaptation.actor_critic import ActorMethod, OffPolicyActorConfig, TunedActorConfig
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.critics import Critic, FinetunedCritic


class Config(OffPolicyActorConfig, TunedActorConfig):
    """Settings of TD3; the presets are those of all off-policy methods."""

    critic_learning_rate: float = Field(1e-4, gt=0)
    ascend: Literal["minimum", "mean", "first"] = "first"


class Method(ActorMethod):
    """TD3 on all tasks at once; the latent stays z_0."""

    config: Config

    def make_critic(self, problem: Problem) -> Critic:
        """The model's value, learnt on."""
        return FinetunedCritic(problem, self.config.critic_learning_rate)

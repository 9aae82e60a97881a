"""ReLA-a, residual adaptation of the actor: ReLA's critic, but all weights of the actor move.

    Q(s, a) = psi(s, a, z_0)^T w_0 + residual(s, a)

The ablation of Sikchi et al. (arXiv 2504.07896) that tells what searching the latent alone is
worth: the critic is `rela`'s, the actor starts at pi(s, z_0) and z stays z_0. With `bc_coef` it is
held near the zero-shot actor.
"""

from pydantic import Field

from bfmpipe.adaptation.actor_critic import ActorMethod, OffPolicyActorConfig, TunedActorConfig
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.critics import Critic, ResidualConfig, ResidualCritic


class Config(OffPolicyActorConfig, TunedActorConfig, ResidualConfig):
    """Settings of ReLA-a."""

    actor_warmup_updates: int = Field(1000, ge=0)
    """Updates of the residual before the actor moves; as ReLA's."""


class Method(ActorMethod):
    """ReLA-a on all tasks at once."""

    config: Config

    def make_critic(self, problem: Problem) -> Critic:
        """Frozen base and residual."""
        return ResidualCritic(problem, self.config, self.draws)

"""ReLA-a, residual adaptation of the actor: ReLA's critic, but all weights of the actor move.

    Q(s, a) = psi(s, a, z_0)^T w_0 + residual(s, a)

The ablation of Sikchi et al. (arXiv 2504.07896) that tells what searching the latent alone is
worth: the critic is `rela`'s, the actor starts at pi(s, z_0) and z stays z_0. With `bc_coef` it is
held near the zero-shot actor.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from bfmpipe.adaptation.actor_critic import ActorMethod, OffPolicyActorConfig, TunedActorConfig
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.critics import MAZE, Critic, ResidualConfig, ResidualCritic
from bfmpipe.adaptation.off_policy import SMALL, SMALL_MAZE


class Config(OffPolicyActorConfig, TunedActorConfig, ResidualConfig):
    """Settings of ReLA-a.

    With the presets, for small models on two cores, the residual learns ten times as fast: it makes
    an eighth of the paper's updates or fewer.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {**SMALL, "critic_learning_rate": 1e-3},
        "small-point_mass_maze": {**SMALL_MAZE, **MAZE, "critic_learning_rate": 1e-3},
    }

    actor_warmup_updates: int = Field(1000, ge=0)
    """Updates of the residual before the actor moves; as ReLA's."""


class Method(ActorMethod):
    """ReLA-a on all tasks at once."""

    config: Config

    def make_critic(self, problem: Problem) -> Critic:
        """Frozen base and residual."""
        return ResidualCritic(problem, self.config, self.draws)

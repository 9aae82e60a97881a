"""TD3 from scratch (Fujimoto et al. 2018): new actors and new critics, tanh(MLP(s)) and MLP(s, a).

What the budget is worth without a behavioural foundation model. Its first evaluation is that of an
untrained actor, not of zero-shot.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from bfmpipe.adaptation.actor_critic import ActorMethod, OffPolicyActorConfig
from bfmpipe.adaptation.actors import FreshMover, Mover
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.critics import MAZE, Critic, FreshConfig, FreshCritic
from bfmpipe.adaptation.off_policy import SMALL, SMALL_MAZE


class Config(OffPolicyActorConfig, FreshConfig):
    """Settings of TD3 from scratch.

    Learning rates, target noise, delay of the actor and layers are its authors'; exploration noise
    (theirs is .1) and the untrained actor's warm-up (theirs is random) are those of the other
    methods here. The presets are for two cores.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": SMALL,
        "small-point_mass_maze": {**SMALL_MAZE, **MAZE},
    }

    actor_hidden_dim: int = Field(256, ge=1)
    actor_learning_rate: float = Field(3e-4, gt=0)
    ascend: Literal["minimum", "mean", "first"] = "first"


class Method(ActorMethod):
    """TD3 from scratch on all tasks at once."""

    config: Config

    def make_critic(self, problem: Problem) -> Critic:
        """New MLPs."""
        return FreshCritic(problem, self.config, self.draws)

    def make_mover(self, problem: Problem) -> Mover:
        """New actors."""
        c = self.config
        return FreshMover(problem, c.actor_hidden_dim, c.actor_learning_rate, self.draws)

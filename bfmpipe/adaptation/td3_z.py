"""TD3-z: the latent ascends a critic from scratch; ReLA without its frozen base.

    Q_i(s, a) = MLP_i(s, a),     z <- project(z + lr grad mean_s min_i Q_i(s, pi(s, z)))

The ablation of Sikchi et al. (arXiv 2504.07896) that tells what the frozen base is worth: all else
is `rela`'s. The latent starts at z_0, the critic anywhere.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from bfmpipe.adaptation.actor_critic import LatentMethod, OffPolicyLatentConfig
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.critics import MAZE, Critic, FreshConfig, FreshCritic
from bfmpipe.adaptation.off_policy import SMALL, SMALL_MAZE


class Config(OffPolicyLatentConfig, FreshConfig):
    """Settings of TD3-z.

    With the presets, for small models on two cores, the latent moves sooner: so few updates would
    else be nearly over before it does.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {**SMALL, "latent_warmup_updates": 200},
        "small-point_mass_maze": {**SMALL_MAZE, **MAZE, "latent_warmup_updates": 200},
    }


class Method(LatentMethod):
    """TD3-z on all tasks at once."""

    config: Config

    def make_critic(self, problem: Problem) -> Critic:
        """New MLPs."""
        return FreshCritic(problem, self.config, self.draws)

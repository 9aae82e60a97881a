"""TD3-z: the latent ascends a critic from scratch; ReLA without its frozen base.

    Q_i(s, a) = MLP_i(s, a),     z <- project(z + lr grad mean_s min_i Q_i(s, pi(s, z)))

The ablation of Sikchi et al. (arXiv 2504.07896) that tells what the frozen base is worth: all else
is `rela`'s. The latent starts at z_0, the critic anywhere.
"""

from bfmpipe.adaptation.actor_critic import LatentMethod, OffPolicyLatentConfig
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.critics import Critic, FreshConfig, FreshCritic


class Config(OffPolicyLatentConfig, FreshConfig):
    """Settings of TD3-z."""


class Method(LatentMethod):
    """TD3-z on all tasks at once."""

    config: Config

    def make_critic(self, problem: Problem) -> Critic:
        """New MLPs."""
        return FreshCritic(problem, self.config, self.draws)

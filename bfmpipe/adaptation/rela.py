"""ReLA, residual latent adaptation (Sikchi et al., arXiv 2504.07896): off-policy search of z.

    Q(s, a) = psi(s, a, z)^T w_0 + residual(s, a)

The base is frozen; the residual, two small networks, learns the value of what the base gets wrong:

    y = r + gamma [psi(s', a', z)^T w_0 + min_i residual'_i(s', a')],   a' = pi(s', z) + noise
    L = sum_i mean (psi(s, a, z)^T w_0 + residual_i(s, a) - y)^2

Its last layer starts at zero: adaptation starts exactly at the frozen Q. The latent, which starts
at z_0, ascends mean_s Q(s, pi(s, z)) and is projected to the sphere after each step. With
`base_latent: initial` psi reads z_0 throughout, and z moves by what its actions are worth alone.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from bfmpipe.adaptation.actor_critic import LatentMethod, OffPolicyLatentConfig
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.critics import MAZE, Critic, ResidualConfig, ResidualCritic
from bfmpipe.adaptation.off_policy import SMALL, SMALL_MAZE

_SMALL: Mapping[str, Any] = {
    "critic_learning_rate": 1e-3,
    "target_tau": 0.05,
    "base_latent": "initial",
    "latent_every": 2,
    "latent_warmup_updates": 200,
}


class Config(OffPolicyLatentConfig, ResidualConfig):
    """Settings of ReLA.

    The presets are for small models on two cores: "small", chosen on the walker, makes a
    thirty-second of the paper's updates, "small-point_mass_maze" an eighth. So the critic learns
    and its targets follow ten times as fast. The base is the value at z_0; on the maze, where the
    latent would then drift away, a cap holds it.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {**SMALL, **_SMALL, "latent_learning_rate": 1e-3},
        "small-point_mass_maze": {
            **SMALL_MAZE,
            **MAZE,
            **_SMALL,
            "latent_learning_rate": 5e-4,
            "least_cosine": 0.99,
        },
    }


class Method(LatentMethod):
    """ReLA on all tasks at once."""

    config: Config

    def make_critic(self, problem: Problem) -> Critic:
        """Frozen base and residual."""
        return ResidualCritic(problem, self.config, self.draws)

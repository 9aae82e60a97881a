"""ReLA, residual latent adaptation (Sikchi et al., arXiv 2504.07896): off-policy search of z.

    Q(s, a) = psi(s, a, z)^T w_0 + residual(s, a)

The base is frozen; the residual, two small networks, learns the value of what the base gets wrong:

    y = r + gamma [psi(s', a', z)^T w_0 + min_i residual'_i(s', a')],   a' = pi(s', z) + noise
    L = sum_i mean (psi(s, a, z)^T w_0 + residual_i(s, a) - y)^2

Its last layer starts at zero: adaptation starts exactly at the frozen Q. The latent, which starts
at z_0, ascends mean_s Q(s, pi(s, z)) and is projected to the sphere after each step. With
`base_latent: initial` psi reads z_0 throughout, and z moves by what its actions are worth alone.
"""

from bfmpipe.adaptation.actor_critic import LatentMethod, OffPolicyLatentConfig
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.critics import Critic, ResidualConfig, ResidualCritic


class Config(OffPolicyLatentConfig, ResidualConfig):
    """Settings of ReLA."""


class Method(LatentMethod):
    """ReLA on all tasks at once."""

    config: Config

    def make_critic(self, problem: Problem) -> Critic:
        """Frozen base and residual."""
        return ResidualCritic(problem, self.config, self.draws)

"""Successor features of random features (Touati, Rapin & Ollivier 2023, "Rand").

phi is a network that stays as it was drawn: orthogonal weights, Linear, LayerNorm, tanh, Linear,
ReLU, Linear, projected on the sphere, |phi| = sqrt(d), and then centred over the data. So the d
entries, which psi follows by temporal differences, have variances of at most 1 on average, and
least squares is as well conditioned as the drawn network. Other agents' features have to be better
than what these span.
"""

from typing import Literal

from pydantic import Field
from torch import Tensor

from bfmpipe.agents import successor


class Config(successor.FeatureConfig):
    """The published settings on DMC."""

    temporal_difference: Literal["vector", "scalar"] = "scalar"
    actor_pessimism: float = Field(0.5, ge=0)
    mean_momentum: float = Field(0.0, ge=0, le=1)


class Model(successor.FeatureModel):
    """phi, psi and pi."""

    config: Config

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        self.feature_map = self.feature_network(project=True)

    def features(self, obs: Tensor) -> Tensor:
        """The features before they are centred, (n, d), on the sphere."""
        return self.feature_map(self.feature_input(obs))


class Agent(successor.FeatureAgent):
    """psi and pi in training; phi stays as it was drawn."""

    config: Config
    model: Model

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, Model(config, obs_dim, action_dim))
        self.phases = (self.successor_phase, self.actor_phase)

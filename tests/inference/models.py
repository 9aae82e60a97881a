"""A model whose features are its observations: every feature matrix can be made up."""

import torch
from torch import Tensor

from bfmpipe.agents import AgentConfig, Model


class Identity(Model):
    """phi(s) = s; its method defines w by the expectation."""

    def __init__(self, d: int) -> None:
        config = AgentConfig(z_dim=d, discount=0.9, stride=1, batch=2)
        super().__init__(config, obs_dim=d, action_dim=1)

    def phi(self, obs: Tensor) -> Tensor:
        """The observations."""
        return obs

    def psi(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """The observations."""
        return obs[None]

    def actor(self, obs: Tensor, z: Tensor) -> Tensor:
        """Nothing."""
        return torch.zeros(len(obs), 1)


class Fitted(Identity):
    """The same, of a method that fits."""

    inference_weights = "least-squares"

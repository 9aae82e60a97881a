"""Successor features of Laplacian eigenfunctions (Touati, Rapin & Ollivier 2023, "Lap").

The features are slow along transitions and nearly orthonormal over the data (Wu, Tucker & Nachum
2019), with n transitions (s, a, s') and c = ortho_coef:

    L_phi = mean_i |phi(s_i) - phi(s'_i)|^2
            + 2 c (1/2 mean_{i != j} (phi(s_i)^T phi(s_j))^2 - mean_i |phi(s_i)|^2)

Where P, the behaviour's transitions, is reversible under the data's distribution rho, and phi is
free, L_phi is c |phi phi^T - (1 - (1 - P) / c)|^2 in L^2(rho), but for a constant. So the best
features of d dimensions are, but for a rotation,

    phi_k = sqrt(1 - (1 - lambda_k) / c) e_k

with the d eigenfunctions e_k of P, orthonormal under rho, of the largest eigenvalues lambda_k (and
zero where that root is of a negative number). As published phi is not free: it is on the sphere.
psi and pi are the module `successor`'s, for phi without its mean, that is without the constant
eigenfunction.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.agents import successor
from bfmpipe.agents.base import Batch, Loss, Phase, Tensors
from bfmpipe.agents.losses import orthonormality_loss


class Config(successor.FeatureConfig):
    """The published settings on DMC."""

    temporal_difference: Literal["vector", "scalar"] = "scalar"
    actor_pessimism: float = Field(0.5, ge=0)
    feature_learning_rate: float = Field(5e-4, gt=0)
    ortho_coef: float = Field(1.0, gt=0)
    """Published code averages the slowness over the entries, which amounts to a weight of d."""
    project: bool = True
    """Whether the features are projected on the sphere, as published: phi is not free then."""


class Model(successor.FeatureModel):
    """phi, psi and pi."""

    config: Config

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        self.feature_map = self.feature_network(project=config.project)

    def features(self, obs: Tensor) -> Tensor:
        """The features before they are centred, (n, d)."""
        return self.feature_map(self.feature_input(obs))


class Agent(successor.FeatureAgent):
    """The features, psi and pi in training."""

    config: Config
    model: Model

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, Model(config, obs_dim, action_dim))
        features = Phase("features", ("model.feature_map",), config.feature_learning_rate)
        self.phases = (features, self.successor_phase, self.actor_phase)

    def forward(self, phase: str, batch: Batch, draws: Tensors, shared: Tensors) -> Loss:
        """L_phi, or the losses of psi and pi."""
        if phase != "features":
            return super().forward(phase, batch, draws, shared)
        phi, next_phi = self.model.features(torch.stack([batch.obs, batch.next_obs]))
        slowness = (phi - next_phi).square().sum(-1).mean()
        ortho_loss = orthonormality_loss(phi)
        loss = slowness + 2 * self.config.ortho_coef * ortho_loss
        return Loss(loss, {"slowness": slowness.detach(), "ortho_loss": ortho_loss.detach()})

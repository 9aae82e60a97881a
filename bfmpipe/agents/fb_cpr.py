"""FB with a conditional policy regulariser (Tirinzoni et al. 2025, Meta Motivo): the model.

FB's three networks, and two that tie its policies to a set of motions:

    F  forward_map (heads), B  backward_map, pi  actor                 as in FB
    D(s, z)        discriminator: whether s comes from a motion that z encodes, or from a rollout
    Q_D(s, a, z)   critic (heads): the value of log D - log(1 - D) under pi(., z)

The value of a reward r under pi(., z) is F(s, a, z)^T E_rho[r B]: here phi is B, psi is F. F, the
critic and the actor are of one of two families: "simple", embeddings and trunk as in FB, and
"residual", layers Mish(Linear(LayerNorm(x))) with skips.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from bfmpipe import config
from bfmpipe.agents import base
from bfmpipe.kernels import Network
from bfmpipe.kernels.extension import SF_MAX_HEADS, SF_MAX_LAYERS
from bfmpipe.networks import BackwardMap, ConditionedMap, ResidualMap


class MapConfig(config.Config):
    """The architecture of the actor, and of each head of F and the critic."""

    model: Literal["simple", "residual"] = "simple"
    hidden_dim: int = Field(1024, ge=2, multiple_of=2)
    hidden_layers: int = Field(1, ge=0)
    """Of the trunk, after the two embeddings."""
    embedding_layers: int = Field(2, ge=2)


class EnsembleConfig(MapConfig):
    """The architecture of F and of the critic."""

    num_parallel: int = Field(2, ge=1)
    """Heads."""


class MLPConfig(config.Config):
    """Linear, LayerNorm, tanh, then hidden_layers - 1 layers with ReLU, Linear."""

    hidden_dim: int = Field(1024, ge=1)
    hidden_layers: int = Field(2, ge=1)


class BackwardConfig(MLPConfig):
    """The architecture of B."""

    hidden_dim: int = Field(256, ge=1)
    norm: bool = True
    """Whether features are projected on the sphere."""


class Config(base.AgentConfig):
    """The published settings of the smaller model."""

    z_dim: int = Field(256, ge=2)
    norm_z: Literal[True] = True
    """Latents are on the sphere; inference and adaptation know no others."""
    stride: Literal[1] = 1
    forward_map: EnsembleConfig = EnsembleConfig()
    backward_map: BackwardConfig = BackwardConfig()
    actor: MapConfig = MapConfig()
    critic: EnsembleConfig = EnsembleConfig()
    discriminator: MLPConfig = MLPConfig()


class Model(base.Model):
    """F, B, pi, the critic and the discriminator. All read normalised observations."""

    config: Config

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        c, d = config, config.z_dim
        F, critic = c.forward_map, c.critic
        self.forward_map = _map(F, F.num_parallel, obs_dim, d, action_dim, d)
        self.backward_map = _mlp(c.backward_map, obs_dim, d, project=c.backward_map.norm)
        self.policy = _map(c.actor, 1, obs_dim, d, 0, action_dim)
        self.critic_map = _map(critic, critic.num_parallel, obs_dim, d, action_dim, 1)
        self.discriminator_map = _mlp(c.discriminator, d + obs_dim, 1, project=False)

    def phi(self, obs: Tensor) -> Tensor:
        """B(s), (n, d)."""
        return self.backward_map(self.normalise(obs))

    def psi(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """F(s, a, z), (heads, n, d)."""
        return self.forward_map(self.normalise(obs), z, action)

    def psi_layers(self) -> Network | None:
        """Those of F where the kernels take them: simple, two layers an embedding, not too deep."""
        if isinstance(self.forward_map, ResidualMap):
            return None
        F = self.config.forward_map
        fits = F.embedding_layers == 2 and F.hidden_layers < SF_MAX_LAYERS
        return self.forward_map.layers() if fits and F.num_parallel <= SF_MAX_HEADS else None

    def actor(self, obs: Tensor, z: Tensor) -> Tensor:
        """pi(s, z), (n, action_dim): the mean of the policy."""
        return torch.tanh(self.policy(self.normalise(obs), z)[0])

    def critic(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Q_D(s, a, z), (heads, n, 1)."""
        return self.critic_map(self.normalise(obs), z, action)

    def discriminator(self, obs: Tensor, z: Tensor) -> Tensor:
        """The logit of D(s, z), (n, 1): log D - log(1 - D)."""
        return self.discriminator_map(torch.cat([z, self.normalise(obs)], dim=-1))


def _map(
    c: MapConfig, heads: int, obs_dim: int, z_dim: int, action_dim: int, out_dim: int
) -> ConditionedMap | ResidualMap:
    """A network of (s, z) and (s, a), or of (s, z) and s where action_dim is 0."""
    dims = (heads, obs_dim, z_dim, action_dim, c.hidden_dim, out_dim)
    if c.model == "residual":
        return ResidualMap(*dims, trunk_layers=c.hidden_layers, embedding_layers=c.embedding_layers)
    return ConditionedMap(
        *dims,
        architecture="two_embeddings",
        trunk_layers=c.hidden_layers,
        embedding_layers=c.embedding_layers,
    )


def _mlp(c: MLPConfig, in_dim: int, out_dim: int, *, project: bool) -> BackwardMap:
    return BackwardMap(in_dim, c.hidden_dim, c.hidden_layers - 1, out_dim, project=project)

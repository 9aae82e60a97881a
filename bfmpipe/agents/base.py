"""What every BFM is to the rest of the pipeline: a frozen model, and an agent that trains it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from bfmpipe.config import Config
from bfmpipe.kernels import Network, sf_evaluate, sf_evaluate_rows
from bfmpipe.networks import project_z


class AgentConfig(Config):
    """Settings every agent has."""

    z_dim: int
    discount: float
    """Of one control step."""
    stride: int
    """Control steps a training transition spans."""
    batch: int


class Model(nn.Module, ABC):
    """A behavioural foundation model as its users see it: features, successor features, policy.

    psi(s, a, z)^T w is the value of the reward that w stands for under the policy pi(., z). The
    weights w (reward units) and the latent z = project_z(w) are two vectors, never one.
    Observations are raw; the model normalises them itself.
    """

    obs_mean: Tensor
    obs_std: Tensor

    def __init__(self, config: AgentConfig, obs_dim: int, action_dim: int) -> None:
        super().__init__()
        self.config = config
        self.obs_dim = obs_dim
        self.action_dim = action_dim
        self.register_buffer("obs_mean", torch.zeros(obs_dim))
        self.register_buffer("obs_std", torch.ones(obs_dim))

    @property
    def z_dim(self) -> int:
        """Length d of a latent."""
        return self.config.z_dim

    @property
    def discount(self) -> float:
        """The discount the successor features were trained with."""
        return self.config.discount

    def normalise(self, obs: Tensor) -> Tensor:
        """Observations with zero mean and unit variance over the training data."""
        return (obs - self.obs_mean) / self.obs_std

    @abstractmethod
    def phi(self, obs: Tensor) -> Tensor:
        """State features (n, d) of obs (n, obs_dim)."""

    @abstractmethod
    def psi(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Successor features (heads, n, d)."""

    def psi_layers(self) -> Network | None:
        """The layers of psi(s, a, z) = psi_scale * layers(psi_obs(s), z, a), for the kernels.

        None where psi is not made of such layers: then values go through psi itself.
        """
        return None

    def psi_obs(self, obs: Tensor) -> Tensor:
        """What psi's layers read of raw observations (..., obs_dim)."""
        return self.normalise(obs)

    @property
    def psi_scale(self) -> float:
        """See psi_layers."""
        return 1.0

    @abstractmethod
    def actor(self, obs: Tensor, z: Tensor) -> Tensor:
        """The deterministic policy's actions (n, action_dim)."""

    def q(self, obs: Tensor, action: Tensor, z: Tensor, w: Tensor) -> Tensor:
        """Values psi(s, a, z)^T w, the mean over heads, (n,); w is (n, d) or (d,)."""
        layers = self.psi_layers()
        if layers is None:
            return (self.psi(obs, action, z).mean(0) * w).sum(-1)
        w = self.psi_scale * w.expand_as(z)
        return sf_evaluate_rows(layers, self.psi_obs(obs), action, z, w)

    def q_pairs(self, obs: Tensor, action: Tensor, z: Tensor, w: Tensor) -> Tensor:
        """Values (..., B, K) of all pairs of a state and action with a latent.

        obs (..., B, obs_dim), action (..., B, action_dim), z and w (..., K, d), with the same
        leading axes. What depends on the state or the latent alone is computed once.
        """
        layers = self.psi_layers()
        if layers is None:
            B, K = obs.shape[-2], z.shape[-2]
            rows = [x.unsqueeze(-2).expand(*x.shape[:-1], K, -1) for x in (obs, action)]
            rows += [x.unsqueeze(-3).expand(*x.shape[:-2], B, -1, -1) for x in (z, w)]
            flat = (x.reshape(-1, x.shape[-1]) for x in rows)
            return self.q(*flat).view(rows[0].shape[:-1])
        return sf_evaluate(layers, self.psi_obs(obs), action, z, self.psi_scale * w)

    def sample_z(self, n: int, generator: torch.Generator) -> Tensor:
        """n latents (n, d), uniform on the sphere."""
        return project_z(torch.randn(n, self.z_dim, generator=generator))


class Agent(ABC):
    """A model in training."""

    model: Model
    optimisers: dict[str, torch.optim.Optimizer]
    targets: dict[str, nn.Module]
    step: int
    """Updates made."""

    @abstractmethod
    def update(
        self, obs: Tensor, action: Tensor, next_obs: Tensor, *, learning_rate_scale: float
    ) -> dict[str, Tensor]:
        """One training step on a batch of transitions; metrics as scalar tensors, detached.

        Args:
            obs: (n, obs_dim), raw.
            action: (n, action_dim), the mean over the transition's steps.
            next_obs: (n, obs_dim), raw, `stride` steps later.
            learning_rate_scale: factor on every learning rate, in [0, 1].
        """

"""What every BFM is to the rest of the pipeline: a frozen model, and an agent that trains it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from bfmpipe.config import Config
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

    @abstractmethod
    def actor(self, obs: Tensor, z: Tensor) -> Tensor:
        """The deterministic policy's actions (n, action_dim)."""

    def q(self, obs: Tensor, action: Tensor, z: Tensor, w: Tensor) -> Tensor:
        """Values psi(s, a, z)^T w, the mean over heads, (n,); w is (n, d) or (d,)."""
        return (self.psi(obs, action, z).mean(0) * w).sum(-1)

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

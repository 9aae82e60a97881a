"""What the actor-critic methods ascend: two values Q(s, a) for every task.

    residual     psi(s, a, z)^T w_0, frozen, + residual_i(s, a), zero at first
    fine-tuned   psi_i(s, a, z_0)^T w_0, all weights of psi learnt on
    fresh        an MLP that knows nothing of the model's

All of them learn L = sum_i mean (Q_i(s, a) - y)^2, summed over tasks: a task's critic sees its own
error alone.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bfmpipe.adaptation.actors import ParallelMLP, Stacked, polyak_update, step_down
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.draws import Generators
from bfmpipe.agents import Model
from bfmpipe.config import Config


class Critic(ABC):
    """Two values a task, and their targets.

    obs (T, n, obs_dim), action (T, n, action_dim), z (T, d); values (T, 2, n).
    """

    parameters: Sequence[Tensor]
    target_parameters: Sequence[Tensor]
    optimiser: torch.optim.Optimizer

    @abstractmethod
    def q(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Both values, (T, 2, n), differentiable in everything but the critic's weights."""

    @abstractmethod
    def target_q(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Both values of the target networks, (T, 2, n)."""

    @abstractmethod
    def error(self, obs: Tensor, action: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """Q_i(s, a) - y, (T, 2, n), of y (T, n), differentiable in the critic's weights."""

    def learn(self, obs: Tensor, action: Tensor, z: Tensor, y: Tensor) -> None:
        """One step down the squared error."""
        # summed over tasks and critics: none of them feels the others
        loss = self.error(obs, action, z, y).square().mean(-1).sum()
        step_down(self.optimiser, self.parameters, loss)

    def update_targets(self, tau: float) -> None:
        """Move the target networks."""
        polyak_update(self.target_parameters, self.parameters, tau)


class TwinMLP(nn.Module):
    """Two networks a task, (T, n, inputs) -> (T, 2, n)."""

    def __init__(self, tasks: int, inputs: int, hidden: int, *, zero: bool) -> None:
        super().__init__()
        self.networks = ParallelMLP(2 * tasks, inputs, hidden, 1, zero=zero)

    def forward(self, x: Tensor) -> Tensor:
        """Values (T, 2, n)."""
        return self.networks(x.repeat_interleave(2, dim=0)).squeeze(-1).unflatten(0, (len(x), 2))


MAZE: Mapping[str, Any] = {"critic_octaves": 5}
"""What critics of their own need on the point-mass maze: one of plain positions does not see a
target of three centimetres."""


class CriticConfig(Config):
    """Settings of critics that are networks of their own."""

    critic_octaves: int | None = Field(None, ge=0)
    """Fourier features that the critic reads of the observation's entries that the model reads so
    (`fourier_obs`; many read none), of 1, 2, 4, ... times the normalised value; by default as many
    as psi reads. Without them a reward of a centimetre is finer than a network's natural
    smoothness, and where it lies the critic cannot say."""


class _MLPCritic(Critic):
    """What critics that are MLPs of (s, a) or (s, a, z) share."""

    def __init__(
        self,
        problem: Problem,
        *,
        hidden: int,
        learning_rate: float,
        octaves: int | None,
        reads_latent: bool,
        zero: bool,
        draws: Generators,
    ) -> None:
        self.problem = problem
        self.octaves = octaves
        self.reads_latent = reads_latent
        obs = torch.zeros(len(problem.tasks), 1, problem.domain.obs_dim, device=problem.device)
        inputs = self.read_obs(obs).shape[-1] + problem.domain.action_dim
        inputs += problem.model.z_dim if reads_latent else 0
        self.online = draws.network(
            len(problem.tasks), lambda n: TwinMLP(n, inputs, hidden, zero=zero)
        )
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.parameters = list(self.online.parameters())
        self.target_parameters = list(self.target.parameters())
        self.optimiser = torch.optim.Adam(self.parameters, lr=learning_rate)

    def read_obs(self, obs: Tensor) -> Tensor:
        """What the MLPs are given of observations, (T, n, features)."""
        model = self.problem.model
        return model.psi_obs(obs) if self.octaves is None else model.encode(obs, self.octaves)

    def read(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """What the MLPs are given, (T, n, inputs)."""
        parts = [self.read_obs(obs), action]
        if self.reads_latent:
            parts.append(z[:, None].expand(-1, obs.shape[1], -1))
        return torch.cat(parts, dim=-1)


class ResidualConfig(CriticConfig):
    """Settings of the residual critic; the paper gives its two layers of 64."""

    critic_hidden_dim: int = Field(64, ge=1)
    critic_learning_rate: float = Field(1e-4, gt=0)
    base_latent: Literal["current", "initial"] = "current"
    """Whether the frozen base is the value of the latent as it moves, or of z_0. With the former
    psi's own derivative by z decides where z goes: on a small model of the walker it is 25 times as
    long as what reaches z through its actions, and at odds with returns. With the latter nothing
    but `least_cosine` holds z near z_0: on the maze it drifts away in 200 episodes."""
    residual_input: Literal["state-action", "state-action-latent"] = "state-action"


class ResidualCritic(_MLPCritic):
    """The frozen model's value plus what it gets wrong.

    Q_i(s, a) = scale psi(s, a, z)^T w_0 + shift + residual_i(s, a); scale 1 and shift 0 are the
    paper's, and z is the latent as it moves or z_0 (`base_latent`).
    """

    def __init__(self, problem: Problem, config: ResidualConfig, draws: Generators) -> None:
        super().__init__(
            problem,
            hidden=config.critic_hidden_dim,
            learning_rate=config.critic_learning_rate,
            octaves=config.critic_octaves,
            reads_latent=config.residual_input == "state-action-latent",
            zero=True,
            draws=draws,
        )
        self.base_latent = config.base_latent
        self.calibration: tuple[Tensor, Tensor] | None = None
        """Scale and shift of every task, (T,) each."""

    def frozen(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """psi(s, a, z)^T w_0, (T, n)."""
        if self.base_latent == "initial":
            z = self.problem.z
        z, w = z[:, None], self.problem.w[:, None]
        return self.problem.model.q_pairs(obs, action, z, w).squeeze(-1)

    def base(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """The frozen value, calibrated if it has been, (T, n)."""
        value = self.frozen(obs, action, z)
        if self.calibration is None:
            return value
        scale, shift = self.calibration
        return scale[:, None] * value + shift[:, None]

    def q(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Base and residuals."""
        base = self.base(obs, action, z)[:, None]
        return base + self.online(self.read(obs, action, z))

    def target_q(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Base and target residuals."""
        base = self.base(obs, action, z)[:, None]
        return base + self.target(self.read(obs, action, z))

    def error(self, obs: Tensor, action: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """residual_i(s, a) - (y - base)."""
        with torch.no_grad():
            left = y - self.base(obs, action, z)
        return self.online(self.read(obs, action, z)) - left[:, None]


class FreshConfig(CriticConfig):
    """Settings of critics from scratch; TD3's."""

    critic_hidden_dim: int = Field(256, ge=1)
    critic_learning_rate: float = Field(3e-4, gt=0)


class FreshCritic(_MLPCritic):
    """Two MLPs of (s, a) that start anywhere."""

    def __init__(self, problem: Problem, config: FreshConfig, draws: Generators) -> None:
        super().__init__(
            problem,
            hidden=config.critic_hidden_dim,
            learning_rate=config.critic_learning_rate,
            octaves=config.critic_octaves,
            reads_latent=False,
            zero=False,
            draws=draws,
        )

    def q(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Both MLPs."""
        return self.online(self.read(obs, action, z))

    def target_q(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Both target MLPs."""
        return self.target(self.read(obs, action, z))

    def error(self, obs: Tensor, action: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """Q_i(s, a) - y."""
        return self.q(obs, action, z) - y[:, None]


class _Psi(nn.Module):
    """psi_p(s, a, z)^T w for every head p, (heads, n), of one task."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, obs: Tensor, action: Tensor, z: Tensor, w: Tensor) -> Tensor:
        return self.model.psi(obs, action, z.expand(len(obs), -1)) @ w


class FinetunedCritic(Critic):
    """The model's own psi(s, a, z)^T w_0, a copy for every task, one value a head."""

    def __init__(self, problem: Problem, learning_rate: float) -> None:
        domain, z, w = problem.domain, problem.z[0], problem.w[0]
        with problem.device:
            obs, action = torch.zeros(1, domain.obs_dim), torch.zeros(1, domain.action_dim)
        self.w = problem.w
        self.psi = Stacked(problem.each_task(_Psi), obs, action, z, w)
        self.target = self.psi.copied()
        self.parameters = list(self.psi.parameters.values())
        self.target_parameters = list(self.target.values())
        self.optimiser = torch.optim.Adam(self.parameters, lr=learning_rate, fused=True)

    def q(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Every head's value."""
        return self.psi(obs, action, z, self.w, parameters=self.psi.frozen())

    def target_q(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Every target head's value."""
        return self.psi(obs, action, z, self.w, parameters=self.target)

    def error(self, obs: Tensor, action: Tensor, z: Tensor, y: Tensor) -> Tensor:
        """Q_i(s, a) - y."""
        return self.psi(obs, action, z, self.w) - y[:, None]

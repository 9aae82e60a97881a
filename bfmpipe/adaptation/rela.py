"""ReLA, residual latent adaptation (Sikchi et al., arXiv 2504.07896): off-policy search of z.

    Q(s, a) = psi(s, a, z)^T w_0 + residual(s, a)

The base is frozen; the residual, two small networks, learns the value of what the base gets wrong:

    y = r + gamma [psi(s', a', z)^T w_0 + min_i residual'_i(s', a')],   a' = pi(s', z) + noise
    L = sum_i mean (psi(s, a, z)^T w_0 + residual_i(s, a) - y)^2

Its last layer starts at zero: adaptation starts exactly at the frozen Q. The latent, which starts
at z_0, ascends mean_s Q(s, pi(s, z)) and is projected to the sphere after each step.
"""

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bfmpipe.adaptation.base import Problem, act_by_latent
from bfmpipe.adaptation.off_policy import Batch, OffPolicyConfig, OffPolicyMethod
from bfmpipe.networks import ParallelLinear, add_noise, project_z, update_target
from bfmpipe.types import UserError


class Config(OffPolicyConfig):
    """Settings of ReLA; the paper gives the residual's two layers of 64."""

    hidden_dim: int = Field(64, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    latent_learning_rate: float = Field(0.01, gt=0)
    latent_every: int = Field(1, ge=1)
    """Updates of the residual to one of the latent."""
    latent_warmup_updates: int = Field(1000, ge=0)
    """Updates of the residual before the latent moves."""
    latent_noise_std: float = Field(0.0, ge=0)
    """Standard deviation of the exploration noise on each coordinate of z."""
    base_latent: Literal["current", "initial"] = "current"
    """Whether the frozen base is that of the latent as it moves, or of z_0."""
    residual_input: Literal["state-action", "state-action-latent"] = "state-action"
    ascend: Literal["minimum", "mean"] = "minimum"
    """Which reduction of the two residuals the latent ascends."""


class Residual(nn.Module):
    """Two critics a task, (T, n, inputs) -> (T, 2, n), zero at the start."""

    def __init__(self, tasks: int, inputs: int, hidden: int) -> None:
        super().__init__()
        heads = 2 * tasks
        last = ParallelLinear(heads, hidden, 1)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(
            ParallelLinear(heads, inputs, hidden),
            nn.ReLU(),
            ParallelLinear(heads, hidden, hidden),
            nn.ReLU(),
            last,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Residual values (T, 2, n)."""
        return self.layers(x.repeat_interleave(2, dim=0)).squeeze(-1).unflatten(0, (len(x), 2))


class Method(OffPolicyMethod):
    """ReLA on all tasks at once."""

    config: Config

    def __init__(self, config: Config, problem: Problem, seed: int) -> None:
        super().__init__(config, problem, seed)
        if self.updates_allowed <= config.latent_warmup_updates:
            raise UserError(
                f"rela: the budget allows {self.updates_allowed} updates, and the latent moves "
                f"only after {config.latent_warmup_updates}; raise the budget or updates_per_step, "
                "or lower latent_warmup_updates"
            )
        domain, tasks = problem.domain, len(problem.tasks)
        model = problem.model
        inputs = domain.obs_dim + domain.action_dim
        if config.residual_input == "state-action-latent":
            inputs += model.z_dim
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.residual = Residual(tasks, inputs, config.hidden_dim)
        self.target = copy.deepcopy(self.residual).requires_grad_(False)
        self.optimiser = torch.optim.Adam(self.residual.parameters(), lr=config.learning_rate)
        self.z_parameter = nn.Parameter(problem.z.clone())
        self.latent_optimiser = torch.optim.Adam([self.z_parameter], lr=config.latent_learning_rate)
        self.updates = 0

    def update(self, batch: Batch) -> None:
        """One step of the residual, then of its target and of the latent."""
        c = self.config
        with torch.no_grad():
            next_action = act_by_latent(self.problem.model, batch.next_obs, self.z)
            next_action = add_noise(
                next_action, c.target_noise_std, c.target_noise_clip, self.generator
            )
            next_value = self._base(batch.next_obs, next_action, self.z)
            next_value += self._residual(self.target, batch.next_obs, next_action, self.z).amin(1)
            y = batch.reward + self.problem.model.discount * next_value
            y -= self._base(batch.obs, batch.action, self.z)
        residual = self._residual(self.residual, batch.obs, batch.action, self.z)
        # summed over tasks and critics: none of them feels the others
        loss = (residual - y[:, None]).square().mean(-1).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        update_target(self.target, self.residual, c.target_tau)
        self.updates += 1
        if self.updates > c.latent_warmup_updates and self.updates % c.latent_every == 0:
            self._move_latent(batch.obs)

    def q(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        """Both critics' values (T, 2, n) of obs, action (T, n, ...) at latents z (T, d)."""
        base = self._base(obs, action, z)[:, None]
        return base + self._residual(self.residual, obs, action, z)

    def _move_latent(self, obs: Tensor) -> None:
        z = self.z_parameter
        q = self.q(obs, act_by_latent(self.problem.model, obs, z), z)
        value = q.amin(1) if self.config.ascend == "minimum" else q.mean(1)
        (gradient,) = torch.autograd.grad(-value.mean(-1).sum(), z)
        z.grad = gradient
        self.latent_optimiser.step()
        with torch.no_grad():
            z.copy_(project_z(z))
        self.z = z.detach().clone()

    def _base(self, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        if self.config.base_latent == "initial":
            z = self.problem.z
        z, w = z[:, None], self.problem.w[:, None]
        return self.problem.model.q_pairs(obs, action, z, w).squeeze(-1)

    def _residual(self, critic: nn.Module, obs: Tensor, action: Tensor, z: Tensor) -> Tensor:
        parts = [self.problem.model.normalise(obs), action]
        if self.config.residual_input == "state-action-latent":
            parts.append(z[:, None].expand(-1, obs.shape[1], -1))
        return critic(torch.cat(parts, dim=-1))

    def explore(self, obs: Tensor) -> Tensor:
        """Actions at noisy latents, plus noise."""
        std = self.config.latent_noise_std
        if std == 0:
            return super().explore(obs)
        noise = torch.randn(*obs.shape[:2], self.z.shape[-1], generator=self.generator)
        z = project_z(self.z[:, None] + std * noise)
        action = act_by_latent(self.problem.model, obs, z)
        return add_noise(action, self.config.noise_std, float("inf"), self.generator)

"""Forward-backward representations (Touati & Ollivier 2021; Touati, Rapin & Ollivier 2023).

The successor measure of pi(., z) is factorised as M(s, a, ds'; z) = F(s, a, z)^T B(s') rho(ds'),
rho the data's distribution. With F, B online, F', B' targets, and n transitions (s, a, s'):

    L_FB = sum_p 1/2 mean_{i != j} (F_p(s_i, a_i, z_i)^T B(s'_j)
                                    - gamma F'(s'_i, pi(s'_i, z_i), z_i)^T B'(s'_j))^2
           - sum_p mean_i F_p(s_i, a_i, z_i)^T B(s'_i)
    L_orth = 1/2 mean_{i != j} (B(s'_i)^T B(s'_j))^2 - mean_i |B(s'_i)|^2
    L_Q = 1/2 sum_p mean_i (F_p(s_i, a_i, z_i)^T z_i - B(s'_i)^T C^-1 z_i - gamma F'_i^T z_i)^2
    L_actor = - mean_i reduce_p F_p(s_i, pi(s_i, z_i), z_i)^T z_i

    F  forward_map (heads p; in targets their mean, or entry by entry mean - pessimism |x_1 - x_2|)
    B  backward_map, on the sphere      C  E[B B^T]      pi  actor      z  latent, |z| = sqrt(d)

The value of a reward r under pi(., z) is F(s, a, z)^T E_rho[r B]: here phi is B, psi is F.

By default heads are reduced to their mean. That is what Meta Motivo's FB has in targets; its actor
takes the smaller head (actor_pessimism .5). The code of Touati, Rapin & Ollivier takes the smaller
one in both (and target_pessimism .5). Both read raw observations, which here are standardised.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.agents import successor
from bfmpipe.agents.base import Batch, Loss, Phase, Tensors
from bfmpipe.agents.losses import (
    implied_q_loss,
    measure_loss,
    orthonormality_loss,
    pessimistic_measure_loss,
)
from bfmpipe.networks import BackwardMap


class Config(successor.Config):
    """The published sizes, rates and coefficients on DMC, but for the heads (see the module).

    Presets: by domain as published, "small" for a CPU.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "walker": {},
        "cheetah": {},
        "quadruped": {},
        "point_mass_maze": {"discount": 0.99, "z_dim": 100},
        "small": successor.SMALL,
        "small-point_mass_maze": {
            **successor.SMALL_MAZE,
            "backward_hidden_dim": 128,
            "backward_obs": (0, 1),  # where the ball is, not how fast it moves
            "backward_octaves": 3,
        },
    }

    backward_hidden_dim: int = Field(256, ge=1)
    backward_hidden_layers: int = Field(1, ge=0)
    backward_obs: successor.Entries | None = None
    """Entries of the observation that B reads; all of them by default."""
    backward_octaves: int = Field(0, ge=0)
    ortho_coef: float = Field(1.0, ge=0)
    q_coef: float = Field(0.0, ge=0)
    """Weight of L_Q; Meta Motivo has .1."""
    target_pessimism: float = Field(0.0, ge=0)
    """In targets; .5 is the smaller head."""


class Model(successor.Model):
    """F, B and pi."""

    config: Config

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, obs_dim, action_dim)
        c = config
        self._check_entries("backward_obs", c.backward_obs or ())
        self.backward_map = BackwardMap(
            (obs_dim if c.backward_obs is None else len(c.backward_obs))
            + self._fourier_features(c.backward_octaves),
            c.backward_hidden_dim,
            c.backward_hidden_layers,
            c.z_dim,
        )

    def backward_input(self, obs: Tensor) -> Tensor:
        """What B reads of raw observations."""
        return self.encode(obs, self.config.backward_octaves, self.config.backward_obs)

    def phi(self, obs: Tensor) -> Tensor:
        """B(s), (n, d)."""
        return self.backward_map(self.backward_input(obs))


class Agent(successor.Agent):
    """FB in training."""

    config: Config
    model: Model
    watched_loss = "fb_loss"

    def __init__(self, config: Config, obs_dim: int, action_dim: int) -> None:
        super().__init__(config, Model(config, obs_dim, action_dim))
        self.target_backward_map = self.target_copy(self.model.backward_map)
        self.targets = {
            **self.targets,
            "target_backward_map": ("model.backward_map", config.target_tau),
        }
        trained = ("model.forward_map", "model.backward_map")
        self.phases = (Phase("fb", trained, config.learning_rate), self.actor_phase)

    def forward(self, phase: str, batch: Batch, draws: Tensors, shared: Tensors) -> Loss:
        """L_FB with what is added to it, or L_actor."""
        return self.actor_loss(batch, draws, shared) if phase == "actor" else self.fb(batch, draws)

    def fb(self, batch: Batch, draws: Tensors) -> Loss:
        """L_FB + ortho_coef L_orth + q_coef L_Q; leaves the latents to the actor."""
        c, model = self.config, self.model
        goal = model.backward_input(batch.next_obs)
        B = model.backward_map(goal)
        with torch.no_grad():
            z = self.latents(B, draws)
            target_F = self.target_psi(batch, z, self.next_action(batch, z, draws))
            target_B = self.target_backward_map(goal)
        F = model.forward_map(model.psi_obs(batch.obs), z, batch.action)
        if c.target_pessimism:
            fb_loss = pessimistic_measure_loss(
                F, B, target_F, target_B, self.discount, c.target_pessimism
            )
        else:
            fb_loss = measure_loss(F, B, target_F.mean(0), target_B, self.discount)
        ortho_loss = orthonormality_loss(B)
        loss = fb_loss + c.ortho_coef * ortho_loss
        metrics = {
            "fb_loss": fb_loss.detach(),
            "ortho_loss": ortho_loss.detach(),
            "forward_norm": F.detach().norm(dim=-1).mean(),
        }
        if c.q_coef:
            q_loss = implied_q_loss(F, B, target_F, z, self.discount, c.target_pessimism)
            loss = loss + c.q_coef * q_loss
            metrics["q_loss"] = q_loss.detach()
        return Loss(loss, metrics, {"z": z})

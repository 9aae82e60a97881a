"""Agents trained online, which act while they train and keep to motions, for `bfmpipe.online`."""

from abc import ABC, abstractmethod
from typing import NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bfmpipe.agents import base
from bfmpipe.config import Config


class OnlineConfig(Config):
    """How an agent acts, in turns with its updates."""

    num_envs: int = Field(50, ge=1)
    """Episodes side by side. They begin and end together, and last as long as the domain's."""
    steps: int = Field(10, ge=1)
    """Control steps of every environment a turn."""
    updates: int = Field(50, ge=1)
    """Updates a turn."""
    random_steps: int = Field(1000, ge=1)
    """Control steps of every environment, under random actions, before the first update."""
    latent_steps: int = Field(150, ge=1)
    """Control steps that a latent is played."""
    motion_starts: float = Field(0.8, ge=0, le=1)
    """Share of the episodes that begin in a state of a motion, not where the domain's do."""
    rounds: int = Field(320, ge=2)
    """Episodes of every environment that are remembered, the running one among them."""
    experience: int = Field(500, ge=1)
    """Of the episodes remembered so many, or somewhat more, are left as a data set: the one that
    latents are inferred from, since values are those of the states that it saw."""


class AgentConfig(base.AgentConfig):
    """Settings of an agent that is trained online."""

    motion_length: int = Field(8, ge=1)
    """L, the frames that a latent encodes."""
    online: OnlineConfig = OnlineConfig()

    @model_validator(mode="after")
    def _fills_a_batch(self) -> Self:
        first = self.online.num_envs * self.online.random_steps
        if first < self.batch:
            raise ValueError(
                f"online: {self.online.num_envs} environments and random_steps "
                f"{self.online.random_steps} make {first} transitions before the first update, "
                f"fewer than one batch of {self.batch}; set more of either, or a smaller batch"
            )
        if self.batch % self.motion_length:
            raise ValueError(
                f"batch ({self.batch}) must be a multiple of motion_length ({self.motion_length}): "
                "it holds whole stretches of motions"
            )
        return self


class OnlineBatch(NamedTuple):
    """What the agent itself did, and beside it motions; observations are raw.

    obs (n, obs_dim), action (n, action_dim), next_obs and future, which is next_obs, as in a
    `base.Batch`; z (n, d), the latents that were played; motion and next_motion (n, obs_dim), n / L
    stretches of L frames that follow each other, and the frame after each.
    """

    obs: Tensor
    action: Tensor
    next_obs: Tensor
    future: Tensor
    z: Tensor
    motion: Tensor
    next_motion: Tensor


class Agent(base.Agent, ABC):
    """Learns from an `OnlineBatch`."""

    config: AgentConfig

    @abstractmethod
    def rollout_latents(self, goals: Tensor, frames: Tensor, generator: torch.Generator) -> Tensor:
        """Latents (n, d) to play, by n goals (n, obs_dim) and n stretches (n L, obs_dim)."""

    @abstractmethod
    def explore(self, obs: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        """Actions (n, action_dim) to explore with, at obs (n, obs_dim) under latents z (n, d)."""

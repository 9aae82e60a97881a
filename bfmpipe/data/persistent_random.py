"""Exploration by persistent random actions: a held direction, redrawn now and then, plus noise.

Uniformly random actions, new at every step, are the settings `redraw_probability: 1` and
`noise_std: 0`.
"""

import numpy as np
from pydantic import Field

from bfmpipe.data.explorer import Explorer as BaseExplorer
from bfmpipe.data.explorer import ExplorerConfig
from bfmpipe.types import Array


class Config(ExplorerConfig):
    """Settings of the explorer."""

    redraw_probability: float = Field(0.02, ge=0, le=1)
    """Chance a step that an environment draws a new direction."""
    noise_std: float = Field(0.3, ge=0)


class Explorer(BaseExplorer):
    """Actions uniform in [-1, 1], each held for 1 / redraw_probability steps on average."""

    held: Array

    def __init__(
        self, config: Config, obs_dim: int, action_dim: int, rng: np.random.Generator
    ) -> None:
        self.config = config
        self.action_dim = action_dim
        self.rng = rng

    def start(self, num_envs: int) -> None:
        """Draw a direction for every environment."""
        self.held = self.rng.uniform(-1, 1, (num_envs, self.action_dim))

    def act(self, obs: Array) -> Array:
        """Actions (num_envs, action_dim), float32, in [-1, 1]; the observation plays no part."""
        num_envs, action_dim = self.held.shape
        redraw = self.rng.random(num_envs) < self.config.redraw_probability
        self.held[redraw] = self.rng.uniform(-1, 1, (int(np.count_nonzero(redraw)), action_dim))
        noisy = self.held + self.config.noise_std * self.rng.standard_normal((num_envs, action_dim))
        return noisy.clip(-1, 1).astype(np.float32)

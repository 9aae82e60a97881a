"""What an explorer is: it acts in many environments at once, and may learn from what it sees."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from bfmpipe.config import Config
from bfmpipe.types import Array

if TYPE_CHECKING:  # an explorer that does not learn needs no torch
    from torch import Tensor


class ExplorerConfig(Config):
    """Settings every explorer has."""

    num_envs: int | None = Field(None, ge=1)
    """Episodes explored side by side; the others follow in rounds. All at once by default."""


@dataclass
class History:
    """All that was explored so far, growing by a step of all running episodes at a time.

    obs (episodes, steps + 1, obs_dim) and action (episodes, steps + 1, action_dim), float32, have
    room for the whole data set. The first `finished` episodes are complete; of the `running` ones
    after them there are `step` transitions.
    """

    obs: Array
    action: Array
    finished: int = 0
    running: int = 0
    step: int = 0

    @property
    def transitions(self) -> int:
        """Number of transitions so far."""
        return self.starts(1)

    def starts(self, nstep: int) -> int:
        """Number of places from which `nstep` transitions follow in the same episode."""
        complete, partial = self._starts(nstep)
        return self.finished * complete + self.running * partial

    def sample(self, n: int, nstep: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Episodes (n,) and steps (n,), int64, drawn uniformly from those `starts`."""
        complete, partial = self._starts(nstep)
        i = rng.integers(self.finished * complete + self.running * partial, size=n)
        late = i >= self.finished * complete
        i[late] -= self.finished * complete
        episode, step = np.divmod(i, np.where(late, max(partial, 1), max(complete, 1)))
        return np.where(late, self.finished + episode, episode), step

    def newest(self) -> Array:
        """Observations (n, obs_dim) not there at the step before; at the first, the starts too."""
        first = 0 if self.step == 1 else self.step
        rows = self.obs[self.finished : self.finished + self.running, first : self.step + 1]
        return rows.reshape(-1, self.obs.shape[-1])

    def _starts(self, nstep: int) -> tuple[int, int]:
        return max(0, self.obs.shape[1] - nstep), max(0, self.step - nstep + 1)


class Explorer(ABC):
    """Chooses actions; what it learns from, and when, is what the stage collect shows it.

    Args of every explorer's constructor: its Config, obs_dim, action_dim, and the generator that
    all of its randomness comes from.
    """

    @abstractmethod
    def start(self, num_envs: int) -> None:
        """Begin new episodes in `num_envs` environments."""

    @abstractmethod
    def act(self, obs: Array) -> Array:
        """Actions (num_envs, action_dim), float32, in [-1, 1], at obs (num_envs, obs_dim)."""

    def learn(self, history: History) -> None:  # noqa: B027
        """Learn from all that was seen, after every step of the environments."""

    def state(self) -> "dict[str, Tensor]":
        """All that what comes next depends on, between two rounds, beside the generator."""
        return {}

    def load_state(self, state: "Mapping[str, Tensor]") -> None:  # noqa: B027
        """Continue from what `state` gave."""

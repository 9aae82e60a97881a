"""What a domain is: a MuJoCo model, vectorised observations and rewards, seeded start states."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mujoco
import numpy as np

from bfmpipe.config import Config, parse
from bfmpipe.types import Array, UserError

_BLOCK = 8192  # rows relabelled at a time: what is computed on the way stays in the cache


@dataclass(frozen=True)
class Task:
    """One reward function of a domain: its name, its settings, and the family it is reported in."""

    family: str
    name: str
    settings: Config

    def __str__(self) -> str:
        """The name in messages and tables: family/name."""
        return f"{self.family}/{self.name}"


class DomainConfig(Config):
    """Settings every domain has; a domain adds its own."""

    physics_steps: int
    """Physics steps a control step."""
    episode_steps: int
    """Control steps an episode; episodes never end earlier."""


class Domain(ABC):
    """A domain's science, without any simulation state: everything is a function over arrays.

    Physics states are rows of float64, (n, physics_dim): qpos, qvel and act, concatenated.
    """

    TaskConfig: ClassVar[type[Config]]
    """Settings of a task."""
    task_names: ClassVar[tuple[str, ...]]
    fields: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "act")
    """MjData fields that `observe` and `reward` read."""

    model: mujoco.MjModel
    obs_dim: int

    def __init__(self, name: str, config: DomainConfig) -> None:
        self.name = name
        self.config = config

    @property
    def action_dim(self) -> int:
        """Number of actuators; every action is in [-1, 1]."""
        return int(self.model.nu)

    @property
    def physics_dim(self) -> int:
        """Length of a physics state."""
        return int(self.model.nq + self.model.nv + self.model.na)

    @abstractmethod
    def observe(self, fields: Mapping[str, Array]) -> Array:
        """Observations (n, obs_dim), float32, from MjData fields of shape (n, ...)."""

    @abstractmethod
    def reward(self, task: Task, fields: Mapping[str, Array], action: Array) -> Array:
        """Rewards (n,), float64: `action` (n, action_dim) led to the state in `fields`."""

    @abstractmethod
    def start_states(self, n: int, rng: np.random.Generator) -> Array:
        """Draw n physics states (n, physics_dim) from the tasks' own start distribution."""

    @abstractmethod
    def exploration_states(self, n: int, rng: np.random.Generator) -> Array:
        """Draw n physics states (n, physics_dim) that cover the state space, for exploration."""

    def split(self, physics: Array) -> dict[str, Array]:
        """MjData fields qpos, qvel, act of physics states (n, physics_dim), as views."""
        nq, nv = self.model.nq, self.model.nv
        return {
            "qpos": physics[:, :nq],
            "qvel": physics[:, nq : nq + nv],
            "act": physics[:, nq + nv :],
        }

    def relabel(self, task: Task, physics: Array, action: Array) -> Array:
        """Rewards (n,) of stored rows: `action` (n, action_dim) led to `physics` (n, physics_dim).

        The same function gives the reward while stepping, so the two agree bit for bit.
        """
        rewards = np.empty(len(physics))
        for start in range(0, len(physics), _BLOCK):
            rows = slice(start, start + _BLOCK)
            rewards[rows] = self.reward(task, self.split(physics[rows]), action[rows])
        return rewards

    def tasks(self, family: str, names: Sequence[str], settings: Mapping[str, Any]) -> list[Task]:
        """The tasks of one family, all with the same settings.

        Raises:
            UserError: for a task this domain does not have, or settings no task has.
        """
        where = f"domain {self.name}: task family {family}"
        config = parse(self.TaskConfig, settings, where)
        for name in names:
            if name not in self.task_names:
                known = ", ".join(self.task_names)
                raise UserError(f"{where}: no task '{name}'; {self.name} has {known}")
        return [Task(family, name, config) for name in names]

"""What a domain is: a MuJoCo model, vectorised observations and rewards, seeded start states."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import mujoco
import numpy as np

from bfmpipe.config import Config, parse
from bfmpipe.envs.tasks import Function, Task, TaskFile, file_tasks, own_task
from bfmpipe.envs.tasks import Physics as BasePhysics
from bfmpipe.types import Array, UserError, meant

_BLOCK = 8192  # rows relabelled at a time: what is computed on the way stays in the cache


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
    """MjData fields that observations and rewards read, all of them parts of a physics state."""
    observed_fields: ClassVar[tuple[str, ...]] = ()
    """Further ones that only `observe` reads, and that no physics state determines."""
    reset_stage: ClassVar[mujoco.mjtStage] = mujoco.mjtStage.mjSTAGE_VEL
    """What is computed on a reset; mjSTAGE_ACC where forces and accelerations are observed."""
    Physics: ClassVar[type[BasePhysics]] = BasePhysics
    """What rewards are given; a domain adds quantities that have names."""
    camera: ClassVar[int] = 0
    """The model's camera that pictures are taken by."""

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
        """Observations (n, obs_dim), float32, from MjData fields of shape (n, ...).

        A domain with `observed_fields` needs those too: its observations are stored with a data
        set, since the physics states cannot give them back.
        """

    @abstractmethod
    def reward(self, task: Task, physics: Any, action: Array) -> Array:
        """Rewards (n,), float64, of the domain's own tasks; `Task.reward` is that of any task.

        `action` (n, action_dim) led to the states of `physics`, which is the domain's `Physics`.
        """

    @abstractmethod
    def start_states(self, n: int, rng: np.random.Generator) -> Array:
        """Draw n physics states (n, physics_dim) from the tasks' own start distribution."""

    @abstractmethod
    def exploration_states(self, n: int, rng: np.random.Generator) -> Array:
        """Draw n physics states (n, physics_dim) that cover the state space, for exploration."""

    def has_task(self, name: str) -> bool:
        """Whether this is the name of a task; `task_names` need not list all that are."""
        return name in self.task_names

    def show(self, model: mujoco.MjModel, task: "Task | None") -> None:  # noqa: B027
        """Change `model`, a copy that pictures are drawn of, so that they show the task."""

    def split(self, physics: Array) -> dict[str, Array]:
        """MjData fields qpos, qvel, act of physics states (..., physics_dim), as views.

        Raises:
            UserError: for states of another width.
        """
        if physics.shape[-1] != self.physics_dim:
            raise UserError(
                f"{self.name}: a physics state has {self.physics_dim} numbers; these have the "
                f"shape {physics.shape}"
            )
        nq, nv = self.model.nq, self.model.nv
        return {
            "qpos": physics[..., :nq],
            "qvel": physics[..., nq : nq + nv],
            "act": physics[..., nq + nv :],
        }

    def relabel(self, task: Task, physics: Array, action: Array) -> Array:
        """Rewards (n,) of stored rows: `action` (n, action_dim) led to `physics` (n, physics_dim).

        The same function gives the reward while stepping, so the two agree bit for bit.
        """
        rewards = np.empty(len(physics))
        for start in range(0, len(physics), _BLOCK):
            rows = slice(start, start + _BLOCK)
            here = self.Physics(self, self.split(physics[rows]))
            rewards[rows] = task.reward(self, here, action[rows])
        return rewards

    def tasks(self, family: str, names: Sequence[str], settings: Mapping[str, Any]) -> list[Task]:
        """The tasks of one family, all with the same settings.

        With a `file` among the settings they are that file's functions, tasks of one's own.

        Raises:
            UserError: for a task this domain does not have, or settings no task has.
        """
        where = f"domain {self.name}: task family {family}"
        if isinstance(names, str):
            raise UserError(f"{where}: names are a list, such as ['{names}'], not '{names}'")
        if "file" in settings:
            return [*file_tasks(self, family, list(names), parse(TaskFile, settings, where), where)]
        config = parse(self.TaskConfig, settings, where)
        for name in names:
            if not self.has_task(name):
                known, guess = ", ".join(self.task_names), meant(name, self.task_names)
                raise UserError(f"{where}: no task '{name}'; {self.name} has {known}{guess}")
        return [Task(family, name, config) for name in names]

    def task_from(self, function: Function, *, name: str = "", family: str = "mine") -> Task:
        """A task of one's own: `function(physics, action)` gives rewards (n,), see `envs.tasks`.

        Args:
            function: the reward.
            name: of the task; the function's own if empty.
            family: the family it is reported in.

        Raises:
            UserError: the name is taken, or the function is no such reward.
        """
        name = name or getattr(function, "__name__", "")
        return own_task(
            self,
            function,
            family=family,
            name=name,
            settings=Config(),
            where=f"domain {self.name}",
        )

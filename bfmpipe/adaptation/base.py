"""What an adaptation method is given, and what it must offer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from bfmpipe.adaptation.draws import Generators
from bfmpipe.agents import Model
from bfmpipe.agents.stack import Stack
from bfmpipe.config import Config
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.envs.domain import Domain, Task
from bfmpipe.types import Array, UserError

Made = TypeVar("Made")


@dataclass(frozen=True)
class Problem:
    """Tasks of one domain for frozen models, adapted side by side as one batch.

    model: one, or a `Stack` of S; tasks: T of them, where S models each have T / S in equal blocks,
    the same ones in the same order; w: (T, d) reward weights and z: (T, d) latents from zero-shot
    inference; budget: environment steps a task may spend; visited: (n, physics_dim) states of the
    data set that rollouts may start from; threads: of the simulator; visited_obs: (n, obs_dim),
    what was observed there, for a method whose `needs_visited_obs` says so.
    """

    domain: Domain
    model: Model
    tasks: Sequence[Task]
    w: Tensor
    z: Tensor
    budget: int
    visited: Array
    threads: int
    visited_obs: Array | None = None

    @property
    def device(self) -> torch.device:
        """Where models, latents and all that a method learns are; simulations are on the CPU."""
        return self.z.device

    def seen(self, rows: Array) -> Tensor:
        """Observations (n, obs_dim) of the rows (n,) of `visited`, on `device`."""
        if self.visited_obs is None:
            raise ValueError("observations of the data's states were not asked for")
        return self.tensor(self.visited_obs[rows])

    def tensor(self, array: Array) -> Tensor:
        """An array as a tensor on `device`."""
        return torch.from_numpy(array).to(self.device)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models, one a seed."""
        return self.model.models if isinstance(self.model, Stack) else (self.model,)

    def each_task(self, make: Callable[[Model], Made]) -> list[Made]:
        """What is made of a task's model, one a task; the same for all tasks of a model."""
        count = len(self.tasks) // len(self.models)
        return [made for made in map(make, self.models) for _ in range(count)]

    def env(self, n: int) -> BatchedEnv:
        """n environments a task; rows go by task: 0..n-1 belong to the first one."""
        return BatchedEnv(self.domain, len(self.tasks) * n, self.threads)

    def reward(self, env: BatchedEnv, action: Array) -> Array:
        """Rewards of the step just taken, (T, n), each row by its own task."""
        seeds = len(self.models)
        count = len(self.tasks) // seeds
        n = env.num_envs // len(self.tasks)
        rows = np.arange(env.num_envs).reshape(seeds, count, n)
        physics = env.reached()
        rewards = np.empty((seeds, count, n))
        for i, task in enumerate(self.tasks[:count]):
            of_task = rows[:, i].ravel() if seeds > 1 else slice(i * n, (i + 1) * n)
            reward = task.reward(self.domain, physics.rows(of_task), action[of_task])
            rewards[:, i] = reward.reshape(seeds, n)
        return rewards.reshape(len(self.tasks), n)


class Method(ABC):
    """One way to adapt. All its state is its own, in its attributes (see `state`).

    The model stays as it is.

    Args:
        config: the method's settings.
        problem: what to adapt, and the budget.
        seeds: of all the method's randomness, one for each of the problem's models.
    """

    needs_visited_obs: ClassVar[bool] = False
    """Whether it looks at what the data's states were observed as, `Problem.visited_obs`."""

    def __init__(self, config: Config, problem: Problem, seeds: Sequence[int]) -> None:
        self.check(config, problem.domain, problem.budget)
        if len(seeds) != len(problem.models):
            raise UserError(f"{len(seeds)} seeds for {len(problem.models)} models; give one each")
        self.problem = problem
        self.draws = Generators(seeds, problem.device)
        self.env_steps = 0
        """Environment steps spent so far, a task; every reset rollout counts."""
        self.z: Tensor = problem.z.clone()
        """The latents played, (T, d)."""

    @classmethod  # noqa: B027 - most methods refuse nothing
    def check(cls, config: Any, domain: Domain, budget: int) -> None:
        """Refuse what cannot run. An experiment asks this before anything is trained.

        Args:
            config: the method's settings.
            domain: what is adapted in.
            budget: environment steps a task may spend.

        Raises:
            UserError: one sentence with what would be valid.
        """

    @classmethod
    def method_name(cls) -> str:
        """The method's name, as an experiment gives it."""
        return cls.__module__.rpartition(".")[2].replace("_", "-")

    @abstractmethod
    def advance(self) -> bool:
        """Spend environment steps, learn from them; False where the budget allows no more."""

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """The adapted deterministic policy: actions (T, n, action_dim) of obs (T, n, obs_dim)."""
        return act_by_latent(self.problem.model, obs, self.z)

    @property
    def left(self) -> int:
        """Environment steps a task that the budget still allows."""
        return self.problem.budget - self.env_steps


def act_by_latent(model: Model, obs: Tensor, z: Tensor) -> Tensor:
    """pi(s, z), (T, n, action_dim), of obs (T, n, obs_dim) and z (T, d) or (T, n, d)."""
    tasks, n, _ = obs.shape
    if z.dim() == 2:
        z = z[:, None].expand(-1, n, -1)
    return model.actor(obs.flatten(0, 1), z.flatten(0, 1)).unflatten(0, (tasks, n))


def check_finite(numbers: Tensor, problem: Problem, what: str) -> None:
    """Refuse numbers (T, ...) that are none, naming the task.

    Raises:
        UserError: for the first task that has one.
    """
    bad = ~numbers.isfinite()
    if bool(bad.any()):
        task = problem.tasks[int(bad.nonzero()[0][0])]
        raise UserError(
            f"task {task}: {what} is not a number; look for a division by zero or a logarithm in "
            "the reward, lower the learning rates, or train the model again"
        )

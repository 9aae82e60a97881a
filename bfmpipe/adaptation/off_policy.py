"""What off-policy methods share: environments that run on, a replay buffer, updates in step."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation.base import Method, Problem, check_finite
from bfmpipe.adaptation.draws import Generators
from bfmpipe.config import PresetConfig
from bfmpipe.envs.domain import Domain
from bfmpipe.networks import perturb
from bfmpipe.types import UserError

SMALL: Mapping[str, Any] = {"num_envs": 4, "updates_per_step": 0.03125, "batch": 128}
"""What the presets `small` of all off-policy methods have in common: a thirty-second of the paper's
updates, on an eighth of the default batch, is what two cores allow in episodes of 1,000 steps."""

SMALL_MAZE: Mapping[str, Any] = {**SMALL, "updates_per_step": 0.125}
"""The same of those for the point-mass maze, whose episodes have 200 steps."""


class UpdateConfig(PresetConfig):
    """Settings of updates from replayed transitions."""

    updates_per_step: float = Field(1.0, gt=0)
    """Updates an environment step of a task; the paper makes one."""
    batch: int = Field(1024, ge=1)
    noise_std: float = Field(0.2, ge=0)
    """Standard deviation of the exploration noise on actions."""
    target_noise_std: float = Field(0.2, ge=0)
    target_noise_clip: float = Field(0.5, ge=0)
    target_tau: float = Field(0.005, gt=0, le=1)
    ascend: Literal["minimum", "mean", "first"] = "minimum"
    """Which reduction of the two critics what moves ascends."""


class OffPolicyConfig(UpdateConfig):
    """Settings of every method that collects and updates in step.

    The presets are for small models on two cores, "small-point_mass_maze" for those of the maze.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": SMALL,
        "small-point_mass_maze": SMALL_MAZE,
    }

    num_envs: int = Field(1, ge=1)
    """Environments a task that step together."""
    warmup_steps: int = Field(1000, ge=0)
    """Environment steps a task before the first update."""

    def updates_allowed(self, budget: int) -> int:
        """Updates that a budget of environment steps pays for."""
        learning_steps = budget // self.num_envs * self.num_envs - self.warmup_steps
        return int(learning_steps * self.updates_per_step)


class Batch(NamedTuple):
    """obs, next_obs (T, n, obs_dim), action (T, n, action_dim), reward (T, n)."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor


class Replay:
    """The transitions of every task, (T, budget, ...), in the order they came."""

    def __init__(self, problem: Problem) -> None:
        tasks, capacity, domain = len(problem.tasks), problem.budget, problem.domain
        with problem.device:
            self.obs = torch.empty(tasks, capacity, domain.obs_dim)
            self.action = torch.empty(tasks, capacity, domain.action_dim)
            self.reward = torch.empty(tasks, capacity)
            self.next_obs = torch.empty(tasks, capacity, domain.obs_dim)
        self.size = 0

    def add(self, obs: Tensor, action: Tensor, reward: Tensor, next_obs: Tensor) -> None:
        """Append (T, n, ...) transitions."""
        rows = slice(self.size, self.size + obs.shape[1])
        self.obs[:, rows], self.action[:, rows] = obs, action
        self.reward[:, rows], self.next_obs[:, rows] = reward, next_obs
        self.size += obs.shape[1]

    def sample(self, n: int, draws: Generators) -> Batch:
        """n transitions of every task, uniform with replacement."""
        tasks = len(self.obs)
        rows = draws.integers(self.size, tasks, n)
        task = torch.arange(tasks, device=rows.device)[:, None]
        return Batch(*(column[task, rows] for column in self.columns))

    @property
    def columns(self) -> Batch:
        """What was allocated, filled or not."""
        return Batch(self.obs, self.action, self.reward, self.next_obs)

    def state(self) -> tuple[Tensor, ...]:
        """The columns as far as they are filled."""
        return tuple(column[:, : self.size] for column in self.columns)

    def load_state(self, state: tuple[Tensor, ...]) -> None:
        """Hold what another one held."""
        self.size = 0
        self.add(*state)


class OffPolicyMethod(Method):
    """Collects with the current policy plus noise, and updates in proportion."""

    def __init__(self, config: OffPolicyConfig, problem: Problem, seeds: Sequence[int]) -> None:
        super().__init__(config, problem, seeds)
        self.config = config
        self.env = problem.env(config.num_envs)
        self.replay = Replay(problem)
        self.episode_step = problem.domain.config.episode_steps
        self.updates_due = 0.0

    @classmethod
    def check(cls, config: OffPolicyConfig, domain: Domain, budget: int) -> None:
        """Refuse budgets that end before the first update."""
        if budget < max(config.num_envs, config.warmup_steps + 1):
            raise UserError(
                f"{cls.method_name()}: a budget of {budget} environment steps a task ends before "
                f"the first update, which comes after {config.warmup_steps} steps of "
                f"{config.num_envs} environments; raise the budget or lower warmup_steps or "
                "num_envs"
            )
        if config.updates_allowed(budget) < 1:
            raise UserError(
                f"{cls.method_name()}: a budget of {budget} environment steps a task does not "
                f"allow one update with updates_per_step {config.updates_per_step}; raise one of "
                "them"
            )

    def advance(self) -> bool:
        """One step of every environment, then the updates that are due."""
        if self.left < self.config.num_envs:
            return False
        self._collect()
        if self.env_steps > self.config.warmup_steps:
            self.updates_due += self.config.num_envs * self.config.updates_per_step
            while self.updates_due >= 1:
                self.update(self.replay.sample(self.config.batch, self.draws))
                self.updates_due -= 1
        return True

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Learn from one batch of every task."""

    @torch.no_grad()
    def _collect(self) -> None:
        tasks, n = len(self.problem.tasks), self.config.num_envs
        if self.episode_step == self.problem.domain.config.episode_steps:
            starts = self.draws.start_states(self.problem.domain, tasks * n)
            self.obs = self.problem.tensor(self.env.reset(starts)).view(tasks, n, -1)
            self.episode_step = 0
        action = self.explore(self.obs)
        flat = action.flatten(0, 1).numpy(force=True)
        next_obs = self.problem.tensor(self.env.step(flat)).view(tasks, n, -1)
        reward = self.problem.tensor(self.problem.reward(self.env, flat).astype(np.float32))
        check_finite(reward, self.problem, "a reward")
        self.replay.add(self.obs, action, reward, next_obs)
        self.obs = next_obs
        self.episode_step += 1
        self.env_steps += n

    def explore(self, obs: Tensor) -> Tensor:
        """Actions (T, n, action_dim) to collect with."""
        action = self.act(obs)
        return perturb(action, self.draws.noise(action, self.config.noise_std))

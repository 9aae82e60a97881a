"""What an adaptation method is given, and what it must offer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bfmpipe.agents import Model
from bfmpipe.config import Config
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.envs.domain import Domain, Task
from bfmpipe.types import Array


@dataclass(frozen=True)
class Problem:
    """All tasks of one domain for one frozen model, adapted side by side as one batch.

    tasks: T of them; w: (T, d) reward weights and z: (T, d) latents from zero-shot inference;
    budget: environment steps a task may spend; visited: (n, physics_dim) states of the data set
    that rollouts may start from; threads: of the simulator.
    """

    domain: Domain
    model: Model
    tasks: Sequence[Task]
    w: Tensor
    z: Tensor
    budget: int
    visited: Array
    threads: int

    def env(self, n: int) -> BatchedEnv:
        """n environments a task; rows go by task: 0..n-1 belong to the first one."""
        return BatchedEnv(self.domain, len(self.tasks) * n, self.threads)

    def reward(self, env: BatchedEnv, action: Array) -> Array:
        """Rewards of the step just taken, (T, n), each row by its own task."""
        fields, count = env.fields(), len(self.tasks)
        n = env.nenv // count
        rows = [slice(i * n, (i + 1) * n) for i in range(count)]
        return np.stack(
            [
                task.reward(self.domain, {k: v[row] for k, v in fields.items()}, action[row])
                for task, row in zip(self.tasks, rows, strict=True)
            ]
        )


class Method(ABC):
    """One way to adapt. All its state is its own; the model stays as it is.

    Args:
        config: the method's settings.
        problem: what to adapt, and the budget.
        seed: of all the method's randomness.
    """

    def __init__(self, config: Config, problem: Problem, seed: int) -> None:
        self.problem = problem
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.env_steps = 0
        """Environment steps spent so far, a task; every reset rollout counts."""
        self.z: Tensor = problem.z.clone()
        """The latents played, (T, d)."""

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

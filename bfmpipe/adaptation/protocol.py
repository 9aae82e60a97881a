"""The protocol, the same for every method: paired evaluation at fixed start states."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation.base import Method, Problem
from bfmpipe.config import Config
from bfmpipe.envs.domain import Domain
from bfmpipe.types import Array, UserError

if TYPE_CHECKING:
    from bfmpipe.adaptation.checkpoint import Checkpoint

_EVALUATION = 0xE7A1  # sets the evaluation's random numbers apart from everybody else's


class Evaluation(Config):
    """Settings of the evaluation."""

    episodes: int = Field(32, ge=2)
    """Episodes a task, from start states that all methods and models share."""
    seed: int = Field(0, ge=0)
    """Of those start states; the sequence is no method's, whatever their seeds."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation of all tasks.

    env_steps: spent before it, a task; returns: (T, episodes); physics: (episode_steps + 1, T,
    episodes, physics_dim), the states passed; z: (T, d); cosine: (T,), of z to the inferred one.
    """

    env_steps: int
    returns: Array
    physics: Array
    z: Array
    cosine: Array

    def split(self, n: int) -> "tuple[Evaluated, ...]":
        """The same of n models' tasks, each by itself."""
        blocks = zip(
            np.split(self.returns, n),
            np.split(self.physics, n, axis=1),
            np.split(self.z, n),
            np.split(self.cosine, n),
            strict=True,
        )
        return tuple(Evaluated(self.env_steps, *block) for block in blocks)


def start_states(domain: Domain, config: Evaluation) -> Array:
    """The evaluation's start states, (episodes, physics_dim)."""
    rng = np.random.default_rng([config.seed, _EVALUATION])
    return domain.start_states(config.episodes, rng)


def rollout_returns(
    problem: Problem, act: Callable[[Tensor], Tensor], starts: Array
) -> tuple[Array, Array]:
    """Undiscounted returns (T, episodes) of whole episodes, and the states passed.

    Args:
        problem: tasks and domain.
        act: obs (T, episodes, obs_dim) -> actions (T, episodes, action_dim).
        starts: (episodes, physics_dim), the same for every task.
    """
    tasks, episodes = len(problem.tasks), len(starts)
    env = problem.env(episodes)
    obs = env.reset(np.tile(starts, (tasks, 1)))
    returns = np.zeros((tasks, episodes))
    physics = [env.physics]
    for _ in range(problem.domain.config.episode_steps):
        grouped = problem.tensor(obs).unflatten(0, (tasks, episodes))
        action = act(grouped).flatten(0, 1).numpy(force=True)
        obs = env.step(action)
        returns += problem.reward(env, action)
        physics.append(env.physics)
    return returns, np.stack(physics).reshape(len(physics), tasks, episodes, -1)


def evaluate(method: Method, starts: Array) -> Evaluated:
    """Evaluate a method as it stands."""
    returns, physics = rollout_returns(method.problem, method.act, starts)
    if not np.isfinite(returns).all():
        raise UserError(f"an evaluation returned {returns[~np.isfinite(returns)][0]}")
    cosine = torch.nn.functional.cosine_similarity(method.z, method.problem.z, dim=-1)
    z = method.z.numpy(force=True).copy()
    return Evaluated(method.env_steps, returns, physics, z, cosine.numpy(force=True))


def adapt(
    method: Method,
    starts: Array,
    every: int,
    checkpoint: "Checkpoint | None" = None,
    watch: Callable[[int], object] | None = None,
) -> Iterator[Evaluated]:
    """Spend the method's budget; evaluate before, every `every` environment steps, and after.

    The evaluation's environment steps are not the method's, and the method never sees them.

    Args:
        method: one that has not advanced yet.
        starts: see `start_states`.
        every: environment steps a task.
        checkpoint: where it goes on, if it was stopped before; the evaluations made until then
            come without paths.
        watch: told of the environment steps spent, after every advance.

    Raises:
        UserError: for a method that spends more than the budget, or does not say whether it goes
            on.
    """
    first = evaluate(method, starts)
    later = checkpoint.resume(method) if checkpoint else []
    yield first
    del first  # its paths may be gigabytes
    yield from later
    evaluated = later[-1].env_steps if later else 0
    while True:
        if method.env_steps // every > evaluated // every:
            point = evaluate(method, starts)
            yield point
            evaluated = method.env_steps
            later.append(replace(point, physics=np.empty((0, *point.physics.shape[1:]))))
        if not _advance(method):
            break
        if watch:
            watch(method.env_steps)
        # where nothing was spent since, the last evaluation may be the one whose paths are wanted
        if checkpoint and method.env_steps > evaluated:
            checkpoint.save(method, later)
    if method.env_steps > evaluated:
        yield evaluate(method, starts)


def _advance(method: Method) -> bool:
    """Let a method advance, and hold it to the budget that all have."""
    name, budget = method.method_name(), method.problem.budget
    more: object = method.advance()
    if not isinstance(more, bool | np.bool_):
        raise UserError(
            f"{name}: advance returned {more!r}; valid: True, or False where the budget allows no "
            "more"
        )
    if method.env_steps > budget:
        raise UserError(
            f"{name}: advance has spent {method.env_steps:,} environment steps a task of a budget "
            f"of {budget:,}; it must return False where `left` does not pay for its next update"
        )
    return bool(more)

"""Evaluating a model while it trains: its features' spectrum, and zero-shot play of given tasks."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bfmpipe.adaptation.base import Problem, act_by_latent
from bfmpipe.adaptation.protocol import Evaluation
from bfmpipe.agents import Model
from bfmpipe.agents.losses import covariance
from bfmpipe.data.transitions import Transitions
from bfmpipe.envs import Domain
from bfmpipe.envs.batched import threads
from bfmpipe.envs.domain import Task
from bfmpipe.inference import reward
from bfmpipe.inference.reward import Inference, Latent
from bfmpipe.inference.spectrum import effective_rank
from bfmpipe.metrics.correlation import rank_correlation
from bfmpipe.types import Array, UserError

_TRAINING = 0x7EA1  # sets these random numbers apart from everybody else's
_SPECTRUM_STATES = 10_000


@dataclass(frozen=True)
class Evaluator:
    """Evaluates a model as it stands, and leaves it so.

    obs (n, obs_dim) and reward (T, n): the sample that tasks are inferred from, that of the stage
    infer; states (m, obs_dim): of the data, for the spectrum; starts: (episodes, physics_dim).
    """

    domain: Domain
    tasks: list[Task]
    inference: Inference
    obs: Tensor
    reward: Tensor
    states: Tensor
    starts: Array

    @classmethod
    def of(
        cls,
        domain: Domain,
        tasks: list[Task],
        data: Transitions,
        stride: int,
        seed: int,
        inference: Inference,
        evaluation: Evaluation,
    ) -> "Evaluator":
        """Draw the samples, of the rows that a transition of `stride` steps leads to.

        Args:
            domain: of the model.
            tasks: of it; any number.
            data: what the model learns from.
            stride: of the model.
            seed: of the sample that tasks are inferred from.
            inference: how.
            evaluation: how many episodes, and the seed of their start states, which are not those
                of the reported evaluation.
        """
        reached = data.index_of(stride) + stride

        def sample(n: int, rng: np.random.Generator) -> Array:
            return np.sort(rng.choice(reached, min(n, len(reached)), replace=False))

        rows = sample(inference.samples, np.random.default_rng(seed))
        rng = np.random.default_rng([evaluation.seed, _TRAINING])
        starts = domain.start_states(evaluation.episodes, rng)
        physics, action = data.physics[rows], data.action[rows - 1]
        rewards = np.empty((len(tasks), len(rows)))
        for i, task in enumerate(tasks):
            rewards[i] = domain.relabel(task, physics, action)
        return cls(
            domain,
            tasks,
            inference,
            torch.from_numpy(data.obs[rows]),
            torch.from_numpy(rewards),
            torch.from_numpy(data.obs[sample(_SPECTRUM_STATES, np.random.default_rng(_TRAINING))]),
            starts,
        )

    @torch.no_grad()
    def infer(self, model: Model) -> Latent:
        """w and z of every task, (T, d)."""
        found = []
        for task, rewards in zip(self.tasks, self.reward, strict=True):
            try:
                found.append(reward.infer(model, self.obs, rewards, self.inference))
            except UserError as error:
                raise UserError(f"task {task}: {error}") from error
        return Latent(*(torch.stack(column) for column in zip(*found, strict=True)))

    @torch.no_grad()
    def __call__(self, live: Model) -> dict[str, Any]:
        """What a checkpoint can hold: `tasks`, a row each, `eigenvalues` and `effective_rank`."""
        model = frozen_copy(live)
        eigenvalues = spectrum_of(model.phi(self.states))
        return {
            "tasks": self.score(model) if self.tasks else [],
            "eigenvalues": eigenvalues.tolist(),
            "effective_rank": effective_rank(eigenvalues),
        }

    def score(self, model: Model) -> list[dict[str, Any]]:
        """Returns and values of every task, as the table of evaluations has them."""
        w, z = self.infer(model)
        nowhere = np.empty((0, self.domain.physics_dim))
        problem = Problem(self.domain, model, self.tasks, w, z, 0, nowhere, threads())
        rewards, values = _play(problem, self.starts)
        episode_steps, _, episodes = rewards.shape
        returns = rewards.sum(0)
        discounted = np.tensordot(model.discount ** np.arange(episode_steps), rewards, 1)
        shift = reward.left_out(model, self.obs, self.reward, w, self.inference)
        values += shift.numpy()[:, None] / (1 - model.discount)
        return [
            {
                "family": task.family,
                "task": task.name,
                "mean": returns[i].mean().item(),
                "standard_error": (returns[i].std(ddof=1) / np.sqrt(episodes)).item(),
                "q_predicted": values[i].mean().item(),
                "q_monte_carlo": discounted[i].mean().item(),
                "q_correlation": rank_correlation(values[i], discounted[i]),
                "episodes": episodes,
            }
            for i, task in enumerate(self.tasks)
        ]


def frozen_copy(model: Model) -> Model:
    """A frozen copy in the processor's memory."""
    return copy.deepcopy(model).cpu().requires_grad_(False).eval()


def _play(problem: Problem, starts: Array) -> tuple[Array, Array]:
    """Rewards (episode_steps, T, episodes) of playing z, and q (T, episodes) at the starts."""
    model, z, tasks, episodes = problem.model, problem.z, len(problem.tasks), len(starts)
    env = problem.env(episodes)
    obs = env.reset(np.tile(starts, (tasks, 1)))
    rewards = np.empty((problem.domain.config.episode_steps, tasks, episodes))
    for step in range(len(rewards)):
        x = torch.from_numpy(obs)
        action = act_by_latent(model, x.unflatten(0, (tasks, episodes)), z).flatten(0, 1)
        if step == 0:
            rows = (v.repeat_interleave(episodes, 0) for v in (z, problem.w))
            values = model.q(x, action, *rows).double().view(tasks, episodes).numpy()
        obs = env.step(action.numpy())
        rewards[step] = problem.reward(env, action.numpy())
    return rewards, values


def spectrum_of(phi: Tensor) -> Tensor:
    """Eigenvalues (d,) of E[phi phi^T], not centred, falling; phi is (n, d)."""
    return torch.linalg.eigvalsh(covariance(phi.double())).flip(0).clamp_min(0)

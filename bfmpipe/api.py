"""The library as a user sees it: load a model, infer a task's latent, adapt it.

pretrained = bfmpipe.load("results/point_mass_maze/fb/seed0/model")
tasks = pretrained.domain.tasks("reach", ["reach_top_right"], {"target_size": 0.05})
data = bfmpipe.read_transitions("results/point_mass_maze/data.parquet")
latent = bfmpipe.infer(pretrained, tasks, data)
for point in bfmpipe.adapt(pretrained, tasks, latent, data, method="lola", episodes=64):
    print(point.env_steps, point.returns.mean())
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bfmpipe import plugins
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.protocol import Evaluated, Evaluation, start_states
from bfmpipe.adaptation.protocol import adapt as run_protocol
from bfmpipe.agents import Model, load_model
from bfmpipe.config import parse
from bfmpipe.data.transitions import Transitions, check_domain
from bfmpipe.data.transitions import read as read_transitions
from bfmpipe.envs import Domain, make_domain
from bfmpipe.envs.batched import threads
from bfmpipe.envs.domain import Task
from bfmpipe.inference.reward import Inference, Latent
from bfmpipe.inference.reward import infer as infer_one
from bfmpipe.types import UserError

__all__ = ["Pretrained", "adapt", "infer", "load", "make_domain", "read_transitions"]


@dataclass(frozen=True)
class Pretrained:
    """A frozen model and the domain it was trained on; `card` is its config.json."""

    model: Model
    domain: Domain
    card: Mapping[str, Any]


def load(directory: Path | str) -> Pretrained:
    """A pretrained model from its directory.

    Raises:
        UserError: for a model that is missing, damaged, or does not fit its domain.
    """
    model, card = load_model(directory)
    for name in ("domain", "domain_settings"):
        if name not in card:
            raise UserError(f"{directory}: config.json does not say the model's {name}")
    domain = make_domain(card["domain"], card["domain_settings"])
    if (model.obs_dim, model.action_dim) != (domain.obs_dim, domain.action_dim):
        raise UserError(
            f"{directory}: a model of {model.obs_dim} observations and {model.action_dim} actions; "
            f"{domain.name} has {domain.obs_dim} and {domain.action_dim}"
        )
    return Pretrained(model, domain, card)


def infer(
    pretrained: Pretrained,
    tasks: Sequence[Task],
    data: Transitions,
    *,
    inference: Inference | None = None,
    seed: int = 0,
) -> Latent:
    """Zero-shot inference for each of T tasks: w and z, (T, d).

    Args:
        pretrained: the model.
        tasks: of its domain.
        data: transitions of the same domain, relabelled with each task's reward.
        inference: how; the defaults if None.
        seed: of the choice of samples.
    """
    domain = pretrained.domain
    check_domain(data, domain)
    inference = inference or Inference()
    rng = np.random.default_rng(seed)
    stride = pretrained.model.config.stride  # the states that training reached
    reached = data.index_of(stride) + stride
    rows = np.sort(rng.choice(reached, min(inference.samples, len(reached)), replace=False))
    obs = torch.from_numpy(data.obs[rows])
    latents = []
    for task in tasks:
        reward = domain.relabel(task, data.physics[rows], data.action[rows - 1])
        try:
            latents.append(infer_one(pretrained.model, obs, torch.from_numpy(reward), inference))
        except UserError as error:
            raise UserError(f"task {task}: {error}") from error
    return Latent(*(torch.stack(column) for column in zip(*latents, strict=True)))


def adapt(
    pretrained: Pretrained,
    tasks: Sequence[Task],
    latent: Latent,
    data: Transitions,
    *,
    method: str,
    episodes: int,
    every: int = 16,
    evaluation: Evaluation | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Iterator[Evaluated]:
    """Adapt to T tasks at once; an evaluation before, every `every` episodes, and after.

    Args:
        pretrained: the model; it stays as it is.
        tasks: T tasks of its domain.
        latent: where to start: w and z, (T, d).
        data: whose states rollouts may start from.
        method: a module of bfmpipe.adaptation, e.g. "lola".
        episodes: the budget a task, in episodes.
        every: episodes between evaluations.
        evaluation: how to evaluate; the defaults if None.
        settings: of the method; what is left out keeps its default.
        seed: of the method's randomness; the evaluation has its own.

    Raises:
        UserError: for unknown names or settings, or a budget that does not allow one update.
    """
    domain = pretrained.domain
    check_domain(data, domain)
    module = plugins.load("adaptation", method)
    config = parse(module.Config, settings or {}, f"method {method}")
    problem = Problem(
        domain=domain,
        model=pretrained.model,
        tasks=tasks,
        w=latent.w,
        z=latent.z,
        budget=episodes * domain.config.episode_steps,
        visited=data.physics[data.index],
        threads=threads(),
    )
    running = module.Method(config, problem, seed)
    starts = start_states(domain, evaluation or Evaluation())
    return run_protocol(running, starts, every * domain.config.episode_steps)

"""Stage probe: what the model holds, without any adaptation.

Every latent of a set drawn from the data is played on every task: does the model hold a better
policy than the inferred one? The best is picked on start states of its own and scored on those of
the evaluation, so that it is not flattered by the choice. Beside it are scored the latent that the
model's own values pick at the same start states, without any environment step, and the uniformly
random policy.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field
from torch import Tensor

from bfmpipe import api
from bfmpipe.adaptation.base import Problem, act_by_latent
from bfmpipe.adaptation.protocol import Evaluation, rollout_returns, start_states
from bfmpipe.config import Config
from bfmpipe.data.tables import write_table
from bfmpipe.data.transitions import check_domain
from bfmpipe.envs.batched import BatchedEnv, threads
from bfmpipe.envs.domain import Task
from bfmpipe.inference.ranking import latent_values
from bfmpipe.stages.infer import read_latents, read_model
from bfmpipe.stages.sections import Families, provenance
from bfmpipe.types import Array


class Probe(Config):
    """Settings of the stage; `domain` and `agent` are those of the model, for its provenance."""

    domain: str
    agent: str
    tasks: Families
    latents: int = Field(ge=1)
    """How many latents, each of reaching a state of the data set (`inference.goal`)."""
    episodes: int = Field(ge=2)
    """Episodes a latent on the selection's start states."""
    evaluation: Evaluation
    seed: int = Field(ge=0)


_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("domain", "agent")),
        pa.field("seed", pa.int32(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("family", "task", "policy")),
        pa.field("index", pa.int32(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),  # the model's own; NaN of random
        pa.field("mean", pa.float64(), nullable=False),
        pa.field("standard_error", pa.float64(), nullable=False),
        pa.field("episodes", pa.int32(), nullable=False),
    ]
)


@torch.no_grad()
def probe(cfg: Probe, *, model: Path, dataset: Path, latents: Path, scores: Path) -> None:
    """Score the random policy, many data-derived latents, and the best of them, played and not."""
    pretrained = read_model(model, cfg.domain, cfg.agent)
    domain = pretrained.domain
    tasks = cfg.tasks.tasks(domain)
    data = api.read_transitions(dataset, ("obs",))
    check_domain(data, domain)
    rng = np.random.default_rng(cfg.seed)
    rows = rng.choice(data.index, min(cfg.latents, len(data.index)), replace=False) + 1
    z = api.infer_goal(pretrained, data.obs[rows], data=data, seed=cfg.seed).z
    w = read_latents(latents, tasks, pretrained).w

    evaluation_starts = start_states(domain, cfg.evaluation)
    selection_starts = domain.start_states(cfg.episodes, rng)
    selection, obs = _play_all(pretrained, tasks, z, selection_starts)
    values = latent_values(pretrained.model, obs, z, w).numpy()
    picked = {"best": selection.mean(-1).argmax(1), "predicted": values.argmax(1)}
    nowhere = np.empty((0, domain.physics_dim))
    problem = Problem(domain, pretrained.model, tasks, w, w, 0, nowhere, threads())

    def score(act: Callable[[Tensor], Tensor]) -> Array:
        return rollout_returns(problem, act, evaluation_starts)[0]

    picked_returns = {
        policy: score(partial(act_by_latent, problem.model, z=z[index]))
        for policy, index in picked.items()
    }
    random_returns = score(lambda obs: _uniform(obs, domain.action_dim, rng))

    table: dict[str, list] = {name: [] for name in _SCHEMA.names}
    for i, task in enumerate(tasks):
        scored = [("random", 0, np.nan, random_returns[i])]
        for policy, indices in picked.items():
            index = int(indices[i])
            scored.append((policy, index, values[i, index], picked_returns[policy][i]))
        scored += [("latent", j, values[i, j], selection[i, j]) for j in range(len(z))]
        for policy, index, value, returns in scored:
            row = (cfg.domain, cfg.agent, cfg.seed, task.family, task.name, policy, index, value)
            error = returns.std(ddof=1) / np.sqrt(len(returns))
            for name, value in zip(
                _SCHEMA.names, (*row, returns.mean(), error, len(returns)), strict=True
            ):
                table[name].append(value)
    origin = provenance("probe", "probe", cfg, models=cfg.agent, envs=cfg.domain)
    write_table(scores, _SCHEMA, table, origin)
    print(
        f"{scores}: random {random_returns.mean():.1f}, best of {len(z)} latents "
        f"{picked_returns['best'].mean():.1f}, by the model's values "
        f"{picked_returns['predicted'].mean():.1f}"
    )


def _uniform(obs: Tensor, action_dim: int, rng: np.random.Generator) -> Tensor:
    return torch.from_numpy(rng.uniform(-1, 1, (*obs.shape[:2], action_dim)).astype(np.float32))


def _play_all(
    pretrained: api.Pretrained, tasks: list[Task], z: Tensor, starts: Array
) -> tuple[Array, Tensor]:
    """Returns (T, latents, episodes), and the starts' observations (episodes, obs_dim).

    A latent is played once, and every task rewards it.
    """
    domain, model = pretrained.domain, pretrained.model
    latents, episodes = len(z), len(starts)
    env = BatchedEnv(domain, latents * episodes, threads())
    obs = env.reset(np.tile(starts, (latents, 1)))
    first_obs = torch.from_numpy(obs[:episodes].copy())
    rows = z.repeat_interleave(episodes, dim=0)
    returns = np.zeros((len(tasks), latents * episodes))
    for _ in range(domain.config.episode_steps):
        action = model.actor(torch.from_numpy(obs), rows).numpy()
        obs = env.step(action)
        physics = env.reached()
        for i, task in enumerate(tasks):
            returns[i] += task.reward(domain, physics, action)
    return returns.reshape(len(tasks), latents, episodes), first_obs

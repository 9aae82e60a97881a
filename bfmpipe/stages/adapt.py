"""Stage adapt: one adaptation method on all tasks of a domain, for one model."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field

from bfmpipe import api
from bfmpipe.adaptation.protocol import Evaluated, Evaluation
from bfmpipe.config import Config
from bfmpipe.data.tables import write_table
from bfmpipe.envs.domain import Task
from bfmpipe.progress import progress
from bfmpipe.stages.infer import read_latents
from bfmpipe.stages.sections import Families, Plugin, provenance

Table = tuple[pa.Schema, dict[str, Any]]

SHOWN_EPISODES = 8
"""Episodes a task whose paths are stored, before and after."""


class Adapt(Config):
    """Settings of the stage; `domain` and `agent` are those of the model, for its provenance."""

    domain: str
    agent: str
    tasks: Families
    method: Plugin
    label: str = ""
    """What the method is called in the tables, if not by its module's name."""
    episodes: int = Field(ge=1)
    """Budget a task, in episodes' worth of environment steps."""
    every: int = Field(ge=1)
    """Episodes between evaluations."""
    evaluation: Evaluation
    seed: int = Field(ge=0)


def adapt(
    cfg: Adapt, *, model: Path, dataset: Path, latents: Path, curves: Path, trajectories: Path
) -> None:
    """Spend the budget of every task, evaluating on the way; store curves and paths."""
    label = cfg.label or cfg.method.name
    pretrained = api.load(model)
    domain = pretrained.domain
    tasks = cfg.tasks.tasks(domain)
    evaluations = api.adapt(
        pretrained,
        tasks,
        read_latents(latents, tasks, pretrained.model.z_dim),
        api.read_transitions(dataset, ("physics",)),
        method=cfg.method.name,
        episodes=cfg.episodes,
        every=cfg.every,
        evaluation=cfg.evaluation,
        settings=cfg.method.settings,
        seed=cfg.seed,
    )
    points: list[Evaluated] = []
    name = f"adapt {label} {cfg.agent} seed {cfg.seed}"
    budget = cfg.episodes * domain.config.episode_steps
    with progress(budget, name, "step") as bar:
        for point in evaluations:
            points.append(point)
            bar.set_postfix({"return": f"{point.returns.mean():.1f}"}, refresh=False)
            bar.update(point.env_steps - bar.n)

    used = {"adaptation": cfg.method.name, "agents": cfg.agent, "envs": cfg.domain}
    shape, columns = _curves(cfg, pretrained, tasks, points)
    write_table(curves, shape, columns, provenance("adaptation", "adapt", cfg, **used))
    shape, columns = _trajectories(tasks, {"before": points[0], "after": points[-1]})
    write_table(trajectories, shape, columns, provenance("trajectories", "adapt", cfg, **used))
    before, after = points[0].returns.mean(), points[-1].returns.mean()
    print(
        f"{curves}: mean return {before:.1f} -> {after:.1f} "
        f"after {points[-1].env_steps:,} environment steps a task"
    )


def _curves(
    cfg: Adapt, pretrained: api.Pretrained, tasks: list[Task], points: list[Evaluated]
) -> Table:
    episode_steps = pretrained.domain.config.episode_steps
    count, rows = len(tasks), len(tasks) * len(points)
    env_steps = np.repeat([point.env_steps for point in points], count)
    columns: dict[str, Any] = {
        "domain": [cfg.domain] * rows,
        "agent": [cfg.agent] * rows,
        "method": [cfg.label or cfg.method.name] * rows,
        "seed": np.full(rows, cfg.seed),
        "family": [task.family for task in tasks] * len(points),
        "task": [task.name for task in tasks] * len(points),
        "env_steps": env_steps,
        "episodes": env_steps / episode_steps,
        "returns": np.concatenate([point.returns for point in points]),
        "cosine": np.concatenate([point.cosine for point in points]).astype(np.float64),
        "z": np.concatenate([point.z for point in points]),
    }
    kinds = {
        **dict.fromkeys(("domain", "agent", "method"), pa.string()),
        "seed": pa.int32(),
        **dict.fromkeys(("family", "task"), pa.string()),
        "env_steps": pa.int64(),
        "episodes": pa.float64(),
        "returns": pa.list_(pa.float64(), columns["returns"].shape[1]),
        "cosine": pa.float64(),
        "z": pa.list_(pa.float32(), pretrained.model.z_dim),
    }
    return pa.schema([pa.field(k, v, nullable=False) for k, v in kinds.items()]), columns


def _trajectories(tasks: list[Task], phases: dict[str, Evaluated]) -> Table:
    blocks = []
    for phase, point in phases.items():
        physics = point.physics[:, :, :SHOWN_EPISODES]
        steps, count, episodes, width = physics.shape
        blocks.append(
            {
                "family": np.repeat([task.family for task in tasks], episodes * steps),
                "task": np.repeat([task.name for task in tasks], episodes * steps),
                "phase": np.full(count * episodes * steps, phase),
                "episode": np.tile(np.repeat(np.arange(episodes), steps), count),
                "step": np.tile(np.arange(steps), count * episodes),
                "physics": physics.transpose(1, 2, 0, 3).reshape(-1, width),
            }
        )
    columns = {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}
    kinds = {
        **dict.fromkeys(("family", "task", "phase"), pa.string()),
        **dict.fromkeys(("episode", "step"), pa.int32()),
        "physics": pa.list_(pa.float64(), columns["physics"].shape[1]),
    }
    return pa.schema([pa.field(k, v, nullable=False) for k, v in kinds.items()]), columns

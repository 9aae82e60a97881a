"""Stage adapt: one adaptation method on all tasks of a domain, for one model, or one a seed."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from bfmpipe import api, plugins
from bfmpipe.adaptation.checkpoint import Checkpoint
from bfmpipe.adaptation.protocol import Evaluated, Evaluation
from bfmpipe.agents import CONFIG, WEIGHTS
from bfmpipe.agents.learner import check_device
from bfmpipe.config import Config, parse
from bfmpipe.data import transitions
from bfmpipe.data.tables import Provenance, open_table, write_table
from bfmpipe.envs.batched import threads
from bfmpipe.envs.domain import Task
from bfmpipe.files import file_digest
from bfmpipe.progress import progress
from bfmpipe.report import timing
from bfmpipe.stages.infer import read_latents, read_model
from bfmpipe.stages.sections import Families, Plugin, provenance
from bfmpipe.types import UserError

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
    device: Literal["cpu", "cuda"] = "cpu"
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """One model each. Several are adapted as one batch, each as it would be alone but for
    rounding."""


def adapt(
    cfg: Adapt,
    *,
    model: list[Path],
    dataset: Path,
    latents: list[Path],
    curves: list[Path],
    trajectories: list[Path],
) -> None:
    """Spend the budget of every task, evaluating on the way; store curves and paths, one a seed.

    What was interrupted goes on where its last checkpoint stands.
    """
    files = {"model": model, "latents": latents, "curves": curves, "trajectories": trajectories}
    for name, paths in files.items():
        if len(paths) != len(cfg.seeds):
            raise UserError(f"{len(paths)} paths of {name} for {len(cfg.seeds)} seeds; one each")
    check_device(cfg.device, "adapt.device", kernels=True)
    label = cfg.label or cfg.method.name
    settings_of = plugins.load("adaptation", cfg.method.name).Config
    method_settings = parse(settings_of, cfg.method.settings, f"method {cfg.method.name}")
    pretrained = [read_model(directory, cfg.domain, cfg.agent) for directory in model]
    domain = pretrained[0].domain
    tasks = cfg.tasks.tasks(domain)
    inferred = [
        read_latents(path, tasks, one) for path, one in zip(latents, pretrained, strict=True)
    ]
    used = {"adaptation": cfg.method.name, "models": cfg.agent, "envs": cfg.domain}
    checkpoint = Checkpoint(
        curves[0].with_name(f".{curves[0].stem}.checkpoint.safetensors"),
        _identity(provenance("adaptation", "adapt", cfg, **used), model, latents, dataset),
        spent=lambda: asdict(timing.spent()),
    )
    points: list[tuple[Evaluated, ...]] = []
    which = " ".join(map(str, cfg.seeds))
    name = f"adapt {label} {cfg.agent} seed{'s' * (len(cfg.seeds) > 1)} {which}"
    budget = cfg.episodes * domain.config.episode_steps
    evaluations = api.adapt_together(
        pretrained,
        tasks,
        inferred,
        api.read_transitions(dataset, api.columns_of(cfg.method.name)),
        method=cfg.method.name,
        episodes=cfg.episodes,
        every=cfg.every,
        evaluation=cfg.evaluation,
        settings=cfg.method.settings,
        seeds=cfg.seeds,
        device=cfg.device,
        checkpoint=checkpoint,
        watch=lambda steps: bar.update(max(0, steps - bar.n)),
    )
    with progress(budget, name, "step") as bar:
        for point in evaluations:
            if checkpoint.env_steps and not points:
                timing.went_on(timing.Cost(**checkpoint.spent))
                bar.write(
                    f"{name}: goes on after {checkpoint.env_steps:,} environment steps a task",
                    file=sys.stderr,
                )
                bar.initial = bar.n = checkpoint.env_steps  # which say nothing of speed
                bar.refresh()
            if len(points) > 1:  # of those between the first and the last, paths are not stored
                points[-1] = tuple(replace(one, physics=np.empty(0)) for one in points[-1])
            points.append(tuple(_shown(one) for one in point))
            returns = np.mean([one.returns.mean() for one in point])
            bar.set_postfix({"return": f"{returns:.1f}"}, refresh=False)

    source = {  # all of them, whatever preset or default they are from
        "domain_settings": domain.config.model_dump(mode="json"),
        "method_settings": method_settings.model_dump(mode="json"),
    }
    for i, seed in enumerate(cfg.seeds):
        own = [point[i] for point in points]
        together = {"seeds_together": list(cfg.seeds)} if len(cfg.seeds) > 1 else {}
        for file, kind, (shape, columns) in (
            (curves[i], "adaptation", _curves(cfg, seed, pretrained[i], tasks, own)),
            (trajectories[i], "trajectories", _trajectories(tasks, own[0], own[-1])),
        ):
            origin = provenance(kind, "adapt", cfg, **used)
            settings = {**origin.settings, "seeds": [seed], **together}
            write_table(file, shape, columns, replace(origin, settings=settings, source=source))
        before, after = own[0].returns.mean(), own[-1].returns.mean()
        print(
            f"{curves[i]}: mean return {before:.1f} -> {after:.1f} "
            f"after {own[-1].env_steps:,} environment steps a task"
        )
    checkpoint.remove()


def _shown(point: Evaluated) -> Evaluated:
    """The same with the paths that are stored."""
    return replace(point, physics=point.physics[:, :, :SHOWN_EPISODES].copy())


def _identity(
    origin: Provenance, model: list[Path], latents: list[Path], dataset: Path
) -> dict[str, Any]:
    """What an adaptation must agree with to go on."""
    file, data = open_table(dataset, transitions.KIND)
    file.close()
    return {
        "settings": origin.settings,
        "code": origin.code,
        "versions": origin.versions,
        "threads": threads(),  # sums in another order are other bytes
        "models": [[file_digest(path / name) for name in (CONFIG, WEIGHTS)] for path in model],
        "latents": [file_digest(path) for path in latents],
        "dataset": asdict(data),  # a digest would take as long as many an adaptation
    }


def _curves(
    cfg: Adapt, seed: int, pretrained: api.Pretrained, tasks: list[Task], points: list[Evaluated]
) -> Table:
    episode_steps = pretrained.domain.config.episode_steps
    count, rows = len(tasks), len(tasks) * len(points)
    env_steps = np.repeat([point.env_steps for point in points], count)
    columns: dict[str, Any] = {
        "domain": [cfg.domain] * rows,
        "agent": [cfg.agent] * rows,
        "method": [cfg.label or cfg.method.name] * rows,
        "seed": np.full(rows, seed),
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


def _trajectories(tasks: list[Task], before: Evaluated, after: Evaluated) -> Table:
    blocks = []
    for phase, point in {"before": before, "after": after}.items():
        steps, count, episodes, width = point.physics.shape
        blocks.append(
            {
                "family": np.repeat([task.family for task in tasks], episodes * steps),
                "task": np.repeat([task.name for task in tasks], episodes * steps),
                "phase": np.full(count * episodes * steps, phase),
                "episode": np.tile(np.repeat(np.arange(episodes), steps), count),
                "step": np.tile(np.arange(steps), count * episodes),
                "physics": point.physics.transpose(1, 2, 0, 3).reshape(-1, width),
            }
        )
    columns = {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}
    kinds = {
        **dict.fromkeys(("family", "task", "phase"), pa.string()),
        **dict.fromkeys(("episode", "step"), pa.int32()),
        "physics": pa.list_(pa.float64(), columns["physics"].shape[1]),
    }
    return pa.schema([pa.field(k, v, nullable=False) for k, v in kinds.items()]), columns

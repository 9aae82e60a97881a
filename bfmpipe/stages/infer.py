"""Stage infer: zero-shot inference of every task's weights and latent."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from bfmpipe import api
from bfmpipe.config import Config
from bfmpipe.data.tables import read_table, write_table
from bfmpipe.envs.domain import Task
from bfmpipe.inference.reward import Inference, Latent
from bfmpipe.stages.sections import Families, provenance
from bfmpipe.types import UserError

KIND = "latents"
_DIGEST = "weights_sha256"
"""Of the model's weights, by one name in its config.json and in the latents' provenance."""


class Infer(Config):
    """Settings of the stage; `domain` and `agent` are those of the model, for its provenance."""

    domain: str
    agent: str
    tasks: Families
    inference: Inference
    seed: int = Field(ge=0)


def infer(cfg: Infer, *, model: Path, dataset: Path, latents: Path) -> None:
    """Infer w and z of every task from its rewards on a sample of the data set."""
    pretrained = read_model(model, cfg.domain, cfg.agent)
    tasks = cfg.tasks.tasks(pretrained.domain)
    data = api.read_transitions(dataset)
    latent = api.infer(pretrained, tasks, data, inference=cfg.inference, seed=cfg.seed)
    d = pretrained.model.z_dim
    shape = pa.schema(
        [
            pa.field("family", pa.string(), nullable=False),
            pa.field("task", pa.string(), nullable=False),
            pa.field("w", pa.list_(pa.float32(), d), nullable=False),
            pa.field("z", pa.list_(pa.float32(), d), nullable=False),
        ]
    )
    columns = {
        "family": [task.family for task in tasks],
        "task": [task.name for task in tasks],
        "w": latent.w.numpy(),
        "z": latent.z.numpy(),
    }
    origin = provenance(KIND, "infer", cfg, models=cfg.agent, envs=cfg.domain)
    source = {name: pretrained.card[name] for name in (_DIGEST,) if name in pretrained.card}
    write_table(latents, shape, columns, replace(origin, source=source))
    print(f"{latents}: {len(tasks)} tasks")


def read_model(directory: Path, domain: str, agent: str) -> api.Pretrained:
    """The model that a job is about.

    Raises:
        UserError: for what `api.load` refuses, and for a model of another domain or agent.
    """
    pretrained = api.load(directory)
    for name, expected, found in (
        ("domain", domain, pretrained.domain.name),
        ("agent", agent, pretrained.card["agent"]),
    ):
        if found != expected:
            raise UserError(
                f"{directory}: the model's {name} is {found}, but the settings say {expected}"
            )
    return pretrained


def read_latents(path: Path, tasks: list[Task], pretrained: api.Pretrained) -> Latent:
    """w and z, (T, d), of these tasks from the stage's table.

    Raises:
        UserError: for a damaged table, one of another model, or one that lacks a task. Tables and
            models of earlier versions do not say whose they are.
    """
    columns, origin = read_table(path, KIND)
    whose, expected = origin.source.get(_DIGEST), pretrained.card.get(_DIGEST)
    if None not in (whose, expected) and whose != expected:
        raise UserError(f"{path}: latents of a model of other weights; run the stage infer again")
    z_dim = pretrained.model.z_dim
    for name in ("w", "z"):
        values = columns.get(name)
        if values is None or values.shape[1:] != (z_dim,) or not np.isfinite(values).all():
            raise UserError(
                f"{path}: column '{name}' must hold {z_dim} finite numbers a task; "
                "run the stage infer again"
            )
    rows = {key: i for i, key in enumerate(zip(columns["family"], columns["task"], strict=True))}
    for task in tasks:
        if (task.family, task.name) not in rows:
            raise UserError(f"{path}: no latent of task {task}; run the stage infer again")
    order = [rows[task.family, task.name] for task in tasks]
    return Latent(*(torch.from_numpy(np.ascontiguousarray(columns[c][order])) for c in "wz"))

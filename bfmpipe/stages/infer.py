"""Stage infer: zero-shot inference of every task's weights and latent."""

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


class Infer(Config):
    """Settings of the stage; `domain` and `agent` are those of the model, for its provenance."""

    domain: str
    agent: str
    tasks: Families
    inference: Inference
    seed: int = Field(ge=0)


def infer(cfg: Infer, *, model: Path, dataset: Path, latents: Path) -> None:
    """Infer w and z of every task from its rewards on a sample of the data set."""
    pretrained = api.load(model)
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
    origin = provenance(KIND, "infer", cfg, agents=cfg.agent, envs=cfg.domain)
    write_table(latents, shape, columns, origin)
    print(f"{latents}: {len(tasks)} tasks")


def read_latents(path: Path, tasks: list[Task], z_dim: int) -> Latent:
    """w and z, (T, z_dim), of these tasks from the stage's table.

    Raises:
        UserError: for a damaged table, one of another model, or one that lacks a task.
    """
    columns, _ = read_table(path, KIND)
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

"""Stage diagnose: what can be said of each task before adapting to it."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from bfmpipe import api
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.diagnosis import Diagnosis, DiagnosisConfig
from bfmpipe.adaptation.diagnosis import diagnose as diagnose_tasks
from bfmpipe.config import Config
from bfmpipe.data.tables import write_table
from bfmpipe.data.transitions import check_domain
from bfmpipe.envs.batched import threads
from bfmpipe.inference.reward import Inference
from bfmpipe.stages.infer import read_latents, read_model
from bfmpipe.stages.sections import Families, provenance


class Diagnose(Config):
    """Settings of the stage; `domain` and `agent` are those of the model, for its provenance."""

    domain: str
    agent: str
    tasks: Families
    diagnosis: DiagnosisConfig
    inference: Inference = Inference()
    """What the latents are from."""
    seed: int = Field(ge=0)


_SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("domain", "agent")),
        pa.field("seed", pa.int32(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("family", "task")),
        *(pa.field(name, pa.float64(), nullable=False) for name in Diagnosis._fields),
    ]
)


def diagnose(cfg: Diagnose, *, model: Path, dataset: Path, latents: Path, diagnosis: Path) -> None:
    """Diagnose every task of a domain for one model."""
    pretrained = read_model(model, cfg.domain, cfg.agent)
    domain = pretrained.domain
    tasks = cfg.tasks.tasks(domain)
    data = api.read_transitions(dataset)
    check_domain(data, domain)
    latent = read_latents(latents, tasks, pretrained)
    rng = np.random.default_rng(cfg.seed)
    rows = rng.choice(data.index, min(cfg.diagnosis.samples, len(data.index)), replace=False) + 1
    physics, action = data.physics[rows], data.action[rows - 1]
    rewards = np.stack([domain.relabel(task, physics, action) for task in tasks])
    problem = Problem(
        domain=domain,
        model=pretrained.model,
        tasks=tasks,
        w=latent.w,
        z=latent.z,
        budget=0,
        visited=physics,
        threads=threads(),
    )
    found = diagnose_tasks(
        problem,
        torch.from_numpy(data.obs[rows]),
        torch.from_numpy(rewards),
        cfg.diagnosis,
        cfg.seed,
        cfg.inference,
    )
    columns = {
        "domain": [cfg.domain] * len(tasks),
        "agent": [cfg.agent] * len(tasks),
        "seed": np.full(len(tasks), cfg.seed),
        "family": [task.family for task in tasks],
        "task": [task.name for task in tasks],
        **found._asdict(),
    }
    origin = provenance("diagnosis", "diagnose", cfg, models=cfg.agent, envs=cfg.domain)
    write_table(diagnosis, _SCHEMA, columns, origin)
    print(f"{diagnosis}: {len(tasks)} tasks, effective rank {found.effective_rank[0]:.1f}")

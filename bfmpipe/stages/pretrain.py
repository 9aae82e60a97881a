"""Stage pretrain: train a behavioural foundation model on a data set."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from bfmpipe import plugins
from bfmpipe.agents import save_model
from bfmpipe.agents.trainer import Data, Trainer, TrainerConfig, divergence
from bfmpipe.config import Config, parse
from bfmpipe.data import transitions
from bfmpipe.data.tables import write_table
from bfmpipe.envs import make_domain
from bfmpipe.envs.batched import threads
from bfmpipe.files import file_digest
from bfmpipe.progress import progress
from bfmpipe.stages.sections import Plugin, provenance

_KINDS = {"update": pa.int64(), "alarm": pa.bool_()}


class Pretrain(Config):
    """Settings of the stage."""

    domain: Plugin
    agent: Plugin
    trainer: TrainerConfig
    seed: int = Field(ge=0)


def pretrain(cfg: Pretrain, *, dataset: Path, model: Path, losses: Path) -> None:
    """Train a model; a run that was interrupted goes on where its last checkpoint stands.

    Writes `model`, a directory with config.json and model.safetensors, and a table of `losses`.
    """
    data = transitions.read(dataset, ("obs", "action"))
    domain = make_domain(cfg.domain.name, cfg.domain.settings)
    transitions.check_domain(data, domain)
    module = plugins.load("agents", cfg.agent.name)
    config = parse(module.Config, cfg.agent.settings, f"agent {cfg.agent.name}")
    torch.manual_seed(cfg.seed)  # of the initial weights
    generator = torch.Generator().manual_seed(cfg.seed)
    agent = module.Agent(config, domain.obs_dim, domain.action_dim, generator)
    obs = torch.from_numpy(np.asarray(data.obs))  # all of them, in memory, only here
    agent.model.obs_mean.copy_(obs.mean(0))
    agent.model.obs_std.copy_(obs.std(0).clamp_min(1e-6))
    del obs

    origin = provenance("losses", "pretrain", cfg, agents=cfg.agent.name, envs=cfg.domain.name)
    identity = {
        "settings": origin.settings,
        "code": origin.code,
        "versions": origin.versions,
        "dataset": file_digest(dataset),
        "threads": threads(),  # sums in another order are other bytes
    }
    trainer = Trainer(
        agent=agent,
        data=Data(
            data.obs,
            data.action,
            torch.from_numpy(data.index_of(config.stride)),
            config.stride,
        ),
        batch=config.batch,
        config=cfg.trainer,
        generator=generator,
        identity=identity,
    )
    checkpoint = model.parent / f".{model.name}.checkpoint.safetensors"
    name = f"pretrain {cfg.agent.name} seed {cfg.seed}"
    with progress(cfg.trainer.updates, name, "update") as bar:
        trainer.run(checkpoint, bar.update)

    diverged = trainer.diverged_at
    if diverged is not None:
        print(
            f"warning: {model}: the loss turned at update {diverged} while Q kept climbing, which "
            "is how FB diverges; look at the training curves, and lower target_tau or updates",
            file=sys.stderr,
        )
    # in an order of its own: a resumed training has its rows from JSON, whose keys are sorted
    names = ["update", *sorted(trainer.losses[0].keys() - {"update"})]
    columns: dict[str, list[Any]] = {name: [row[name] for row in trainer.losses] for name in names}
    columns["alarm"] = divergence(trainer.losses, cfg.trainer.divergence_margin)
    kinds = {name: _KINDS.get(name, pa.float64()) for name in columns}
    shape = pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])
    write_table(losses, shape, columns, origin)
    card = {
        "agent": cfg.agent.name,
        "domain": domain.name,
        "domain_settings": domain.config.model_dump(mode="json"),
        "trainer": cfg.trainer.model_dump(mode="json"),
        "seed": cfg.seed,
        "transitions": len(data.index),
        "dataset_sha256": identity["dataset"],
        "diverged_at": diverged,
        "code": origin.code,
        "versions": dict(origin.versions),
    }
    save_model(model, agent.model, card)
    checkpoint.unlink(missing_ok=True)
    print(f"{model}: {cfg.agent.name} after {cfg.trainer.updates:,} updates")

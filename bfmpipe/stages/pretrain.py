"""Stage pretrain: train a behavioural foundation model on a data set.

While it trains, and at the end, the model is looked at as it stands: the spectrum of its features;
and where tasks are given zero-shot inference of each, its return, and the model's own value of that
policy beside the discounted return of the same episodes. This draws nothing from the training's
generators, and the episodes start where neither the reported evaluation nor any method does:
whoever chooses by it chooses by no result.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import Field

from bfmpipe import plugins
from bfmpipe.adaptation.protocol import Evaluation
from bfmpipe.agents import Agent, online, save_model
from bfmpipe.agents.event_files import EventFiles
from bfmpipe.agents.event_files import check as check_tensorboard
from bfmpipe.agents.learner import Learner, check_device
from bfmpipe.agents.trainer import Data, Source, Trainer, TrainerConfig
from bfmpipe.config import Config, parse
from bfmpipe.data import checkpoints, transitions
from bfmpipe.data.tables import Provenance, open_table, write_table
from bfmpipe.envs import Domain, make_domain
from bfmpipe.envs.batched import threads
from bfmpipe.envs.domain import Task
from bfmpipe.evaluator import Evaluator, frozen_copy
from bfmpipe.files import file_digest
from bfmpipe.inference.reward import Inference
from bfmpipe.online import OnlineSource
from bfmpipe.progress import progress
from bfmpipe.stages.sections import Families, Plugin, provenance
from bfmpipe.types import Array, UserError

_KINDS = {"update": pa.int64(), "alarm": pa.bool_()}
EVALUATION_KINDS = {
    "update": pa.int64(),
    "family": pa.string(),
    "task": pa.string(),
    "mean": pa.float64(),  # return of an episode
    "standard_error": pa.float64(),
    "q_predicted": pa.float64(),  # the model's own value at the start states, in reward units
    "q_monte_carlo": pa.float64(),  # the same episodes' return with the model's discount
    "q_correlation": pa.float64(),  # of the two over the start states; NaN where one is constant
    "episodes": pa.int32(),
}
"""Columns of the table of evaluations."""


class Pretrain(Config):
    """Settings of the stage."""

    domain: Plugin
    agent: Plugin
    trainer: TrainerConfig
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    """One model each. Several are trained as one batched model, each as it would be alone but for
    rounding."""
    tasks: Families = Families(families={})
    """What the model is evaluated on; without any, only its spectrum is found out."""
    inference: Inference = Inference()
    evaluation: Evaluation = Evaluation()
    """Of the model as it trains, at start states of its own."""
    tensorboard: bool = False
    """Write event files beside the losses, in `tensorboard`; no artifact depends on them."""


def pretrain(
    cfg: Pretrain,
    *,
    dataset: Path,
    model: list[Path],
    losses: list[Path],
    evaluations: list[Path],
    spectrum: list[Path],
    experience: Sequence[Path] = (),
) -> None:
    """Train a model a seed; what was interrupted goes on where its last checkpoint stands.

    Writes, one a seed: `model`, a directory with config.json and model.safetensors, and the
    tables `losses`, `evaluations` and `spectrum`; and of an agent trained online, whose `dataset`
    is of motions, a share of its episodes, the data set `experience`.
    """
    module = plugins.load("agents", cfg.agent.name)
    is_online = issubclass(module.Agent, online.Agent)
    files = {"model": model, "losses": losses, "evaluations": evaluations, "spectrum": spectrum}
    wanted = dict.fromkeys(files, len(cfg.seeds)) | {"experience": is_online * len(cfg.seeds)}
    for name, paths in {**files, "experience": experience}.items():
        if len(paths) != wanted[name]:
            raise UserError(
                f"{len(paths)} paths of {name} for {len(cfg.seeds)} seeds of {cfg.agent.name}; "
                f"valid: {wanted[name]}"
            )
    if cfg.tensorboard:
        check_tensorboard()
    check_device(cfg.trainer.device, "pretrain.device")
    data = transitions.read(dataset)
    domain = make_domain(cfg.domain.name, cfg.domain.settings)
    transitions.check_domain(data, domain)
    tasks = cfg.tasks.tasks(domain)
    config = parse(module.Config, cfg.agent.settings, f"agent {cfg.agent.name}")
    index = data.index_of(config.stride)
    if not len(index):
        raise UserError(
            f"{dataset}: no episode is long enough for a transition of {config.stride} steps (the "
            f"agent's stride): the longest has {data.step.max(initial=0)}; set a smaller stride or "
            "collect longer episodes"
        )
    agents, generators = [], []
    for seed in cfg.seeds:
        torch.manual_seed(seed)  # of the initial weights
        generators.append(torch.Generator(cfg.trainer.device).manual_seed(seed))
        agents.append(module.Agent(config, domain.obs_dim, domain.action_dim))
    explorer = _explorer(dataset)
    source = _source(cfg, domain, agents, data, index, explorer)
    # event files change no byte of what has a provenance
    silent = cfg.model_copy(update={"tensorboard": False})
    used = {"agents": cfg.agent.name, "envs": cfg.domain.name}
    origin = provenance("losses", "pretrain", silent, **used)
    identity = _identity(origin, dataset)
    trainer = Trainer(
        learner=Learner(agents, generators, cfg.trainer),
        data=source,
        config=cfg.trainer,
        identity=identity,
    )
    trainer.evaluate = _evaluation(cfg, agents, domain, tasks, data, source)
    checkpoint = model[0].parent / f".{model[0].name}.checkpoint.safetensors"
    _run(cfg, trainer, checkpoint, model)

    card = {
        "agent": cfg.agent.name,
        "paper": (module.__doc__ or cfg.agent.name).splitlines()[0].rstrip(".:"),
        "domain": domain.name,
        "domain_settings": domain.config.model_dump(mode="json"),
        "trainer": cfg.trainer.model_dump(mode="json"),
        "transitions": len(data.index),
        "dataset_sha256": identity["dataset"],
        "explorer": explorer,
        "code": origin.code,
        "versions": dict(origin.versions),
    }
    if isinstance(source, OnlineSource):
        card["env_steps"] = source.env_steps
        as_data = replace(origin, kind=transitions.KIND)
        transitions.write(experience[0], source.experience(), as_data)
    for i, paths in enumerate(zip(*files.values(), strict=True)):
        _write_seed(cfg, i, trainer, agents[i], card, origin, *paths)
    checkpoints.remove(checkpoint)


def _identity(origin: Provenance, dataset: Path) -> dict[str, Any]:
    """What a checkpoint must agree in to be gone on from."""
    trainer = {**origin.settings["trainer"]}
    del trainer["checkpoint_every"]  # of which nothing else depends
    return {
        "settings": {**origin.settings, "trainer": trainer},
        "code": origin.code,
        "versions": origin.versions,
        "dataset": file_digest(dataset),
        "threads": threads(),  # sums in another order are other bytes
    }


def _evaluation(
    cfg: Pretrain,
    agents: Sequence[Agent],
    domain: Domain,
    tasks: list[Task],
    data: transitions.Transitions,
    source: Source,
) -> Callable[[int], list[dict[str, Any]]]:
    """What evaluates all agents after an update, a row each."""

    def of(seed: int, data: transitions.Transitions, stride: int) -> Evaluator:
        return Evaluator.of(domain, tasks, data, stride, seed, cfg.inference, cfg.evaluation)

    if isinstance(source, OnlineSource):
        (seed,), (agent,) = cfg.seeds, agents

        def on_experience(update: int) -> list[dict[str, Any]]:
            evaluator = of(seed, source.experience(), 1)
            return [{"seed": seed, "update": update, **evaluator(agent.model)}]

        return on_experience
    evaluators = [of(seed, data, agents[0].config.stride) for seed in cfg.seeds]
    for evaluator, agent in zip(evaluators, agents, strict=True):
        if tasks:
            evaluator.infer(frozen_copy(agent.model))  # fails now rather than at the end
    return lambda update: [
        {"seed": seed, "update": update, **evaluator(agent.model)}
        for seed, evaluator, agent in zip(cfg.seeds, evaluators, agents, strict=True)
    ]


def _write_seed(
    cfg: Pretrain,
    i: int,
    trainer: Trainer,
    agent: Agent,
    card: Mapping[str, Any],
    origin: Provenance,
    model: Path,
    losses: Path,
    evaluations: Path,
    spectrum: Path,
) -> None:
    """The tables and the model of the seed at place i, with `card`, what all seeds share of it."""
    seed = cfg.seeds[i]
    settings, card = {**origin.settings, "seeds": [seed]}, {**card, "seed": seed}
    if len(cfg.seeds) > 1:
        settings["seeds_together"] = card["seeds_together"] = list(cfg.seeds)
    origin = replace(origin, settings=settings)
    evaluated = [row for row in trainer.evaluations if row["seed"] == seed]
    _write_losses(losses, trainer, i, origin)
    _write_evaluations(evaluations, evaluated, origin)
    _write_spectrum(spectrum, evaluated, origin)
    last = evaluated[-1]
    card["diverged_at"] = trainer.diverged_at(i)
    card["effective_rank"] = last["effective_rank"]
    names = ("family", "task", "mean", "standard_error", "episodes")
    if last["tasks"]:
        card["zero_shot"] = [{name: row[name] for name in names} for row in last["tasks"]]
    save_model(model, agent.model, card)
    if card["diverged_at"] is not None:
        print(
            f"warning: {model}: {agent.watched_loss} turned at update {card['diverged_at']} while "
            "q kept climbing, which is how such models diverge; look at the training curves, and "
            "lower the learning rates, target_tau or updates",
            file=sys.stderr,
        )
    means = [row["mean"] for row in last["tasks"]]
    scored = f", zero-shot return {np.mean(means):.1f}" if means else ""
    print(f"{model}: {cfg.agent.name} after {cfg.trainer.updates:,} updates{scored}")


def _source(
    cfg: Pretrain,
    domain: Domain,
    agents: Sequence[Agent],
    data: transitions.Transitions,
    index: Array,
    explorer: str | None,
) -> Source:
    """What the agents learn from: the data set, or their own episodes with the data set's motions.

    Observations of a data set are normalised by all of them; an agent online sees others.
    """
    first = agents[0]
    if isinstance(first, online.Agent):
        if len(agents) > 1:
            raise UserError(
                f"{cfg.agent.name} is trained online, one seed a job; set "
                "pretrain.seeds_together to false"
            )
        return OnlineSource(domain, first, data, cfg.seeds[0], threads())
    # an explorer of one's own may be gone, and its data as good as ever
    known = (
        plugins.load("data", explorer) if explorer and explorer in plugins.names("data") else None
    )
    if known and not getattr(known.Explorer, "has_actions", True):
        raise UserError(
            f"{cfg.agent.name} learns from actions, and a data set of {explorer} has none; collect "
            "one by another explorer"
        )
    obs = torch.from_numpy(np.asarray(data.obs))  # all of them, in memory
    mean, std = obs.mean(0), obs.std(0).clamp_min(1e-6)
    for agent in agents:
        agent.model.obs_mean.copy_(mean)
        agent.model.obs_std.copy_(std)
    stride, inside = first.config.stride, cfg.trainer.device == "cuda"
    return Data(
        obs if inside else data.obs,
        torch.from_numpy(np.asarray(data.action)) if inside else data.action,
        torch.from_numpy(index),
        stride,
        torch.from_numpy(data.last_of(stride)),
    )


def _run(cfg: Pretrain, trainer: Trainer, checkpoint: Path, models: list[Path]) -> None:
    seeds = f"seed{'s' * (len(cfg.seeds) > 1)} {', '.join(map(str, cfg.seeds))}"
    with ExitStack() as stack:
        bar = stack.enter_context(
            progress(cfg.trainer.updates, f"pretrain {cfg.agent.name} {seeds}", "update")
        )
        events = [EventFiles(path.parent / "tensorboard") for path in models if cfg.tensorboard]
        for files in events:
            stack.callback(files.close)

        def report(made: int) -> None:
            bar.update(made)
            for seed, losses, files in zip(cfg.seeds, trainer.losses, events, strict=False):
                evaluated = [row for row in trainer.evaluations if row["seed"] == seed]
                files.write(losses, list(map(_scalars, evaluated)))

        trainer.run(checkpoint, report)
        report(0)


def _scalars(evaluated: dict[str, Any]) -> dict[str, float]:
    found = {name: evaluated[name] for name in ("update", "effective_rank")}
    for row in evaluated["tasks"]:
        for name in ("mean", "q_predicted", "q_monte_carlo"):
            found[f"{name}/{row['family']}/{row['task']}"] = row[name]
    return found


def _explorer(dataset: Path) -> str | None:
    """Who explored a data set, if it says so."""
    file, origin = open_table(dataset, transitions.KIND)
    file.close()
    explorer = origin.settings.get("explorer")
    return explorer.get("name") if isinstance(explorer, dict) else None


def _write_losses(path: Path, trainer: Trainer, i: int, origin: Provenance) -> None:
    # in an order of its own: a resumed training has its rows from JSON, whose keys are sorted
    rows = trainer.losses[i]
    names = ["update", *sorted(rows[0].keys() - {"update"})]
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in names}
    columns["alarm"] = trainer.alarm(i)
    kinds = {name: _KINDS.get(name, pa.float64()) for name in columns}
    _write(path, "losses", kinds, columns, origin)


def _write_evaluations(path: Path, evaluated: list[dict[str, Any]], origin: Provenance) -> None:
    """One row an evaluation and task."""
    rows = [{"update": one["update"], **row} for one in evaluated for row in one["tasks"]]
    columns = {name: [row[name] for row in rows] for name in EVALUATION_KINDS}
    _write(path, "evaluations", EVALUATION_KINDS, columns, origin)


def _write_spectrum(path: Path, evaluated: list[dict[str, Any]], origin: Provenance) -> None:
    """One row an evaluation."""
    d = len(evaluated[0]["eigenvalues"])
    kinds = {
        "update": pa.int64(),
        "eigenvalues": pa.list_(pa.float64(), d),
        "effective_rank": pa.float64(),
    }
    columns = {name: [one[name] for one in evaluated] for name in kinds}
    _write(path, "spectrum", kinds, columns, origin)


def _write(
    path: Path,
    kind: str,
    kinds: dict[str, pa.DataType],
    columns: dict[str, Any],
    origin: Provenance,
) -> None:
    shape = pa.schema([pa.field(name, k, nullable=False) for name, k in kinds.items()])
    write_table(path, shape, columns, replace(origin, kind=kind))

"""Stage plot: the figures of one domain and agent, each as PDF and PNG."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from pydantic import Field

from bfmpipe.config import parse
from bfmpipe.data.tables import read_table
from bfmpipe.files import replacing
from bfmpipe.metrics.aggregate import cluster_bootstrap
from bfmpipe.report import (
    best_of_n,
    coverage_map,
    curves_aggregate,
    curves_per_task,
    evaluations,
    improvement,
    performance_profile,
    q_values,
    spectrum,
    style,
    training,
    trajectories,
)
from bfmpipe.report import diagnosis as diagnosis_figure
from bfmpipe.report.alarm import diverged_at
from bfmpipe.report.rows import Columns, concatenate, count, distinct, select
from bfmpipe.report.runs import ZERO_SHOT
from bfmpipe.stages.sections import Families
from bfmpipe.types import UserError

MAZE = "point_mass_maze"


class Plot(Families):
    """Settings of the stage; the families are needed for the sizes of targets only."""

    domain: str
    agent: str
    method: str = "lola"
    """Whose paths and final returns are shown."""
    dpi: int = Field(150, ge=30)
    """Of the PNG files."""


def plot(
    cfg: Plot,
    *,
    curves: Path,
    aggregate: Path,
    summary: Path,
    best_of: Path,
    probe: list[Path],
    trajectories: list[Path],
    losses: list[Path],
    evaluations: list[Path],
    spectrum: list[Path],
    coverage: list[Path],
    diagnosis: list[Path],
    figures: Path,
) -> None:
    """Draw all figures of one domain and agent into a directory, as PDF and PNG.

    Without probes there is no best_of_n, without a table of the training no figure of it, without
    one of a diagnosis none of that, and trajectories are those of the maze. `coverage` is the
    domain's table of that name, or nothing.
    """
    points = _here(cfg, read_table(curves, "curves")[0])
    if count(points) == 0:
        raise UserError(f"{curves}: holds nothing of {cfg.domain} with {cfg.agent}")
    results = _here(cfg, read_table(summary, "summary")[0])
    latents = _here(cfg, read_table(best_of, "best_of")[0])
    aggregates, origin = read_table(aggregate, "aggregate")
    interval = partial(cluster_bootstrap, **origin.settings)

    drawn = {
        "curves_per_task": curves_per_task.draw(points, latents),
        "curves_aggregate": curves_aggregate.draw(_here(cfg, aggregates), results),
        "improvement": improvement.draw(results),
        "performance_profile": performance_profile.draw(points, interval),
    }
    probes = _probes(cfg, probe)
    if count(probes):
        drawn["best_of_n"] = best_of_n.draw(probes, points, cfg.method)
    if cfg.domain == MAZE and trajectories:
        drawn["trajectories"] = _paths(cfg, trajectories, points)
    known = _diagnoses(cfg, diagnosis)
    if count(known) and cfg.method != ZERO_SHOT and count(select(points, method=cfg.method)):
        drawn["diagnosis"] = diagnosis_figure.draw(known, points, cfg.method)
    drawn |= _training(cfg, losses, evaluations, spectrum)
    for path in coverage:
        cells = read_table(path, "coverage")[0]
        if count(cells):
            drawn["coverage"] = _covered(cfg, cells)
    for name, figure in drawn.items():
        for kind in ("pdf", "png"):
            with replacing(figures / f"{name}.{kind}") as path:
                style.save(figure, path, kind=kind, dpi=cfg.dpi)
    print(f"{figures}: {len(drawn)} figures")


def _training(
    cfg: Plot, losses: list[Path], evaluated: list[Path], spectra: list[Path]
) -> Mapping[str, Figure]:
    """The figures of pretraining."""
    drawn = {}
    trained = [t for t in read_losses(losses) if (t.domain, t.agent) == (cfg.domain, cfg.agent)]
    alarms = {t.seed: t.diverged_at for t in trained if t.diverged_at is not None}
    if trained:
        drawn["training"] = training.draw({t.seed: t.losses for t in trained}, alarms)
    scores, features = (
        {seed: table for *place, seed, table in found if place == [cfg.domain, cfg.agent]}
        for found in (_of_seeds(evaluated, "evaluations"), _of_seeds(spectra, "spectrum"))
    )
    scores = {seed: table for seed, table in scores.items() if count(table)}
    if any(len(distinct(table, "update")) > 1 for table in scores.values()):
        drawn["evaluations"] = evaluations.draw(scores, alarms)
    if scores:
        drawn["q_values"] = q_values.draw(scores)
    if features:
        drawn["spectrum"] = spectrum.draw(features)
    return drawn


def _of_seeds(paths: list[Path], kind: str) -> list[tuple[str, str, int, Columns]]:
    """Tables of one kind by rising seed; whose they are is in their provenance."""
    found = []
    for path in paths:
        table, origin = read_table(path, kind)
        settings = origin.settings
        (seed,) = settings["seeds"]
        found.append((settings["domain"]["name"], settings["agent"]["name"], seed, table))
    return sorted(found, key=lambda one: one[:3])


@dataclass(frozen=True)
class Trained:
    """A table of losses, whose it is, and when the divergence alarm rang, if it did."""

    domain: str
    agent: str
    seed: int
    losses: Columns
    diverged_at: int | None


def read_losses(paths: list[Path]) -> list[Trained]:
    """Tables of losses by rising seed; whose they are is in their provenance."""
    return [Trained(*found, diverged_at(found[-1])) for found in _of_seeds(paths, "losses")]


def _here(cfg: Plot, columns: Columns) -> Columns:
    return select(columns, domain=cfg.domain, agent=cfg.agent)


def _probes(cfg: Plot, paths: list[Path]) -> Columns:
    names = ("domain", "agent", "seed", "family", "task", "policy", "index", "mean")
    return _here(cfg, concatenate([read_table(path, "probe")[0] for path in paths], names))


def _diagnoses(cfg: Plot, paths: list[Path]) -> Columns:
    tables = [read_table(path, "diagnosis")[0] for path in paths]
    return _here(cfg, concatenate(tables, tuple(tables[0]) if tables else ("domain", "agent")))


def _covered(cfg: Plot, cells: Columns) -> Figure:
    from bfmpipe.envs.axes import axes_of  # loads MuJoCo

    return coverage_map.draw(cells, axes_of(cfg.domain))


def _paths(cfg: Plot, files: list[Path], curves: Columns) -> Figure:
    """Draw the run of the lowest seed: chosen by no result."""
    from bfmpipe.envs import point_mass_maze as maze  # loads MuJoCo, for the maze only

    runs = {seed: table for seed, table in _trajectories(cfg, files)}
    if not runs:
        raise UserError(f"none of the {len(files)} tables of trajectories is of {cfg.method}")
    seed = min(runs)
    long, thin = maze.CROSS_HALF_LENGTH, maze.CROSS_HALF_WIDTH
    radius = {}
    for family in distinct(runs[seed], "family"):
        settings = dict(cfg.families.get(family, {}))
        settings.pop("names", None)
        if "file" in settings:
            continue  # tasks of the user's own have no target
        task = parse(maze.TaskConfig, settings, f"domain {cfg.domain}: task family {family}")
        radius[family] = task.target_size
    returns = {}
    for family, task in distinct(runs[seed], "family", "task"):
        run = select(curves, family=family, task=task, method=cfg.method, seed=seed)
        if count(run):
            order = np.argsort(run["env_steps"])
            returns[family, task, "before"] = float(run["mean"][order[0]])
            returns[family, task, "after"] = float(run["mean"][order[-1]])
    geometry = trajectories.Maze(
        walls=((0, 0, long, thin), (0, 0, thin, long)),
        reach=maze.REACH,
        targets=maze.TARGETS,
        radius=radius,
    )
    return trajectories.draw(runs[seed], geometry, method=cfg.method, seed=seed, returns=returns)


def _trajectories(cfg: Plot, files: list[Path]) -> Iterator[tuple[int, Columns]]:
    """Seeds and tables of the method's runs; whose they are is in their provenance."""
    wanted = (cfg.domain, cfg.agent, cfg.method)
    for path in files:
        table, origin = read_table(path, "trajectories")
        settings = origin.settings
        label = settings.get("label") or settings["method"]["name"]
        if (settings["domain"], settings["agent"], label) == wanted:
            (seed,) = settings["seeds"]
            yield seed, table

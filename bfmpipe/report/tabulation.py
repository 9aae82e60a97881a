"""The tables of results: curves, aggregates, the summary, and zero-shot among other latents.

Each is a function of tables (`Columns`) and returns one; `interval` is
`metrics.aggregate.cluster_bootstrap` with its settings filled in. Scores are arrays (seed, task);
seeds are resampled, each with all its tasks.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from bfmpipe.metrics.adaptation import area_under_curve, improvement, initial_drop, monotonicity
from bfmpipe.metrics.aggregate import (
    Axes,
    iqm,
    probability_of_improvement,
    students_interval,
)
from bfmpipe.metrics.correlation import rank_correlation
from bfmpipe.report.rows import Columns, count, distinct, one, select
from bfmpipe.report.runs import ZERO_SHOT, Runs, gather, gather_like
from bfmpipe.types import Array, UserError

Interval = Callable[..., tuple[Array, Array]]
Table = dict[str, list[Any]]

RANDOM, BEST_OF_N, PREDICTED = "random", "best-of-N", "best-of-N-by-value"
_NOWHERE = float("nan")


def curves(adaptation: Columns) -> Table:
    """Every evaluation of every run, its episodes reduced to mean and standard error.

    All evaluations of a task start from the same states, so what changes between two of them is
    known better than either: `change_error` is the standard error of the mean change since the
    evaluation before, 0 at the first.

    Raises:
        UserError: a run was evaluated twice at the same step.
    """
    episodes = adaptation["returns"].shape[-1]
    returns = adaptation["returns"]
    keys = ("domain", "agent", "family", "task", "method", "seed")
    runs = defaultdict(list)
    for row, key in enumerate(zip(*(adaptation[k].tolist() for k in keys), strict=True)):
        runs[key].append(row)
    table: Table = defaultdict(list)
    for key, rows in runs.items():
        rows.sort(key=lambda row: adaptation["env_steps"][row])
        steps = adaptation["env_steps"][rows]
        if np.any(np.diff(steps) == 0):
            raise UserError(f"{', '.join(map(str, key))}: two evaluations at the same env_steps")
        for name, value in zip(keys, key, strict=True):
            table[name] += [value] * len(rows)
        table["evaluation"] += range(len(rows))
        table["evaluation_episodes"] += [episodes] * len(rows)
        change = np.diff(returns[rows], axis=0, prepend=returns[rows[:1]])
        table["mean"] += returns[rows].mean(-1).tolist()
        table["standard_error"] += _standard_error(returns[rows]).tolist()
        table["change_error"] += _standard_error(change).tolist()
        for name in ("env_steps", "episodes", "cosine"):
            table[name] += adaptation[name][rows].tolist()
    return dict(table)


def _standard_error(episodes: Array) -> Array:
    """Of the means over the last axis; 0 where there is one episode, of which nothing is known."""
    n = episodes.shape[-1]
    return episodes.std(-1, ddof=1) / np.sqrt(n) if n > 1 else np.zeros(episodes.shape[:-1])


def aggregate(curves: Columns, interval: Interval) -> Table:
    """The IQM over seeds and tasks of each method's curves, with its interval, point by point."""
    table: Table = defaultdict(list)
    for domain, agent, family, method in distinct(curves, "domain", "agent", "family", "method"):
        runs = gather(curves, domain=domain, agent=agent, family=family, method=method)
        low, high = interval(runs.mean, iqm)
        points = len(runs.env_steps)
        for name, value in (
            ("domain", domain),
            ("agent", agent),
            ("family", family),
            ("method", method),
        ):
            table[name] += [value] * points
        table["evaluation"] += range(points)
        table["env_steps"] += runs.env_steps.tolist()
        table["episodes"] += runs.episodes.tolist()
        table["iqm"] += iqm(runs.mean).tolist()
        table["low"] += low.tolist()
        table["high"] += high.tolist()
        table["mean"] += runs.mean.mean(axis=(0, 1)).tolist()
    return dict(table)


def summary(curves: Columns, probe: Columns, interval: Interval, confidence: float) -> Table:
    """One row a method and family, and where there is a probe, one for each policy of it.

    - zero_shot_*, final_*: IQM over seeds and tasks with its interval, and the mean.
    - improvement: of the mean, in % of zero-shot's, with Student's interval (see `difference`).
    - initial_drop (within a quarter of the budget), largest_drop (within all of it),
      area_under_curve: of the curve of means over seeds and tasks.
    - monotonicity: averaged over the runs, each with the standard errors of its own evaluations.
    - improved: share of the runs that end above their own zero-shot.
    - probability_of_improvement: over all pairs of seeds of a task, after Agarwal et al.
    """
    rows: list[dict[str, Any]] = []
    for domain, agent, family in distinct(curves, "domain", "agent", "family"):
        place = {"domain": domain, "agent": agent, "family": family}
        base = gather(curves, **place, method=ZERO_SHOT)
        here = select(curves, **place)
        for method in distinct(here, "method"):
            runs = gather_like(base, curves, **place, method=method)
            about = {**place, "method": method, **_size(here, runs)}
            rows.append(
                {
                    **about,
                    **_scores(base, runs.mean[..., -1], interval, confidence),
                    **_shape(base, runs),
                }
            )
            if method == ZERO_SHOT:
                rows[-1] |= _nothing("improved", *_interval("probability_of_improvement"))
        for method, scores, episodes in _probed(select(probe, **place), base, str(place)):
            length = _episode_length(here)
            about = {**place, "method": method, **_size(here, base)}
            about |= {"episodes": episodes, "env_steps": episodes * length}
            shape = _nothing(*_SHAPE)
            rows.append({**about, **_scores(base, scores, interval, confidence), **shape})
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def difference(
    zero_shot: Array, ours: Array, theirs: Array, confidence: float
) -> tuple[float, float, float]:
    """100 (ours - theirs) / |zero-shot| of the means of returns (seed, task), with its interval.

    The interval is Student's, of the seeds' means over their tasks, all in % of zero-shot's mean
    over all seeds. A bootstrap of the ratio would, of few seeds, be too narrow where they agree,
    and as wide as one model's zero-shot is near 0 where one is.
    """
    level = zero_shot.mean()
    of_seeds = improvement(level + ours.mean(1) - theirs.mean(1), level)
    return float(of_seeds.mean()), *students_interval(of_seeds, confidence)


def best_of(curves: Columns, probe: Columns) -> Table:
    """The zero-shot latent among the N data-derived ones, one row a seed and task.

    `rank` 1 is best, of the N + 1; `percentile` is the share of the N below zero-shot (ties count
    half). `value_correlation` is the rank correlation of the model's own values of the N with their
    returns. The N are scored on the selection's start states, zero-shot, `best` and `predicted` on
    the evaluation's.
    """
    table: Table = defaultdict(list)
    keys = ("domain", "agent", "family", "task", "seed")
    for key in distinct(probe, *keys):
        place = dict(zip(keys, key, strict=True))
        rows = select(probe, **place)
        zero_shot = select(curves, **place, method=ZERO_SHOT)
        if count(zero_shot) == 0:
            raise UserError(f"{', '.join(map(str, key))}: probed, but without a {ZERO_SHOT} run")
        reached = zero_shot["mean"][0]
        of_latents = select(rows, policy="latent")
        latents = of_latents["mean"]
        for name, value in place.items():
            table[name].append(value)
        table["zero_shot"].append(reached)
        for policy in ("random", "best", "predicted"):
            table[policy].append(one(select(rows, policy=policy), "mean"))
        table["value_correlation"].append(rank_correlation(of_latents["value"], latents))
        table["latents"].append(len(latents))
        table["rank"].append(1 + int((latents > reached).sum()))
        below = (latents < reached).mean() + (latents == reached).mean() / 2
        table["percentile"].append(100 * below)
    return dict(table)


def _size(curves: Columns, runs: Runs) -> dict[str, Any]:
    return {
        "seeds": len(runs.seeds),
        "tasks": len(runs.tasks),
        "task_names": ", ".join(runs.tasks),
        "evaluation_episodes": int(curves["evaluation_episodes"][0]),
        "env_steps": float(runs.env_steps[-1]),
        "episodes": float(runs.episodes[-1]),
    }


def _scores(base: Runs, final: Array, interval: Interval, confidence: float) -> dict[str, float]:
    """What can be said of final returns (seed, task) beside those of zero-shot."""
    zero_shot = base.mean[..., 0]
    pairs = np.stack([zero_shot, final], axis=-1)

    def better_than_zero_shot(scores: Array, axis: Axes) -> Array:
        return probability_of_improvement(scores[..., 1], scores[..., 0], axis)

    better = (final > zero_shot) + (final == zero_shot) / 2
    found = {
        "zero_shot_iqm": iqm(zero_shot),
        "zero_shot_mean": zero_shot.mean(),
        "final_iqm": iqm(final),
        "final_mean": final.mean(),
        "improved": better.mean(),
        "probability_of_improvement": probability_of_improvement(final, zero_shot),
    }
    intervals = {
        "zero_shot": interval(zero_shot, iqm),
        "final": interval(final, iqm),
        "probability_of_improvement": interval(pairs, better_than_zero_shot),
    }
    for name, (low, high) in intervals.items():
        found |= {f"{name}_low": low, f"{name}_high": high}
    gained = difference(zero_shot, final, zero_shot, confidence)
    found |= dict(zip(_interval("improvement"), gained, strict=True))
    return {name: float(value) for name, value in found.items()}


_SHAPE = ("initial_drop", "largest_drop", "monotonicity", "area_under_curve", "cosine")


def _shape(base: Runs, runs: Runs) -> dict[str, float]:
    """What can be said of the way to the final returns."""
    cosine = float(runs.cosine[..., -1].mean())
    if len(runs.env_steps) < 2:
        return {
            **_nothing("initial_drop", "largest_drop", "monotonicity"),
            "area_under_curve": float(runs.mean[..., 0].mean()),
            "cosine": cosine,
        }
    mean, zero_shot = runs.mean.mean(axis=(0, 1)), base.mean[..., 0].mean()
    return {
        "initial_drop": float(initial_drop(mean, runs.env_steps, zero_shot)),
        "largest_drop": float(initial_drop(mean, runs.env_steps, zero_shot, within=1.0)),
        "monotonicity": float(monotonicity(runs.mean, runs.standard_error).mean()),
        "area_under_curve": float(area_under_curve(runs.env_steps, mean)),
        "cosine": cosine,
    }


def _probed(probe: Columns, base: Runs, where: str) -> list[tuple[str, Array, float]]:
    """The policies of a probe: name, scores (seed, task), and the episodes spent a task."""
    if count(probe) == 0:
        return []
    latents = select(probe, policy="latent")
    spent = latents["episodes"].sum() / (len(base.seeds) * len(base.tasks))
    found = []
    for policy, name, episodes in (
        ("random", RANDOM, 0.0),
        ("best", BEST_OF_N, float(spent)),
        ("predicted", PREDICTED, 0.0),
    ):
        rows = select(probe, policy=policy)
        scores = {
            (seed, task): mean
            for seed, task, mean in zip(rows["seed"], rows["task"], rows["mean"], strict=True)
        }
        wanted = {(seed, task) for seed in base.seeds for task in base.tasks}
        if set(scores) != wanted:
            seed, task = sorted(set(scores) ^ wanted)[0]
            raise UserError(
                f"{where}: probe ({policy}) and {ZERO_SHOT} differ, for instance in {task} with "
                f"seed {seed}"
            )
        grid = [[scores[seed, task] for task in base.tasks] for seed in base.seeds]
        found.append((name, np.array(grid), episodes))
    return found


def _episode_length(curves: Columns) -> float:
    """Steps an episode; unknown where only zero-shot was run."""
    spent = curves["env_steps"] > 0
    if not spent.any():
        return _NOWHERE
    return float(curves["env_steps"][spent][0] / curves["episodes"][spent][0])


def _interval(name: str) -> tuple[str, str, str]:
    return name, f"{name}_low", f"{name}_high"


def _nothing(*names: str) -> dict[str, float]:
    return dict.fromkeys(names, _NOWHERE)

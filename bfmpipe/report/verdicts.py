"""Verdicts on claims: held or not, and by how much, from the tables of results.

A claim is named in the experiment file with what it is about:

    gain          the method ends at least `bar` % above zero-shot (figure: improvement in %; held
                  where also its interval lies above 0)
    monotone      no consecutive evaluation of the mean curve falls by more than `bar` standard
                  errors of the fall (figure: the largest fall, in standard errors; one of less than
                  half a percent of zero-shot is none)
    no_drop       the drop below zero-shot is at most `bar` % (figure: the drop); all drops are the
                  largest within the first quarter of the budget, or `within` another share of it
    drop          the drop is at least `bar` % (figure: the drop)
    smaller_drop  the drop is at most `bar` times that of `than` (figure: their ratio)
    better        the method ends above `than` (figure: difference of means, in % of zero-shot)
    area          its area under the curve is above that of `than` (figure: the same, of areas)
    best_of_n     the best played of the data's latents is above zero-shot (figure: gain in %)
    compute       `than` takes `bar` times the CPU time of the method, over all seeds (figure:
                  the ratio)

Intervals are Student's, of the seeds' means over their tasks, in % of zero-shot's mean over all:
a seed is one pretrained model, and a claim is about models that were not trained. `monotone` and
the drops have no interval, they are about these models; what a fall is held against is the noise of
its evaluations. Where a claim asks for an interval and there is one seed, which has none, it is not
known whether it holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field, JsonValue

from bfmpipe.config import Config, parse
from bfmpipe.metrics.adaptation import area_under_curve, initial_drop
from bfmpipe.report import timing
from bfmpipe.report.rows import Columns, distinct, select
from bfmpipe.report.runs import ZERO_SHOT, Runs, gather, gather_like
from bfmpipe.report.tabulation import Table, difference
from bfmpipe.types import Array, UserError

Found = tuple[float, float, float, bool]
"""Figure, the ends of its interval (NaN where it has none), and whether the claim held."""

_NONE = float("nan")


class Claim(Config):
    """One claim; see the module's docstring."""

    kind: Literal[
        "gain",
        "monotone",
        "no_drop",
        "drop",
        "smaller_drop",
        "better",
        "area",
        "best_of_n",
        "compute",
    ]
    statement: str
    """In words, for the report."""
    method: str = ""
    than: str = ""
    bar: float = 0.0
    """What the kind's figure is held against; of `better`, `area` and `best_of_n`, 0 by default."""

    within: float = Field(0.25, gt=0, le=1)
    """The share of the budget that a drop is looked for in."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods that it is about."""
        return tuple(name for name in (self.method, self.than) if name)


_METHODS = {"best_of_n": 0, "better": 2, "area": 2, "smaller_drop": 2, "compute": 2}  # others 1
_AT_MOST = ("monotone", "no_drop", "smaller_drop")
_NEEDS_BAR = ("drop", "smaller_drop", "compute")  # which hold, or fail, at 0 whatever is measured
_WITHIN = ("drop", "no_drop", "smaller_drop")
_NEEDS_INTERVAL = ("gain", "better", "area", "best_of_n")
_SMALLEST_FALL = 0.5  # % of zero-shot


class Claims(Config):
    """The claims of an experiment, by name."""

    claims: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)

    def parsed(self, methods: Sequence[str], where: str) -> dict[str, Claim]:
        """The claims, checked.

        Raises:
            UserError: for a setting that is none or that its kind does not read, a method that is
                not run, one that is missing, or a claim that would hold whatever is measured.
        """
        found = {}
        for name, settings in self.claims.items():
            at = f"claims.{name}"
            claim = parse(Claim, settings, where, at=at)
            read = ("method", "than")[: _METHODS.get(claim.kind, 1)]
            for key in read:
                if not getattr(claim, key):
                    raise UserError(f"{where}: {at}: {claim.kind} needs '{key}', a method")
            if claim.kind in _NEEDS_BAR and claim.bar <= 0:
                raise UserError(f"{where}: {at}: {claim.kind} needs a 'bar' above 0")
            if claim.kind in _WITHIN:
                read += ("within",)
            for key in ("method", "than", "within"):
                if key in settings and key not in read:
                    raise UserError(f"{where}: {at}: {claim.kind} does not read '{key}'")
            for method in claim.methods:
                if method not in methods:
                    raise UserError(
                        f"{where}: {at}: the method {method} is not run; there are "
                        f"{', '.join(methods)}"
                    )
            found[name] = claim
        return found


def verdicts(
    claims: Mapping[str, Claim],
    curves: Columns,
    best_of: Columns,
    jobs: list[timing.Job],
    confidence: float,
) -> Table:
    """One row a claim and place (domain, agent, family); `jobs` are those of the experiment."""
    rows: list[dict[str, Any]] = []
    for domain, agent, family in distinct(curves, "domain", "agent", "family"):
        place = {"domain": domain, "agent": agent, "family": family}
        for name, claim in claims.items():
            figure, low, high, held = _judge(claim, place, curves, best_of, jobs, confidence)
            known = figure == figure and (claim.kind not in _NEEDS_INTERVAL or low == low)
            rows.append(
                {
                    **place,
                    "claim": name,
                    "statement": claim.statement,
                    "kind": claim.kind,
                    "bar": claim.bar,
                    "figure": figure,
                    "low": low,
                    "high": high,
                    "held": held,
                    "verdict": "held" if held else "not held" if known else "not known",
                }
            )
    return {key: [row[key] for row in rows] for key in rows[0]} if rows else {}


def _judge(
    claim: Claim,
    place: Mapping[str, str],
    curves: Columns,
    best_of: Columns,
    jobs: list[timing.Job],
    confidence: float,
) -> Found:
    base = gather(curves, **place, method=ZERO_SHOT)
    zero_shot = base.mean[..., 0]
    runs = [gather_like(base, curves, **place, method=method) for method in claim.methods]
    match claim.kind:
        case "gain":
            figure, low, high = difference(zero_shot, _last(runs[0]), zero_shot, confidence)
            return figure, low, high, bool(figure >= claim.bar and low > 0)
        case "best_of_n":
            rows = select(best_of, **place)
            grid = [[_one(rows, task, seed, "best") for task in base.tasks] for seed in base.seeds]
            figure, low, high = difference(zero_shot, np.array(grid), zero_shot, confidence)
            return figure, low, high, bool(figure > claim.bar and low > 0)
        case "better" | "area":
            ours, theirs = (_last(r) if claim.kind == "better" else _area(r) for r in runs)
            figure, low, high = difference(zero_shot, ours, theirs, confidence)
            return figure, low, high, bool(low > claim.bar)
        case "compute":
            cpu = [_cpu(jobs, place, method, len(base.seeds)) for method in claim.methods]
            ratio = cpu[1] / cpu[0]
            return ratio, _NONE, _NONE, bool(ratio >= claim.bar)
        case "monotone":
            figure = largest_fall(runs[0], _SMALLEST_FALL / 100 * abs(zero_shot.mean()))
        case _:
            drops = [_drop(r, zero_shot, claim.within) for r in runs]
            figure = drops[0]
            if claim.kind == "smaller_drop":
                figure = drops[0] / drops[1] if drops[1] > 0 else _NONE
    held = figure <= claim.bar if claim.kind in _AT_MOST else figure >= claim.bar
    return float(figure), _NONE, _NONE, bool(held)


def largest_fall(runs: Runs, smallest: float) -> float:
    """The largest fall between consecutive points of the mean curve, in its standard errors.

    The curve is the mean over seeds and tasks; the error of a fall is that of the paired episodes'
    changes. 0 where the curve never falls by `smallest` or more.
    """
    fall = -np.diff(runs.mean.mean((0, 1)))
    count = runs.mean.shape[0] * runs.mean.shape[1]
    error = np.sqrt(np.square(runs.change_error[..., 1:]).sum((0, 1))) / count
    counts = fall >= max(smallest, np.finfo(float).tiny)
    in_errors = np.divide(fall, error, out=np.full_like(fall, np.inf), where=error > 0)
    return float(in_errors[counts].max(initial=0.0))


def _last(runs: Runs) -> Array:
    return runs.mean[..., -1]


def _area(runs: Runs) -> Array:
    if len(runs.env_steps) < 2:
        return runs.mean[..., 0]
    return area_under_curve(runs.env_steps, runs.mean)


def _drop(runs: Runs, zero_shot: Array, within: float) -> float:
    if len(runs.env_steps) < 2:
        return 0.0
    mean = runs.mean.mean((0, 1))
    return float(initial_drop(mean, runs.env_steps, zero_shot.mean(), within))


def _one(rows: Columns, task: str, seed: int, name: str) -> float:
    values = select(rows, task=task, seed=seed)[name]
    if len(values) != 1:
        raise UserError(f"the table best_of has {len(values)} rows of {task} with seed {seed}")
    return float(values[0])


def _cpu(jobs: list[timing.Job], place: Mapping[str, str], method: str, seeds: int) -> float:
    found = timing.of_method(jobs, place["domain"], place["agent"], method, seeds)
    if not found:
        raise UserError(
            f"what {method} cost on {place['domain']}, {place['agent']} is not known for all "
            "seeds; run its jobs again"
        )
    return sum(job.cpu for job in found)

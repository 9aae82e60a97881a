"""Stage tabulate: from the runs' evaluations to tables of curves, aggregates and comparisons."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pydantic import Field

from bfmpipe.config import Config
from bfmpipe.data.tables import read_table, write_table
from bfmpipe.metrics.aggregate import cluster_bootstrap
from bfmpipe.report import tabulation
from bfmpipe.report.rows import Columns, concatenate, distinct
from bfmpipe.stages.sections import provenance
from bfmpipe.types import UserError


class Tabulate(Config):
    """Settings of the intervals."""

    confidence: float = Field(0.95, gt=0, lt=1)
    """Probability mass between the ends."""
    replicates: int = Field(2000, ge=1)
    """Bootstrap samples."""
    seed: int = Field(0, ge=0)


_PLACE = {"domain": pa.string(), "agent": pa.string(), "family": pa.string()}
_POINT = {"evaluation": pa.int32(), "env_steps": pa.int64(), "episodes": pa.float64()}

SCHEMAS = {
    "curves": {
        **_PLACE,
        "task": pa.string(),
        "method": pa.string(),
        "seed": pa.int32(),
        **_POINT,
        **dict.fromkeys(("mean", "standard_error", "change_error", "cosine"), pa.float64()),
        "evaluation_episodes": pa.int32(),
    },
    "aggregate": {
        **_PLACE,
        "method": pa.string(),
        **_POINT,
        **dict.fromkeys(("iqm", "low", "high", "mean"), pa.float64()),
    },
    "summary": {
        **_PLACE,
        "method": pa.string(),
        **dict.fromkeys(("seeds", "tasks"), pa.int32()),
        "task_names": pa.string(),
        "evaluation_episodes": pa.int32(),
        **dict.fromkeys(
            (
                *("env_steps", "episodes"),
                *("zero_shot_iqm", "zero_shot_low", "zero_shot_high", "zero_shot_mean"),
                *("final_iqm", "final_low", "final_high", "final_mean"),
                *("improvement", "improvement_low", "improvement_high"),
                *("initial_drop", "largest_drop", "monotonicity", "area_under_curve"),
                *("cosine", "improved"),
                "probability_of_improvement",
                "probability_of_improvement_low",
                "probability_of_improvement_high",
            ),
            pa.float64(),
        ),
    },
    "best_of": {
        **_PLACE,
        "task": pa.string(),
        "seed": pa.int32(),
        **dict.fromkeys(
            ("zero_shot", "random", "best", "predicted", "value_correlation"), pa.float64()
        ),
        "latents": pa.int32(),
        "rank": pa.int32(),
        "percentile": pa.float64(),
    },
}


def tabulate(
    cfg: Tabulate,
    *,
    adaptation: list[Path],
    probe: list[Path],
    curves: Path,
    aggregate: Path,
    summary: Path,
    best_of: Path,
) -> None:
    """Reduce all runs to curves, interquartile means with intervals, a summary, and best of N."""
    names = (*_PLACE, "task", "method", "seed", "env_steps", "episodes", "cosine", "returns")
    evaluated = _read(adaptation, "adaptation", names)
    if not distinct(evaluated, "method"):
        raise UserError("no tables of adaptation were given, so there is nothing to tabulate")
    names = (*_PLACE, "task", "seed", "policy", "index", "value", "mean", "episodes")
    probed = _read(probe, "probe", names)

    points = tabulation.curves(evaluated)
    rows = {name: pa.array(column).to_numpy(False) for name, column in points.items()}
    interval = partial(
        cluster_bootstrap,
        confidence=cfg.confidence,
        replicates=cfg.replicates,
        seed=cfg.seed,
    )
    tables = {
        "curves": (curves, points),
        "aggregate": (aggregate, tabulation.aggregate(rows, interval)),
        "summary": (summary, tabulation.summary(rows, probed, interval, cfg.confidence)),
        "best_of": (best_of, tabulation.best_of(rows, probed)),
    }
    for kind, (path, table) in tables.items():
        _write(path, kind, table, cfg)


def _read(paths: list[Path], kind: str, names: tuple[str, ...]) -> Columns:
    tables = [read_table(path, kind)[0] for path in paths]
    for path, table in zip(paths, tables, strict=True):
        if missing := [name for name in names if name not in table]:
            raise UserError(f"{path}: a table of {kind} without the column {missing[0]}")
        returns = table.get("returns")
        if returns is not None and returns.shape[1:] != tables[0]["returns"].shape[1:]:
            raise UserError(
                f"{path}: {returns.shape[1]} evaluation episodes, but {paths[0]} has "
                f"{tables[0]['returns'].shape[1]}; every method needs the same ones"
            )
    return concatenate(tables, names)


def _write(path: Path, kind: str, table: Mapping[str, list[Any]], cfg: Tabulate) -> None:
    types = SCHEMAS[kind]
    schema = pa.schema([pa.field(name, type_, nullable=False) for name, type_ in types.items()])
    columns = {name: table.get(name, []) for name in types}
    write_table(path, schema, columns, provenance(kind, "tabulate", cfg))

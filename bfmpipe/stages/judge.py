"""Stage judge: the verdict on each claim of the experiment, held or not, and by how much."""

from functools import partial
from pathlib import Path

import pyarrow as pa

from bfmpipe.data.tables import read_table, write_table
from bfmpipe.metrics.aggregate import stratified_bootstrap
from bfmpipe.report.rows import distinct
from bfmpipe.report.verdicts import Claims
from bfmpipe.report.verdicts import verdicts as judged
from bfmpipe.stages.sections import provenance
from bfmpipe.stages.tabulate import Tabulate


class Judge(Claims):
    """Settings of the stage."""

    intervals: Tabulate = Tabulate()


_SCHEMA = pa.schema(
    [
        *(
            pa.field(name, pa.string(), nullable=False)
            for name in ("domain", "agent", "family", "claim", "statement", "kind")
        ),
        *(
            pa.field(name, pa.float64(), nullable=False)
            for name in ("bar", "figure", "low", "high")
        ),
        pa.field("held", pa.bool_(), nullable=False),
    ]
)


def judge(cfg: Judge, *, curves: Path, best_of: Path, benchmarks: Path, verdicts: Path) -> None:
    """Hold every claim against the tables.

    `benchmarks` is Snakemake's directory of benchmark files, which claims on compute read.
    """
    points = read_table(curves, "curves")[0]
    claims = cfg.parsed(distinct(points, "method"), str(curves))
    interval = partial(
        stratified_bootstrap,
        confidence=cfg.intervals.confidence,
        replicates=cfg.intervals.replicates,
        seed=cfg.intervals.seed,
    )
    table = judged(claims, points, read_table(best_of, "best_of")[0], benchmarks, interval)
    columns = {name: table.get(name, []) for name in _SCHEMA.names}
    write_table(verdicts, _SCHEMA, columns, provenance("verdicts", "judge", cfg))
    for row in zip(
        *(columns[n] for n in ("held", "claim", "domain", "agent", "family", "figure", "bar")),
        strict=True,
    ):
        held, *place, figure, bar = row
        verdict = "unknown" if figure != figure else "held" if held else "NOT held"
        print(f"{verdict:<9}{', '.join(place)}: {figure:.3g} (bar {bar:g})")

"""Stage judge: the verdict on each claim of the experiment, held or not, and by how much."""

from pathlib import Path

import pyarrow as pa
from pydantic import Field

from bfmpipe.data.tables import read_table, write_table
from bfmpipe.report import timing
from bfmpipe.report.rows import distinct
from bfmpipe.report.verdicts import Claims
from bfmpipe.report.verdicts import verdicts as judged
from bfmpipe.stages.sections import provenance


class Judge(Claims):
    """Settings of the stage."""

    confidence: float = Field(0.95, gt=0, lt=1)
    """Probability mass between the ends of its intervals."""
    seeds_together: bool = False
    """Whether a job of the stage adapt had the models of all seeds."""


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
        pa.field("verdict", pa.string(), nullable=False),
    ]
)


def judge(cfg: Judge, *, curves: Path, best_of: Path, benchmarks: Path, verdicts: Path) -> None:
    """Hold every claim against the tables.

    `benchmarks` is the directory of what each job cost, <rule>/<job>.json, which claims on compute
    read.
    """
    points = read_table(curves, "curves")[0]
    claims = cfg.parsed(distinct(points, "method"), str(curves))
    experiment = {
        **{f"{name}s": distinct(points, name) for name in ("domain", "agent", "seed", "method")},
        "adapt": {"seeds_together": cfg.seeds_together},
    }
    jobs: list[timing.Job] = []
    if any(claim.kind == "compute" for claim in claims.values()):
        jobs = timing.of_experiment(timing.read(benchmarks), experiment)
    table = judged(claims, points, read_table(best_of, "best_of")[0], jobs, cfg.confidence)
    columns = {name: table.get(name, []) for name in _SCHEMA.names}
    write_table(verdicts, _SCHEMA, columns, provenance("verdicts", "judge", cfg))
    for row in zip(
        *(columns[n] for n in ("verdict", "claim", "domain", "agent", "family")),
        *(columns[n] for n in ("figure", "low", "high", "bar")),
        strict=True,
    ):
        verdict, *place, figure, low, high, bar = row
        verdict = verdict.replace("not", "NOT")
        interval = f" [{low:.3g}, {high:.3g}]" if low == low else ""
        print(f"{verdict:<10}{', '.join(place)}: {figure:.3g}{interval} (bar {bar:g})")

"""A run of the suite as Markdown: python -m benchmarks.suite OUT.

OUT is the directory that holds `tables`: results/RUN, or results/RUN/NAME of a named experiment. Of
every domain, agent and family a table of the methods, best first, and the curves of their means;
then the verdicts of OUT and of the named experiments below it, in one table.
"""

from pathlib import Path

import numpy as np

from benchmarks.measuring import start, table, tables
from bfmpipe.data.tables import read_table
from bfmpipe.report.rows import Columns, count, distinct, one, select

HEAD = (
    "method",
    "final mean",
    "IQM",
    "gain, %",
    "area",
    "first drop, %",
    "largest drop, %",
    "monotonicity",
    "cosine",
)


def known(value: float, form: str) -> str:
    return "–" if np.isnan(value) else format(value + 0.0, form)


def methods(summary: Columns) -> str:
    """One row a method of one domain, agent and family."""
    rows = []
    names = distinct(summary, "method")
    for name in sorted(names, key=lambda n: -one(select(summary, method=n), "final_mean")):
        row = select(summary, method=name)
        gain, low, high = (one(row, f"improvement{end}") for end in ("", "_low", "_high"))
        rows.append(
            (
                name,
                f"{one(row, 'final_mean'):.1f}",
                f"{one(row, 'final_iqm'):.1f}",
                f"{gain:+.1f} [{low:+.0f}, {high:+.0f}]",
                known(one(row, "area_under_curve"), ".1f"),
                known(one(row, "initial_drop"), ".1f"),
                known(one(row, "largest_drop"), ".1f"),
                known(one(row, "monotonicity"), ".2f"),
                known(one(row, "cosine"), ".2f"),
            )
        )
    return table(HEAD, rows)


def means(curves: Columns) -> str:
    """Means over seeds and tasks, evaluation by evaluation, and of each seed at the end."""
    rows = []
    for name in distinct(curves, "method"):
        here = select(curves, method=name)
        at = distinct(here, "evaluation")
        seeds = distinct(here, "seed")
        path = [select(here, evaluation=i)["mean"].mean() for i in at]
        ends = [select(here, evaluation=at[-1], seed=s)["mean"].mean() for s in seeds]
        rows.append((name, " ".join(f"{x:.0f}" for x in path), " ".join(f"{x:.0f}" for x in ends)))
    return table(("method", "mean curve", "the seeds' ends"), rows)


def verdicts(out: Path) -> str:
    rows = []
    for path in sorted({out / "tables/verdicts.parquet", *out.glob("*/tables/verdicts.parquet")}):
        found = read_table(path, "verdicts")[0] if path.exists() else {}
        for i in range(count(found)):
            row = {name: column[i] for name, column in found.items()}
            interval = "" if np.isnan(row["low"]) else f" [{row['low']:.1f}, {row['high']:.1f}]"
            rows.append(
                (
                    f"{row['domain']}, {row['agent']}, {row['family']}",
                    row["statement"],
                    known(row["figure"], ".3g") + interval,
                    f"{row['bar']:g}",
                    row["verdict"],
                )
            )
    return table(("", "claim", "figure", "bar", "verdict"), rows) if rows else ""


def main(out: str) -> None:
    directory = tables(out)
    summary, curves = (
        read_table(directory / f"{name}.parquet", name)[0] for name in ("summary", "curves")
    )
    parts = []
    for domain, agent, family in distinct(summary, "domain", "agent", "family"):
        place = {"domain": domain, "agent": agent, "family": family}
        parts += [
            f"### {domain}, {agent}, {family}",
            methods(select(summary, **place)),
            means(select(curves, **place)),
        ]
    print("\n\n".join([*parts, verdicts(Path(out))]))


if __name__ == "__main__":
    start(main)

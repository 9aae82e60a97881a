"""What each agent learnt, and whether it stayed: python -m benchmarks.agents RESULTS.

RESULTS is the directory of a finished run with `pretrain: {evaluate_every: N}`. For every domain
and family: zero-shot's interquartile mean over tasks and seeds beside the random policy's mean and
the agent random_features, where it was run; and for every seed the zero-shot return at the end of
training against the best along the way, on the training's own start states.
"""

from pathlib import Path

import numpy as np

from benchmarks.measuring import start, table, tables
from bfmpipe.data.tables import read_table
from bfmpipe.report.rows import distinct, one, select
from bfmpipe.report.tabulation import RANDOM

REFERENCE = "random_features"


def learnt(results: Path) -> str:
    summary = read_table(results / "tables/summary.parquet", "summary")[0]
    rows = []
    for domain, family in distinct(summary, "domain", "family"):
        here = select(summary, domain=domain, family=family)
        zero_shot = select(here, method="zero-shot")
        iqm = {a: one(select(zero_shot, agent=a), "final_iqm") for a in distinct(here, "agent")}
        for agent, value in iqm.items():
            random = one(select(here, agent=agent, method=RANDOM), "final_mean")
            ends = [one(select(zero_shot, agent=agent), f"final_{e}") for e in ("low", "high")]
            against = f"{value / iqm[REFERENCE]:.1f}" if iqm.get(REFERENCE) else "–"
            mean = one(select(zero_shot, agent=agent), "final_mean")
            rows.append(
                (
                    f"{domain}, {family}",
                    agent,
                    f"{value:.1f} [{ends[0]:.0f}, {ends[1]:.0f}]",
                    f"{mean:.1f}",
                    f"{random:.1f}",
                    f"{value / random:.1f}" if random else "–",
                    against,
                )
            )
    head = ("", "agent", "zero-shot IQM", "mean", "random, mean", "x random", f"x {REFERENCE}")
    return table(head, rows)


def stayed(results: Path) -> str:
    rows = []
    for path in sorted(results.glob("*/*/seed*/evaluations.parquet")):
        scores = read_table(path, "evaluations")[0]
        domain, agent, seed = path.parts[-4:-1]
        for family in distinct(scores, "family"):
            here = select(scores, family=family)
            updates = distinct(here, "update")
            means = np.array([select(here, update=u)["mean"].mean() for u in updates])
            best, last = int(means.argmax()), means[-1]
            rows.append(
                (
                    f"{domain}, {family}",
                    agent,
                    seed,
                    f"{means[best]:.1f} at {updates[best]:,}",
                    f"{last:.1f} at {updates[-1]:,}",
                    f"{last / means[best] - 1:+.1%}" if means[best] else "–",
                )
            )
    return table(("", "agent", "", "best", "last", "last against best"), rows)


def main(results: str) -> None:
    tables(results)
    print(learnt(Path(results)), stayed(Path(results)), sep="\n\n")


if __name__ == "__main__":
    start(main)

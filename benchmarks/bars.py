"""The figures that the default profile is held to, from the tables of a finished run.

python -m benchmarks.bars [RESULTS]; exits with 1 if one of them is missed.
"""

import numpy as np

from benchmarks.measuring import start, tables
from bfmpipe.data.tables import read_table
from bfmpipe.types import UserError


def rows(table, **wanted):
    keep = np.ones(len(next(iter(table.values()))), bool)
    for name, value in wanted.items():
        keep &= table[name] == value
    return {name: column[keep] for name, column in table.items()}


def main(directory: str = "results") -> int:
    results = tables(directory)
    summary, aggregate, best_of = (
        read_table(results / f"{name}.parquet", name)[0]
        for name in ("summary", "aggregate", "best_of")
    )
    wide, precise = "reach", "precise"
    methods = ("zero-shot", "lola", "rela", "td3")
    if missing := [
        f"{method} on {family}"
        for method in methods
        for family in (wide, precise)
        if not len(rows(summary, method=method, family=family)["method"])
    ]:
        raise UserError(f"{directory}: no {missing[0]}, so this is no run of the default profile")

    def of(method, family, column):
        return float(rows(summary, method=method, family=family)[column][0])

    zero_shot = of("zero-shot", wide, "final_mean")
    random = float(rows(best_of, family=wide)["random"].mean())
    best = float(rows(best_of, family=wide)["best"].mean())
    lola = rows(aggregate, method="lola", family=wide)
    lowest = float(lola["mean"].min() / lola["mean"][0])
    lowest_iqm = float(lola["iqm"].min() / lola["iqm"][0])
    zero_iqm, zero_high = (of("lola", precise, f"zero_shot_{x}") for x in ("iqm", "high"))
    end_iqm, end_low = (of("lola", precise, f"final_{x}") for x in ("iqm", "low"))
    rela = of("rela", wide, "final_mean")
    drops = {m: of(m, wide, "initial_drop") for m in ("rela", "td3")}
    checks = [
        (f"zero-shot / random on {wide}", ">= 8", zero_shot / random, zero_shot / random >= 8),
        (f"zero-shot / best of N on {wide}", ">= .75", zero_shot / best, zero_shot / best >= 0.75),
        (
            f"LoLA's final IQM / zero-shot's on {precise}",
            ">= 2",
            end_iqm / zero_iqm,
            end_iqm >= 2 * zero_iqm,
        ),
        (
            f"  its interval's low end - zero-shot's high end, {precise}",
            "> 0",
            end_low - zero_high,
            end_low > zero_high,
        ),
        (f"LoLA's lowest mean / zero-shot on {wide}", ">= .95", lowest, lowest >= 0.95),
        (f"LoLA's lowest IQM / zero-shot on {wide}", ">= .95", lowest_iqm, lowest_iqm >= 0.95),
        (f"ReLA's final mean / zero-shot on {wide}", ">= 1", rela / zero_shot, rela >= zero_shot),
    ]
    for what, bar, figure, held in checks:
        print(f"{what:<62} {bar:>7} {figure:9.2f}  {'held' if held else 'MISSED'}")
    for family in (wide, precise):
        for method in dict.fromkeys(summary["method"]):
            row = rows(summary, method=method, family=family)
            if len(row["final_mean"]):
                print(
                    f"{family:8} {method:10} mean {row['final_mean'][0]:6.1f}  "
                    f"IQM {row['final_iqm'][0]:6.1f} "
                    f"[{row['final_low'][0]:.1f}, {row['final_high'][0]:.1f}]  "
                    f"initial drop {row['initial_drop'][0]:.1f} %"
                )
    print("initial drop on", wide, {m: round(d, 1) for m, d in drops.items()})
    return 0 if all(held for *_, held in checks) else 1


if __name__ == "__main__":
    start(main)

"""Figure: what was said of the tasks beforehand against what adapting to them gained."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bfmpipe.metrics.correlation import rank_correlation
from bfmpipe.report import style
from bfmpipe.report.rows import Columns, distinct, select
from bfmpipe.report.runs import ZERO_SHOT
from bfmpipe.types import Array

QUANTITIES = {
    "zero_shot": "zero-shot return",
    "residual": "share of the reward that no w can fit",
    "mismatch": "share that the inferred w leaves",
    "extrapolation": "1 − cosine of z to the nearest of the data",
    "q_correlation": "correlation of Q with discounted returns",
    "q_scale": "discounted returns over Q",
}
_MARKERS = "osD^vP"


def joined(diagnosis: Columns, curves: Columns, method: str) -> dict[str, Array]:
    """Columns of the diagnosis, `zero_shot`, and `gain`, the change of the mean return.

    One row a family, task and seed that both tables have.
    """
    rows = []
    keys = ("family", "task", "seed")
    names = [name for name in QUANTITIES if name in diagnosis]
    for key in distinct(diagnosis, *keys):
        place = dict(zip(keys, key, strict=True))
        runs = [select(curves, **place, method=m) for m in (ZERO_SHOT, method)]
        if any(len(run["mean"]) == 0 for run in runs):
            continue
        before, after = (run["mean"][np.argmax(run["env_steps"])] for run in runs)
        here = select(diagnosis, **place)
        rows.append((*key, *(here[name][0] for name in names), before, after - before))
    columns = (*keys, *names, "zero_shot", "gain")
    return {name: np.array([row[i] for row in rows]) for i, name in enumerate(columns)}


def correlations(table: Mapping[str, Array]) -> dict[str, float]:
    """Spearman's correlation of each quantity with the gain, over tasks and seeds."""
    found = {}
    for name in QUANTITIES:
        known = np.isfinite(table[name])
        several = known.sum() > 1
        found[name] = (
            rank_correlation(table[name][known], table["gain"][known]) if several else np.nan
        )
    return found


@style.styled
def draw(diagnosis: Columns, curves: Columns, method: str) -> Figure:
    """Draw each quantity against the gain of a method, one dot a task and seed.

    Args:
        diagnosis: the table of that name, of one domain and agent.
        curves: the table of that name.
        method: whose gain.
    """
    table = joined(diagnosis, curves, method)
    found = correlations(table)
    figure = style.figure(9.6, 5.6)
    families = list(dict.fromkeys(table["family"].tolist()))
    colours = (style.BLUE, style.ORANGE, style.GREEN, style.PINK, style.AMBER, style.SKY)
    for axes, (name, title) in zip(figure.subplots(2, 3).ravel(), QUANTITIES.items(), strict=True):
        for i, family in enumerate(families):
            here = table["family"] == family
            axes.plot(
                table[name][here],
                table["gain"][here],
                ls="",
                marker=_MARKERS[i % len(_MARKERS)],
                color=colours[i % len(colours)],
                alpha=0.75,
                ms=5,
            )
        axes.axhline(0, color=style.GREY, lw=0.8, ls="--")
        if name == "q_scale" and (table[name][np.isfinite(table[name])] > 0).all():
            axes.set_xscale("log")
        else:
            axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(title)
        rank = f"{found[name]:+.2f}".replace("-", "−") if np.isfinite(found[name]) else "unknown"
        axes.set_title(f"rank correlation {rank}")
    for axes in (figure.axes[0], figure.axes[3]):
        axes.set_ylabel(f"gain in return by {style.name(method)}")
    handles = [
        Line2D(
            [],
            [],
            ls="",
            marker=_MARKERS[i % len(_MARKERS)],
            color=colours[i % len(colours)],
            label=style.words(family),
        )
        for i, family in enumerate(families)
    ]
    style.legend(figure, handles)
    return figure

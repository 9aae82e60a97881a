"""Figure: how much each method gains over zero-shot, in %, with intervals."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bfmpipe.report import style
from bfmpipe.report.rows import Columns, count, distinct, one, select
from bfmpipe.report.runs import ZERO_SHOT
from bfmpipe.report.tabulation import RANDOM


@style.styled
def draw(summary: Columns) -> Figure:
    """Draw bars of the mean improvement of one domain and agent, grouped by family."""
    families = distinct(summary, "family")
    methods = [
        m for m in style.ordered(distinct(summary, "method")) if m not in (ZERO_SHOT, RANDOM)
    ]
    figure = style.figure(max(4.5, 1.0 + 0.75 * len(families) * (len(methods) + 0.6)), 3.8)
    axes = figure.subplots()
    width = 1 / (len(methods) + 0.8)
    for i, method in enumerate(methods):
        x = np.arange(len(families)) + (i - (len(methods) - 1) / 2) * width
        rows = [select(summary, family=family, method=method) for family in families]
        value, low, high = (
            np.array([one(row, name) if count(row) else np.nan for row in rows])
            for name in ("improvement", "improvement_low", "improvement_high")
        )
        axes.bar(x, value, 0.88 * width, **_look(method))
        axes.vlines(x, low, high, color=style.BLACK, lw=1.3)
        for at, v, lo, hi in zip(x, value, low, high, strict=True):
            if np.isfinite(v):
                up = v >= 0
                axes.annotate(
                    f"{v:+.0f} %",
                    (at, np.fmax(v, hi) if up else np.fmin(v, lo)),
                    xytext=(0, 3 if up else -3),
                    textcoords="offset points",
                    ha="center",
                    va="bottom" if up else "top",
                    fontsize=8.5,
                )
    axes.axhline(0, color=style.BLACK, lw=1)
    axes.set_xticks(range(len(families)), [style.words(family) for family in families])
    axes.tick_params(axis="x", length=0, labelsize=9.5)
    axes.grid(False, axis="x")
    axes.margins(y=0.12)
    axes.set_ylabel("change of the mean (not IQM) return\nagainst zero-shot, %")
    style.legend(figure, [Patch(label=style.name(m), **_look(m)) for m in methods])
    return figure


def _look(method: str) -> dict[str, Any]:
    """Of a bar: variants share their method's colour, so a hatch tells them apart."""
    return {
        "facecolor": style.colour(method),
        "edgecolor": "white",
        "hatch": style.hatch(method),
        "alpha": 0.85,
        "lw": 0,
    }

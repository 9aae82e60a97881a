"""Figure: what a model expects of its own policies against what they get, one dot a task and seed.

One panel a family, one colour a task, at the last update of every seed.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bfmpipe.report import style
from bfmpipe.report.rows import Columns, distinct, select
from bfmpipe.report.training import colour

_MARKERS = "osD^vP"
_COLOURS = 6


@style.styled
def draw(evaluations: Mapping[int, Columns]) -> Figure:
    """Draw predicted values against discounted returns, and the line where they are equal.

    Args:
        evaluations: seed -> its table of that name.
    """
    last = [select(table, update=table["update"].max()) for table in evaluations.values()]
    families = list(dict.fromkeys(f for table in last for f in distinct(table, "family")))
    tasks = list(dict.fromkeys(t for table in last for t in distinct(table, "task")))
    figure = style.figure(0.6 + 3.8 * len(families), 4.2)
    panels = figure.subplots(1, len(families), squeeze=False)[0]
    for axes, family in zip(panels, families, strict=True):
        rows = [select(table, family=family) for table in last]
        ends = [0.0]
        for table in rows:
            for x, y, task in zip(
                table["q_monte_carlo"], table["q_predicted"], table["task"], strict=True
            ):
                axes.plot(x, y, ls="", alpha=0.8, **_look(tasks.index(task)))
                ends += [float(x), float(y)]
        low, high = min(ends), max(ends)
        margin = 0.06 * (high - low or 1.0)
        span = (low - margin, high + margin)
        axes.plot(span, span, color=style.GREY, lw=1, ls="--")
        axes.set_xlim(span)
        axes.set_ylim(span)
        axes.set_aspect("equal")
        known = np.concatenate([table["q_correlation"] for table in rows])
        known = known[np.isfinite(known)]
        about = f"\nrank correlation over starts {known.mean():.2f}" if len(known) else ""
        axes.set_title(f"{style.words(family)}{about}")
        axes.set_xlabel("discounted return of the episodes")
    panels[0].set_ylabel("the model's value at their start states")
    handles = [
        Line2D([], [], ls="", label=style.words(task), **_look(i)) for i, task in enumerate(tasks)
    ]
    handles.append(Line2D([], [], color=style.GREY, lw=1, ls="--", label="value = return"))
    style.legend(figure, handles)
    return figure


def _look(task: int) -> dict[str, Any]:
    return {"color": colour(task), "marker": _MARKERS[task // _COLOURS % len(_MARKERS)], "ms": 6}

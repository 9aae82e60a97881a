"""Figure: every task's return over adaptation, one line a method, one row of panels a family."""

import math

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bfmpipe.report import style
from bfmpipe.report.rows import Columns, count, distinct, select
from bfmpipe.report.runs import ZERO_SHOT, gather
from bfmpipe.report.tabulation import RANDOM

_WIDEST = 4  # panels in a row


@style.styled
def draw(curves: Columns, best_of: Columns) -> Figure:
    """Draw the curves of one domain and agent; bands go from the lowest seed to the highest.

    Args:
        curves: the table of curves.
        best_of: the table of that name, for the random policy's returns; may be empty.
    """
    families = {f: distinct(select(curves, family=f), "task") for f in distinct(curves, "family")}
    wide = min(_WIDEST, max(map(len, families.values())))
    rows = {family: math.ceil(len(tasks) / wide) for family, tasks in families.items()}
    figure = style.figure(1.0 + 2.3 * wide, 0.7 + 2.0 * sum(rows.values()))
    grid = figure.subplots(sum(rows.values()), wide, squeeze=False, sharex=True)
    top = 0
    for family, tasks in families.items():
        panels = grid[top : top + rows[family]].ravel()
        # a task that returns next to nothing is drawn flat, not as noise over a whole axis
        least = 1e-3 * np.abs(select(curves, family=family)["mean"]).max()
        for axes, task in zip(panels, tasks, strict=False):
            _panel(axes, select(curves, family=family, task=task))
            if count(best_of):
                random = select(best_of, family=family, task=task)["random"].mean()
                axes.axhline(random, color=style.colour(RANDOM), ls=style.line(RANDOM), lw=1.4)
            axes.set_title(style.words(task))
            low, high = axes.get_ylim()
            axes.set_ylim(min(0, low), max(high, least))
        for axes in panels[len(tasks) :]:
            axes.set_visible(False)
        for row in grid[top : top + rows[family]]:
            row[0].set_ylabel(f"{style.words(family)}:\nreturn an episode")
        top += rows[family]
    for axes in grid[-1]:
        axes.set_xlabel("episodes spent")
    methods = set(distinct(curves, "method")) | ({RANDOM} if count(best_of) else set())
    style.legend(figure, [handle(m) for m in style.ordered(methods)])
    return figure


def handle(method: str) -> Line2D:
    """A method's entry in a legend."""
    return Line2D(
        [], [], color=style.colour(method), ls=style.line(method), label=style.name(method)
    )


def _panel(axes, rows: Columns) -> None:  # type: ignore[no-untyped-def]
    for method in style.ordered(distinct(rows, "method")):
        place = {key: rows[key][0] for key in ("domain", "agent", "family")}
        runs = gather(rows, **place, method=method)
        mean = runs.mean[:, 0]
        look = {"color": style.colour(method), "ls": style.line(method)}
        if method == ZERO_SHOT:
            axes.axhline(mean[:, 0].mean(), lw=1.4, **look)
            continue
        axes.fill_between(
            runs.episodes, mean.min(0), mean.max(0), color=look["color"], alpha=0.15, lw=0
        )
        axes.plot(runs.episodes, mean.mean(0), label=style.name(method), **look)

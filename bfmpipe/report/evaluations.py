"""Figure: the zero-shot return of a model while it trained, one panel a family, one line a seed."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bfmpipe.report import style
from bfmpipe.report.rows import Columns, distinct, select
from bfmpipe.report.training import colour, of_alarms, of_seeds
from bfmpipe.types import Array


@style.styled
def draw(evaluations: Mapping[int, Columns], alarms: Mapping[int, int]) -> Figure:
    """Draw the mean return over each family's tasks against the updates.

    Args:
        evaluations: seed -> its table of that name.
        alarms: seed -> update at which the divergence alarm rang, for those seeds where it did.
    """
    families = list(dict.fromkeys(f for t in evaluations.values() for f in distinct(t, "family")))
    figure = style.figure(0.6 + 4.0 * len(families), 3.6)
    panels = figure.subplots(1, len(families), squeeze=False)[0]
    several = len(evaluations) > 1
    for axes, family in zip(panels, families, strict=True):
        curves = []
        for i, (seed, table) in enumerate(evaluations.items()):
            updates, mean = _curve(select(table, family=family))
            curves.append((updates, mean))
            look = {"color": colour(i), "lw": 1.2, "alpha": 0.8 if several else 1}
            axes.plot(updates / 1000, mean, marker="o", ms=3, clip_on=False, **look)
            if seed in alarms:
                axes.axvline(alarms[seed] / 1000, ls=":", color=colour(i), lw=1.2)
        updates = curves[0][0]
        if several and all(np.array_equal(updates, other) for other, _ in curves):
            average = np.mean([mean for _, mean in curves], axis=0)
            axes.plot(updates / 1000, average, color=style.BLACK)
        count = len(distinct(select(next(iter(evaluations.values())), family=family), "task"))
        axes.set_title(f"{style.words(family)} ({count} task{'s' * (count != 1)})")
        axes.set_xlabel("updates, thousands")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    panels[0].set_ylabel("zero-shot return an episode,\nmean over the tasks")
    handles = [*of_seeds(evaluations, marker="o", ms=3, lw=1.2)]
    if several:
        handles.append(Line2D([], [], color=style.BLACK, label="mean over the seeds"))
    style.legend(figure, [*handles, *of_alarms(alarms)])
    return figure


def _curve(rows: Columns) -> tuple[Array, Array]:
    """Updates, and the mean return over the tasks at each."""
    updates = np.unique(rows["update"])
    return updates, np.array([rows["mean"][rows["update"] == update].mean() for update in updates])

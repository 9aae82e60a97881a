"""Figure: the share of runs that end above a return, one panel a family (Agarwal et al. 2021)."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from bfmpipe.metrics.aggregate import performance_profile
from bfmpipe.report import style
from bfmpipe.report.curves_per_task import handle
from bfmpipe.report.rows import Columns, distinct, select
from bfmpipe.report.runs import gather
from bfmpipe.report.tabulation import Interval

_POINTS = 201


@style.styled
def draw(curves: Columns, interval: Interval) -> Figure:
    """Draw the profiles of one domain and agent with their intervals.

    Args:
        curves: the table of that name.
        interval: `metrics.aggregate.cluster_bootstrap` with its settings filled in.
    """
    families = distinct(curves, "family")
    methods = style.ordered(distinct(curves, "method"))
    figure = style.figure(0.6 + 4.2 * len(families), 4.0)
    panels = figure.subplots(1, len(families), squeeze=False, sharey=True)[0]
    for axes, family in zip(panels, families, strict=True):
        domain, agent = distinct(curves, "domain", "agent")[0]
        ends = {
            method: gather(curves, domain=domain, agent=agent, family=family, method=method).mean[
                ..., -1
            ]
            for method in methods
            if len(distinct(select(curves, family=family, method=method), "seed"))
        }
        low, high = min(e.min() for e in ends.values()), max(e.max() for e in ends.values())
        returns = np.linspace(min(low, 0), high, _POINTS)
        profile = partial(performance_profile, thresholds=returns)
        for method, scores in ends.items():
            look = {"color": style.colour(method), "ls": style.line(method)}
            axes.plot(returns, profile(scores), drawstyle="steps-pre", **look)
            axes.fill_between(
                returns,
                *interval(scores, profile),
                step="pre",
                color=look["color"],
                alpha=0.1,
                lw=0,
            )
        axes.set_title(style.words(family))
        axes.set_xlabel("return at the end of the budget")
        axes.set_ylim(0, 1.02)
    panels[0].set_ylabel("share of runs (a task of a seed) above it")
    style.legend(figure, [handle(method) for method in methods])
    return figure

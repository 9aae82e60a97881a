"""Figure: the interquartile mean over tasks and seeds against the budget, one panel a family."""

from matplotlib.figure import Figure

from bfmpipe.report import style
from bfmpipe.report.curves_per_task import handle
from bfmpipe.report.rows import Columns, count, distinct, one, select
from bfmpipe.report.runs import ZERO_SHOT
from bfmpipe.report.tabulation import RANDOM


@style.styled
def draw(aggregate: Columns, summary: Columns) -> Figure:
    """Draw the aggregate curves of one domain and agent with their intervals.

    Args:
        aggregate: the table of that name.
        summary: the table of that name, for the tasks' and seeds' numbers and the random policy.
    """
    families = distinct(aggregate, "family")
    figure = style.figure(0.6 + 4.2 * len(families), 4.0)
    panels = figure.subplots(1, len(families), squeeze=False)[0]
    for axes, family in zip(panels, families, strict=True):
        rows = select(aggregate, family=family)
        spent = rows["env_steps"] > 0
        for method in style.ordered(distinct(rows, "method")):
            curve = select(rows, method=method)
            look = {"color": style.colour(method), "ls": style.line(method)}
            if method == ZERO_SHOT:
                axes.axhline(curve["iqm"][0], lw=1.4, **look)
                continue
            axes.fill_between(
                curve["episodes"],
                curve["low"],
                curve["high"],
                color=look["color"],
                alpha=0.15,
                lw=0,
            )
            axes.plot(curve["episodes"], curve["iqm"], **look)
        random = select(summary, family=family, method=RANDOM)
        if count(random):
            look = {"color": style.colour(RANDOM), "ls": style.line(RANDOM)}
            axes.axhline(one(random, "final_iqm"), lw=1.4, **look)
        if spent.any():
            _name_env_steps(axes, rows["env_steps"][spent][0] / rows["episodes"][spent][0])
        about = select(summary, family=family, method=ZERO_SHOT)
        tasks, seeds = one(about, "tasks"), one(about, "seeds")
        size = f"{tasks} task{'s' * (tasks != 1)} × {seeds} seed{'s' * (seeds != 1)}"
        axes.set_title(f"{style.words(family)} ({size})")
        axes.set_xlabel("episodes spent a task")
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    panels[0].set_ylabel("return an episode, interquartile mean")
    methods = set(distinct(aggregate, "method")) | set(distinct(summary, "method")) & {RANDOM}
    style.legend(figure, [handle(m) for m in style.ordered(methods)])
    return figure


def _name_env_steps(axes, length: float) -> None:  # type: ignore[no-untyped-def]
    """Name the environment steps on a second axis above, in thousands."""
    scale = length / 1000
    second = axes.secondary_xaxis("top", functions=(lambda x: x * scale, lambda x: x / scale))
    second.set_xlabel("environment steps a task, thousands")
    second.spines["top"].set_visible(True)

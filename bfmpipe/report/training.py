"""Figure: what pretraining reported, one panel a quantity, one line a seed."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bfmpipe.report import style
from bfmpipe.report.rows import Columns

_COLOURS = (style.BLUE, style.ORANGE, style.GREEN, style.PINK, style.AMBER, style.SKY)
_WIDEST = 4


@style.styled
def draw(losses: Mapping[int, Columns], alarms: Mapping[int, int]) -> Figure:
    """Draw the tables of losses of one domain and agent.

    Args:
        losses: seed -> its table.
        alarms: seed -> update at which the divergence alarm rang, for those seeds where it did.
    """
    names = list(
        dict.fromkeys(n for table in losses.values() for n in table if n not in ("update", "alarm"))
    )
    wide = min(_WIDEST, len(names))
    tall = math.ceil(len(names) / wide)
    figure = style.figure(0.5 + 2.6 * wide, 0.6 + 2.2 * tall)
    grid = figure.subplots(tall, wide, squeeze=False, sharex=True)
    for axes, name in zip(grid.ravel(), names, strict=False):
        for i, (seed, table) in enumerate(losses.items()):
            look = {"color": colour(i), "lw": 1.2}
            if name in table:
                axes.plot(table["update"] / 1000, table[name], **look)
            if seed in alarms:
                axes.axvline(alarms[seed] / 1000, ls=":", **look)
        axes.set_title(style.words(name))
    for axes in grid.ravel()[len(names) :]:
        axes.set_visible(False)
    for axes in grid.ravel()[max(0, len(names) - wide) : len(names)]:
        axes.set_xlabel("updates, thousands")
        axes.tick_params(labelbottom=True)
    handles = [*of_seeds(losses), *of_alarms(alarms)]
    style.legend(figure, handles, min(len(handles), 6))
    return figure


def colour(i: int) -> str:
    """Of the i-th seed, the same in all figures of the training."""
    return _COLOURS[i % len(_COLOURS)]


def of_seeds(seeds: Iterable[int], **look: Any) -> list[Line2D]:
    """A legend's handles of the seeds."""
    return [
        Line2D([], [], color=colour(i), label=f"seed {seed}", **look)
        for i, seed in enumerate(seeds)
    ]


def of_alarms(alarms: Mapping[int, int]) -> list[Line2D]:
    """A legend's handle of the alarm, if it rang."""
    if not alarms:
        return []
    return [Line2D([], [], color=style.BLACK, ls=":", label="divergence alarm")]

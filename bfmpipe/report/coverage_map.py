"""Figure: which states the data set covers, beside what random actions would have covered."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from bfmpipe.metrics import coverage
from bfmpipe.report import style
from bfmpipe.report.rows import Columns, count, distinct, select

_NAMES = {"data": ("the data set", style.BLUE, "-"), "random": ("random actions", style.GREY, "--")}
_MAP = "viridis"


class Axis(coverage.Axis, Protocol):
    """A coordinate as the figure shows it."""

    @property
    def name(self) -> str:
        """In words."""

    @property
    def unit(self) -> str:
        """Of the range."""


@style.styled
def draw(table: Columns, axes: Sequence[Axis]) -> Figure:
    """Draw visits by pairs of coordinates, a row a source, and the cells visited over time.

    Args:
        table: the table of coverage, of one domain with two axes or more.
        axes: the coordinates of its cells.
    """
    sources = distinct(table, "source")
    pairs = [(i, i + 1) for i in range(0, len(axes) - 1, 2)]
    pairs += [(len(axes) - 2, len(axes) - 1)] * (len(axes) % 2)
    shape = [axis.bins for axis in axes]
    figure = style.figure(3.0 * len(pairs) + 4.2, 0.5 + 2.6 * len(sources))
    grid = figure.add_gridspec(
        len(sources), len(pairs) + 1, width_ratios=[1.0] * len(pairs) + [1.15]
    )
    rows = {source: select(table, source=source) for source in sources}
    maps = {
        (source, pair): coverage.marginal(of["cell"], of["visits"], pair, shape)
        for source, of in rows.items()
        for pair in pairs
    }
    norm = LogNorm(1, max(2, *(int(visits.max()) for visits in maps.values())))
    panels = []
    for i, source in enumerate(sources):
        for j, pair in enumerate(pairs):
            panel = figure.add_subplot(grid[i, j])
            visits = maps[source, pair]
            x, y = (axes[k] for k in pair)
            panel.pcolormesh(
                np.linspace(x.low, x.high, x.bins + 1),
                np.linspace(y.low, y.high, y.bins + 1),
                np.ma.masked_equal(visits.T, 0),
                norm=norm,
                cmap=_MAP,
            )
            panel.grid(False)
            if i == len(sources) - 1:
                panel.set_xlabel(_label(x))
            panel.set_ylabel(_label(y))
            if x.unit == y.unit and np.isclose(x.high - x.low, y.high - y.low):
                panel.set_aspect("equal")
            if j == 0:
                cells = count(rows[source])
                many = f"{cells:,} cell{'s' * (cells != 1)}"
                panel.set_title(f"{_NAMES[source][0]}: {many}", loc="left")
            panels.append(panel)
    figure.colorbar(ScalarMappable(norm, _MAP), ax=panels, label="states", shrink=0.8, pad=0.01)
    _growth(figure.add_subplot(grid[:, -1]), rows, int(np.prod(shape)))
    return figure


def _growth(panel, rows: dict[str, dict], cells: int) -> None:  # type: ignore[no-untyped-def]
    for source, of in rows.items():
        name, colour, line = _NAMES[source]
        seen = np.linspace(0, of["visits"].sum(), 201)
        covered = coverage.growth(of["first"], seen)
        panel.plot(seen / 1000, covered, color=colour, ls=line, label=name)
    panel.set_xlabel("states seen, thousands")
    panel.set_ylabel(f"cells visited, of {cells:,}")
    panel.set_ylim(bottom=0)
    panel.legend(loc="upper left")


def _label(axis: Axis) -> str:
    return f"{axis.name}, {axis.unit}" if axis.unit else axis.name

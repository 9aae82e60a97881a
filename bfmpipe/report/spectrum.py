"""Figure: the spectrum of the features over the data, one line a seed."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bfmpipe.report import style
from bfmpipe.report.rows import Columns, count
from bfmpipe.report.training import colour

_FLOOR = 1e-8  # of the largest eigenvalue: what float32 features cannot tell from none

_LEAST_SPAN = 100.0


@style.styled
def draw(spectra: Mapping[int, Columns]) -> Figure:
    """Draw the eigenvalues of E[phi phi^T] at the end, and at the first evaluation.

    Args:
        spectra: seed -> its table `spectrum`, its rows by rising updates.
    """
    figure = style.figure(6.4, 4.0)
    axes = figure.subplots()
    handles = []
    for i, (seed, table) in enumerate(spectra.items()):
        last = table["eigenvalues"][-1]
        x, floor = np.arange(1, len(last) + 1), _FLOOR * max(last.max(), 1e-300)
        if count(table) > 1:
            first = np.maximum(table["eigenvalues"][0], floor)
            axes.plot(x, first, color=colour(i), lw=1, ls="--", alpha=0.6)
        axes.plot(x, np.maximum(last, floor), color=colour(i), marker="o", ms=2.5, lw=1.4)
        label = f"seed {seed}: effective rank {table['effective_rank'][-1]:.1f} of {len(last)}"
        handles.append(Line2D([], [], color=colour(i), marker="o", ms=2.5, lw=1.4, label=label))
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < _LEAST_SPAN * low:  # a spectrum that is nearly flat should look so
        centre = (low * high) ** 0.5
        axes.set_ylim(centre / _LEAST_SPAN**0.5, centre * _LEAST_SPAN**0.5)
    axes.set_xlabel("eigenvalue, from the largest")
    axes.set_ylabel("eigenvalue of E[φ φᵀ] over the data")
    first_updates = {int(table["update"][0]) for table in spectra.values() if count(table) > 1}
    if first_updates:
        label = f"after {min(first_updates):,} updates"
        handles.append(Line2D([], [], color=style.GREY, lw=1, ls="--", label=label))
    ends = {int(table["update"][-1]) for table in spectra.values()}
    axes.set_title(f"features after {max(ends):,} updates")
    style.legend(figure, handles, 2)
    return figure

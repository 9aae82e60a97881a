"""Figure: does the model hold better policies than inference selects? N latents and zero-shot."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bfmpipe.report import style
from bfmpipe.report.rows import Columns, count, distinct, one, select
from bfmpipe.report.runs import ZERO_SHOT
from bfmpipe.report.tabulation import BEST_OF_N, PREDICTED, RANDOM

_GOLDEN = 0.6180339887  # index -> even jitter, the same at every drawing


@style.styled
def draw(probe: Columns, curves: Columns, method: str) -> Figure:
    """Draw the latents' returns of one domain and agent, one panel a family, one column a seed.

    Args:
        probe: the table of that name.
        curves: the table of curves, for zero-shot and for what `method` ends at.
        method: the adaptation method to mark.
    """
    families = distinct(probe, "family")
    columns = max(len(distinct(select(probe, family=f), "task", "seed")) for f in families)
    figure = style.figure(min(14.0, max(6.0, 1.4 + 0.62 * columns)), 0.8 + 2.7 * len(families))
    panels = figure.subplots(len(families), 1, squeeze=False)[:, 0]
    for axes, family in zip(panels, families, strict=True):
        rows, of_family = select(probe, family=family), select(curves, family=family)
        tasks, seeds = distinct(rows, "task"), sorted(distinct(rows, "seed"))
        stride = len(seeds) + 0.8
        for i, task in enumerate(tasks):
            for j, seed in enumerate(seeds):
                here = {"task": task, "seed": seed}
                _column(
                    axes, i * stride + j, select(rows, **here), select(of_family, **here), method
                )
        middle = (len(seeds) - 1) / 2
        axes.set_xticks(
            [i * stride + middle for i in range(len(tasks))], [style.words(t) for t in tasks]
        )
        axes.tick_params(axis="x", length=0, labelsize=9)
        axes.grid(False, axis="x")
        axes.set_ylabel(f"{style.words(family)}:\nreturn an episode")
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    style.legend(figure, _handles(probe, method if method in curves["method"] else ""), 3)
    return figure


def _column(axes, x: float, probe: Columns, curves: Columns, method: str) -> None:  # type: ignore[no-untyped-def]
    latents = select(probe, policy="latent")
    jitter = ((latents["index"] * _GOLDEN) % 1 - 0.5) * 0.62
    axes.plot(x + jitter, latents["mean"], **_LATENTS)
    for policy, name in ((RANDOM, "random"), (BEST_OF_N, "best"), (PREDICTED, "predicted")):
        row = select(probe, policy=name)
        if count(row):
            axes.plot(x, one(row, "mean"), **_MARKS[policy])
    for name in dict.fromkeys((ZERO_SHOT, method)):
        curve = select(curves, method=name)
        if count(curve):
            last = curve["mean"][np.argmax(curve["env_steps"])]
            axes.plot(x, last, **_mark(name))


def _handles(probe: Columns, method: str) -> list[Line2D]:
    numbers = [
        len(select(probe, policy="latent", family=f, task=t, seed=s)["mean"])
        for f, t, s in distinct(probe, "family", "task", "seed")[:1]
    ]
    shown = [(_LATENTS, f"each of the {numbers[0]} latents")]
    shown += [(_MARKS[RANDOM], style.name(RANDOM)), (_mark(ZERO_SHOT), style.name(ZERO_SHOT))]
    shown += [(_MARKS[BEST_OF_N], "best of them, scored anew")]
    shown += [(_MARKS[PREDICTED], "best of them by the model's value")]
    if method not in ("", ZERO_SHOT):
        shown += [(_mark(method), f"{style.name(method)}, at the end")]
    return [Line2D([], [], **look, label=label) for look, label in shown]


def _mark(method: str) -> dict[str, Any]:
    if method in _MARKS:
        return _MARKS[method]
    return {
        "ls": "",
        "marker": "o",
        "ms": 7,
        "color": style.colour(method),
        "mec": "white",
        "zorder": 6,
    }


_LATENTS: dict[str, Any] = {"ls": "", "marker": ".", "ms": 4, "mew": 0, "color": "#a9b4bf"}
_MARKS: dict[str, dict[str, Any]] = {
    RANDOM: {"ls": "", "marker": "x", "ms": 6, "mew": 1.6, "color": "#555555", "zorder": 4},
    ZERO_SHOT: {"ls": "", "marker": "_", "ms": 17, "mew": 2.4, "color": style.BLACK, "zorder": 5},
    BEST_OF_N: {
        "ls": "",
        "marker": "D",
        "ms": 6,
        "color": style.PINK,
        "mec": "white",
        "zorder": 5,
    },
    PREDICTED: {
        "ls": "",
        "marker": "D",
        "ms": 6,
        "mfc": "none",
        "mec": style.PINK,
        "mew": 1.4,
        "zorder": 5,
    },
}

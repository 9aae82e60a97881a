"""Figure: paths through a maze before and after adaptation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle

from bfmpipe.report import style
from bfmpipe.report.rows import Columns, distinct, select

_BALL = 0.01  # radius in metres: walls stop the ball before its centre


@dataclass(frozen=True)
class Maze:
    """Geometry in metres.

    walls: boxes (x, y, half width, half height) inside the arena; reach: farthest that a centre
    gets along an axis; targets: task -> (x, y); radius: family -> radius of full reward. Tasks and
    families that are not in these have no target.
    """

    walls: Sequence[tuple[float, float, float, float]]
    reach: float
    targets: Mapping[str, tuple[float, float]]
    radius: Mapping[str, float]


@style.styled
def draw(
    trajectories: Columns,
    maze: Maze,
    *,
    method: str,
    seed: int,
    returns: Mapping[tuple[str, str, str], float],
) -> Figure:
    """Draw the paths of one run: for each family a row before and a row after, a column a task.

    Args:
        trajectories: the table of that name, of one run.
        maze: what to draw them in.
        method: what adapted.
        seed: of the run.
        returns: (family, task, phase) -> mean return over all evaluation episodes.
    """
    families = distinct(trajectories, "family")
    wide = max(len(distinct(select(trajectories, family=f), "task")) for f in families)
    figure = style.figure(0.8 + 2.1 * wide, 1.1 + 2.3 * 2 * len(families))
    grid = figure.subplots(2 * len(families), wide, squeeze=False)
    looks = {
        "before": (style.name("zero-shot"), style.GREY),
        "after": (f"after {style.name(method)}", style.colour(method)),
    }
    for i, (family, phase) in enumerate((f, p) for f in families for p in looks):
        name, colour = looks[phase]
        rows = select(trajectories, family=family, phase=phase)
        for j in range(wide):
            axes, tasks = grid[i, j], distinct(rows, "task")
            if j >= len(tasks):
                axes.set_visible(False)
                continue
            _arena(axes, maze, maze.targets.get(tasks[j]), maze.radius.get(family, 0.0))
            _paths(axes, select(rows, task=tasks[j]), colour)
            reached = returns.get((family, tasks[j], phase))
            title = style.words(tasks[j]) if phase == "before" else ""
            value = "" if reached is None else f"mean return {reached:.0f}"
            axes.set_title("\n".join(filter(None, (title, value))), fontsize=8.5)
        size = f" (target ±{100 * maze.radius[family]:.3g} cm)" if family in maze.radius else ""
        grid[i, 0].set_ylabel(f"{style.words(family)}{size}\n{name}", fontsize=9)
    side = f"{200 * (maze.reach + _BALL):.3g}"
    figure.suptitle(f"paths of the run with seed {seed}; arena {side} × {side} cm", fontsize=9.5)
    style.legend(figure, _handles(looks))
    return figure


def _arena(axes, maze: Maze, target: tuple[float, float] | None, radius: float) -> None:  # type: ignore[no-untyped-def]
    edge = maze.reach + _BALL
    axes.set_xlim(-edge, edge)
    axes.set_ylim(-edge, edge)
    axes.set_aspect("equal")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set(visible=True, color="#59626e", linewidth=2)
    for x, y, half_width, half_height in maze.walls:
        corner = (x - half_width, y - half_height)
        axes.add_patch(Rectangle(corner, 2 * half_width, 2 * half_height, color="#59626e", lw=0))
    if target is not None:
        axes.add_patch(Circle(target, radius, fc=style.GREEN, ec=style.GREEN, alpha=0.35, lw=0))
        axes.add_patch(Circle(target, radius, fc="none", ec=style.GREEN, lw=1.2, zorder=4))


def _paths(axes, rows: Columns, colour: str) -> None:  # type: ignore[no-untyped-def]
    for episode in distinct(rows, "episode"):
        x, y = select(rows, episode=episode)["physics"][:, :2].T
        axes.plot(x, y, color=colour, lw=1.1, alpha=0.8)
        axes.plot(x[0], y[0], "o", ms=3.5, mfc="white", mec=colour, mew=0.9, zorder=3)
        axes.plot(x[-1], y[-1], "o", ms=3.5, color=colour, mec="white", mew=0.4, zorder=5)


def _handles(looks: Mapping[str, tuple[str, str]]) -> list[Line2D]:
    handles = [Line2D([], [], color=colour, lw=1.5, label=name) for name, colour in looks.values()]
    points = (("white", style.BLACK, "start"), (style.BLACK, style.BLACK, "end of the episode"))
    for fill, edge, name in points:
        handles.append(Line2D([], [], ls="", marker="o", ms=4, mfc=fill, mec=edge, label=name))
    look: dict[str, Any] = {
        "ls": "",
        "marker": "o",
        "ms": 8,
        "mfc": "#009e7355",
        "mec": style.GREEN,
    }
    return [*handles, Line2D([], [], **look, label="target, true to scale")]

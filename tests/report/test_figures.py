import io
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from bfmpipe.report import (
    best_of_n,
    coverage_map,
    curves_aggregate,
    curves_per_task,
    improvement,
    style,
    tabulation,
    training,
    trajectories,
)

LEGEND = ["random policy", "zero-shot", "LoLA", "ReLA"]


def visible(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def line_of(axes, method):
    (line,) = [
        line
        for line in axes.get_lines()
        if line.get_color() == style.colour(method) and len(line.get_xdata()) > 2
    ]
    return line


def test_curves_per_task(tables):
    figure = curves_per_task.draw(tables["curves"], tables["best_of"])
    panels = visible(figure)
    titles = ["reach top left", "reach top right", "reach top left", "reach bottom right"]
    assert [axes.get_title() for axes in panels] == titles
    assert legend(figure) == LEGEND
    line = line_of(panels[1], "rela")
    np.testing.assert_array_equal(line.get_xdata(), [0, 2, 4, 6, 8])
    np.testing.assert_allclose(line.get_ydata(), 40.5 + np.array([0, -5, 10, 0, 10]))
    level = [line.get_ydata()[0] for line in panels[0].get_lines() if line.get_linestyle() == "--"]
    assert level == [60.5]
    (band,) = [c for c in panels[0].collections if same_colour(c, style.colour("lola"))]
    assert band.get_paths()[0].get_extents().ymax == 91  # the higher of two seeds
    assert panels[-1].get_xlabel() == "episodes spent"


def same_colour(artist, colour):
    return np.allclose(artist.get_facecolor()[0][:3], to_rgb(colour))


def test_many_tasks_wrap(make_adaptation, read):
    starts = {("walk", f"task_{i}"): 10.0 + i for i in range(6)}
    curves = read(tabulation.curves(make_adaptation(starts=starts)))
    figure = curves_per_task.draw(curves, {})
    assert len(visible(figure)) == 6
    assert "random policy" not in legend(figure)


def test_curves_aggregate(tables):
    figure = curves_aggregate.draw(tables["aggregate"], tables["summary"])
    assert [axes.get_title() for axes in figure.axes] == [
        "reach (2 tasks × 2 seeds)",
        "precise (2 tasks × 2 seeds)",
    ]
    assert legend(figure) == LEGEND
    line = line_of(figure.axes[0], "lola")
    np.testing.assert_allclose(line.get_ydata(), 50.5 + np.array([0, 10, 20, 20, 30]))
    (second,) = figure.axes[0].child_axes
    assert "environment steps" in second.get_xlabel()
    figure.draw_without_rendering()
    assert second.get_xlim()[1] == pytest.approx(
        figure.axes[0].get_xlim()[1] / 10
    )  # 100 a thousand


def test_improvement(tables):
    figure = improvement.draw(tables["summary"])
    (axes,) = figure.axes
    assert legend(figure) == ["LoLA", "ReLA", "best of N latents", "best of N by value"]
    heights = [bar.get_height() for bar in axes.containers[0]]
    np.testing.assert_allclose(heights, [100 * 30 / 50.5, 100 * 30 / 15.5])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["reach", "precise"]
    assert "+59 %" in [text.get_text() for text in axes.texts]


def test_best_of_n(tables):
    figure = best_of_n.draw(tables["probe"], tables["curves"], "lola")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "reach top left",
        "reach top right",
    ]
    dots = [line for line in axes.get_lines() if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [4] * 4  # two tasks, two seeds
    ends = [line.get_ydata()[0] for line in axes.get_lines() if line.get_marker() == "o"]
    assert ends == [90, 91, 70, 71]
    assert "each of the 4 latents" in legend(figure)
    assert "LoLA, at the end" in legend(figure)


def test_best_of_n_of_a_method_that_was_not_run(tables):
    figure = best_of_n.draw(tables["probe"], tables["curves"], "td3")
    assert not any("TD3" in text for text in legend(figure))


@pytest.fixture
def paths():
    rows = [
        (task, phase, episode, step)
        for task in ("reach_top_left", "reach_top_right")
        for phase in ("before", "after")
        for episode in range(3)
        for step in range(4)
    ]
    table = {
        name: np.array([row[i] for row in rows], dtype=object)
        for i, name in enumerate(("task", "phase", "episode", "step"))
    }
    table["family"] = np.array(["precise"] * len(rows), dtype=object)
    table["physics"] = np.array([(-0.2 + 0.01 * row[3], 0.2, 0, 0) for row in rows])
    return table


def test_trajectories(paths):
    maze = trajectories.Maze(
        walls=((0, 0, 0.18, 0.02), (0, 0, 0.02, 0.18)),
        reach=0.29,
        targets={"reach_top_left": (-0.15, 0.15), "reach_top_right": (0.15, 0.15)},
        radius={"precise": 0.015},
    )
    returns = {("precise", "reach_top_right", "after"): 123.4}
    figure = trajectories.draw(paths, maze, method="lola", seed=3, returns=returns)
    before, _, _, after = figure.axes
    lines = [line for line in before.get_lines() if len(line.get_xdata()) == 4]
    assert len(lines) == 3
    np.testing.assert_allclose(lines[0].get_xdata(), [-0.2, -0.19, -0.18, -0.17])
    target, _ = [patch for patch in after.patches if hasattr(patch, "radius")]
    assert (target.center, target.radius) == ((0.15, 0.15), 0.015)
    assert after.get_title() == "mean return 123"
    assert before.get_ylabel() == "precise (target ±1.5 cm)\nzero-shot"
    assert "seed 3; arena 60 × 60 cm" in figure.get_suptitle()
    assert len([p for p in before.patches if not hasattr(p, "radius")]) == 2


def test_training():
    update = np.arange(1, 6) * 1000
    losses = {
        seed: {"update": update, "fb_loss": -update / 10.0, "q": update + seed} for seed in (0, 1)
    }
    figure = training.draw(losses, {1: 3000})
    assert [axes.get_title() for axes in figure.axes] == ["fb loss", "q"]
    assert legend(figure) == ["seed 0", "seed 1", "divergence alarm"]
    curves = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 5]
    assert len(curves) == 2
    alarms = [
        line.get_xdata()[0] for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2
    ]
    assert alarms == [3]


@pytest.mark.parametrize("kind", ["png", "pdf"])
def test_files_are_reproducible(tables, kind, tmp_path):
    for name in ("a", "b"):
        style.save(improvement.draw(tables["summary"]), tmp_path / name, kind=kind)
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes()
    assert content.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[kind])
    assert b"CreationDate" not in content


def test_no_figure_changes_the_global_style(tables):
    before = dict(mpl.rcParams)
    improvement.draw(tables["summary"]).savefig(io.BytesIO())
    assert dict(mpl.rcParams) == before


def test_methods_unknown_to_the_style_have_one_colour_and_their_name():
    assert style.colour("new-method") == style.colour("new-method")
    assert style.name("new-method") == "new-method"
    assert style.ordered(["new-method", "td3", "zero-shot"]) == ["zero-shot", "td3", "new-method"]


def test_a_family_without_a_method_leaves_a_gap(tables):
    summary = tables["summary"]
    keep = ~((summary["family"] == "precise") & (summary["method"] == "rela"))
    figure = improvement.draw({name: column[keep] for name, column in summary.items()})
    heights = [bar.get_height() for bar in figure.axes[0].containers[1]]
    assert np.isnan(heights[1])
    assert not np.isnan(heights[0])


@dataclass
class Axis:
    name: str
    unit: str
    low: float
    high: float
    bins: int


@pytest.mark.parametrize("axes", [2, 3, 4])
def test_coverage_map(axes):
    cells = np.array([[0, 0, 0, 0], [1, 2, 1, 0], [1, 2, 0, 1], [1, 1, 1, 1]])[:, :axes]
    named = [Axis(f"a{i}", "m" if i else "", -1.0, 1.0, 2 + i) for i in range(axes)]
    table = {
        "source": np.array(["data"] * 3 + ["random"], dtype=object),
        "cell": cells,
        "visits": np.array([5, 2, 3, 10]),
        "first": np.array([0, 4, 7, 0]),
    }
    figure = coverage_map.draw(table, named)
    growth, bar = (next(a for a in figure.axes if name in a.get_ylabel()) for name in _SCALES)
    maps = [panel for panel in figure.axes if panel not in (growth, bar)]
    pairs = {2: 1, 3: 2, 4: 2}[axes]
    assert len(maps) == 2 * pairs
    titles = [panel.get_title(loc="left") for panel in maps[::pairs]]
    assert titles == ["the data set: 3 cells", "random actions: 1 cell"]
    # x is a0, y is a1; cells that were never visited are masked
    drawn = maps[0].collections[0].get_array().reshape(3, 2)
    assert drawn.filled(0).tolist() == [[5, 0], [0, 0], [0, 5]]
    assert maps[-1].get_xlabel() == {2: "a0", 3: "a1, m", 4: "a2, m"}[axes]
    data, random = growth.get_lines()
    assert data.get_ydata()[[0, 1, -1]].tolist() == [0, 1, 3]
    assert random.get_ydata()[-1] == 1
    assert data.get_xdata()[-1] == 0.01


_SCALES = ("cells visited", "states")

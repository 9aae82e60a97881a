import io
from dataclasses import dataclass
from functools import partial

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from bfmpipe.metrics.aggregate import cluster_bootstrap
from bfmpipe.report import (
    best_of_n,
    coverage_map,
    curves_aggregate,
    curves_per_task,
    diagnosis,
    evaluations,
    improvement,
    performance_profile,
    q_values,
    spectrum,
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


def test_a_single_seed_has_no_whiskers(make_adaptation, read):
    interval = partial(cluster_bootstrap, replicates=100)
    curves = read(tabulation.curves(make_adaptation(seeds=(0,))))
    summary = read(tabulation.summary(curves, {}, interval, 0.95))
    lola = summary["method"] == "lola"
    assert np.isfinite(summary["improvement"][lola]).all()
    assert np.isnan(summary["improvement_low"][lola]).all()
    (axes,) = visible(improvement.draw(summary))
    assert [text.get_text() for text in axes.texts] == ["+60 %", "+200 %", "+20 %", "+67 %"]


def test_performance_profile(tables):
    interval = partial(cluster_bootstrap, replicates=100)
    figure = performance_profile.draw(tables["curves"], interval)
    panels = visible(figure)
    assert [axes.get_title() for axes in panels] == ["reach", "precise"]
    assert legend(figure) == ["zero-shot", "LoLA", "ReLA"]
    line = line_of(panels[0], "lola")  # ends at 90, 91, 70, 71
    returns, share = line.get_xdata(), line.get_ydata()
    assert returns[0] == 0
    assert returns[-1] == 91
    for at, above in ((0, 1), (69, 1), (70.5, 0.75), (80, 0.5), (90.5, 0.25), (91, 0)):
        assert share[np.searchsorted(returns, at)] == above
    (band,) = [c for c in panels[0].collections if same_colour(c, style.colour("lola"))]
    vertices = band.get_paths()[0].vertices
    around = vertices[np.isclose(vertices[:, 0], 70.525, atol=0.3), 1]
    assert around.min() == 0.5  # both draws the seed of 70 and 90
    assert around.max() == 1  # both that of 71 and 91


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


def evaluated(seed):
    """Two tasks of reach and one of precise, twice; a value is 1 above its discounted return."""
    rows = [
        (update, family, task, size + update / 1000 + 2 * seed, got + 1, got)
        for update in (1000, 3000)
        for family, task, size in (
            ("reach", "top_left", 10.0),
            ("reach", "top_right", 30.0),
            ("precise", "top_left", 5.0),
        )
        for got in [size + seed + (update - 3000) / 1000]
    ]
    names = ("update", "family", "task", "mean", "q_predicted", "q_monte_carlo")
    table = {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}
    return {**table, "q_correlation": np.where(table["family"] == "reach", 0.25, np.nan)}


def drawn(axes, colour):
    return [line for line in axes.get_lines() if line.get_color() == colour]


def test_evaluations():
    figure = evaluations.draw({0: evaluated(0), 3: evaluated(1)}, {3: 2000})
    reach, precise = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["reach (2 tasks)", "precise (1 task)"]
    (first,) = drawn(reach, style.BLUE)
    np.testing.assert_allclose(first.get_xdata(), [1, 3])
    np.testing.assert_allclose(first.get_ydata(), [21, 23])  # mean of 10 and 30, and updates
    second, alarm = drawn(reach, style.ORANGE)
    np.testing.assert_allclose(second.get_ydata(), [23, 25])
    assert list(alarm.get_xdata()) == [2, 2]
    (mean,) = drawn(precise, style.BLACK)
    np.testing.assert_allclose(mean.get_ydata(), [7, 9])
    assert legend(figure) == ["seed 0", "seed 3", "mean over the seeds", "divergence alarm"]


def test_evaluations_of_one_seed_or_at_different_updates_have_no_mean():
    figure = evaluations.draw({0: evaluated(0)}, {})
    assert legend(figure) == ["seed 0"]
    later = {name: column[:3] for name, column in evaluated(1).items()}
    figure = evaluations.draw({0: evaluated(0), 1: later}, {})
    assert not drawn(figure.axes[0], style.BLACK)


def test_spectrum():
    table = {
        "update": np.array([1000, 3000]),
        "eigenvalues": np.array([[3.0, 1.0, 0.0], [2.0, 1.0, 0.5]]),
        "effective_rank": np.array([1.8, 2.6]),
    }
    only = {name: column[1:] for name, column in table.items()}
    figure = spectrum.draw({0: table, 1: only})
    (axes,) = figure.axes
    first, last = drawn(axes, style.BLUE)
    np.testing.assert_allclose(last.get_ydata(), [2, 1, 0.5])
    np.testing.assert_allclose(first.get_ydata(), [3, 1, 2e-8])  # zero cannot stand on the axis
    assert axes.get_yscale() == "log"
    assert len(drawn(axes, style.ORANGE)) == 1
    assert axes.get_title() == "features after 3,000 updates"
    assert legend(figure) == [
        "seed 0: effective rank 2.6 of 3",
        "seed 1: effective rank 2.6 of 3",
        "after 1,000 updates",
    ]


def test_q_values():
    figure = q_values.draw({0: evaluated(0), 1: evaluated(1)})
    reach, precise = figure.axes
    dots = [line for line in reach.get_lines() if len(line.get_xdata()) == 1]
    found = sorted((line.get_xdata()[0], line.get_ydata()[0]) for line in dots)
    assert found == [(10, 11), (11, 12), (30, 31), (31, 32)]  # of the last update only
    (identity,) = drawn(reach, style.GREY)
    np.testing.assert_array_equal(identity.get_xdata(), identity.get_ydata())
    assert reach.get_xlim() == reach.get_ylim()
    assert reach.get_title() == "reach\nrank correlation over starts 0.25"
    assert precise.get_title() == "precise"  # where it is not known, none is given
    assert legend(figure) == ["top left", "top right", "value = return"]


@pytest.fixture
def diagnosed(tables):
    """A row a task and seed, and of a task that was not adapted to."""
    keys = [("reach", "reach_top_left"), ("reach", "reach_top_right")]
    keys += [("precise", "reach_top_left"), ("precise", "reach_bottom_right"), ("far", "away")]
    rows = [(*key, seed, i / 10, 0.5, 2.0**i) for i, key in enumerate(keys) for seed in (0, 1)]
    names = ("family", "task", "seed", "residual", "mismatch", "q_scale")
    table = {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}
    unknown = np.where(table["task"] == "reach_top_left", np.nan, table["residual"])
    return {**table, "extrapolation": -table["residual"], "q_correlation": unknown}


@pytest.fixture
def gains(tables):
    """Curves in which LoLA's gain on precise/bottom_right is 50, else 30."""
    curves = {name: column.copy() for name, column in tables["curves"].items()}
    last = (curves["method"] == "lola") & (curves["task"] == "reach_bottom_right")
    curves["mean"][last & (curves["env_steps"] == curves["env_steps"].max())] += 20
    return curves


def test_what_was_said_beforehand_is_joined_with_the_gain(diagnosed, gains):
    found = diagnosis.joined(diagnosed, gains, "lola")
    assert (
        found["task"].tolist()
        == np.repeat(
            ["reach_top_left", "reach_top_right", "reach_top_left", "reach_bottom_right"], 2
        ).tolist()
    )
    assert found["seed"].tolist() == [0, 1] * 4
    assert found["zero_shot"].tolist() == [60, 61, 40, 41, 10, 11, 20, 21]
    assert found["gain"].tolist() == [30] * 6 + [50] * 2
    assert found["residual"].tolist() == [0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3]


def test_the_correlation_with_the_gain_is_that_of_ranks(diagnosed, gains):
    found = diagnosis.correlations(diagnosis.joined(diagnosed, gains, "lola"))
    # ranks 0.5, 2.5, 4.5, 6.5 (twice each) against 2.5 (six times) and 6.5 (twice), less 3.5
    rank = 2 * (3 + 1 - 1 + 9) / np.sqrt(2 * (9 + 1 + 1 + 9) * (6 + 2 * 9))
    assert found["residual"] == pytest.approx(rank)
    assert found["q_scale"] == pytest.approx(rank)
    assert found["extrapolation"] == pytest.approx(-rank)
    assert np.isnan(found["mismatch"])  # the same everywhere
    assert found["q_correlation"] == pytest.approx(1)  # of the two tasks where it is known


def test_diagnosis(diagnosed, gains):
    figure = diagnosis.draw(diagnosed, gains, "lola")
    titles = dict(zip(diagnosis.QUANTITIES, figure.axes, strict=True))
    residual = titles["residual"]
    dots = [line for line in residual.get_lines() if line.get_linestyle() == "None"]
    assert [list(line.get_xdata()) for line in dots] == [[0, 0, 0.1, 0.1], [0.2, 0.2, 0.3, 0.3]]
    assert [list(line.get_ydata()) for line in dots] == [[30] * 4, [30, 30, 50, 50]]
    assert residual.get_xlabel() == diagnosis.QUANTITIES["residual"]
    assert residual.get_title() == "rank correlation +0.77"
    assert titles["extrapolation"].get_title() == "rank correlation −0.77"
    assert titles["mismatch"].get_title() == "rank correlation unknown"
    assert titles["q_scale"].get_xscale() == "log"
    assert titles["extrapolation"].get_xscale() == "linear"
    assert figure.axes[0].get_ylabel() == "gain in return by LoLA"
    assert legend(figure) == ["reach", "precise"]


def test_returns_that_are_not_all_positive_have_no_logarithm(diagnosed, gains):
    diagnosed["q_scale"][0] = -1
    figure = diagnosis.draw(diagnosed, gains, "lola")
    figure.draw_without_rendering()
    assert figure.axes[list(diagnosis.QUANTITIES).index("q_scale")].get_xscale() == "linear"


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


def test_a_variant_stands_by_its_method():
    assert style.colour("lola-short") == style.colour("lola")
    assert style.name("lola-short") == "LoLA (short)"
    assert style.name("lola-a") == "LoLA-A"
    assert style.line("lola-short") != style.line("lola")
    names = ["rela", "lola-short", "lola", "zero-shot"]
    assert style.ordered(names) == ["zero-shot", "lola", "lola-short", "rela"]


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

import hashlib

import pytest

from bfmpipe.stages.plot import Plot, plot
from bfmpipe.types import UserError

FAMILIES = {
    "reach": {"names": ["reach_top_left"], "target_size": 0.05},
    "precise": {"names": ["reach_bottom_right"]},
}
INPUTS = (
    "curves",
    "aggregate",
    "summary",
    "best_of",
    "probe",
    "trajectories",
    "losses",
    "coverage",
)
CONFIG = Plot(domain="point_mass_maze", agent="fb", families=FAMILIES, dpi=40)


def inputs(results):
    return {name: results[name] for name in INPUTS}


def test_draws_every_figure_twice_alike(results, tmp_path):
    digests = []
    for attempt in ("a", "b"):
        plot(CONFIG, **inputs(results), figures=tmp_path / attempt)
        files = sorted((tmp_path / attempt).iterdir())
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files})
    names = (
        "best_of_n",
        "coverage",
        "curves_aggregate",
        "curves_per_task",
        "improvement",
        "training",
    )
    expected = {f"{name}.{kind}" for name in (*names, "trajectories") for kind in ("pdf", "png")}
    assert set(digests[0]) == expected
    assert digests[0] == digests[1]


def test_what_is_not_there_is_not_drawn(results, tmp_path):
    few = {**inputs(results), "probe": [], "trajectories": [], "losses": [], "coverage": []}
    plot(CONFIG, **few, figures=tmp_path / "few")
    assert {path.stem for path in (tmp_path / "few").iterdir()} == {
        "curves_aggregate",
        "curves_per_task",
        "improvement",
    }


def test_paths_of_a_users_tasks_are_drawn_without_a_target(results, tmp_path):
    own = {"names": ["reach_bottom_right"], "file": "my_tasks.py", "digest": "0"}
    cfg = CONFIG.model_copy(update={"families": {**FAMILIES, "precise": own}})
    few = {**inputs(results), "probe": [], "losses": []}
    plot(cfg, **few, figures=tmp_path)
    assert (tmp_path / "trajectories.png").exists()


def test_what_was_not_run_is_named(results, tmp_path):
    other = Plot(domain="walker", agent="fb", families={})
    with pytest.raises(UserError, match="holds nothing of walker with fb"):
        plot(other, **inputs(results), figures=tmp_path / "figures")
    other = CONFIG.model_copy(update={"method": "rela"})
    with pytest.raises(UserError, match="none of the 6 tables of trajectories is of rela"):
        plot(other, **inputs(results), figures=tmp_path / "figures")

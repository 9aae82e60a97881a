from functools import partial

import numpy as np
import pytest

from bfmpipe.metrics.aggregate import cluster_bootstrap
from bfmpipe.report import tabulation
from bfmpipe.report.rows import count, distinct, one, select
from bfmpipe.report.runs import gather
from bfmpipe.types import UserError

interval = partial(cluster_bootstrap, replicates=500)
REACH = {"domain": "maze", "agent": "fb", "family": "reach"}


def test_curves_reduce_the_paired_episodes(tables):
    run = select(tables["curves"], **REACH, task="reach_top_left", method="rela", seed=1)
    np.testing.assert_array_equal(run["mean"], [61, 56, 71, 61, 71])
    np.testing.assert_allclose(run["standard_error"], 1)  # of 60 and 62: sqrt(2) / sqrt(2)
    np.testing.assert_array_equal(run["evaluation"], range(5))
    np.testing.assert_array_equal(run["env_steps"], [0, 200, 400, 600, 800])
    np.testing.assert_array_equal(run["episodes"], [0, 2, 4, 6, 8])
    np.testing.assert_allclose(run["cosine"], [1, 0.9, 0.8, 0.7, 0.6])


def test_the_error_of_a_change_is_that_of_paired_episodes(make_adaptation, read):
    rows = make_adaptation(shapes={"zero-shot": [0, 1, 2]}, seeds=(0,))
    first, second, third = (np.flatnonzero(rows["env_steps"] == s) for s in (0, 200, 400))
    rows["returns"][first] = [0, 100]
    rows["returns"][second] = [5, 105]  # all changed alike
    rows["returns"][third] = [5, 111]  # by 0 and 6: sqrt(18 / 2) = 3
    mixed = {name: column[::-1] for name, column in rows.items()}
    run = select(read(tabulation.curves(mixed)), **REACH, task="reach_top_left")
    np.testing.assert_allclose(run["change_error"], [0, 0, 3])
    np.testing.assert_allclose(run["standard_error"], [50, 50, 53])


def test_curves_are_sorted_by_steps(make_adaptation, read):
    rows = make_adaptation()
    mixed = {name: column[::-1] for name, column in rows.items()}
    run = select(read(tabulation.curves(mixed)), **REACH, method="lola", seed=0)
    assert run["env_steps"].tolist() == [0, 200, 400, 600, 800] * 2


def test_the_same_point_twice_is_refused(make_adaptation):
    rows = make_adaptation()
    with pytest.raises(UserError, match="two evaluations at the same env_steps"):
        tabulation.curves({k: np.concatenate([v, v]) for k, v in rows.items()})


def test_a_single_evaluation_episode_has_no_error(make_adaptation):
    rows = make_adaptation()
    rows["returns"] = rows["returns"][:, :1]
    table = tabulation.curves(rows)
    assert set(table["standard_error"]) == set(table["change_error"]) == {0}


def test_aggregate_by_hand(tables):
    # Zero-shot runs 60, 61, 40, 41: the IQM is the mean of the middle two. Resampled, the middle
    # two go from (60, 40) to (61, 41), each end in 1/16 of the samples, more than 2.5 %.
    rows = select(tables["aggregate"], **REACH, method="lola")
    np.testing.assert_allclose(rows["iqm"], 50.5 + np.array([0, 10, 20, 20, 30]))
    np.testing.assert_allclose(rows["low"], 50 + np.array([0, 10, 20, 20, 30]))
    np.testing.assert_allclose(rows["high"], 51 + np.array([0, 10, 20, 20, 30]))
    np.testing.assert_array_equal(rows["env_steps"], [0, 200, 400, 600, 800])


def test_summary_by_hand(tables):
    lola = select(tables["summary"], **REACH, method="lola")
    expected = {
        "seeds": 2,
        "tasks": 2,
        "task_names": "reach_top_left, reach_top_right",
        "evaluation_episodes": 2,
        "env_steps": 800,
        "episodes": 8,
        "zero_shot_mean": 50.5,
        "zero_shot_iqm": 50.5,
        "zero_shot_low": 50,
        "zero_shot_high": 51,
        "final_mean": 80.5,
        "final_iqm": 80.5,
        "final_low": 80,
        "final_high": 81,
        "improvement": 100 * 30 / 50.5,
        "improvement_low": 100 * 30 / 50.5,  # both seeds gain 30
        "improvement_high": 100 * 30 / 50.5,
        "initial_drop": 0,
        "largest_drop": 0,
        "monotonicity": 1,
        "area_under_curve": 50.5 + (0 + 10 + 20 + 20) / 4,
        "cosine": 0.6,
        "improved": 1,
        "probability_of_improvement": 1,
    }
    for name, value in expected.items():
        found = one(lola, name)
        assert found == (value if isinstance(value, str) else pytest.approx(value)), name


def test_summary_of_a_method_that_falls(tables):
    rela = select(tables["summary"], **REACH, method="rela")
    # Down 5 at the end of the first quarter; two of four steps fall by more than the error of 1.
    assert one(rela, "initial_drop") == pytest.approx(100 * 5 / 50.5)
    assert one(rela, "monotonicity") == 0.5


def test_summary_of_what_has_no_curve(tables):
    zero_shot = select(tables["summary"], **REACH, method="zero-shot")
    assert one(zero_shot, "improvement") == 0
    assert one(zero_shot, "area_under_curve") == 50.5
    assert np.isnan(one(zero_shot, "monotonicity"))
    best = select(tables["summary"], **REACH, method="best-of-N")
    assert one(best, "final_mean") == 65  # 75 and 55
    assert one(best, "improvement") == pytest.approx(100 * 14.5 / 50.5)
    assert one(best, "episodes") == 4 * 3
    assert one(best, "env_steps") == 4 * 3 * 100
    predicted = select(tables["summary"], **REACH, method="best-of-N-by-value")
    assert one(predicted, "final_mean") == 45  # 55 and 35
    assert one(predicted, "episodes") == 0
    random = select(tables["summary"], **REACH, method="random")
    assert one(random, "final_iqm") == 1
    assert one(random, "improved") == 0


def test_half_of_the_runs_improve(make_adaptation, read):
    # Seed 1 gains 2, seed 0 loses 2: of the four pairs of seeds, (1, 0) and (1, 1) are won.
    rows = make_adaptation({"zero-shot": [0], "lola": [0, 0, 0]})
    change = np.where(rows["seed"] == 1, 2, -2) * (rows["env_steps"] == 400)
    rows["returns"] = rows["returns"] + change[:, None]
    table = read(tabulation.summary(read(tabulation.curves(rows)), {}, interval, 0.95))
    lola = select(table, **REACH, method="lola")
    assert one(lola, "improved") == 0.5
    assert one(lola, "probability_of_improvement") == 0.5


def test_best_of_by_hand(tables):
    rows = select(tables["best_of"], **REACH, task="reach_top_left")
    by_seed = {seed: select(rows, seed=seed) for seed in (0, 1)}
    # Latents 0, 60, 80, 5 beside zero-shot 60 (a tie) and 61.
    assert [one(by_seed[seed], "percentile") for seed in (0, 1)] == [62.5, 75]
    assert [one(by_seed[seed], "rank") for seed in (0, 1)] == [2, 2]
    assert one(by_seed[1], "zero_shot") == 61
    assert (one(by_seed[0], "random"), one(by_seed[0], "best")) == (1, 75)
    assert one(by_seed[0], "predicted") == 55
    # ranks 0, 3, 2, 1 of the values and 0, 2, 3, 1 of the returns: 1 - 6 * 2 / (4 * 15)
    assert one(by_seed[0], "value_correlation") == pytest.approx(0.8)
    assert one(by_seed[0], "latents") == 4


def test_order_is_that_of_the_configuration(tables):
    assert distinct(tables["summary"], "family") == ["reach", "precise"]
    reach = select(tables["summary"], **REACH)
    probed = ["random", "best-of-N", "best-of-N-by-value"]
    assert distinct(reach, "method") == ["zero-shot", "lola", "rela", *probed]


def test_without_probes(tables):
    table = tabulation.summary(tables["curves"], {}, interval, 0.95)
    assert set(table["method"]) == {"zero-shot", "lola", "rela"}
    assert count(tabulation.best_of(tables["curves"], {})) == 0


def test_runs_with_other_points_are_interpolated(tables):
    curves = select(tables["curves"], **REACH, method="lola")
    sparse = ~((curves["seed"] == 0) & np.isin(curves["env_steps"], [200, 600]))
    rows = {name: column[sparse] for name, column in curves.items()}
    runs = gather(rows, **REACH, method="lola")
    assert runs.env_steps.tolist() == [0, 400, 800]
    np.testing.assert_allclose(runs.mean[:, 0], [[60, 80, 90], [61, 81, 91]])


def test_a_missing_run_is_named(tables):
    curves = tables["curves"]
    gone = (curves["method"] == "lola") & (curves["seed"] == 0) & (curves["family"] == "reach")
    one_task = gone & (curves["task"] == "reach_top_left")
    rows = {name: column[~one_task] for name, column in curves.items()}
    with pytest.raises(UserError, match="task reach_top_left was not run with seed 0"):
        tabulation.aggregate(rows, interval)
    rows = {name: column[~gone] for name, column in curves.items()}
    with pytest.raises(UserError, match=r"lola was run with seeds \[1\]"):
        tabulation.summary(rows, {}, interval, 0.95)
    rows = {name: column[curves["method"] == "lola"] for name, column in curves.items()}
    with pytest.raises(UserError, match="no runs of maze, fb, reach, zero-shot"):
        tabulation.summary(rows, {}, interval, 0.95)


def test_a_probe_of_other_seeds_is_refused(tables, make_probe):
    with pytest.raises(UserError, match="differ, for instance in reach_top_left with seed 2"):
        tabulation.summary(tables["curves"], make_probe(seeds=(0, 1, 2)), interval, 0.95)

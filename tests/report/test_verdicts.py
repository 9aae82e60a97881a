"""Verdicts on curves made so that each figure is known by hand."""

import numpy as np
import pytest
from scipy import stats

from bfmpipe.report.runs import gather
from bfmpipe.report.timing import Job
from bfmpipe.report.verdicts import Claims, largest_fall, verdicts
from bfmpipe.types import UserError

PLACE = {"domain": "maze", "agent": "fb", "family": "reach"}
SHAPES = {  # added to zero-shot's 100 and 200, at 0, 10, .. 40 steps
    "zero-shot": [0],
    "lola": [0, 10, 20, 15, 30],
    "rela": [0, -15, 5, 10, 15],
    "td3": [0, -60, -30, 0, -75],
}
ERROR = 1.0  # of a run's change since the evaluation before


def curves():
    rows = []
    for method, shape in SHAPES.items():
        for seed in (0, 1):
            for task, start in (("a", 100.0), ("b", 200.0)):
                for i, added in enumerate(shape):
                    rows.append((method, seed, task, 10 * i, i / 2, start + added, ERROR, 1.0))
    names = ("method", "seed", "task", "env_steps", "episodes", "mean", "change_error", "cosine")
    table = {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}
    table |= {name: np.array([value] * len(rows)) for name, value in PLACE.items()}
    return {**table, "standard_error": table["change_error"]}


def best_of():
    rows = [(t, s, best) for t, best in (("a", 130.0), ("b", 200.0)) for s in (0, 1)]
    table = {n: np.array([r[i] for r in rows]) for i, n in enumerate(("task", "seed", "best"))}
    return {**table, **{name: np.array([value] * 4) for name, value in PLACE.items()}}


def judge(jobs=(), **claim):
    claims = Claims(claims={"one": {"statement": "it holds", **claim}})
    parsed = claims.parsed(tuple(SHAPES), "claims.yaml")
    table = verdicts(parsed, curves(), best_of(), list(jobs), 0.95)
    (held,), (figure,), (low,) = table["held"], table["figure"], table["low"]
    return held, figure, low


@pytest.mark.parametrize(
    ("claim", "held", "figure"),
    [
        ({"kind": "gain", "method": "lola", "bar": 10.0}, True, 20),
        ({"kind": "gain", "method": "lola", "bar": 20.1}, False, 20),
        ({"kind": "gain", "method": "td3"}, False, -50),
        # a fall of 5 of the mean of four runs, each change of error 1: sqrt(1 / 4) is its error
        ({"kind": "monotone", "method": "lola", "bar": 11.0}, True, 10),
        ({"kind": "monotone", "method": "lola", "bar": 9.0}, False, 10),
        ({"kind": "no_drop", "method": "lola", "bar": 3.0}, True, 0),
        ({"kind": "no_drop", "method": "rela", "bar": 3.0}, False, 10),
        ({"kind": "drop", "method": "td3", "bar": 20.0}, True, 40),
        ({"kind": "drop", "method": "td3", "bar": 50.0, "within": 1.0}, True, 50),
        ({"kind": "drop", "method": "td3", "bar": 50.0, "within": 0.9}, False, 40),
        ({"kind": "smaller_drop", "method": "rela", "than": "td3", "bar": 0.5}, True, 0.25),
        ({"kind": "smaller_drop", "method": "rela", "than": "td3", "bar": 0.2}, False, 0.25),
        ({"kind": "better", "method": "lola", "than": "rela"}, True, 10),
        ({"kind": "better", "method": "rela", "than": "lola"}, False, -10),
        # means over the budget: (0 + 10 + 20 + 15) / 4 and (0 - 15 + 5 + 10) / 4
        ({"kind": "area", "method": "lola", "than": "rela"}, True, 100 * 11.25 / 150),
        ({"kind": "best_of_n"}, True, 10),
    ],
)
def test_figures_by_hand(claim, held, figure):
    found = judge(**claim)
    assert found[0] == held
    assert found[1] == pytest.approx(figure)


def test_intervals_are_students_over_seeds_each_with_its_tasks():
    table = curves()
    later = (table["method"] == "lola") & (table["seed"] == 1) & (table["env_steps"] == 40)
    table["mean"] = table["mean"] + 12.0 * later  # seed 0 gains 30 and seed 1 gains 42
    claims = Claims(claims={"one": {"statement": "s", "kind": "gain", "method": "lola"}})
    found = verdicts(claims.parsed(("lola",), ""), table, best_of(), [], 0.9)
    reach = stats.t.ppf(0.95, 1) * 12 / np.sqrt(2) / np.sqrt(2)
    assert found["figure"] == pytest.approx([100 * 36 / 150])
    assert found["low"] == pytest.approx([100 * (36 - reach) / 150])
    assert found["high"] == pytest.approx([100 * (36 + reach) / 150])
    assert (found["held"], found["verdict"]) == ([False], ["not held"])


@pytest.mark.parametrize("kind", ["gain", "better", "best_of_n", "monotone"])
def test_of_one_seed_it_is_not_known_whether_an_interval_lies_above_a_bar(kind):
    alone = {name: column[curves()["seed"] == 0] for name, column in curves().items()}
    best = {name: column[best_of()["seed"] == 0] for name, column in best_of().items()}
    methods = {"best_of_n": {}, "better": {"method": "lola", "than": "td3"}}
    claim = {"statement": "s", "kind": kind, **methods.get(kind, {"method": "lola"})}
    claim |= {"bar": 100} if kind == "monotone" else {}
    parsed = Claims(claims={"one": claim}).parsed(("lola", "td3"), "")
    found = verdicts(parsed, alone, best, [], 0.9)
    assert np.isfinite(found["figure"]).all()
    assert found["verdict"] == (["held"] if kind == "monotone" else ["not known"])


def test_compute_is_the_ratio_of_cpu_times():
    jobs = [
        Job(wall=5.0, cpu=cpu, memory=100.0, rule="adapt", name=f"maze-fb{seed}-{method}")
        for method, times in (
            ("lola", {"-seed0": 1.0, "-seed1": 3.0}),
            ("rela", {"": 80.0}),  # both seeds in one job
        )
        for seed, cpu in times.items()
    ]
    claim = {"kind": "compute", "method": "lola", "than": "rela"}
    assert judge(jobs, **claim, bar=20.0)[:2] == (True, 20.0)
    assert judge(jobs, **claim, bar=100.0)[:2] == (False, 20.0)


def test_compute_without_costs_says_so():
    with pytest.raises(UserError, match="what lola cost on maze, fb is not known"):
        judge(kind="compute", method="lola", than="rela", bar=1.0)


@pytest.mark.parametrize(("fall", "found"), [(0.7, 0), (0.8, 1.6)])
def test_a_fall_of_less_than_half_a_percent_is_none(fall, found):
    table = curves()
    table["mean"] = np.where(
        (table["method"] == "lola") & (table["env_steps"] > 0),
        table["mean"] // 100 * 100 - fall,
        table["mean"],
    )
    runs = gather(table, **PLACE, method="lola")
    assert largest_fall(runs, 0.75) == pytest.approx(found)


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ({"kind": "gain", "method": "lolo"}, "the method lolo is not run; there are zero-shot"),
        ({"kind": "gain"}, "claims.one: gain needs 'method'"),
        ({"kind": "better", "method": "lola"}, "better needs 'than'"),
        ({"kind": "wins", "method": "lola"}, "claims.one.kind: 'wins' is not a choice"),
        ({"kind": "gain", "method": "lola", "low": 3}, "claims.one.low is not a setting"),
        ({"kind": "gain", "method": "lola", "than": "td3"}, "gain does not read 'than'"),
        ({"kind": "gain", "method": "lola", "within": 0.5}, "gain does not read 'within'"),
        ({"kind": "best_of_n", "method": "lola"}, "best_of_n does not read 'method'"),
        ({"kind": "drop", "method": "lola"}, "drop needs a 'bar' above 0"),
        (
            {"kind": "compute", "method": "lola", "than": "td3"},
            "compute needs a 'bar' above 0",
        ),
    ],
)
def test_wrong_claims_are_one_sentence(claim, said):
    with pytest.raises(UserError) as caught:
        judge(**claim)
    assert said in str(caught.value)
    assert str(caught.value).startswith("claims.yaml: ")

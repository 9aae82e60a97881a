"""Verdicts on curves made so that each figure is known by hand."""

from functools import partial

import numpy as np
import pytest

from bfmpipe.metrics.aggregate import stratified_bootstrap
from bfmpipe.report.verdicts import Claims, verdicts
from bfmpipe.types import UserError

PLACE = {"domain": "maze", "agent": "fb", "family": "reach"}
INTERVAL = partial(stratified_bootstrap, confidence=0.95, replicates=200, seed=0)
SHAPES = {  # added to zero-shot's 100 and 200, at 0, 10, .. 40 steps
    "zero-shot": [0],
    "lola": [0, 10, 20, 15, 30],
    "rela": [0, -15, 5, 10, 15],
    "td3": [0, -60, -30, 0, -75],
}
ERROR = 1.0


def curves():
    rows = []
    for method, shape in SHAPES.items():
        for seed in (0, 1):
            for task, start in (("a", 100.0), ("b", 200.0)):
                for i, added in enumerate(shape):
                    rows.append((method, seed, task, 10 * i, i / 2, start + added, ERROR, 1.0))
    names = ("method", "seed", "task", "env_steps", "episodes", "mean", "standard_error", "cosine")
    table = {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}
    table |= {name: np.array([value] * len(rows)) for name, value in PLACE.items()}
    return table


def best_of():
    rows = [(t, s, best) for t, best in (("a", 130.0), ("b", 200.0)) for s in (0, 1)]
    table = {n: np.array([r[i] for r in rows]) for i, n in enumerate(("task", "seed", "best"))}
    return {**table, **{name: np.array([value] * 4) for name, value in PLACE.items()}}


def judge(tmp_path, **claim):
    claims = Claims(claims={"one": {"statement": "it holds", **claim}})
    parsed = claims.parsed(tuple(SHAPES), "claims.yaml")
    table = verdicts(parsed, curves(), best_of(), tmp_path, INTERVAL)
    (held,), (figure,), (low,) = table["held"], table["figure"], table["low"]
    return held, figure, low


@pytest.mark.parametrize(
    ("claim", "held", "figure"),
    [
        ({"kind": "gain", "method": "lola", "bar": 10.0}, True, 20),
        ({"kind": "gain", "method": "lola", "bar": 20.1}, False, 20),
        ({"kind": "gain", "method": "td3"}, False, -50),
        # a fall of 5 of the mean of four runs of standard error 1: sqrt(2 / 4) is its error
        ({"kind": "monotone", "method": "lola", "bar": 8.0}, True, 5 / np.sqrt(0.5)),
        ({"kind": "monotone", "method": "lola", "bar": 7.0}, False, 5 / np.sqrt(0.5)),
        ({"kind": "no_drop", "method": "lola", "bar": 3.0}, True, 0),
        ({"kind": "no_drop", "method": "rela", "bar": 3.0}, False, 10),
        ({"kind": "drop", "method": "td3", "bar": 20.0}, True, 40),
        ({"kind": "drop", "method": "td3", "bar": 50.0, "within": 1.0}, True, 50),
        ({"kind": "drop", "method": "td3", "bar": 50.0, "within": 0.9}, False, 40),
        ({"kind": "smaller_drop", "method": "rela", "than": "td3", "bar": 0.5}, True, 0.25),
        ({"kind": "smaller_drop", "method": "rela", "than": "td3", "bar": 0.2}, False, 0.25),
        ({"kind": "better", "method": "lola", "than": "rela"}, True, 10),
        ({"kind": "better", "method": "rela", "than": "lola"}, False, -10),
        # means over the budget: (0 / 2 + 10 + 20 + 15 + 30 / 2) / 4 and (-15 + 5 + 10 + 7.5) / 4
        ({"kind": "area", "method": "lola", "than": "rela"}, True, 100 * (15 - 1.875) / 150),
        ({"kind": "best_of_n"}, True, 10),
    ],
)
def test_figures_by_hand(tmp_path, claim, held, figure):
    found = judge(tmp_path, **claim)
    assert found[0] == held
    assert found[1] == pytest.approx(figure)


def test_compute_is_the_ratio_of_mean_cpu_times(tmp_path):
    for method, times in (("lola", (1.0, 3.0)), ("rela", (30.0, 50.0))):
        for seed, cpu in enumerate(times):
            path = tmp_path / "adapt" / f"maze-fb-seed{seed}-{method}.tsv"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"s\tcpu_time\tmax_rss\n5\t{cpu}\t100\n")
    claim = {"kind": "compute", "method": "lola", "than": "rela"}
    assert judge(tmp_path, **claim, bar=20.0)[:2] == (True, 20.0)
    assert judge(tmp_path, **claim, bar=100.0)[:2] == (False, 20.0)


def test_compute_without_benchmark_files_says_so(tmp_path):
    with pytest.raises(UserError, match="no benchmark files of lola on maze, fb"):
        judge(tmp_path, kind="compute", method="lola", than="rela")


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ({"kind": "gain", "method": "lolo"}, "the method lolo is not run; there are zero-shot"),
        ({"kind": "gain"}, "claims.one: gain needs 'method'"),
        ({"kind": "better", "method": "lola"}, "better needs 'than'"),
        ({"kind": "wins", "method": "lola"}, "claims.one.kind: 'wins' is not a choice"),
        ({"kind": "gain", "method": "lola", "low": 3}, "claims.one.low is not a setting"),
    ],
)
def test_wrong_claims_are_one_sentence(tmp_path, claim, said):
    with pytest.raises(UserError) as caught:
        judge(tmp_path, **claim)
    assert said in str(caught.value)
    assert str(caught.value).startswith("claims.yaml: ")

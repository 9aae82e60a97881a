"""Stage judge: a verdict a claim and family, from the tables alone; its figures are known by hand.

A run starts at 60 + seed (reach) or 20 + seed (precise); LoLA adds 10, 20, 20, 30.
"""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from bfmpipe.config import parse
from bfmpipe.data.tables import read_table
from bfmpipe.stages.judge import Judge, judge
from bfmpipe.types import UserError

NUMBER = pa.float64()
KINDS = {
    **dict.fromkeys(("domain", "agent", "family", "claim", "statement", "kind"), pa.string()),
    **dict.fromkeys(("bar", "figure", "low", "high"), NUMBER),
    "held": pa.bool_(),
    "verdict": pa.string(),
}
GAIN = {"kind": "gain", "statement": "LoLA gains.", "method": "lola", "bar": 100}
SAFE = {"kind": "no_drop", "statement": "TD3 does not drop.", "method": "td3", "bar": 20}


@pytest.fixture
def verdicts(results, tmp_path):
    def run(claims, **settings):
        settings = {"claims": claims, **settings}
        cfg = parse(Judge, settings, "cfg")
        path = tmp_path / "verdicts.parquet"
        judge(
            cfg,
            curves=results["curves"],
            best_of=results["best_of"],
            benchmarks=tmp_path / "benchmarks",
            verdicts=path,
        )
        return read_table(path, "verdicts")[0]

    return run


def test_every_claim_is_held_against_every_family(verdicts, capsys):
    table = verdicts({"gain": GAIN, "safe": SAFE})
    rows = list(zip(*(table[n] for n in ("family", "claim", "bar", "held")), strict=True))
    assert rows == [
        ("reach", "gain", 100, False),
        ("reach", "safe", 20, True),
        ("precise", "gain", 100, True),
        ("precise", "safe", 20, False),
    ]
    expected = [100 * 30 / 60.5, 100 * 10 / 60.5, 100 * 30 / 20.5, 100 * 10 / 20.5]
    assert table["figure"].tolist() == pytest.approx(expected)
    assert table["statement"].tolist() == ["LoLA gains.", "TD3 does not drop."] * 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "NOT held  gain, point_mass_maze, fb, reach: 49.6 [49.6, 49.6] (bar 100)"
    assert lines[2] == "held      gain, point_mass_maze, fb, precise: 146 [146, 146] (bar 100)"


def test_intervals_are_students_of_the_seeds(verdicts):
    # LoLA gains 30 with either seed; the best latent 15 over the one, 14 over the other
    best = {"kind": "best_of_n", "statement": "s"}
    table = verdicts({"best": best, "gain": GAIN}, confidence=0.9)
    reach = stats.t.ppf(0.95, 1) * 0.5
    assert table["claim"].tolist()[:2] == ["best", "gain"]
    assert table["low"][0] == pytest.approx(100 * (14.5 - reach) / 60.5)
    assert table["high"][0] == pytest.approx(100 * (14.5 + reach) / 60.5)
    assert (table["low"][1], table["high"][1]) == pytest.approx([100 * 30 / 60.5] * 2)


@pytest.mark.parametrize("claims", [{}, {"gain": GAIN}])
def test_the_file_has_the_declared_schema_and_provenance(verdicts, tmp_path, claims):
    table = verdicts(claims, confidence=0.9)
    assert len(table["claim"]) == 2 * len(claims)
    expected = pa.schema([pa.field(k, v, nullable=False) for k, v in KINDS.items()])
    assert pq.read_schema(tmp_path / "verdicts.parquet").remove_metadata().equals(expected)
    _, origin = read_table(tmp_path / "verdicts.parquet", "verdicts")
    used = {"claims": claims, "confidence": 0.9, "seeds_together": False}
    assert origin.settings == used


def test_costs_are_read_from_the_benchmarks(verdicts, tmp_path):
    claim = {"kind": "compute", "statement": "c", "method": "lola", "than": "td3", "bar": 10}
    for method, cpu in (("lola", 2), ("td3", 30)):
        for name, spent in (
            (f"seed0-{method}", cpu),
            (f"seed1-{method}", cpu),
            (f"seed2-{method}", 99),  # of a seed that has gone
            (method, 70),  # of when a job had all seeds
        ):
            path = tmp_path / "benchmarks" / "adapt" / f"point_mass_maze-fb-{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"wall": 5, "cpu": spent, "memory": 100}))
    table = verdicts({"cheap": claim})
    assert (table["figure"].tolist(), table["held"].tolist()) == ([15, 15], [True, True])
    table = verdicts({"cheap": {**claim, "bar": 1}}, seeds_together=True)
    assert table["figure"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ({**GAIN, "method": "rela"}, "claims.one: the method rela is not run; there are "),
        (
            {**GAIN, "kind": "better", "than": "rela"},
            "claims.one: the method rela is not run; there are ",
        ),
        ({**GAIN, "statment": "x"}, "claims.one.statment is not a setting; did you mean statement"),
        ({"kind": "best_of_n"}, "claims.one.statement is missing"),
    ],
)
def test_a_wrong_claim_is_one_sentence_and_nothing_is_written(
    verdicts, results, tmp_path, claim, said
):
    with pytest.raises(UserError) as caught:
        verdicts({"one": claim})
    assert str(caught.value).startswith(f"{results['curves']}: {said}")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "verdicts.parquet").exists()

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bfmpipe.data.tables import read_table
from bfmpipe.stages.tabulate import SCHEMAS, Tabulate, tabulate
from bfmpipe.types import UserError

NAMES = ("curves", "aggregate", "summary", "best_of")


def test_tables_have_their_schemas_and_kinds(results):
    for name in NAMES:
        schema = pq.read_schema(results[name])
        assert dict(zip(schema.names, schema.types, strict=True)) == SCHEMAS[name], name
        _, provenance = read_table(results[name], name)
        assert provenance.settings == {"confidence": 0.95, "replicates": 200, "seed": 0}


def test_numbers_arrive(results):
    summary, _ = read_table(results["summary"], "summary")
    rows = {
        (family, method): i
        for i, (family, method) in enumerate(zip(summary["family"], summary["method"], strict=True))
    }
    assert len(rows) == 2 * 6
    lola, td3 = rows["reach", "lola"], rows["reach", "td3"]
    assert summary["final_mean"][lola] == 90.5
    assert summary["improvement"][lola] == pytest.approx(100 * 30 / 60.5)
    assert summary["initial_drop"][td3] == pytest.approx(100 * 10 / 60.5)
    assert len(read_table(results["curves"], "curves")[0]["mean"]) == 2 * 2 * (1 + 5 + 5)
    assert len(read_table(results["aggregate"], "aggregate")[0]["iqm"]) == 2 * (1 + 5 + 5)
    assert len(read_table(results["best_of"], "best_of")[0]["rank"]) == 2 * 2


def test_the_same_inputs_give_the_same_bytes(runs, tmp_path):
    digests = []
    for attempt in ("a", "b"):
        tables = {name: tmp_path / attempt / name for name in NAMES}
        tabulate(
            Tabulate(replicates=50), adaptation=runs["adaptation"], probe=runs["probe"], **tables
        )
        digests.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in tables.values()])
    assert digests[0] == digests[1]


def test_without_probes_there_is_no_best_of_n(runs, tmp_path):
    tables = {name: tmp_path / name for name in NAMES}
    tabulate(Tabulate(replicates=50), adaptation=runs["adaptation"], probe=[], **tables)
    assert len(read_table(tables["best_of"], "best_of")[0]["rank"]) == 0
    assert "random" not in read_table(tables["summary"], "summary")[0]["method"]


def test_bad_inputs_are_named(runs, tmp_path):
    tables = {name: tmp_path / name for name in NAMES}
    with pytest.raises(UserError, match="nothing to tabulate"):
        tabulate(Tabulate(), adaptation=[], probe=[], **tables)
    with pytest.raises(UserError, match="a table of probe; expected a table of adaptation"):
        tabulate(Tabulate(), adaptation=runs["probe"], probe=[], **tables)
    other = _with_three_episodes(runs["adaptation"][0], tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"other\.parquet: 3 evaluation episodes, but .* has 2"):
        tabulate(Tabulate(), adaptation=[*runs["adaptation"], other], probe=[], **tables)
    assert not any(path.exists() for path in tables.values())


def _with_three_episodes(path, other):
    table = pq.read_table(path)
    returns = pa.FixedSizeListArray.from_arrays(pa.array([1.0] * 3 * len(table)), 3)
    table = table.set_column(table.schema.get_field_index("returns"), "returns", returns)
    pq.write_table(table, other)
    return other

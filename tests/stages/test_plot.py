import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bfmpipe.data.tables import read_table, write_table
from bfmpipe.stages.plot import Plot, plot
from bfmpipe.stages.pretrain import EVALUATION_KINDS
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
    "evaluations",
    "spectrum",
    "diagnosis",
    "coverage",
)
TRAINING = {"losses": [], "evaluations": [], "spectrum": []}
NONE = {"probe": [], "trajectories": [], "coverage": [], "diagnosis": [], **TRAINING}
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
        "diagnosis",
        "evaluations",
        "improvement",
        "performance_profile",
        "q_values",
        "spectrum",
        "training",
    )
    expected = {f"{name}.{kind}" for name in (*names, "trajectories") for kind in ("pdf", "png")}
    assert set(digests[0]) == expected
    assert digests[0] == digests[1]


def test_what_is_not_there_is_not_drawn(results, tmp_path):
    plot(CONFIG, **{**inputs(results), **NONE}, figures=tmp_path / "few")
    assert {path.stem for path in (tmp_path / "few").iterdir()} == {
        "curves_aggregate",
        "curves_per_task",
        "improvement",
        "performance_profile",
    }


def test_paths_of_a_users_tasks_are_drawn_without_a_target(results, tmp_path):
    own = {"names": ["reach_bottom_right"], "file": "my_tasks.py", "digest": "0"}
    cfg = CONFIG.model_copy(update={"families": {**FAMILIES, "precise": own}})
    few = {**inputs(results), **NONE, "trajectories": results["trajectories"]}
    plot(cfg, **few, figures=tmp_path)
    assert (tmp_path / "trajectories.png").exists()


def test_paths_are_those_of_the_method_by_its_own_name(results, variant, tmp_path):
    few = {**inputs(results), **NONE, "trajectories": [variant]}
    with pytest.raises(UserError, match="none of the 1 tables of trajectories is of lola"):
        plot(CONFIG, **few, figures=tmp_path)
    few["trajectories"] += results["trajectories"]
    with pytest.raises(UserError, match=r"none of the 7 tables of trajectories is of lola-shor$"):
        plot(CONFIG.model_copy(update={"method": "lola-shor"}), **few, figures=tmp_path)
    plot(CONFIG.model_copy(update={"method": "lola-short"}), **few, figures=tmp_path)
    assert (tmp_path / "trajectories.png").exists()


def test_zero_shot_gains_nothing_that_could_be_foretold(results, tmp_path):
    few = {**inputs(results), **NONE, "diagnosis": results["diagnosis"]}
    plot(CONFIG.model_copy(update={"method": "zero-shot"}), **few, figures=tmp_path)
    assert not (tmp_path / "diagnosis.png").exists()


def test_what_was_not_run_is_named(results, tmp_path):
    other = Plot(domain="walker", agent="fb", families={})
    with pytest.raises(UserError, match="holds nothing of walker with fb"):
        plot(other, **inputs(results), figures=tmp_path / "figures")
    other = CONFIG.model_copy(update={"method": "rela"})
    with pytest.raises(UserError, match="none of the 6 tables of trajectories is of rela"):
        plot(other, **inputs(results), figures=tmp_path / "figures")


def test_a_model_evaluated_at_the_end_only_has_no_curve_of_its_training(results, tmp_path):
    files = {**inputs(results), **NONE, **{kind: results[kind] for kind in TRAINING}}
    for i, path in enumerate(files["evaluations"]):
        columns, origin = read_table(path, "evaluations")
        last = columns["update"] == columns["update"].max()
        shape = pa.schema([pa.field(n, k, nullable=False) for n, k in EVALUATION_KINDS.items()])
        files["evaluations"][i] = tmp_path / f"{i}.parquet"
        write_table(
            tmp_path / f"{i}.parquet", shape, {n: c[last] for n, c in columns.items()}, origin
        )
    plot(CONFIG, **files, figures=tmp_path / "figures")
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"q_values", "spectrum", "training"} <= drawn
    assert "evaluations" not in drawn


def test_tables_of_another_training_are_not_drawn(results, tmp_path):
    files = {**inputs(results), **NONE, **{kind: results[kind] for kind in TRAINING}}
    for kind in TRAINING:
        for i, path in enumerate(files[kind]):
            table = pq.read_table(path)
            origin = json.loads(table.schema.metadata[b"bfmpipe"])
            origin["settings"]["agent"]["name"] = "hilp"
            files[kind][i] = tmp_path / f"{kind}-{i}.parquet"
            metadata = {b"bfmpipe": json.dumps(origin).encode()}
            pq.write_table(table.replace_schema_metadata(metadata), files[kind][i])
    plot(CONFIG, **files, figures=tmp_path / "figures")
    drawn = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert not drawn & {"evaluations", "q_values", "spectrum", "training"}


def test_a_diagnosis_of_another_model_is_not_drawn(results, tmp_path):
    files = {**inputs(results), **NONE, "diagnosis": []}
    for i, path in enumerate(results["diagnosis"]):
        columns, origin = read_table(path, "diagnosis")
        columns["agent"][:] = "hilp"
        files["diagnosis"].append(tmp_path / f"{i}.parquet")
        write_table(files["diagnosis"][i], pq.read_schema(path), columns, origin)
    plot(CONFIG, **files, figures=tmp_path / "figures")
    assert not (tmp_path / "figures" / "diagnosis.png").exists()

"""The whole pipeline on configs/smoke.yaml."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bfmpipe import experiment
from bfmpipe.adaptation.diagnosis import Diagnosis
from bfmpipe.agents import load_model
from bfmpipe.data import transitions
from bfmpipe.data.tables import read_table
from bfmpipe.stages import coverage
from bfmpipe.stages.pretrain import EVALUATION_KINDS
from bfmpipe.stages.tabulate import SCHEMAS

pytestmark = pytest.mark.slow

TEXT, NUMBER = pa.string(), pa.float64()
LATENT = pa.list_(pa.float32(), 8)
NAMES = ("domain", "agent", "method", "seed", "family", "task")
KINDS = {
    "latents": {"family": TEXT, "task": TEXT, "w": LATENT, "z": LATENT},
    "losses": {
        "update": pa.int64(),
        **dict.fromkeys(("fb_loss", "forward_norm", "ortho_loss", "q"), NUMBER),
        "alarm": pa.bool_(),
    },
    "evaluations": EVALUATION_KINDS,
    "spectrum": {
        "update": pa.int64(),
        "eigenvalues": pa.list_(NUMBER, 8),
        "effective_rank": NUMBER,
    },
    "probe": {
        **dict.fromkeys(("domain", "agent"), TEXT),
        "seed": pa.int32(),
        **dict.fromkeys(("family", "task", "policy"), TEXT),
        "index": pa.int32(),
        "value": NUMBER,
        "mean": NUMBER,
        "standard_error": NUMBER,
        "episodes": pa.int32(),
    },
    "adaptation": {
        **dict.fromkeys(NAMES, TEXT),
        "seed": pa.int32(),
        "env_steps": pa.int64(),
        "episodes": NUMBER,
        "returns": pa.list_(NUMBER, 4),
        "cosine": NUMBER,
        "z": LATENT,
    },
    "trajectories": {
        **dict.fromkeys(("family", "task", "phase"), TEXT),
        "episode": pa.int32(),
        "step": pa.int32(),
        "physics": pa.list_(NUMBER, 4),
    },
    "diagnosis": {
        **dict.fromkeys(("domain", "agent"), TEXT),
        "seed": pa.int32(),
        **dict.fromkeys(("family", "task"), TEXT),
        **dict.fromkeys(Diagnosis._fields, NUMBER),
    },
    "verdicts": {
        **dict.fromkeys(("domain", "agent", "family", "claim", "statement", "kind"), TEXT),
        **dict.fromkeys(("bar", "figure", "low", "high"), NUMBER),
        "held": pa.bool_(),
        "verdict": pa.string(),
    },
    "coverage": {field.name: field.type for field in coverage.schema(4)},
    "transitions": {field.name: field.type for field in transitions.schema(4, 2, 4)},
    **SCHEMAS,
}
MODEL = "results/smoke/point_mass_maze/fb/seed{seed}"
METHODS = ("zero-shot", "lola", "lola-short", "rela", "td3")


def tables():
    """Every Parquet file of the smoke run: path -> (kind, stage, wildcards)."""
    place = {"domain": "point_mass_maze"}
    found = {"results/smoke/point_mass_maze/data.parquet": ("transitions", "collect", place)}
    found["results/smoke/point_mass_maze/coverage.parquet"] = ("coverage", "coverage", place)
    for name in SCHEMAS:
        found[f"results/smoke/tables/{name}.parquet"] = (name, "tabulate", {})
    found["results/smoke/tables/verdicts.parquet"] = ("verdicts", "judge", {})
    for seed in ("0", "1"):
        model, run = MODEL.format(seed=seed), {**place, "agent": "fb", "seed": seed}
        for kind in ("losses", "evaluations", "spectrum"):
            found[f"{model}/{kind}.parquet"] = (kind, "pretrain", run)
        found[f"{model}/latents.parquet"] = ("latents", "infer", run)
        found[f"{model}/probe.parquet"] = ("probe", "probe", run)
        found[f"{model}/diagnosis.parquet"] = ("diagnosis", "diagnose", run)
        for method in METHODS:
            adapted = {**run, "method": method}
            found[f"{model}/adapt/{method}.parquet"] = ("adaptation", "adapt", adapted)
            found[f"{model}/adapt/{method}.trajectories.parquet"] = (
                "trajectories",
                "adapt",
                adapted,
            )
    return found


def binaries(directory: Path) -> dict[str, bytes]:
    """Bytes of everything a run computed."""
    names = (".parquet", ".safetensors", "config.json", "README.md")
    files = [path for path in directory.rglob("*") if path.name.endswith(names)]
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in files
        if ".snakemake" not in path.parts
    }


def test_these_tables_are_all_there_are(smoke):
    assert {name for name in binaries(smoke) if name.endswith(".parquet")} == set(tables())


@pytest.mark.parametrize("name", tables())
def test_every_table_has_its_declared_schema_and_provenance(smoke, checkout, name):
    kind, stage, wildcards = tables()[name]
    found = pq.read_schema(smoke / name).remove_metadata()
    columns, origin = read_table(smoke / name, kind)
    assert {field.name: field.type for field in found} == KINDS[kind]
    assert found.names == list(KINDS[kind])
    assert all(table_column_is_whole(smoke / name, column) for column in found.names)
    assert len(columns[found.names[0]]) > 0
    exp = experiment.read(checkout.top / "configs" / "smoke.yaml")
    assert dict(origin.settings) == json.loads(exp.stage(stage, **wildcards))
    assert origin.code == exp.code(stage, **{k: v for k, v in wildcards.items() if k != "seed"})
    assert re.fullmatch("[0-9a-f]{16}", origin.code)


def table_column_is_whole(path, column):
    return pq.read_table(path, columns=[column])[column].null_count == 0


def test_models_load_and_belong_to_the_data_set(smoke):
    for seed in (0, 1):
        _, card = load_model(smoke / MODEL.format(seed=seed) / "model")
        assert card["seed"] == seed
        _, origin = read_table(smoke / MODEL.format(seed=seed) / "losses.parquet", "losses")
        assert card["code"] == origin.code


def test_the_card_of_every_model_has_the_scores_of_zero_shot(smoke):
    for seed in (0, 1):
        text = (smoke / MODEL.format(seed=seed) / "model" / "README.md").read_text()
        path = smoke / MODEL.format(seed=seed) / "adapt" / "zero-shot.parquet"
        returns = read_table(path, "adaptation")[0]["returns"]
        assert f"| reach | reach_top_left | {returns[0].mean():.2f} |" in text
        assert f"with seed {seed}, and has" in text


def test_a_variant_stands_in_the_tables_under_its_own_name(smoke):
    summary, _ = read_table(smoke / "results/smoke/tables/summary.parquet", "summary")
    assert set(METHODS) < set(summary["method"])
    one, two = (
        read_table(smoke / MODEL.format(seed=0) / f"adapt/{method}.parquet", "adaptation")[0]
        for method in ("lola", "lola-short")
    )
    start = one["env_steps"] == 0
    np.testing.assert_array_equal(one["returns"][start], two["returns"][two["env_steps"] == 0])
    assert not np.array_equal(one["z"][-2:], two["z"][-2:])


def test_every_claim_has_its_verdict_on_the_page(smoke):
    table, _ = read_table(smoke / "results/smoke/tables/verdicts.parquet", "verdicts")
    assert table["claim"].tolist() == ["cost", "gain", "horizon"]
    assert np.isfinite(table["figure"]).all()
    page = (smoke / "results/smoke/report.html").read_text()
    assert all(statement in page for statement in table["statement"])


def test_seeds_differ(smoke):
    files = binaries(smoke)
    for name in ("model/model.safetensors", "adapt/lola.parquet", "probe.parquet"):
        one, two = (files[f"{MODEL.format(seed=seed)}/{name}"] for seed in (0, 1))
        assert one != two


def test_figures_and_the_report_are_there(smoke):
    figures = smoke / "results/smoke/figures/point_mass_maze/fb"
    assert {path.suffix for path in figures.iterdir() if path.suffix} == {".pdf", ".png"}
    assert {path.stem for path in figures.glob("*.png")} == {
        *("best_of_n", "coverage", "curves_aggregate", "curves_per_task", "diagnosis"),
        *(
            "evaluations",
            "improvement",
            "performance_profile",
            "q_values",
            "spectrum",
            "training",
            "trajectories",
        ),
    }
    assert len(list(figures.glob("*.png"))) == len(list(figures.glob("*.pdf")))
    assert "</html>" in (smoke / "results/smoke/report.html").read_text()


def test_nothing_unfinished_is_left(smoke):
    left = [path for path in smoke.rglob(".*") if path.is_file() and ".snakemake" not in path.parts]
    assert [path.name for path in left if path.name != ".snakemake_timestamp"] == []


def test_the_logs_hold_the_command_that_reproduces_the_job(smoke, checkout):
    log = (smoke / "results/smoke/logs/pretrain/point_mass_maze-fb-seed1.log").read_text()
    exp = experiment.read(checkout.top / "configs" / "smoke.yaml")
    cfg = exp.stage("pretrain", domain="point_mass_maze", agent="fb", seed="1")
    command = shlex.split(log.splitlines()[0])
    assert command[:4] == ["bfmpipe", "pretrain", "--cfg", cfg]
    assert {"--dataset", "--model", "--losses", "--evaluations", "--spectrum"} <= set(command)
    assert "Warning" not in log


# running again


def test_a_second_run_does_nothing(smoke, checkout):
    before = binaries(smoke)
    done = checkout.run(smoke)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout
    assert binaries(smoke) == before


AFTER = ["all", "judge", "plot", "report", "tabulate"]


@pytest.mark.parametrize("method", ["lola", "lola-short"])
def test_another_setting_of_a_method_reruns_that_method_and_what_follows(
    smoke, checkout, plan, tmp_path, method
):
    methods = {method: {"method": "lola", "states": 2, "latents": 4, "horizon": 6}}
    config = checkout.config(tmp_path / "other.yaml", methods=methods)
    jobs = plan(smoke, configfile=config)
    assert jobs == sorted([f"adapt seed0 {method}", f"adapt seed1 {method}", *AFTER])


def test_an_experiment_of_another_name_shares_all_but_its_summary(smoke, checkout, plan, tmp_path):
    select = ["zero-shot", "lola"]
    config = checkout.config(tmp_path / "first.yaml", name="first", select=select, claims=None)
    assert plan(smoke, configfile=config) == AFTER
    claims = {"lola": {"kind": "no_drop", "statement": "No drop.", "method": "lola"}}
    config = checkout.config(tmp_path / "new.yaml", claims=claims)
    assert plan(smoke, configfile=config) == ["all", "judge", "report"]


JUDGED = ["all", "judge", "report"]


@pytest.mark.parametrize(
    ("module", "old", "new", "jobs"),
    [
        (
            "adaptation/rela.py",
            "self.config, self.draws)",
            "self.config, Generators([1]))",
            ["adapt seed0 rela", "adapt seed1 rela", *AFTER],
        ),
        ("adaptation/rela.py", "class Method", "# a remark\nclass Method", []),
        ("agents/card.py", "## Data", "## The data", ["all", "describe seed0", "describe seed1"]),
        ("report/verdicts.py", "figure > claim.bar", "figure >= claim.bar", JUDGED),
    ],
)
def test_an_edit_of_a_method_reruns_that_method_and_what_follows(
    smoke, checkout, plan, module, old, new, jobs
):
    before = checkout.edit(f"bfmpipe/{module}", old, new)
    try:
        assert plan(smoke) == sorted(jobs)
    finally:
        (checkout.top / "bfmpipe" / module).write_text(before)


def test_one_core_and_one_seed_give_the_same_bytes_as_two_cores_and_two_seeds(
    smoke, checkout, tmp_path
):
    model = MODEL.format(seed=1)
    targets = [f"{model}/adapt/{method}.parquet" for method in ("lola", "td3")]
    config = checkout.config(tmp_path / "one.yaml", seeds=[1])
    run = tmp_path / "run"
    done = checkout.run(run, *targets, f"{model}/probe.parquet", cores=1, configfile=config)
    assert done.returncode == 0, done.stdout
    alone, together = binaries(run), binaries(smoke)
    # data, two of the model, three of its training, latents, probe, two of each method
    assert len(alone) == 12
    assert [name for name, content in alone.items() if together[name] != content] == []


def test_seeds_together_give_every_file_of_their_models_in_one_job(smoke, checkout, plan, tmp_path):
    together = {"seeds_together": True}
    config = checkout.config(tmp_path / "together.yaml", pretrain=together, adapt=together)
    run = tmp_path / "run"
    jobs = plan(run, configfile=config)
    assert jobs.count("pretrain") == 1
    assert [job for job in jobs if job.startswith("adapt")] == sorted(f"adapt {m}" for m in METHODS)
    models = [MODEL.format(seed=seed) for seed in (0, 1)]
    targets = [f"{model}/adapt/lola.parquet" for model in models]
    done = checkout.run(run, *targets, configfile=config)
    assert done.returncode == 0, done.stdout
    together, alone = binaries(run), binaries(smoke)
    names = ("model/config.json", "model/model.safetensors", "losses.parquet")
    tables = ("evaluations.parquet", "spectrum.parquet", "latents.parquet", "adapt/lola.parquet")
    expected = {f"{model}/{name}" for model in models for name in (*names, *tables)}
    assert expected <= together.keys() & alone.keys()
    for model in models:
        one, _ = read_table(run / model / "losses.parquet", "losses")
        two, _ = read_table(smoke / model / "losses.parquet", "losses")
        np.testing.assert_allclose(one["fb_loss"], two["fb_loss"], rtol=1e-3)
        one, _ = read_table(run / model / "adapt/lola.parquet", "adaptation")
        two, _ = read_table(smoke / model / "adapt/lola.parquet", "adaptation")
        assert one["seed"].tolist() == two["seed"].tolist()
        np.testing.assert_allclose(one["z"], two["z"], rtol=0.05, atol=0.05)

"""The whole pipeline on configs/smoke.yaml."""

import json
import re
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bfmpipe import experiment
from bfmpipe.agents import load_model
from bfmpipe.data import transitions
from bfmpipe.data.tables import read_table
from bfmpipe.stages import coverage
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
    "coverage": {field.name: field.type for field in coverage.schema(4)},
    "transitions": {field.name: field.type for field in transitions.schema(4, 2, 4)},
    **SCHEMAS,
}
MODEL = "results/smoke/point_mass_maze/fb/seed{seed}"
METHODS = ("zero-shot", "lola", "rela", "td3")


def tables():
    """Every Parquet file of the smoke run: path -> (kind, stage, wildcards)."""
    place = {"domain": "point_mass_maze"}
    found = {"results/smoke/point_mass_maze/data.parquet": ("transitions", "collect", place)}
    found["results/smoke/point_mass_maze/coverage.parquet"] = ("coverage", "coverage", place)
    for name in SCHEMAS:
        found[f"results/smoke/tables/{name}.parquet"] = (name, "tabulate", {})
    for seed in ("0", "1"):
        model, run = MODEL.format(seed=seed), {**place, "agent": "fb", "seed": seed}
        found[f"{model}/losses.parquet"] = ("losses", "pretrain", run)
        found[f"{model}/latents.parquet"] = ("latents", "infer", run)
        found[f"{model}/probe.parquet"] = ("probe", "probe", run)
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
    names = (".parquet", ".safetensors", "config.json")
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
    assert re.fullmatch("[0-9a-f]{16}", origin.code)


def table_column_is_whole(path, column):
    return pq.read_table(path, columns=[column])[column].null_count == 0


def test_models_load_and_belong_to_the_data_set(smoke):
    for seed in (0, 1):
        _, card = load_model(smoke / MODEL.format(seed=seed) / "model")
        assert card["seed"] == seed
        _, origin = read_table(smoke / MODEL.format(seed=seed) / "losses.parquet", "losses")
        assert card["code"] == origin.code


def test_seeds_differ(smoke):
    files = binaries(smoke)
    for name in ("model/model.safetensors", "adapt/lola.parquet", "probe.parquet"):
        one, two = (files[f"{MODEL.format(seed=seed)}/{name}"] for seed in (0, 1))
        assert one != two


def test_figures_and_the_report_are_there(smoke):
    figures = smoke / "results/smoke/figures/point_mass_maze/fb"
    assert {path.suffix for path in figures.iterdir() if path.suffix} == {".pdf", ".png"}
    assert len(list(figures.glob("*.png"))) == len(list(figures.glob("*.pdf"))) >= 4
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
    assert {"--dataset", "--model", "--losses"} <= set(command)
    assert "Warning" not in log


# running again


def test_a_second_run_does_nothing(smoke, checkout):
    before = binaries(smoke)
    done = checkout.run(smoke)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout
    assert binaries(smoke) == before


AFTER = ["all", "plot", "report", "tabulate"]


def test_another_setting_of_a_method_reruns_that_method_and_what_follows(
    smoke, checkout, plan, tmp_path
):
    methods = {"lola": {"states": 2, "latents": 4, "horizon": 6}}
    config = checkout.config(tmp_path / "other.yaml", methods=methods)
    jobs = plan(smoke, configfile=config)
    assert jobs == sorted(["adapt seed0 lola", "adapt seed1 lola", *AFTER])


def test_another_way_to_write_the_same_settings_reruns_nothing(smoke, checkout, plan, tmp_path):
    methods = {"lola": {"horizon": 5, "latents": 4, "states": 2}}
    config = checkout.config(tmp_path / "same.yaml", methods=methods)
    assert "horizon: 5\n" in config.read_text()  # one setting a line, sorted
    assert plan(smoke, configfile=config) == []


@pytest.mark.parametrize(
    ("module", "old", "new", "jobs"),
    [
        (
            "adaptation/rela.py",
            "self.updates += 1",
            "self.updates += 2",
            ["adapt seed0 rela", "adapt seed1 rela", *AFTER],
        ),
        ("adaptation/rela.py", "class Residual", "# a remark\nclass Residual", []),
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
    assert len(alone) == 10  # data, config and weights, losses, latents, probe, two of each method
    assert [name for name, content in alone.items() if together[name] != content] == []

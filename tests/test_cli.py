"""The command line: every stage explains itself, and a mistake is one line, never a traceback."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from bfmpipe.cli import NAMES, let_threads_sleep, main
from bfmpipe.report import timing


def files(tiny, tmp_path, stage):
    """The files of a stage: the tiny ones to read, new ones below tmp_path to write."""
    out = tmp_path / "out"
    read = {"model": tiny.model, "dataset": tiny.dataset}
    return {
        "collect": {"dataset": out / "data.parquet"},
        "coverage": {"dataset": tiny.dataset, "coverage": out / "coverage.parquet"},
        "pretrain": {
            "dataset": tiny.dataset,
            "model": out / "model",
            "losses": out / "losses.parquet",
            "evaluations": out / "evaluations.parquet",
            "spectrum": out / "spectrum.parquet",
        },
        "infer": {**read, "latents": out / "latents.parquet"},
        "probe": {**read, "latents": tiny.latents, "scores": out / "probe.parquet"},
        "adapt": {
            **read,
            "latents": tiny.latents,
            "curves": out / "curves.parquet",
            "trajectories": out / "trajectories.parquet",
        },
        "diagnose": {**read, "latents": tiny.latents, "diagnosis": out / "diagnosis.parquet"},
        "describe": {
            "model": tiny.model,
            "zero_shot": tmp_path / "zero-shot.parquet",
            "card": out / "README.md",
        },
        "judge": {
            "curves": tmp_path / "curves.parquet",
            "best_of": tmp_path / "best_of.parquet",
            "benchmarks": tmp_path / "benchmarks",
            "verdicts": out / "verdicts.parquet",
        },
    }[stage]


def command(stage, cfg, paths):
    text = cfg if isinstance(cfg, str) else json.dumps(cfg)
    return [stage, "--cfg", text, *(str(part) for k, v in paths.items() for part in (f"--{k}", v))]


def refused(capsys, argv):
    """The one line that a mistake gives, beside the echo of the command."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    *echo, last = lines
    assert len(echo) <= 1
    assert all(line.startswith(f"bfmpipe {argv[0]} --cfg '") for line in echo)
    prefix = f"bfmpipe {argv[0]}: error: "
    assert last.startswith(prefix)
    return last.removeprefix(prefix)


@pytest.mark.parametrize("stage", NAMES)
def test_every_stage_explains_itself(capsys, stage):
    with pytest.raises(SystemExit) as caught:
        main([stage, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: bfmpipe {stage} ")
    assert "--cfg" in said
    assert len(re.findall(r"^  --\w+", said, re.MULTILINE)) >= 2


def test_adapt_explains_both_that_it_is(capsys):
    with pytest.raises(SystemExit):
        main(["adapt", "--help"])
    by_hand = capsys.readouterr().out
    assert {"--task", "--method", "--latent-out"} <= set(
        re.findall(r"^  (--[\w-]+)", by_hand, re.M)
    )
    with pytest.raises(SystemExit):
        main(["adapt", "--cfg", "{}", "--help"])
    stage = capsys.readouterr().out
    options = set(re.findall(r"^  (--\w+)", stage, re.M))
    files = {"--model", "--dataset", "--latents", "--curves", "--trajectories"}
    assert options == {"--cfg", *files, "--cost"}
    usage = by_hand[by_hand.index("the stage, which") :]
    assert set(re.findall(r"--\w+", usage)) == {"--cfg", *files, "--help"}


@pytest.mark.parametrize(
    ("argv", "missing"),
    [
        (["--model", "m", "--task", "t"], "--method"),
        (["--model", "m", "--latents", "l"], "--cfg, --dataset, --curves, --trajectories"),
        (["--cfg={}", "--model", "m", "--dataset", "d"], "--latents, --curves, --trajectories"),
    ],
)
def test_adapt_is_the_stage_where_it_has_options_of_the_stage(capsys, argv, missing):
    with pytest.raises(SystemExit) as caught:
        main(["adapt", *argv])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(f"arguments are required: {missing}\n")


def test_the_stage_adapt_runs_as_before(tiny, tmp_path, capsys):
    paths = files(tiny, tmp_path, "adapt")
    assert main(command("adapt", tiny.settings("adapt"), paths)) == 0
    assert str(paths["curves"]) in capsys.readouterr().out
    assert paths["trajectories"].is_file()


def test_a_job_whose_cost_cannot_be_written_has_what_it_made(tiny, tmp_path, capsys, monkeypatch):
    """Snakemake removes the results of a job that fails, and a training its checkpoint before."""

    def full():
        raise OSError(errno.ENOSPC, "No space left on device", "there")

    monkeypatch.setattr(timing, "spent", full)
    paths, cost = files(tiny, tmp_path, "adapt"), tmp_path / "cost.json"
    cost.write_text("of an earlier run")
    argv = [*command("adapt", tiny.settings("adapt"), paths), "--cost", str(cost)]
    assert main(argv) == 0
    assert (
        "warning: what this job cost is not known: [Errno 28] No space" in capsys.readouterr().err
    )
    assert paths["curves"].is_file()
    assert not cost.exists()


def test_the_list_of_stages_is_that_of_the_modules():
    package = Path(sys.modules["bfmpipe.stages"].__file__).parent
    modules = {path.stem for path in package.glob("[a-z]*.py")} - {"sections"}
    assert set(NAMES) == modules


@pytest.mark.parametrize("argv", [[], ["colect"], ["--stage", "collect"]])
def test_an_unknown_stage_is_refused_with_those_there_are(capsys, argv):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "no command" in said
    assert all(name in said for name in NAMES)
    assert ("did you mean collect?" in said) == (argv == ["colect"])
    assert "Traceback" not in said


def test_a_stage_runs_from_json_and_echoes_itself(tiny, tmp_path, capsys):
    paths = files(tiny, tmp_path, "infer")
    cfg = tiny.settings("infer")
    assert main(command("infer", cfg, paths)) == 0
    captured = capsys.readouterr()
    (echo,) = (line for line in captured.err.splitlines() if line.startswith("bfmpipe infer"))
    assert paths["latents"].read_bytes() == tiny.latents.read_bytes()
    assert str(paths["latents"]) in captured.out
    paths["latents"].unlink()
    assert main(shlex.split(echo)[1:]) == 0
    assert paths["latents"].read_bytes() == tiny.latents.read_bytes()


def test_settings_are_read_from_a_file(tiny, tmp_path):
    file = tmp_path / "cfg.json"
    file.write_text(json.dumps(tiny.settings("infer")))
    paths = files(tiny, tmp_path, "infer")
    assert main(command("infer", f"@{file}", paths)) == 0
    assert paths["latents"].read_bytes() == tiny.latents.read_bytes()


AGENT = {"name": "fb", "settings": {"z_dim": 4}}
EXPLORER = "persistent-random"
TASKS = {"families": {"reach": {"names": ["reach_top_left"]}}}

MISTAKES = [
    ("collect", {"episdoes": 3}, "--cfg: episdoes is not a setting; did you mean episodes?"),
    ("collect", {"episodes": "3"}, "--cfg: episodes: '3' is text, not a whole number"),
    ("collect", {"episodes": 0}, "--cfg: episodes: 0 should be greater than or equal to 1"),
    ("collect", {"domain": {"name": "moon"}}, "no 'moon' in bfmpipe.envs; it has"),
    ("collect", {"explorer": {"name": "moon"}}, "no 'moon' in bfmpipe.data; it has"),
    (
        "collect",
        {"explorer": {"name": EXPLORER, "settings": {"noise_std": "1e-4"}}},
        f"explorer {EXPLORER}: noise_std: '1e-4' is text, not a number (YAML reads 1e-4 as a",
    ),
    ("pretrain", {"agent": {"name": "moon"}}, "no 'moon' in bfmpipe.agents; it has "),
    (
        "pretrain",
        {"agent": {"name": "fb", "settings": {"learning_rate": "1e-4"}}},
        "agent fb: learning_rate: '1e-4' is text, not a number (YAML reads 1e-4 as a string",
    ),
    (
        "pretrain",
        {"trainer": {"updates": 4, "checkpoint_every": 3, "log_every": 2}},
        "--cfg: trainer: checkpoint_every (3) must be a multiple of log_every (2)",
    ),
    ("infer", {"inference": {"weights": "ridge"}}, "--cfg: inference.weights: 'ridge' is not a"),
    (
        "infer",
        {"tasks": {"families": {"reach": {"names": ["moon"]}}}},
        "domain point_mass_maze: task family reach: no task 'moon'; point_mass_maze has",
    ),
    (
        "probe",
        {"tasks": {"families": {"reach": {"names": ["reach_top_left"], "szie": 1}}}},
        "domain point_mass_maze: task family reach: szie is not a setting; valid: target_size",
    ),
    ("probe", {"tasks": {"families": {"reach": {}}}}, "domain point_mass_maze: task family reach"),
    ("adapt", {"method": {"name": "moon"}}, "no 'moon' in bfmpipe.adaptation; it has"),
    (
        "adapt",
        {"method": {"name": "lola", "settings": {"sigam": 1.0}}},
        "method lola: sigam is not a setting; did you mean sigma?",
    ),
    ("adapt", {"label": 3}, "--cfg: label: 3 is a number, not text"),
    ("diagnose", {"diagnosis": {"tail": 1}}, "--cfg: diagnosis.tail: 1 should be less than 1"),
    (
        "diagnose",
        {"tasks": {"families": {"reach": {"names": ["moon"]}}}},
        "domain point_mass_maze: task family reach: no task 'moon'; point_mass_maze has",
    ),
    ("describe", {"families": None}, "--cfg: families is empty, not a mapping"),
    ("adapt", {"seeds": [-1]}, "--cfg: seeds[0]: -1 should be greater than or equal to 0"),
]


@pytest.mark.parametrize(
    ("stage", "changed", "said"), MISTAKES, ids=[f"{s} {said[:30]}" for s, _, said in MISTAKES]
)
def test_a_wrong_setting_is_one_line_and_writes_nothing(
    tiny, tmp_path, capsys, stage, changed, said
):
    cfg = tiny.settings(stage, **changed)
    capsys.readouterr()
    assert refused(capsys, command(stage, cfg, files(tiny, tmp_path, stage))).startswith(said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "--cfg: not JSON ("),
        ("", "--cfg: not JSON ("),
        ("[1]", "--cfg: [1] is a list, not a mapping"),
        ("null", "--cfg: it is empty, not a mapping"),
        ("{}", "--cfg: domain is missing; "),
        ('{"seed": NaN}', "--cfg: seed: nan is not a finite number"),
        ("@{tmp}/none.json", "{tmp}/none.json: No such file or directory"),
        ("@{tmp}", "{tmp}: Is a directory"),
        ("@{tmp}/broken.json", "{tmp}/broken.json: not JSON ("),
        ("@{tmp}/binary.json", "{tmp}/binary.json: not UTF-8 text"),
    ],
)
def test_settings_that_cannot_be_read_are_one_line(tiny, tmp_path, capsys, text, said):
    (tmp_path / "broken.json").write_text("{'a': 1}")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe{")
    text, said = (part.replace("{tmp}", str(tmp_path)) for part in (text, said))
    capsys.readouterr()
    argv = command("collect", text, files(tiny, tmp_path, "collect"))
    assert refused(capsys, argv).startswith(said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("stage", "file", "made", "said"),
    [
        ("pretrain", "dataset", None, "no such file"),
        ("pretrain", "dataset", b"PAR1", "damaged or not a Parquet file"),
        ("infer", "model", None, "no such file; a model is a directory that holds it"),
        ("infer", "dataset", b"", "damaged or not a Parquet file"),
        ("probe", "dataset", b"\0" * 100, "damaged or not a Parquet file"),
        ("adapt", "latents", None, "no such file"),
        ("diagnose", "latents", None, "no such file"),
        ("describe", "model", None, "no such file; a model is a directory that holds it"),
        ("describe", "zero_shot", b"PAR1", "damaged or not a Parquet file"),
    ],
)
def test_a_missing_or_damaged_file_is_one_line(tiny, tmp_path, capsys, stage, file, made, said):
    wrong = tmp_path / "wrong"
    if made is not None:
        wrong.write_bytes(made)
    paths = {**files(tiny, tmp_path, stage), file: wrong}
    capsys.readouterr()
    line = refused(capsys, command(stage, tiny.settings(stage), paths))
    assert line.startswith(str(wrong))
    assert said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left", "there"), "there: No space left"),
        (OSError(errno.EFBIG, "File too large"), "{latents}: File too large"),
        (OSError("Couldn't seek"), "{latents}: Couldn't seek"),  # pyarrow has such
        (OSError(), "{latents}: OSError"),
    ],
)
def test_an_error_of_the_disk_is_one_line_that_names_the_file(
    tiny, tmp_path, capsys, monkeypatch, error, said
):
    def fail(*_):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    paths = files(tiny, tmp_path, "infer")
    argv = command("infer", tiny.settings("infer"), paths)
    assert refused(capsys, argv) == said.format(latents=paths["latents"])
    assert list(paths["latents"].parent.iterdir()) == []


def test_a_table_of_another_kind_is_one_line(tiny, tmp_path, capsys):
    paths = {**files(tiny, tmp_path, "adapt"), "latents": tiny.losses}
    line = refused(capsys, command("adapt", tiny.settings("adapt"), paths))
    assert line == f"{tiny.losses}: a table of losses; expected a table of latents"


def test_a_claim_that_is_none_is_one_line(tiny, tmp_path, capsys):
    paths = files(tiny, tmp_path, "judge")
    cfg = {"claims": {"one": 3}}
    assert refused(capsys, command("judge", cfg, paths)) == (
        "--cfg: claims.one: 3 is a number, not a mapping"
    )
    line = refused(capsys, command("judge", {"claims": {}}, paths))
    assert line == f"{paths['curves']}: no such file"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stage", ["pretrain", "infer", "probe", "adapt", "diagnose"])
def test_data_of_another_domain_than_the_model_are_one_line(tiny, tmp_path, capsys, stage):
    from bfmpipe.data import transitions
    from bfmpipe.data.tables import read_table

    columns, origin = read_table(tiny.dataset, "transitions")
    other = {"name": "walker", "settings": {}}
    origin.settings["domain"] = other
    walked = transitions.Transitions("walker", {}, **columns)
    transitions.write(tmp_path / "walker.parquet", walked, origin)
    paths = {**files(tiny, tmp_path, stage), "dataset": tmp_path / "walker.parquet"}
    capsys.readouterr()
    line = refused(capsys, command(stage, tiny.settings(stage), paths))
    assert line == "the data set is of walker, the model of point_mass_maze"
    assert not (tmp_path / "out").exists()


def test_a_missing_argument_is_named(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["collect", "--dataset", "x"])
    assert caught.value.code == 2
    assert "--cfg" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("module", [True, False])
def test_the_installed_command_exits_with_2_and_no_traceback(tmp_path, module):
    start = (
        [sys.executable, "-m", "bfmpipe"] if module else [Path(sys.executable).parent / "bfmpipe"]
    )
    argv = [*start, "collect", "--cfg", '{"seed": 0}', "--dataset", tmp_path / "x.parquet"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("bfmpipe collect: error: --cfg: domain is missing")
    assert done.stderr.count("\n") == 1


def test_the_doctor_says_what_was_built_and_checks_it(capsys):
    from bfmpipe.kernels import _cpu

    assert main(["doctor"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    said, checks = captured.out.split("\n\n")
    facts = [re.match(r"\w+( \w+)?(?=  )", line)[0] for line in said.splitlines()]
    assert facts == [
        "python",
        "torch",
        "cpu kernels",
        "processor",
        "cuda kernels",
        "gpu",
        "sources",
    ]
    line = r"ok      [\w]+: (leave_one_out|sf_evaluate).*: error \d.\de-\d\d, tolerance \de-\d\d"
    assert all(re.fullmatch(line, check) for check in checks.splitlines())
    assert len(checks.splitlines()) >= 14 * len(_cpu.instruction_sets())


def test_the_doctor_finds_a_kernel_that_is_off(capsys, monkeypatch):
    from bfmpipe.kernels import selfcheck

    reference = selfcheck.sf_evaluate_reference
    monkeypatch.setattr(
        selfcheck, "sf_evaluate_reference", lambda *x, **settings: 1.01 * reference(*x, **settings)
    )
    assert main(["doctor"]) == 1
    captured = capsys.readouterr()
    failed = [line for line in captured.out.splitlines() if line.startswith("FAILED")]
    assert all(": sf_evaluate of " in line for line in failed)
    assert captured.out.count("\nok  ") * 10 == len(failed) * 4
    first = failed[0].removeprefix("FAILED  ")
    assert captured.err == f"bfmpipe doctor: error: {first} (and {len(failed) - 1} more)\n"


def test_a_reader_that_has_had_enough_is_no_error():
    argv = [sys.executable, "-m", "bfmpipe", "doctor"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as doctor:
        doctor.stdout.close()
        said = doctor.stderr.read()
    assert (doctor.returncode, said) == (141, b"")


def test_the_doctor_takes_no_settings(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["doctor", "--cfg", "{}"])
    assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_the_list_of_commands_says_what_each_does(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out.splitlines()
    for name in (*NAMES, "doctor", "import-metamotivo", "play", "roam"):
        lines = [line for line in said if re.match(rf"  {name}  +\w.{{20}}", line)]
        assert len(lines) == 1 + (name == "adapt")  # which is a stage, and more by hand


def test_the_version_is_the_packages(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.strip() == metadata.version("bfmpipe")


def test_idle_threads_soon_sleep(monkeypatch):
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    let_threads_sleep()
    assert [os.environ[name] for name in names] == ["PASSIVE", "1000"]


def test_how_threads_wait_is_left_to_who_set_it(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    let_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert "GOMP_SPINCOUNT" not in os.environ

"""The profile for Slurm: what every job asks for; and, where Slurm runs, a run that survives."""

import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.pipeline.test_killed import outputs

PROFILE = Path("profiles") / "slurm"
HAS_PLUGIN = importlib.util.find_spec("snakemake_executor_plugin_slurm") is not None
MODELS = "results/smoke/point_mass_maze/fb"


@pytest.fixture(scope="module")
def profile(checkout, tmp_path_factory):
    """The profile; where the plugin is not installed, what of it is Snakemake's own."""
    if HAS_PLUGIN:
        return checkout.top / PROFILE
    settings = yaml.safe_load((checkout.top / PROFILE / "config.yaml").read_text())
    kept = {k: v for k, v in settings.items() if k != "executor" and not k.startswith("slurm-")}
    path = tmp_path_factory.mktemp("profile")
    (path / "config.yaml").write_text(yaml.safe_dump(kept))
    return path


def snakemake(checkout, directory, *argv, configfile="configs/smoke.yaml"):
    """Start snakemake with a profile; what it prints goes to `driver.log`."""
    directory.mkdir(exist_ok=True)
    given = ["--snakefile", checkout.top / "Snakefile", "--directory", directory]
    given += ["--configfile", checkout.top / configfile]
    with (directory / "driver.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *given, *argv],
            env=checkout.environment,
            cwd=checkout.top,
            stdout=log,
            stderr=log,
        )


def dry_run(checkout, directory, *argv, **options):
    """Rule -> the resources of its first job, by name."""
    process = snakemake(checkout, directory, "--dry-run", *argv, **options)
    assert process.wait() == 0, (directory / "driver.log").read_text()
    printed = (directory / "driver.log").read_text()
    assert "threads:" not in printed  # one, or the bytes would depend on the cluster
    blocks = re.findall(r"^rule (\w+):.*?^    resources: (.*?)$", printed, re.M | re.S)
    asked = {rule: dict(re.findall(r"(\w+)=(\S+?)(?:,|$)", line)) for rule, line in blocks}
    del asked["all"]  # no job
    return asked


@pytest.fixture(scope="module")
def asked(checkout, profile, tmp_path_factory):
    return dry_run(checkout, tmp_path_factory.mktemp("dry"), "--workflow-profile", profile)


def test_every_job_asks_for_memory_and_time(asked):
    jobs = {"collect", "coverage", "pretrain", "infer", "probe", "diagnose", "adapt", "describe"}
    assert asked.keys() == jobs | {"tabulate", "judge", "plot", "report"}
    said = {rule: (int(r["mem_mb"]), int(r["runtime"])) for rule, r in asked.items()}
    assert {rule: said.pop(rule) for rule in ("collect", "pretrain", "probe", "adapt")} == {
        "collect": (4000, 480),
        "pretrain": (8000, 1440),
        "probe": (4000, 240),
        "adapt": (8000, 720),
    }
    assert set(said.values()) == {(4000, 60)}


def test_only_jobs_on_cuda_ask_for_a_gpu_and_none_for_more_time_than_there_is(
    asked, checkout, profile, tmp_path
):
    """Slurm would leave a job that asks for too much time pending for ever, and say nothing."""
    argv = ("--workflow-profile", profile, "--resources", "runtime=100")
    none = {"pretrain": "0", "adapt": "0"}
    assert {rule: r["gpu"] for rule, r in asked.items() if "gpu" in r} == none
    for rule in none:
        config = checkout.config(tmp_path / f"{rule}.yaml", **{rule: {"device": "cuda"}})
        cuda = dry_run(checkout, tmp_path / rule, *argv, configfile=config)
        assert {rule: r["gpu"] for rule, r in cuda.items() if "gpu" in r} == {**none, rule: "1"}
        assert {int(r["runtime"]) for r in cuda.values()} == {60, 100}


def test_only_methods_on_cuda_ask_for_a_gpu_and_the_profile_says_where(checkout, profile, tmp_path):
    config = checkout.config(tmp_path / "cuda.yaml", adapt={"device": {"rela": "cuda"}})
    text = (checkout.top / PROFILE / "config.yaml").read_text()
    (block,) = re.findall(r"^# set-resources:\n(?:#   .*\n)+", text, re.M)
    partitions = yaml.safe_load(re.sub("^# ", "", block, flags=re.M))
    settings = yaml.safe_load((profile / "config.yaml").read_text())
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").write_text(yaml.safe_dump({**settings, **partitions}))
    argv = ("--workflow-profile", tmp_path / "profile")
    asked = dry_run(checkout, tmp_path / "dry", *argv, configfile=config)
    assert asked["pretrain"]["slurm_partition"] == "gpu"
    pattern = r"^rule adapt:.*?method=([\w-]+).*? gpu=(\d), slurm_partition=(\w+)$"
    found = re.findall(pattern, (tmp_path / "dry" / "driver.log").read_text(), re.M | re.S)
    assert set(found) == {
        ("rela", "1", "gpu"),
        ("td3", "0", "gpu"),
        *((method, "0", "cpu") for method in ("zero-shot", "lola", "lola-short")),
    }


def test_on_one_machine_adaptations_share_a_gpu(checkout, tmp_path):
    config = checkout.config(tmp_path / "cuda.yaml", adapt={"device": "cuda"})
    asked = dry_run(checkout, tmp_path / "dry", configfile=config)
    assert {rule: r["gpu"] for rule, r in asked.items() if "gpu" in r} == {
        "pretrain": "0",
        "adapt": "0",
    }


@pytest.mark.slow
def test_on_one_machine_trainings_on_cuda_follow_each_other(checkout, tmp_path):
    """With a GPU or without: there each fails at once."""
    config = checkout.config(tmp_path / "cuda.yaml", pretrain={"device": "cuda"})
    targets = [f"{MODELS}/seed{seed}/losses.parquet" for seed in (0, 1)]
    argv = ("--cores", "2", "--keep-going", "--no-hooks", "--", *targets)
    snakemake(checkout, tmp_path, *argv, configfile=config).wait()
    printed = (tmp_path / "driver.log").read_text()
    assert 'gpu=Resource("gpu", 1)' in printed
    assert "mem_mb=Resource" not in printed  # which would limit what runs side by side
    pattern = r"^(?:local)?(rule) pretrain:|^(Error) in rule pretrain|^(Finished).*Rule: pretrain"
    events = ["".join(found) for found in re.findall(pattern, printed, re.M)]
    assert [event == "rule" for event in events] == [True, False, True, False]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("section", "device"), [("pretrain", "cuda"), ("adapt", "cuda"), ("adapt", {"td3": "cuda"})]
)
def test_on_one_machine_without_a_gpu_nothing_is_lost(checkout, tmp_path, section, device):
    """Snakemake removes what a job makes before the job begins, and can say what it needs."""
    config = checkout.config(tmp_path / "cuda.yaml", **{section: {"device": device}})
    before = tmp_path / MODELS / "seed0" / "losses.parquet"
    before.parent.mkdir(parents=True)
    before.write_text("of another run")
    driver = snakemake(checkout, tmp_path, "--cores", "2", configfile=config)
    assert driver.wait() == 1
    printed = (tmp_path / "driver.log").read_text()
    assert printed.count(f"{section}.device is cuda, but torch finds no usable GPU") == 1
    assert before.read_text() == "of another run"
    assert not (tmp_path / "results/smoke/point_mass_maze/data.parquet").exists()


@pytest.mark.slow
def test_a_run_names_the_report_only_where_there_is_one(checkout, tmp_path):
    done = checkout.run(tmp_path, "results/smoke/point_mass_maze/coverage.parquet")
    assert done.returncode == 0
    assert re.findall("^(figures|report):", done.stdout, re.M) == []
    for file in ("figures/one.png", "report.html"):
        (tmp_path / "results/smoke" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "results/smoke" / file).touch()
    (tmp_path / "results/smoke/point_mass_maze/coverage.parquet").unlink()
    done = checkout.run(tmp_path, "results/smoke/point_mass_maze/coverage.parquet")
    assert re.findall("^(?:figures|report):.*", done.stdout, re.M) == [
        "figures: results/smoke/figures",
        "report:  results/smoke/report.html",
    ]


@pytest.mark.slow
def test_a_run_ends_with_what_failed_and_what_it_said_last(checkout, tmp_path):
    data = tmp_path / "results/smoke/point_mass_maze/data.parquet"
    data.parent.mkdir(parents=True)
    data.write_text("no table")
    targets = [f"{MODELS}/seed{seed}/losses.parquet" for seed in (0, 1)]
    driver = snakemake(checkout, tmp_path, "--cores", "2", "--keep-going", "--", *targets)
    assert driver.wait() == 1
    printed = (tmp_path / "driver.log").read_text()
    logs = "results/smoke/logs/pretrain/point_mass_maze-fb-seed"
    error = "results/smoke/point_mass_maze/data.parquet: is text, not a Parquet file"
    assert re.findall("^failed: (.*)\n    (.*)", printed, re.M) == [
        (
            f"pretrain point_mass_maze, fb, {seed}; {logs}{seed}.log ends in",
            f"bfmpipe pretrain: error: {error}",
        )
        for seed in (0, 1)
    ]


def missing() -> str:
    """Why nothing can be submitted here."""
    if not HAS_PLUGIN:
        return "snakemake-executor-plugin-slurm is not installed"
    if not shutil.which("scontrol"):
        return "Slurm is not installed"
    ping = subprocess.run(["timeout", "10", "scontrol", "ping"], capture_output=True, check=False)
    return "" if ping.returncode == 0 else "Slurm does not run: tests/pipeline/slurm.sh starts one"


REASON = missing()
live = [pytest.mark.slow, pytest.mark.skipif(bool(REASON), reason=REASON)]


def kills_for_memory() -> bool:
    shown = subprocess.check_output(["scontrol", "show", "config"], text=True)
    return bool(re.search("OverMemoryKill|ConstrainRAMSpace *= yes", shown))


class Driver:
    """A run through the profile, its jobs polled more often than a cluster would like."""

    def __init__(self, checkout, directory, *argv, **options):
        self.log = directory / "driver.log"
        quick = ("--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "5")
        quick += ("--seconds-between-status-checks", "1")
        given = ("--workflow-profile", checkout.top / PROFILE, *quick, *argv)
        self.process = snakemake(checkout, directory, *given, **options)

    @property
    def name(self) -> str:
        """The name of all of its jobs."""
        return "".join(re.findall("SLURM run ID: (.*)", self.log.read_text())[:1])

    def jobs(self, rule="") -> list[tuple[str, str, str, str]]:
        """Number, memory, time limit and state of its jobs of a rule, as they were submitted."""
        argv = ["squeue", "--noheader", "--states", "all", "--sort", "i", "--name", self.name]
        shown = subprocess.check_output([*argv, "--format", "%i|%m|%l|%T|%k"], text=True)
        lines = [line.split("|") for line in shown.splitlines()]
        return [tuple(line[:4]) for line in lines if line[4].startswith(f"rule_{rule}")]

    def wait_for(self, what):
        end = time.monotonic() + 300
        while not (found := what()):
            assert self.process.poll() is None, f"it ended first:\n{self.log.read_text()}"
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.2)
        return found

    def finish(self):
        assert self.process.wait(timeout=1800) == 0, self.log.read_text()


@pytest.fixture
def longer(checkout, tmp_path):
    """Of one model, trained for long enough to be disturbed."""
    return lambda **pretrain: checkout.config(
        tmp_path / "longer.yaml", seeds=[0], pretrain={"evaluate_every": 10_000, **pretrain}
    )


class TestLive:
    pytestmark = live

    def test_killed_with_its_driver_the_run_ends_in_the_bytes_of_a_local_one(
        self, checkout, smoke, tmp_path
    ):
        first = Driver(checkout, tmp_path)
        first.wait_for(lambda: [job for job in first.jobs("adapt") if job[3] == "RUNNING"])
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        subprocess.run(["scancel", "--name", first.name], check=True)
        while any(state in ("RUNNING", "COMPLETING") for *_, state in first.jobs()):
            time.sleep(0.2)
        assert snakemake(checkout, tmp_path, "--unlock", "--cores", "1").wait() == 0
        second = Driver(checkout, tmp_path)
        second.finish()
        assert second.jobs("pretrain") == []
        assert {state for *_, state in second.jobs()} == {"COMPLETED"}
        here, there = outputs(tmp_path), outputs(smoke)
        assert here.keys() == there.keys()
        differing = {name for name in here if here[name] != there[name]}
        assert differing <= {"results/smoke/tables/verdicts.parquet"}  # one is about seconds
        assert "report:  results/smoke/report.html" in second.log.read_text()

    @pytest.mark.skipif(not REASON and not kills_for_memory(), reason="memory is not enforced here")
    def test_a_job_killed_for_its_memory_and_one_cancelled_are_tried_again_with_more(
        self, checkout, longer, tmp_path
    ):
        config = longer(updates=1500, checkpoint_every=100)
        target = f"{MODELS}/seed0/losses.parquet"
        argv = ("--set-resources", "pretrain:mem_mb=400 if attempt == 1 else 4000 * attempt")
        driver = Driver(checkout, tmp_path, *argv, "--", target, configfile=config)
        checkpoint = tmp_path / MODELS / "seed0" / ".model.checkpoint.safetensors"
        driver.wait_for(lambda: len(driver.jobs("pretrain")) == 2 and checkpoint.exists())
        subprocess.run(["scancel", driver.jobs("pretrain")[1][0]], check=True)
        driver.finish()
        memory = [job[1] for job in driver.jobs("pretrain")]
        states = [job[3] for job in driver.jobs("pretrain")]
        assert memory == ["400M", "8000M", "12000M"]
        assert states[0] in ("OUT_OF_MEMORY", "FAILED", "CANCELLED")
        assert states[1:] == ["CANCELLED", "COMPLETED"]
        local = checkout.run(tmp_path / "local", target, configfile=config)
        assert local.returncode == 0
        trained = {name for name in outputs(tmp_path / "local") if "seed0" in name}
        assert len(trained) == 5
        for name in trained:
            assert (tmp_path / name).read_bytes() == (tmp_path / "local" / name).read_bytes()

    def test_a_training_that_exceeds_its_time_is_tried_again_with_more(
        self, checkout, longer, tmp_path
    ):
        config = longer(updates=40_000, checkpoint_every=500)  # two minutes
        argv = ("--set-resources", "pretrain:runtime=1 if attempt == 1 else 20 * attempt")
        target = f"{MODELS}/seed0/losses.parquet"
        driver = Driver(checkout, tmp_path, *argv, "--", target, configfile=config)
        driver.finish()
        first, second = driver.jobs("pretrain")
        assert first[2:] == ("1:00", "TIMEOUT")
        assert second[2:] == ("40:00", "COMPLETED")
        (said,) = tmp_path.glob(f".snakemake/slurm_logs/rule_pretrain/*/{first[0]}.log")
        assert "DUE TO TIME LIMIT" in said.read_text()

    def test_a_job_that_slurm_requeues_runs_again_under_its_number(
        self, checkout, longer, tmp_path
    ):
        config = longer(updates=1500, checkpoint_every=100)
        target = f"{MODELS}/seed0/losses.parquet"
        driver = Driver(checkout, tmp_path, "--", target, configfile=config)
        checkpoint = tmp_path / MODELS / "seed0" / ".model.checkpoint.safetensors"
        driver.wait_for(checkpoint.exists)
        ((number, *_),) = driver.jobs("pretrain")
        subprocess.run(["scontrol", "requeue", number], check=True)
        driver.finish()
        assert [(job[0], job[3]) for job in driver.jobs("pretrain")] == [(number, "COMPLETED")]

    def test_a_training_on_cuda_gets_a_gpu_of_its_own(self, checkout, tmp_path):
        shown = subprocess.check_output(["sinfo", "--noheader", "--format", "%G"], text=True)
        if "gpu" not in shown:
            pytest.skip("this Slurm counts no GPUs")
        config = checkout.config(tmp_path / "cuda.yaml", seeds=[0], pretrain={"device": "cuda"})
        target = f"{MODELS}/seed0/losses.parquet"
        driver = Driver(checkout, tmp_path, "--retries", "0", "--", target, configfile=config)
        number = driver.wait_for(lambda: driver.jobs("pretrain"))[0][0]
        job = subprocess.check_output(["scontrol", "show", "job", number], text=True)
        assert re.search("TresPerJob=gres:gpu:1", job)
        driver.process.wait()

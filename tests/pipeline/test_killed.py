"""A stage killed in the middle: the same command finishes, with the bytes of an undisturbed run."""

import os
import signal
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# Enough work that the kill comes long before the end.
LONGER = {
    "seeds": [0],
    "pretrain": {"updates": 1500, "checkpoint_every": 100, "evaluate_every": 500},
    "adapt": {"episodes": 1000, "every": 100},
}
RUN = Path("results/smoke/point_mass_maze/fb/seed0")
CURVES = RUN / "adapt" / "lola.parquet"
CHECKPOINT = RUN / ".model.checkpoint.safetensors"


def outputs(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if ".snakemake" not in path.parts)
    names = (".parquet", ".safetensors", "config.json")
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in files
        if path.name.endswith(names)
    }


def wait(for_what, process):
    """Poll until `for_what()` gives something true; it fails if the run ends before."""
    end = time.monotonic() + 120
    while not (found := for_what()):
        assert process.poll() is None, f"the run ended first:\n{process.stdout.read()}"
        assert time.monotonic() < end
        time.sleep(0.002)
    return found


def stage_process(session: int, stage: str) -> int | None:
    """The process of `bfmpipe STAGE` among those that a run of snakemake started."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            if os.getsid(int(entry.name)) == session and argv[2:3] == [stage.encode()]:
                return int(entry.name)
        except OSError:  # it has ended since
            continue
    return None


def kill_in(stage, when, checkout, directory, config):
    """Run the pipeline, kill the process of a stage once `when()` holds; what was printed."""
    with checkout.start(directory, str(CURVES), configfile=config) as process:
        pid = wait(lambda: stage_process(process.pid, stage), process)
        wait(when, process)
        os.kill(pid, signal.SIGKILL)
        printed, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"Error in rule {stage}" in printed
    return printed


@pytest.fixture(scope="module")
def config(checkout, tmp_path_factory):
    return checkout.config(tmp_path_factory.mktemp("config") / "longer.yaml", **LONGER)


@pytest.fixture(scope="module")
def undisturbed(checkout, config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    done = checkout.run(directory, str(CURVES), configfile=config)
    assert done.returncode == 0, done.stdout
    return outputs(directory)


def test_killed_in_pretraining_and_in_adaptation_the_same_command_finishes_with_the_same_bytes(
    undisturbed, checkout, config, tmp_path
):
    kill_in("pretrain", (tmp_path / CHECKPOINT).exists, checkout, tmp_path, config)
    assert not (tmp_path / RUN / "model").exists()
    assert not (tmp_path / RUN / "losses.parquet").exists()
    assert (tmp_path / CHECKPOINT).exists()

    log = tmp_path / "results/smoke/logs/adapt/point_mass_maze-fb-seed0-lola.log"
    kill_in(
        "adapt", lambda: log.exists() and "0/20000" in log.read_text(), checkout, tmp_path, config
    )
    assert not (tmp_path / CURVES).exists()
    assert (tmp_path / RUN / "model" / "model.safetensors").exists()
    assert not (tmp_path / CHECKPOINT).exists()

    done = checkout.run(tmp_path, str(CURVES), configfile=config)
    assert done.returncode == 0, done.stdout
    assert "rule pretrain" not in done.stdout
    finished = outputs(tmp_path)
    assert finished.keys() == undisturbed.keys()
    assert [name for name, content in finished.items() if undisturbed[name] != content] == []


def test_a_log_that_cannot_be_written_fails_no_job(checkout, tmp_path, monkeypatch):
    """A job that fails loses its results, and a training removes its checkpoint before its end."""
    full = tmp_path / "bin" / "tee"  # as on a full disk: what it cannot write it still passes on
    full.parent.mkdir()
    full.write_text("#!/bin/sh\ncat\nexit 1\n")
    full.chmod(0o755)
    monkeypatch.setenv("PATH", f"{full.parent}:{os.environ['PATH']}")
    target = "results/smoke/point_mass_maze/data.parquet"
    done = checkout.run(tmp_path, target)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / target).exists()

"""A file of tasks goes through the whole pipeline, and an edit of it reruns what depends on it."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bfmpipe.data.tables import read_table

pytestmark = pytest.mark.slow

# one reward is negative, the other sparse: neither is like a built-in one
TASKS = """
import numpy as np

def near(physics, action):
    return -np.linalg.norm(physics.position, axis=1)

def east(physics, action):
    return physics.position[:, 0] > 0.1
"""
MODEL = "results/smoke/point_mass_maze/fb/seed0"
FAMILIES = {
    "reach": {"names": ["reach_top_left"], "target_size": 0.1},
    "mine": {"file": "tasks/my_tasks.py", "names": ["near", "east"]},
}
DEPEND = [  # not the models: they are trained, and evaluated, without tasks
    *("adapt seed0 lola", "adapt seed0 zero-shot", "all", "describe seed0", "diagnose seed0"),
    *("infer seed0", "judge", "plot", "probe seed0", "report", "tabulate"),
]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A directory with an experiment and, in one below it, its file of tasks."""
    directory = tmp_path_factory.mktemp("mine")
    (directory / "tasks").mkdir()
    (directory / "tasks" / "my_tasks.py").write_text(TASKS)
    return directory


@pytest.fixture(scope="module")
def config(mine, checkout):
    path = mine / "mine.yaml"
    settings = {"physics_steps": 5, "episode_steps": 20}
    domains = {"point_mass_maze": {"settings": settings, "tasks": FAMILIES}}
    pretrain = {"evaluate_every": None}  # or the models would depend on the tasks, too
    select = ["zero-shot", "lola"]
    changed = {"domains": domains, "pretrain": pretrain, "select": select, "claims": None}
    return checkout.config(path, seeds=[0], **changed)


@pytest.fixture(scope="module")
def run(checkout, mine, config):
    """The directory of an undisturbed run; not that of the experiment."""
    directory = mine / "run"
    done = checkout.run(directory, configfile=config)
    assert done.returncode == 0, done.stdout
    return directory


@pytest.fixture
def edit(mine):
    """A function that edits the file of tasks; the edit is taken back."""
    path = mine / "tasks" / "my_tasks.py"

    def replace(old, new):
        assert old in TASKS
        path.write_text(TASKS.replace(old, new))

    yield replace
    path.write_text(TASKS)


def test_every_table_has_the_users_tasks(run):
    for name, kind in (
        ("latents", "latents"),
        ("probe", "probe"),
        ("adapt/lola", "adaptation"),
        ("adapt/lola.trajectories", "trajectories"),
    ):
        columns, origin = read_table(run / MODEL / f"{name}.parquet", kind)
        found = set(zip(columns["family"], columns["task"], strict=True))
        assert found == {("mine", "east"), ("mine", "near"), ("reach", "reach_top_left")}
        own = origin.settings["tasks"]["families"]["mine"]
        assert (own["file"], len(own["digest"])) == ("../tasks/my_tasks.py", 16)
    summary, _ = read_table(run / "results/smoke/tables/summary.parquet", "summary")
    assert set(summary["family"]) == {"mine", "reach"}
    columns, _ = read_table(run / MODEL / "adapt/lola.parquet", "adaptation")
    assert (columns["returns"][columns["task"] == "near"] < 0).all()
    figures = run / "results/smoke/figures/point_mass_maze/fb"
    assert (figures / "trajectories.png").exists()
    assert not (figures / "evaluations.png").exists()
    assert "my_tasks.py" in (run / "results/smoke/report.html").read_text()


@pytest.mark.parametrize(
    ("old", "new", "jobs"),
    [
        ("> 0.1", "> 0.2", DEPEND),
        ("def near", "# a remark\ndef near", []),
    ],
)
def test_an_edit_of_the_file_reruns_what_depends_on_it(run, config, plan, edit, old, new, jobs):
    edit(old, new)
    assert plan(run, configfile=config) == sorted(jobs)


def again(run, checkout, to):
    """Run the logged command of stage infer once more, to another file."""
    log = run / "results/smoke/logs/infer/point_mass_maze-fb-seed0.log"
    command = shlex.split(log.read_text().splitlines()[0])
    assert command[0] == "bfmpipe"
    command[command.index("--latents") + 1] = str(to)
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=run,
        env=checkout.environment,
        capture_output=True,
        text=True,
    )


def test_the_logged_command_reproduces_the_job(run, checkout, tmp_path):
    done = again(run, checkout, tmp_path / "latents.parquet")
    assert done.returncode == 0, done.stderr
    expected = (run / MODEL / "latents.parquet").read_bytes()
    assert (tmp_path / "latents.parquet").read_bytes() == expected


def test_the_logged_command_refuses_another_version_of_the_file(run, checkout, edit, tmp_path):
    edit("> 0.1", "> 0.2")
    done = again(run, checkout, tmp_path / "out" / "latents.parquet")
    assert done.returncode == 2
    _, said = done.stderr.splitlines()
    assert said.startswith("bfmpipe infer: error: domain point_mass_maze: task family mine: ")
    assert "tasks/my_tasks.py has changed" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("def near", "def nearer", "tasks/my_tasks.py has no function 'near'; it has nearer, east"),
        ("> 0.1", ">", "tasks/my_tasks.py: line 8: is not Python: invalid syntax"),
        (
            "physics.position[:, 0] > 0.1",
            "physics.position",
            "tasks/my_tasks.py): returned the shape (8, 2), not (8,)",
        ),
    ],
)
def test_a_mistake_stops_snakemake_with_one_sentence(
    mine, config, run, checkout, edit, tmp_path, old, new, said
):
    edit(old, new)
    done = checkout.run(tmp_path, dry_run=True, configfile=config)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert len([line for line in done.stdout.splitlines() if said in line]) == 1
    assert Path(config).name in done.stdout
    assert not (tmp_path / "results").exists()

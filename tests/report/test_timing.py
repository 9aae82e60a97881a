import json
import subprocess
import sys
import time

import pytest

from bfmpipe.report import timing
from bfmpipe.report.timing import Job
from bfmpipe.types import UserError


def job(rule, name, seconds=1.0):
    return Job(wall=seconds, cpu=seconds, memory=1.0, rule=rule, name=name)


def test_a_job_writes_what_is_read(tmp_path):
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    timing.write(tmp_path / "adapt" / "maze-fb-seed0-lola.json")
    (found,) = timing.read(tmp_path)
    assert (found.rule, found.name) == ("adapt", "maze-fb-seed0-lola")
    now = timing.spent()
    assert 0.2 <= found.cpu <= now.cpu
    assert 0.2 <= found.wall <= now.wall
    assert 10 < found.memory <= now.memory  # of a Python with numpy, in MB


def test_children_count():
    before = timing.spent().cpu
    work = "import time\nwhile time.process_time() < .3: pass"
    subprocess.run([sys.executable, "-c", work], check=True)
    assert timing.spent().cpu >= before + 0.3


def test_jobs_of_a_method_are_told_by_their_names():
    jobs = [
        job("adapt", "maze-fb-seed0-lola"),
        job("adapt", "maze-fb-seed0-lola-a", 5),
        job("adapt", "maze-hilp-lola", 7),
        job("pretrain", "maze-fb-seed0"),
    ]
    assert timing.of_method(jobs, "maze", "fb", "lola", 1) == jobs[:1]
    assert timing.of_method(jobs, "maze", "fb", "lola-a", 1) == jobs[1:2]
    assert timing.of_method(jobs, "maze", "hilp", "lola", 3) == jobs[2:3]  # all in one
    assert timing.of_method(jobs, "maze", "fb", "lola", 2) == []  # that of a seed is missing


@pytest.mark.parametrize("together", [False, True])
def test_jobs_of_other_experiments_in_the_same_place_are_left_out(together):
    names = {
        "collect": ("maze", "walker"),
        "pretrain": ("maze-fb", "maze-fb-seed0", "maze-fb-seed1"),
        "infer": ("maze-fb-seed0", "maze-fb-seed1"),
        "adapt": ("maze-fb-lola", "maze-fb-seed0-lola", "maze-fb-seed1-lola", "maze-fb-seed0-rela"),
        "plot": ("maze-fb",),
        "tabulate": ("all",),
    }
    jobs = [job(rule, name) for rule, found in names.items() for name in found]
    experiment = {
        **{"domains": {"maze": {}}, "agents": {"fb": {}}, "seeds": [0], "methods": ["lola"]},
        "pretrain": {"seeds_together": not together},
        "adapt": {"seeds_together": together},
    }
    kept = [(j.rule, j.name) for j in timing.of_experiment(jobs, experiment)]
    assert kept == [
        ("collect", "maze"),
        ("pretrain", "maze-fb-seed0" if together else "maze-fb"),
        ("infer", "maze-fb-seed0"),
        ("adapt", "maze-fb-lola" if together else "maze-fb-seed0-lola"),
        ("plot", "maze-fb"),
        ("tabulate", "all"),
    ]


def test_an_agent_with_a_job_a_seed_is_counted_whatever_is_set():
    jobs = [job("pretrain", f"maze-{name}") for name in ("fb", "fb-seed0", "fb_cpr-seed0", "psm")]
    experiment = {"domains": {"maze": {}}, "agents": {"fb": {}, "fb_cpr": {}}, "seeds": [0]}
    experiment |= {"methods": ["lola"], "pretrain": {"seeds_together": True}}
    kept = [j.name for j in timing.of_experiment(jobs, experiment)]
    assert kept == ["maze-fb", "maze-fb_cpr-seed0"]


def test_no_directory_no_jobs(tmp_path):
    assert timing.read(tmp_path / "missing") == []


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", json.dumps({"wall": 1, "cpu": None, "memory": 1})]
)
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x\.json: not what a job of this pipeline cost"):
        timing.read(tmp_path)

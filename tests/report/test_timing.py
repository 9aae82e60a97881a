import math

import pytest

from bfmpipe.report import timing
from bfmpipe.types import UserError

HEAD = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"


def test_reads_snakemakes_files(tmp_path):
    for rule, name, line in (
        ("pretrain", "maze-fb-seed0", "61.5\t0:01:01\t700.1\t1\t1\t1\t1\t1\t1\t120.25"),
        ("adapt", "maze-fb-seed0-lola", "0.2\t0:00:00\tNA\tNA\tNA\tNA\tNA\tNA\tNA\tNA"),
        ("adapt", "maze-hilp-lola", "7\t0:00:07\t1\t1\t1\t1\t1\t1\t1\t8"),
        ("adapt", "maze-fb-seed0-lola-a", "5\t0:00:05\t1\t1\t1\t1\t1\t1\t1\t6"),
    ):
        (tmp_path / rule).mkdir(exist_ok=True)
        (tmp_path / rule / f"{name}.tsv").write_text(HEAD + line + "\n")
    jobs = timing.read(tmp_path)
    assert [job.rule for job in jobs] == ["adapt", "adapt", "adapt", "pretrain"]
    assert jobs[3] == timing.Job("pretrain", "maze-fb-seed0", 61.5, 120.25, 700.1)
    (lola,) = timing.of_method(jobs, "maze", "fb", "lola")
    assert lola.wall == 0.2
    assert math.isnan(lola.cpu)
    assert [job.wall for job in timing.of_method(jobs, "maze", "fb", "lola-a")] == [5]
    assert [job.wall for job in timing.of_method(jobs, "maze", "hilp", "lola")] == [7]


def test_jobs_of_other_experiments_in_the_same_place_are_left_out():
    names = {
        "collect": ("maze", "walker"),
        "adapt": ("maze-fb-seed0-lola", "maze-fb-lola", "maze-fb-seed1-lola", "maze-fb-seed0-rela"),
        "tabulate": ("all",),
    }
    jobs = [
        timing.Job(rule, name, 1.0, 1.0, 1.0) for rule, found in names.items() for name in found
    ]
    experiment = {"domains": {"maze": {}}, "agents": {"fb": {}}, "seeds": [0], "methods": ["lola"]}
    kept = [job.name for job in timing.of_experiment(jobs, experiment)]
    assert kept == ["maze", "maze-fb-seed0-lola", "maze-fb-lola", "all"]


def test_no_directory_no_jobs(tmp_path):
    assert timing.read(tmp_path / "missing") == []


def test_another_table_is_refused(tmp_path):
    (tmp_path / "x.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(UserError, match=r"x\.tsv: not a benchmark file"):
        timing.read(tmp_path)

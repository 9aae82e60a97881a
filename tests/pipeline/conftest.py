"""Runs of the whole pipeline, as a user starts it: `snakemake --configfile FILE --cores N`.

They run a copy of the checkout, so that its code can be edited, and so that edits of the checkout
while the tests run do no harm. What a run wrote is shared by all tests that only read it.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]

# Python runs it at its start. The finder of an editable install would come before PYTHONPATH.
SITECUSTOMIZE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not type(f).__module__.startswith("_editable_")]
"""


@dataclass(frozen=True)
class Checkout:
    """A copy of the repository, with the kernels that were built for the original."""

    top: Path

    @property
    def environment(self) -> dict[str, str]:
        """An environment in which `bfmpipe` is the copy's."""
        return {**os.environ, "PYTHONPATH": str(self.top)}

    def start(
        self,
        directory: Path,
        *targets: str,
        configfile: Path | str = "configs/smoke.yaml",
        over: tuple[Path, ...] = (),
        cores: int = 2,
        dry_run: bool = False,
    ) -> subprocess.Popen[str]:
        """Start snakemake in `directory`, on a file of the copy or another, others laid over it."""
        directory.mkdir(parents=True, exist_ok=True)
        argv = ["--snakefile", self.top / "Snakefile", "--directory", directory]
        argv += ["--configfile", self.top / configfile, *over, "--cores", str(cores)]
        argv += ["--dry-run"] * dry_run
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *argv, "--", *targets],
            env=self.environment,
            cwd=self.top,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, directory: Path, *targets: str, **options: Any) -> subprocess.CompletedProcess:
        """Run snakemake to its end; what it printed is in `stdout`."""
        with self.start(directory, *targets, **options) as process:
            output, _ = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def config(self, path: Path, **changed: Any) -> Path:
        """Write configs/smoke.yaml with some sections, or settings of sections, changed.

        A section that is None is left out.
        """
        sections = yaml.safe_load((self.top / "configs" / "smoke.yaml").read_text())
        for name, value in changed.items():
            merged = {**sections[name], **value} if isinstance(value, dict) else value
            sections[name] = merged
        kept = {name: section for name, section in sections.items() if section is not None}
        path.write_text(yaml.safe_dump(kept))
        return path

    def edit(self, name: str, old: str, new: str) -> str:
        """Replace `old` in a file of the copy; its whole text before."""
        path = self.top / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return text


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    from bfmpipe.kernels import _cpu

    top = tmp_path_factory.mktemp("checkout")
    for name in ("bfmpipe", "csrc", "configs", "profiles"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(REPOSITORY / name, top / name, ignore=ignored)
    shutil.copy(REPOSITORY / "Snakefile", top)
    shutil.copy(_cpu.__file__, top / "bfmpipe" / "kernels")
    (top / "sitecustomize.py").write_text(SITECUSTOMIZE)
    copy = Checkout(top)
    where = "import bfmpipe.kernels._cpu as c, bfmpipe; print(bfmpipe.__file__, c.__file__)"
    argv = [sys.executable, "-c", where]
    found = subprocess.check_output(argv, env=copy.environment, cwd=top, text=True).split()
    assert [Path(file).is_relative_to(top) for file in found] == [True, True]
    return copy


@pytest.fixture(scope="session")
def smoke(checkout, tmp_path_factory):
    """The directory of one undisturbed run of configs/smoke.yaml on two cores."""
    directory = tmp_path_factory.mktemp("smoke")
    done = checkout.run(directory)
    assert done.returncode == 0, done.stdout
    return directory


def planned(output: str) -> list[str]:
    """Jobs of a dry run in short, such as "adapt seed0 lola"."""
    jobs = []
    for block in re.split(r"\n(?=(?:local)?rule )", output)[1:]:
        rule = block.split(":")[0].split()[1]
        wildcards = dict(
            re.findall(r"(\w+)=([\w-]+)", *re.findall("wildcards: (.*)", block) or [""])
        )
        seed = f"seed{wildcards['seed']}" if "seed" in wildcards else ""
        jobs.append(" ".join(filter(None, [rule, seed, wildcards.get("method", "")])))
    return sorted(jobs)


@pytest.fixture(scope="session")
def plan(checkout):
    """A function: the jobs that snakemake would run in a directory."""

    def dry_run(directory, *targets, **options):
        done = checkout.run(directory, *targets, dry_run=True, **options)
        assert done.returncode == 0, done.stdout
        return planned(done.stdout)

    return dry_run

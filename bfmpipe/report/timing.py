"""What the jobs cost, from Snakemake's benchmark files: <directory>/<rule>/<job>.tsv."""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bfmpipe.types import UserError


@dataclass(frozen=True)
class Job:
    """One run of a rule. Seconds, and megabytes; NaN where a job ended before it was sampled."""

    rule: str
    name: str
    wall: float
    cpu: float
    memory: float


def read(directory: Path) -> list[Job]:
    """All jobs below a directory, by rule and name; none if there is no such directory.

    Raises:
        UserError: a file is no benchmark.
    """
    jobs = []
    for path in sorted(directory.rglob("*.tsv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        for row in rows:
            if not row.get("s"):
                raise UserError(f"{path}: not a benchmark file of Snakemake, it has no column 's'")
            rule = path.relative_to(directory).parts[0].removesuffix(".tsv")
            values = (_number(row.get(name)) for name in ("s", "cpu_time", "max_rss"))
            jobs.append(Job(rule, path.stem, *values))
    return jobs


def of_method(jobs: list[Job], domain: str, agent: str, method: str) -> list[Job]:
    """The jobs of rule adapt that ran a method, told by their names.

    They are domain-agent-seedN-method, or domain-agent-method for all seeds in one job.
    """
    name = re.compile(rf"{re.escape(f'{domain}-{agent}')}(-seed\d+)?-{re.escape(method)}")
    return [job for job in jobs if job.rule == "adapt" and name.fullmatch(job.name)]


def of_experiment(jobs: list[Job], experiment: Mapping[str, Any]) -> list[Job]:
    """The jobs of an experiment, told by their names; others may share its directory.

    All of them where it does not say what its domains, agents, seeds and methods are.
    """
    sections = ("domains", "agents", "seeds", "methods")
    if not experiment.keys() >= set(sections):
        return jobs
    domains, agents, seeds, methods = ([*map(str, experiment[name])] for name in sections)
    names = {"all", *domains}
    for domain, agent in product(domains, agents):
        models = [f"{domain}-{agent}", *(f"{domain}-{agent}-seed{seed}" for seed in seeds)]
        names |= {*models, *(f"{model}-{method}" for model in models for method in methods)}
    return [job for job in jobs if job.name in names]


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:  # Snakemake writes NA
        return math.nan

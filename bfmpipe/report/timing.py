"""What the jobs cost: <directory>/<rule>/<job>.json, beside Snakemake's benchmark files.

A job writes it itself, at its end. Snakemake's own figures are samples, in a long job half a minute
apart, and lack what came after the last one.
"""

import json
import os
import re
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bfmpipe.files import replacing
from bfmpipe.types import UserError


@dataclass(frozen=True)
class Cost:
    """Seconds of wall and of CPU time, and the peak of the resident memory in MB (2^20 bytes)."""

    wall: float
    cpu: float
    memory: float


@dataclass(frozen=True)
class Job(Cost):
    """One run of a rule."""

    rule: str
    name: str


_before = Cost(0.0, 0.0, 0.0)


def went_on(before: Cost) -> None:
    """Count from here on what a job had cost, in processes before, where this one goes on."""
    global _before
    _before = before


def spent() -> Cost:
    """What this process has cost since it started, with its children that have ended.

    Of a job that was killed, that is the last attempt, and what `went_on` was told of.
    """
    # field 22 of stat(5), counted behind the name, which may hold spaces: ticks since the boot
    started = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    wall = time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")
    return Cost(
        wall=_before.wall + wall,
        cpu=_before.cpu + sum(u.ru_utime + u.ru_stime for u in used),
        memory=max(_before.memory, *(u.ru_maxrss / 1024 for u in used)),
    )


def write(file: Path) -> None:
    """Store what this process has cost, or at least nothing of an earlier one."""
    file.unlink(missing_ok=True)
    with replacing(file) as path:
        path.write_text(json.dumps(asdict(spent())) + "\n", encoding="utf-8")


def read(directory: Path) -> list[Job]:
    """All jobs below a directory, by rule and name; none if there is no such directory.

    Raises:
        UserError: a file holds something else.
    """
    jobs = []
    for path in sorted(directory.rglob("*.json")):
        try:
            found = json.loads(path.read_text("utf-8"))
            cost = Cost(**{name: float(value) for name, value in found.items()})
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{path}: not what a job of this pipeline cost; delete it") from None
        jobs.append(Job(**asdict(cost), rule=path.parent.name, name=path.stem))
    return jobs


def of_method(jobs: list[Job], domain: str, agent: str, method: str, seeds: int) -> list[Job]:
    """The jobs of rule adapt that ran a method with so many seeds, told by their names.

    They are domain-agent-seedN-method, or domain-agent-method for all seeds in one job. None where
    what one of them cost is not known.
    """
    name = re.compile(rf"{re.escape(f'{domain}-{agent}')}(-seed\d+)?-{re.escape(method)}")
    found = {m[1]: job for job in jobs if job.rule == "adapt" and (m := name.fullmatch(job.name))}
    if None in found:
        return [found[None]]
    return [*found.values()] if len(found) == seeds else []


def of_experiment(jobs: list[Job], experiment: Mapping[str, Any]) -> list[Job]:
    """The jobs of an experiment, told by their names; others may share its directory.

    All of them where it does not say what its domains, agents, seeds and methods are.
    """
    sections = ("domains", "agents", "seeds", "methods")
    if not experiment.keys() >= set(sections):
        return jobs
    domains, agents, seeds, methods = ([*map(str, experiment[name])] for name in sections)

    of_agent = [f"{domain}-{agent}" for domain, agent in product(domains, agents)]
    of_seed = [f"{agent}-seed{seed}" for agent, seed in product(of_agent, seeds)]

    def names(rule: str) -> set[str]:
        if rule not in ("pretrain", "adapt"):
            return {"all", *domains, *of_agent, *of_seed}
        together = experiment.get(rule, {}).get("seeds_together", False)
        models = of_agent if together else of_seed
        if rule == "pretrain":  # one that is trained online has a job a seed whatever is set
            there = {job.name for job in jobs if job.rule == rule}
            alone = [agent for agent in of_agent if agent not in there]
            return {*models, *(f"{agent}-seed{seed}" for agent, seed in product(alone, seeds))}
        return {f"{model}-{method}" for model, method in product(models, methods)}

    known = {rule: names(rule) for rule in {job.rule for job in jobs}}
    return [job for job in jobs if job.name in known[job.rule]]

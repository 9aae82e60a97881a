"""The experiment file: config.yaml, checked as a whole, and what each stage is given of it.

The Snakefile asks for one stage's settings at a time, so that a change elsewhere reruns nothing.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, JsonValue, field_validator

from bfmpipe import plugins
from bfmpipe.adaptation.protocol import Evaluation
from bfmpipe.agents.trainer import TrainerConfig
from bfmpipe.config import Config, canonical, load_yaml, parse
from bfmpipe.envs import make_domain
from bfmpipe.envs import tasks as own_tasks
from bfmpipe.inference.reward import Inference
from bfmpipe.kernels.extension import check_build
from bfmpipe.stages.collect import explored_episodes
from bfmpipe.stages.sections import Families, digest
from bfmpipe.stages.tabulate import Tabulate
from bfmpipe.types import UserError

Settings = dict[str, JsonValue]


class DomainSection(Config):
    """One domain: its settings, and its task families."""

    settings: Settings = Field(default_factory=dict)
    tasks: dict[str, Settings] = Field(min_length=1)


class CollectSection(Config):
    """How the data set is explored."""

    explorer: str = "persistent-random"
    settings: Settings = Field(default_factory=dict)
    episodes: int | None = Field(None, ge=1)
    """Episodes to explore in; for all explorers but exorl, which imports them."""
    seed: int = Field(0, ge=0)


class ProbeSection(Config):
    """How many data-derived latents are tried, on how many selection episodes."""

    latents: int = Field(256, ge=1)
    episodes: int = Field(16, ge=2)


class AdaptSection(Config):
    """The budget that every method gets."""

    episodes: int = Field(ge=1)
    """Episodes' worth of environment steps a task."""
    every: int = Field(16, ge=1)
    """Episodes between evaluations."""


class Experiment(Config):
    """A whole experiment: every domain x agent x seed x method."""

    results: str = Field("results", pattern=r"^[\w./+-]+$")
    """The directory everything is written to: letters, digits and ./_+- only, since its name
    stands in the shell commands of all jobs."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(min_length=1)
    domains: dict[str, DomainSection] = Field(min_length=1)
    agents: dict[str, Settings] = Field(min_length=1)
    methods: dict[str, Settings] = Field(min_length=1)
    collect: CollectSection
    pretrain: TrainerConfig
    infer: Inference = Inference()
    probe: ProbeSection = ProbeSection()
    adapt: AdaptSection
    evaluate: Evaluation = Evaluation()
    tabulate: Tabulate = Tabulate()

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("a seed stands twice; its runs would count twice")
        return seeds

    def stage(
        self, name: str, *, domain: str = "", agent: str = "", seed: str = "0", method: str = ""
    ) -> str:
        """Settings of one job of a stage as canonical JSON; arguments are Snakemake's wildcards."""
        return canonical(getattr(self, f"_{name}")(domain, agent, int(seed), method))

    def code(self, stage: str, *, domain: str = "", agent: str = "", method: str = "") -> str:
        """Digest of the code that one job of a stage can reach."""
        used = {"envs": domain, "agents": agent, "adaptation": method}
        if stage == "collect":
            used["data"] = self.collect.explorer
        return digest(stage, {kind: plugin for kind, plugin in used.items() if plugin})

    def _collect(self, domain: str, *_: object) -> Mapping[str, Any]:
        section = self.collect
        return {
            "domain": self._domain(domain),
            "explorer": _plugin(section.explorer, section.settings),
            "episodes": section.episodes,
            "seed": section.seed,
        }

    def _coverage(self, *_: object) -> Mapping[str, Any]:
        return {"seed": self.collect.seed}

    def _pretrain(self, domain: str, agent: str, seed: int, _: str) -> Mapping[str, Any]:
        return {
            "domain": self._domain(domain),
            "agent": _plugin(agent, self.agents[agent]),
            "trainer": self.pretrain.model_dump(mode="json"),
            "seed": seed,
        }

    def _infer(self, domain: str, agent: str, seed: int, _: str) -> Mapping[str, Any]:
        return {
            **self._with_tasks(domain, agent, seed),
            "inference": self.infer.model_dump(mode="json"),
        }

    def _probe(self, domain: str, agent: str, seed: int, _: str) -> Mapping[str, Any]:
        return {
            **self._with_tasks(domain, agent, seed),
            **self.probe.model_dump(mode="json"),
            "evaluation": self.evaluate.model_dump(mode="json"),
        }

    def _adapt(self, domain: str, agent: str, seed: int, method: str) -> Mapping[str, Any]:
        return {
            **self._with_tasks(domain, agent, seed),
            **self.adapt.model_dump(mode="json"),
            "method": _plugin(method, self.methods[method]),
            "evaluation": self.evaluate.model_dump(mode="json"),
        }

    def _tabulate(self, *_: object) -> Mapping[str, Any]:
        return self.tabulate.model_dump(mode="json")

    def _plot(self, domain: str, agent: str, *_: object) -> Mapping[str, Any]:
        return {
            "domain": domain,
            "agent": agent,
            "families": self.domains[domain].tasks,
            "method": "lola" if "lola" in self.methods else next(iter(self.methods)),
        }

    def _report(self, *_: object) -> Mapping[str, Any]:
        return {"experiment": self.model_dump(mode="json", exclude={"results"})}

    def _domain(self, name: str) -> Mapping[str, Any]:
        return _plugin(name, self.domains[name].settings)

    def _with_tasks(self, domain: str, agent: str, seed: int) -> dict[str, Any]:
        families = {"families": self.domains[domain].tasks}
        return {"domain": domain, "agent": agent, "tasks": families, "seed": seed}


def _plugin(name: str, settings: Settings) -> dict[str, Any]:
    return {"name": name, "settings": settings}


def read(path: Path | str) -> Experiment:
    """The experiment of a YAML file; arguments and errors as for `check`."""
    return check(load_yaml(Path(path)), str(path), base=Path(path).parent)


def check(mapping: Mapping[str, Any], where: str, *, base: Path = Path()) -> Experiment:
    """An experiment, with every name and setting in it looked up.

    Args:
        mapping: what was read.
        where: the file it was read from, or whatever else a message should begin with.
        base: the directory that files in it are relative to.

    Raises:
        UserError: one sentence with the place of what is wrong and what would be valid.
    """
    check_build()
    experiment = parse(Experiment, mapping, where)
    if "zero-shot" not in experiment.methods:
        raise UserError(
            f"{where}: methods: zero-shot is missing; every table compares with it, so add "
            "'zero-shot: {}'"
        )
    try:
        for name, section in experiment.domains.items():
            domain = make_domain(name, section.settings)
            _find_files(name, section.tasks, base)
            Families(families=section.tasks).tasks(domain)
    except UserError as error:
        raise UserError(f"{where}: domains: {error}") from error
    for section_name, kind, chosen in (
        ("agents", "agents", experiment.agents),
        ("methods", "adaptation", experiment.methods),
        ("collect", "data", {experiment.collect.explorer: experiment.collect.settings}),
    ):
        for name, settings in chosen.items():
            try:
                module = plugins.load(kind, name)
            except UserError as error:
                raise UserError(f"{where}: {section_name}: {error}") from error
            place = "collect.settings" if kind == "data" else f"{section_name}.{name}"
            parse(module.Config, settings, where, at=place)
            if kind == "data":
                try:
                    explored_episodes(module, name, experiment.collect.episodes)
                except UserError as error:
                    raise UserError(f"{where}: {error}") from error
    return experiment


def _find_files(domain: str, families: dict[str, Settings], base: Path) -> None:
    """Let the settings of families that name a file say where it is, and what it holds.

    Jobs run in the working directory, and run again when their settings change.
    """
    for family, settings in families.items():
        file = settings.get("file")
        if not isinstance(file, str):
            continue  # none, or not a name, which `Families.tasks` complains of
        path = os.path.relpath(base / file)
        try:
            found = own_tasks.digest(path)
        except UserError as error:
            raise UserError(f"domain {domain}: task family {family}: {error}") from error
        settings["file"] = path
        settings.setdefault("digest", found)

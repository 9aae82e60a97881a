"""The experiment file: config.yaml, checked as a whole, and what each stage is given of it.

The Snakefile asks for one stage's settings at a time, so that a change elsewhere reruns nothing.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, JsonValue, Tag, field_validator

from bfmpipe import plugins
from bfmpipe.adaptation.diagnosis import DiagnosisConfig
from bfmpipe.adaptation.protocol import Evaluation
from bfmpipe.agents import CONFIG, WEIGHTS, online
from bfmpipe.agents.event_files import check as check_tensorboard
from bfmpipe.agents.trainer import TrainerConfig
from bfmpipe.config import Config, canonical, load_yaml, parse, spelt
from bfmpipe.data import transitions
from bfmpipe.data.tables import open_table
from bfmpipe.envs import make_domain
from bfmpipe.envs import tasks as own_tasks
from bfmpipe.envs.domain import Domain
from bfmpipe.inference.reward import Inference
from bfmpipe.kernels.extension import check_build
from bfmpipe.report.runs import ZERO_SHOT
from bfmpipe.report.tabulation import RANDOM
from bfmpipe.report.verdicts import Claims
from bfmpipe.stages.collect import explored_episodes
from bfmpipe.stages.sections import Families, digest
from bfmpipe.stages.tabulate import Tabulate
from bfmpipe.types import UserError, meant

Settings = dict[str, JsonValue]

Device = Literal["cpu", "cuda"]

_PRETRAINED = "pretrained"
_DIRECTORIES = ("benchmarks", "figures", "logs", "tables")
"""Those below `results` that are no domain's and no experiment's."""


class DomainSection(Config):
    """One domain: its settings, and its task families."""

    settings: Settings = Field(default_factory=dict)
    tasks: dict[str, Settings] = Field(min_length=1)


class CollectSection(Config):
    """How the data set is explored."""

    explorer: str = "persistent-random"
    settings: Settings = Field(default_factory=dict)
    episodes: int | None = Field(None, ge=1)
    """Episodes to explore in; for all explorers but those that import them, exorl and motions."""
    seed: int = Field(0, ge=0)


class PretrainSection(TrainerConfig):
    """How the models are trained, and in how many jobs."""

    seeds_together: bool = False
    """Train all seeds of a domain and agent in one job, as one batched model: the results of each
    are those it would have alone but for rounding. Agents trained online have a job a seed."""
    tensorboard: bool = False
    """Write TensorBoard event files beside the tables of losses."""


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
    seeds_together: bool = False
    """Adapt the models of all seeds in one job, as one batch: the results of each are those it
    would have alone but for rounding. Not with agents trained online."""
    device: Annotated[
        Annotated[Device, Tag("one")] | Annotated[dict[str, Device], Tag("each")],
        Discriminator(lambda value: "each" if isinstance(value, dict) else "one"),
    ] = "cpu"
    """Of the networks and what they learn from; the simulator is on the CPU. The random numbers are
    the same on both. A GPU pays at the papers' widths, above all for critics. One
    device for all methods, or a mapping from names of methods in this experiment to devices; those
    it does not name are on the CPU."""


class Experiment(Config):
    """A whole experiment: every domain x agent x seed x method."""

    results: Annotated[str, spelt(r"[\w./+-]+", "made of letters, digits and ./_+- only")] = (
        "results"
    )
    """The directory everything is written to: letters, digits and ./_+- only, since its name
    stands in the shell commands of all jobs."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(min_length=1)
    domains: dict[str, DomainSection] = Field(min_length=1)
    name: Annotated[
        str, spelt(r"(\w[\w.-]*)?", "a letter or digit and then letters, digits and ._- only")
    ] = ""
    """Where below `results` tables, figures and the report go, so that experiments can share data,
    models and adaptations; letters, digits and ._- only."""
    agents: dict[str, Settings] = Field(min_length=1)
    """By the name of their module. One whose only setting is `pretrained` is not trained: that is
    where its models are, a path with `{domain}` and `{seed}` in it, relative to the working
    directory."""
    methods: dict[
        Annotated[str, spelt(r"[a-z0-9-]+", "made of small letters, digits and - only")], Settings
    ] = Field(min_length=1)
    """By the name of their module, or by any other with the module's as `method` among the
    settings: the same method in variants."""
    select: tuple[str, ...] = ()
    """Which of the methods are run; all of them by default."""
    plugins: str = ""
    """A directory of modules of one's own (`bfmpipe.plugins`), relative to the experiment file."""
    claims: dict[str, Settings] = Field(default_factory=dict)
    """What is held against the tables: see `report.verdicts`."""
    diagnose: DiagnosisConfig = DiagnosisConfig()
    collect: CollectSection
    pretrain: PretrainSection | None = None
    """May be left out where all models are finished."""
    infer: Inference = Inference()
    probe: ProbeSection = ProbeSection()
    adapt: AdaptSection
    evaluate: Evaluation = Evaluation()
    tabulate: Tabulate = Tabulate()

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            seed = next(seed for seed in seeds if seeds.count(seed) > 1)
            raise ValueError(f"{seed} is listed twice, and its runs would count twice; remove one")
        return seeds

    def stage(
        self, name: str, *, domain: str = "", agent: str = "", seed: str = "0", method: str = ""
    ) -> str:
        """Settings of one job of a stage as canonical JSON; arguments are Snakemake's wildcards."""
        return canonical(getattr(self, f"_{name}")(domain, agent, int(seed), method))

    def code(self, stage: str, *, domain: str = "", agent: str = "", method: str = "") -> str:
        """Digest of the code that one job of a stage can reach."""
        used = {"envs": domain, "models": agent}
        if method:
            used["adaptation"] = self.plugin_of(method)
        if stage == "collect":
            used["data"] = self.collect.explorer
        return digest(stage, {kind: plugin for kind, plugin in used.items() if plugin})

    @property
    def trainer(self) -> PretrainSection:
        """How models are trained, if any are."""
        return self.pretrain or PretrainSection()

    @property
    def finished(self) -> tuple[str, ...]:
        """The agents whose models are made already."""
        return tuple(name for name, settings in self.agents.items() if _PRETRAINED in settings)

    @property
    def online(self) -> tuple[str, ...]:
        """The agents that are trained online, one seed a job."""
        trained = (name for name in self.agents if name not in self.finished)
        modules = {name: plugins.load("agents", name) for name in trained}
        return tuple(n for n, m in modules.items() if issubclass(m.Agent, online.Agent))

    def pretrained(self, domain: str, agent: str, seed: int | str) -> str:
        """The directory of a model that is finished."""
        path = str(self.agents[agent][_PRETRAINED])
        path = path.replace("{domain}", domain).replace("{seed}", str(seed))
        return str(Path(path).expanduser())

    def source(self, domain: str) -> str:
        """The fingerprint of the files that a data set is imported from; "" where it is explored.

        Of files that are gone since the import, it is that of the data set that came of them.
        """
        path = self.collect.settings.get("path")
        explorer = plugins.load("data", self.collect.explorer)
        if not hasattr(explorer, "fingerprint") or not isinstance(path, str):
            return ""
        found: str | None = explorer.fingerprint(path, domain)
        if found:
            return found
        try:
            file, origin = open_table(Path(self.results, domain, "data.parquet"), transitions.KIND)
        except UserError:
            return ""
        file.close()
        return str(origin.source.get("fingerprint", ""))

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
        section = self.trainer
        together = section.seeds_together and agent not in self.online
        settings: dict[str, Any] = {
            "domain": self._domain(domain),
            "agent": _plugin(agent, self.agents[agent]),
            "trainer": section.model_dump(mode="json", exclude={"seeds_together", "tensorboard"}),
            "seeds": self.seeds if together else [seed],
            "tensorboard": section.tensorboard,
        }
        if section.evaluate_every:  # else a task's edit would train the models again
            settings |= {
                "tasks": {"families": self.domains[domain].tasks},
                "inference": self.infer.model_dump(mode="json"),
                "evaluation": self.evaluate.model_dump(mode="json"),
            }
        return settings

    def _adopt(self, domain: str, agent: str, seed: int, _: str) -> Mapping[str, Any]:
        return {"domain": self._domain(domain), "agent": agent, "seed": seed}

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
        section = self.adapt
        return {
            "domain": domain,
            "agent": agent,
            "tasks": {"families": self.domains[domain].tasks},
            "seeds": self.seeds if section.seeds_together else [seed],
            **section.model_dump(mode="json", exclude={"seeds_together"}),
            "device": self.device_of(method),
            "method": _plugin(self.plugin_of(method), _without(self.methods[method], "method")),
            "label": method,
            "evaluation": self.evaluate.model_dump(mode="json"),
        }

    def _describe(self, domain: str, *_: object) -> Mapping[str, Any]:
        return {"families": self.domains[domain].tasks}

    def _diagnose(self, domain: str, agent: str, seed: int, _: str) -> Mapping[str, Any]:
        return {
            **self._with_tasks(domain, agent, seed),
            "diagnosis": self.diagnose.model_dump(mode="json"),
            "inference": self.infer.model_dump(mode="json"),
        }

    def _judge(self, *_: object) -> Mapping[str, Any]:
        return {
            "claims": self.claims,
            "confidence": self.tabulate.confidence,
            "seeds_together": self.adapt.seeds_together,
        }

    def _tabulate(self, *_: object) -> Mapping[str, Any]:
        return self.tabulate.model_dump(mode="json")

    def _plot(self, domain: str, agent: str, *_: object) -> Mapping[str, Any]:
        return {
            "domain": domain,
            "agent": agent,
            "families": self.domains[domain].tasks,
            "method": min(self.methods, key=_shown),
        }

    def _report(self, *_: object) -> Mapping[str, Any]:
        shown = self.model_dump(mode="json", exclude={"results", "name"})
        return {"name": self.name, "experiment": shown}

    def plugin_of(self, method: str) -> str:
        """The module's name of a method by its own."""
        name = self.methods[method].get("method", method)
        return name if isinstance(name, str) else method

    def device_of(self, method: str) -> Device:
        """What a method adapts on, by its own name."""
        device = self.adapt.device
        return device.get(method, "cpu") if isinstance(device, dict) else device

    def _domain(self, name: str) -> Mapping[str, Any]:
        return _plugin(name, self.domains[name].settings)

    def _with_tasks(self, domain: str, agent: str, seed: int) -> dict[str, Any]:
        families = {"families": self.domains[domain].tasks}
        return {"domain": domain, "agent": agent, "tasks": families, "seed": seed}


def _shown(method: str) -> int:
    """Rank among the methods to be shown where there is room for one."""
    return {"lola": 0, ZERO_SHOT: 2}.get(method, 1)


def _without(settings: Settings, key: str) -> Settings:
    return {name: value for name, value in settings.items() if name != key}


def _plugin(name: str, settings: Settings) -> dict[str, Any]:
    return {"name": name, "settings": settings}


def read(path: Path | str) -> Experiment:
    """The experiment of a YAML file; arguments and errors as for `check`."""
    return check(load_yaml(Path(path)), str(path), base=Path(path).parent)


def check(
    mapping: Mapping[str, Any], where: str, *, base: Path = Path(), modules: Path | None = None
) -> Experiment:
    """An experiment, with every name and setting in it looked up.

    Args:
        mapping: what was read.
        where: the file it was read from, or whatever else a message should begin with.
        base: the directory that files in it are relative to.
        modules: the one that its `plugins` is relative to; by default `base`.

    Raises:
        UserError: one sentence with the place of what is wrong and what would be valid.
    """
    check_build()
    experiment = parse(Experiment, mapping, where)
    if experiment.plugins:
        with _at(f"{where}: plugins: "):
            home = base if modules is None else modules
            plugins.use(home / Path(experiment.plugins).expanduser())
    _check_names(experiment, where)
    if isinstance(experiment.adapt.device, dict):
        _check_methods_exist(experiment, experiment.adapt.device, f"{where}: adapt.device")
    experiment = _selected(experiment, where)
    _check_online(experiment, where)
    with _at(f"{where}: domains: "):
        experiment = _with_files(experiment, base)
        domains = _domains(experiment)
    _check_agents(experiment, domains, where)
    _check_methods(experiment, domains, where)
    _check_collect(experiment.collect, where)
    if experiment.pretrain and experiment.pretrain.tensorboard:
        with _at(f"{where}: "):
            check_tensorboard()
    Claims(claims=experiment.claims).parsed(tuple(experiment.methods), where)
    return experiment


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Errors within begin with their place."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}{error}") from error


def _domains(experiment: Experiment) -> list[Domain]:
    """The domains, all of whose tasks can be made."""
    domains = []
    for name, section in experiment.domains.items():
        domain = make_domain(name, section.settings)
        Families(families=section.tasks).tasks(domain)
        domains.append(domain)
    return domains


def _check_agents(experiment: Experiment, domains: Sequence[Domain], where: str) -> None:
    """Refuse agents that there are none of, or that fit no domain or its data."""
    for name, settings in experiment.agents.items():
        if name in experiment.finished:
            with _at(f"{where}: agents.{name}: "):
                _check_finished(experiment, name)
            continue
        if experiment.pretrain is None:
            raise UserError(
                f"{where}: pretrain is missing; it says how {name} is trained, unless "
                f"agents.{name}.{_PRETRAINED} says where finished models are"
            )
        with _at(f"{where}: agents: "):
            module = plugins.load("agents", name)
        config = parse(module.Config, settings, where, at=f"agents.{name}")
        for domain in domains:
            with _at(f"{where}: agents.{name}: on {domain.name}, "):
                _check_agent(module, config, domain, experiment.collect)


def _check_finished(experiment: Experiment, agent: str) -> None:
    """Refuse finished models that are not there, or are one for several domains or seeds."""
    plugins.load("models", agent)
    settings = experiment.agents[agent]
    for key in settings:
        if key != _PRETRAINED:
            raise UserError(f"{key}: a finished model has settings of its own; remove it")
    path = settings[_PRETRAINED]
    if not isinstance(path, str) or not path:
        raise UserError(f"{_PRETRAINED} must be a path")
    for placeholder, of in (("{domain}", experiment.domains), ("{seed}", experiment.seeds)):
        if len(of) > 1 and placeholder not in path:
            raise UserError(f"{_PRETRAINED}: {path} is one for all; it needs {placeholder}")
    for domain, seed in product(experiment.domains, experiment.seeds):
        directory = Path(experiment.pretrained(domain, agent, seed))
        for name in (CONFIG, WEIGHTS):
            if not (directory / name).is_file():
                raise UserError(
                    f"{_PRETRAINED}: {directory.absolute()} has no {name}; name a directory that "
                    "bfmpipe.agents.save_model wrote"
                )


def _check_methods(experiment: Experiment, domains: Sequence[Domain], where: str) -> None:
    """Refuse methods that there are none of, or that cannot run in a domain or on the budget."""
    for label, settings in experiment.methods.items():
        place = f"methods.{label}"
        if not isinstance(settings.get("method", ""), str):
            raise UserError(f"{where}: {place}.method must be the name of a method")
        name = experiment.plugin_of(label)
        if label != name and label in (*plugins.names("adaptation"), RANDOM):
            raise UserError(
                f"{where}: {place}: a variant of {name} needs a name of its own; "
                f"{label} is another policy's"
            )
        with _at(f"{where}: methods: "):
            module = plugins.load("adaptation", name)
        config = parse(module.Config, _without(settings, "method"), where, at=place)
        for domain in domains:
            with _at(f"{where}: {place}: on {domain.name}, "):
                budget = experiment.adapt.episodes * domain.config.episode_steps
                module.Method.check(config, domain, budget)


def _check_collect(section: CollectSection, where: str) -> None:
    """Refuse an explorer that there is none of, or its settings."""
    with _at(f"{where}: collect: "):
        module = plugins.load("data", section.explorer)
    parse(module.Config, section.settings, where, at="collect.settings")
    with _at(f"{where}: "):
        explored_episodes(module, section.explorer, section.episodes)


def _check_online(experiment: Experiment, where: str) -> None:
    """Refuse agents that learn from actions on motions, and one job where each has its data."""
    try:
        names = experiment.online
        explorer = plugins.load("data", experiment.collect.explorer).Explorer
    except UserError:
        return  # said later, with its place
    others = [a for a in experiment.agents if a not in (*names, *experiment.finished)]
    if others and not getattr(explorer, "has_actions", True):
        raise UserError(
            f"{where}: agents: {others[0]} learns from actions, which {experiment.collect.explorer}"
            " does not have; it needs an experiment of its own, or another explorer"
        )
    if names and experiment.adapt.seeds_together:
        raise UserError(
            f"{where}: adapt.seeds_together: each seed of {names[0]} has a data set of its "
            "own, its episodes; set it to false"
        )


def _check_agent(
    module: ModuleType, config: Config, domain: Domain, collect: CollectSection
) -> None:
    """Refuse an agent that does not fit a domain, or whose batch the explored data cannot fill."""
    steps = domain.config.episode_steps
    with torch.device("meta"):  # no weights, which take seconds
        model = module.Model(config, domain.obs_dim, domain.action_dim)
    stride, batch = model.config.stride, model.config.batch
    if collect.episodes is None or issubclass(module.Agent, online.Agent):
        return  # an import, whose episodes are as they come, or motions
    if stride > steps:
        raise UserError(f"a stride of {stride} is longer than an episode of {steps} steps")
    transitions = collect.episodes * (steps - stride + 1)
    if batch > transitions:
        raise UserError(
            f"{collect.episodes} episodes are {transitions:,} transitions, fewer than one "
            f"batch of {batch:,}; collect more or set a smaller batch"
        )


def _check_names(experiment: Experiment, where: str) -> None:
    """Refuse an experiment without zero-shot, or whose directory is used for something else."""
    if ZERO_SHOT not in experiment.methods:
        raise UserError(
            f"{where}: methods: {ZERO_SHOT} is missing; every table compares with it, so add "
            f"'{ZERO_SHOT}: {{}}'"
        )
    place = Path(experiment.results)
    for path in (place, *place.parents):
        if path.exists() and not path.is_dir():
            raise UserError(f"{where}: results: {path} is a file; name a directory")
    if experiment.name in {*experiment.domains, *_DIRECTORIES}:
        raise UserError(
            f"{where}: name: {experiment.results}/{experiment.name} is kept for the files of a "
            "stage or a domain; choose another name"
        )


def _check_methods_exist(experiment: Experiment, named: Iterable[str], where: str) -> None:
    """Refuse the name of a method that there is none of."""
    for method in named:
        if method not in experiment.methods:
            raise UserError(
                f"{where}: no method {method}; there are {', '.join(experiment.methods)}"
                f"{meant(method, experiment.methods)}"
            )


def _selected(experiment: Experiment, where: str) -> Experiment:
    """The experiment with no other methods than those selected.

    Raises:
        UserError: a method is selected that there is none of, or zero-shot is not.
    """
    if not experiment.select:
        return experiment
    _check_methods_exist(experiment, experiment.select, f"{where}: select")
    if ZERO_SHOT not in experiment.select:
        raise UserError(
            f"{where}: select: {ZERO_SHOT} is missing; every table compares with it, so add it"
        )
    chosen = {name: s for name, s in experiment.methods.items() if name in experiment.select}
    return experiment.model_copy(update={"methods": chosen})


def _with_files(experiment: Experiment, base: Path) -> Experiment:
    """The experiment whose task families with a file say where it is, and what it holds.

    Jobs run in the working directory, and run again when their settings change.
    """
    domains = {}
    for domain, section in experiment.domains.items():
        families = {}
        for family, settings in section.tasks.items():
            file = settings.get("file")
            if isinstance(file, str):  # else there is none, or `Families.tasks` complains of it
                path = os.path.relpath(base / file)
                with _at(f"domain {domain}: task family {family}: "):
                    settings = {"digest": own_tasks.digest(path), **settings, "file": path}
            families[family] = settings
        domains[domain] = section.model_copy(update={"tasks": families})
    return experiment.model_copy(update={"domains": domains})

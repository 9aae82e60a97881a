"""A finished run as benchmarks take it up: its first domain and agent."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bfmpipe import api, experiment, plugins
from bfmpipe.adaptation.base import Method, Problem
from bfmpipe.agents.stack import Stack
from bfmpipe.config import parse
from bfmpipe.stages.infer import read_latents
from bfmpipe.stages.sections import Families


class Run:
    """What an experiment file and its results hold.

    Args:
        config: the experiment file of a run that has reached `infer`.
        seeds: of the models; the experiment's own if None.
    """

    def __init__(self, config: str, seeds: Sequence[int] | None = None) -> None:
        self.experiment = experiment.read(config)
        self.domain_name, section = next(iter(self.experiment.domains.items()))
        self.agent = next(iter(self.experiment.agents))
        self.seeds = tuple(self.experiment.seeds if seeds is None else seeds)
        self.results = Path(self.experiment.results) / self.domain_name
        places = [self.results / self.agent / f"seed{seed}" for seed in self.seeds]
        self.pretrained = [api.load(place / "model") for place in places]
        self.domain = self.pretrained[0].domain
        self.models = [one.model for one in self.pretrained]
        self.tasks = Families(families=section.tasks).tasks(self.domain)
        found = [
            read_latents(place / "latents.parquet", self.tasks, one)
            for place, one in zip(places, self.pretrained, strict=True)
        ]
        self.w: list[Tensor] = [one.w for one in found]
        self.z: list[Tensor] = [one.z for one in found]

    @cached_property
    def data(self) -> api.Transitions:
        """The data set of the domain, whole."""
        return api.read_transitions(self.results / "data.parquet")

    @property
    def budget(self) -> int:
        """Environment steps a task of the run's own adaptation."""
        return int(self.experiment.adapt.episodes * self.domain.config.episode_steps)

    def problem(
        self, rows: Sequence[int] = (0,), *, budget: int = 10**9, threads: int = 1
    ) -> Problem:
        """The problem of the models of these seeds, by their place in `seeds`, as one batch."""
        models = [self.models[i] for i in rows]
        return Problem(
            domain=self.domain,
            model=models[0] if len(models) == 1 else Stack(models),
            tasks=self.tasks * len(models),
            w=torch.cat([self.w[i] for i in rows]),
            z=torch.cat([self.z[i] for i in rows]),
            budget=budget,
            visited=self.data.physics[self.data.index],
            threads=threads,
            visited_obs=self.data.obs[self.data.index],
        )

    def settings(self, method: str) -> dict[str, Any]:
        """What the experiment sets of a method; nothing if it does not have it."""
        found = self.experiment.methods.get(method, {})
        return {key: value for key, value in found.items() if key != "method"}

    def make(
        self, method: str, problem: Problem, seeds: Sequence[int], settings: dict[str, Any]
    ) -> Method:
        """A method of the experiment, or of no experiment, with these settings."""
        name = self.experiment.plugin_of(method) if method in self.experiment.methods else method
        module = plugins.load("adaptation", name)
        made: Method = module.Method(parse(module.Config, settings, method), problem, seeds)
        return made

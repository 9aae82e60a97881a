"""Adaptation of several seeds as one batch against one after the other: CPU and wall time.

    python -m benchmarks.together CONFIG [EPISODES]

For every method of an experiment that was run, all its seeds: the time of the budget alone, without
start-up and evaluations, on one thread. Both orders in turn, three rounds; medians.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

from bfmpipe import api, experiment, plugins
from bfmpipe.adaptation.base import Problem
from bfmpipe.agents.stack import Stack
from bfmpipe.config import parse
from bfmpipe.stages.infer import read_latents
from bfmpipe.stages.sections import Families

ROUNDS = 3


def main(config: str, episodes: str = "8") -> None:
    """Print a table of one row a method."""
    torch.set_num_threads(1)
    exp = experiment.read(config)
    name, section = next(iter(exp.domains.items()))
    agent = next(iter(exp.agents))
    places = [f"{exp.results}/{name}/{agent}/seed{seed}" for seed in exp.seeds]
    pretrained = [api.load(f"{place}/model") for place in places]
    domain = pretrained[0].domain
    tasks = Families(families=section.tasks).tasks(domain)
    latents = [
        read_latents(Path(p, "latents.parquet"), tasks, pretrained[0].model.z_dim) for p in places
    ]
    data = api.read_transitions(f"{exp.results}/{name}/data.parquet", ("physics",))
    visited = data.physics[data.index]
    budget = int(episodes) * domain.config.episode_steps

    def problem(rows: list[int]) -> Problem:
        models = [pretrained[i].model for i in rows]
        return Problem(
            domain=domain,
            model=models[0] if len(rows) == 1 else Stack(models),
            tasks=tasks * len(rows),
            w=torch.cat([latents[i].w for i in rows]),
            z=torch.cat([latents[i].z for i in rows]),
            budget=budget,
            visited=visited,
            threads=1,
        )

    def spend(method: str, rows: list[int]) -> tuple[float, float]:
        module = plugins.load("adaptation", exp.plugin_of(method))
        settings = {k: v for k, v in exp.methods[method].items() if k != "method"}
        config = parse(module.Config, settings, method)
        running = module.Method(config, problem(rows), [exp.seeds[i] for i in rows])
        cpu, wall = time.process_time(), time.perf_counter()
        while running.advance():
            pass
        return time.process_time() - cpu, time.perf_counter() - wall

    every = list(range(len(places)))
    print(f"{config}: {len(places)} seeds, {len(tasks)} tasks, {episodes} episodes; seconds of CPU")
    print("| method | one after the other | together | ratio, CPU | ratio, wall |")
    print("| --- | --- | --- | --- | --- |")
    for method in exp.methods:
        if method == "zero-shot":
            continue
        apart, joint = [], []
        for _ in range(ROUNDS):
            apart.append([sum(x) for x in zip(*(spend(method, [i]) for i in every), strict=True)])
            joint.append(spend(method, every))
        one, two = (
            [statistics.median(x) for x in zip(*rounds, strict=True)] for rounds in (apart, joint)
        )
        print(
            f"| {method} | {one[0]:.1f} | {two[0]:.1f} | {one[0] / two[0]:.2f} | "
            f"{one[1] / two[1]:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(*sys.argv[1:])

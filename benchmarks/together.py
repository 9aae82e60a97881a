"""Adaptation of several seeds as one batch against one after the other: CPU and wall time.

    python -m benchmarks.together CONFIG [EPISODES]

For every method of an experiment that was run, all its seeds: the time of the budget alone, without
start-up and evaluations, on one thread. Both orders in turn, three rounds; medians.
"""

import statistics
import time

import torch

from benchmarks.measuring import start
from benchmarks.runs import Run

ROUNDS = 3


def main(config: str, episodes: int = 8) -> None:
    """Print a table of one row a method."""
    torch.set_num_threads(1)
    run = Run(config)
    budget = episodes * run.domain.config.episode_steps

    def spend(method: str, rows: list[int]) -> tuple[float, float]:
        problem = run.problem(rows, budget=budget)
        seeds = [run.seeds[i] for i in rows]
        running = run.make(method, problem, seeds, run.settings(method))
        cpu, wall = time.process_time(), time.perf_counter()
        while running.advance():
            pass
        return time.process_time() - cpu, time.perf_counter() - wall

    every = list(range(len(run.seeds)))
    print(
        f"{config}: {len(run.seeds)} seeds, {len(run.tasks)} tasks, {episodes} episodes; "
        "seconds of CPU"
    )
    print("| method | one after the other | together | ratio, CPU | ratio, wall |")
    print("| --- | --- | --- | --- | --- |")
    for method in run.experiment.methods:
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
    start(main)

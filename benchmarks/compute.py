"""What an adaptation costs to compute: python -m benchmarks.compute CONFIG [SEED].

CONFIG is the experiment file of a finished run. On all tasks of its first domain, with its first
agent, one thread, for the run's own budget: LoLA as the run has it, ReLA by its defaults, which are
the paper's (an update a step, batches of 1024), and as the run has it.

An update costs the same whenever it is made, and so does a step, so that both are timed a few
times and multiplied by what the budget pays for. Simulation is stepping and rewards; the rest of a
step is the actor. Floating-point operations are those of matrix products, counted by
torch.utils.flop_counter with psi in plain torch modules; the times are those with the kernels.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import start, table
from benchmarks.runs import Run
from bfmpipe import api
from bfmpipe.adaptation.base import Problem
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.kernels import build_info

UPDATES = 8


class Cost(NamedTuple):
    """Of something that is done, once or in all."""

    wall: float = 0.0
    cpu: float = 0.0
    simulation: float = 0.0  # wall seconds
    forward: float = 0.0  # FLOP
    backward: float = 0.0

    def times(self, n: float) -> "Cost":
        return Cost(*(n * x for x in self))

    def plus(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(self, other, strict=True)))


def clocked(function: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = function(*args, **kwargs)
        spent[name] += time.perf_counter() - wall
        spent[name + " cpu"] += time.process_time() - cpu
        return result

    return call


def timed(call: Callable[[], object], n: int) -> Cost:
    """A call's times; the first one warms up."""
    call()
    spent: dict[str, float] = defaultdict(float)
    with (
        patch.object(BatchedEnv, "step", clocked(BatchedEnv.step, spent, "simulation")),
        patch.object(Problem, "reward", clocked(Problem.reward, spent, "simulation")),
    ):
        whole = clocked(call, spent, "all")
        for _ in range(n):
            whole()
    return Cost(spent["all"], spent["all cpu"], spent["simulation"]).times(1 / n)


class Untracked:
    """In place of the counter's module hooks, which do not stand weights in a no_grad block."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def counted(call: Callable[[], object], model: api.Model) -> Cost:
    """A call's operations."""
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Untracked()
    backward = 0
    grad = torch.autograd.grad

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal backward
        before = counter.get_total_flops()
        result = grad(*args, **kwargs)
        backward += counter.get_total_flops() - before
        return result

    with ExitStack() as stack:
        stack.enter_context(patch.object(type(model), "psi_layers", lambda _: None))
        stack.enter_context(patch.object(torch.autograd, "grad", counting))
        stack.enter_context(counter)
        call()
    return Cost(forward=counter.get_total_flops() - backward, backward=backward)


def lola_cost(run: Run, settings: dict[str, Any]) -> Cost:
    method = run.make("lola", run.problem(), [0], settings)
    once = timed(method.advance, UPDATES // 2)
    c = method.config
    updates = run.budget / (c.states * c.latents * c.horizon)
    return once.plus(counted(method.advance, method.problem.model)).times(updates)


def rela_cost(run: Run, settings: dict[str, Any]) -> Cost:
    """Of the steps, and of the updates between them."""
    problem = run.problem(budget=run.budget)
    method = run.make("rela", problem, [0], {**settings, "latent_warmup_updates": 0})
    steps = problem.budget // method.config.num_envs
    updates = method.config.updates_allowed(problem.budget)

    def step() -> None:
        method._collect()

    def update() -> None:
        method.update(method.replay.sample(method.config.batch, method.draws))

    total = Cost()
    for call, n, often in ((step, 20 * UPDATES, steps), (update, UPDATES, updates)):
        once = timed(call, n).plus(counted(call, problem.model))
        total = total.plus(once.times(often))
    return total


def main(config: str, seed: int = 0) -> None:
    torch.set_num_threads(1)
    run = Run(config, [seed])
    costs = {
        "LoLA": lola_cost(run, run.settings("lola")),
        "ReLA, the paper's settings": rela_cost(run, {}),
        "ReLA, this run's": rela_cost(run, run.settings("rela")),
    }
    print(
        f"{run.domain_name}, {run.agent}, {len(run.tasks)} tasks, "
        f"{run.experiment.adapt.episodes} episodes of {run.domain.config.episode_steps} steps a "
        f"task, one thread; {build_info()}"
    )
    lola = costs["LoLA"]
    rows = []
    for label, cost in costs.items():
        flop = cost.forward + cost.backward
        rows.append(
            (
                label,
                f"{cost.wall:.1f}",
                f"{cost.cpu:.1f}",
                f"{cost.simulation / cost.wall:.0%}",
                f"{cost.forward / 1e9:.1f}",
                f"{cost.backward / 1e9:.1f}",
                f"{cost.cpu / lola.cpu:.1f}",
                f"{flop / (lola.forward + lola.backward):.1f}",
            )
        )
    head = ("", "wall, s", "CPU, s", "simulation", "forward, GFLOP", "backward, GFLOP")
    print(table((*head, "CPU / LoLA's", "FLOP / LoLA's"), rows))


if __name__ == "__main__":
    start(main)

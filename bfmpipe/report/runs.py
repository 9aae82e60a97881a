"""The runs of one method on one family of tasks, aligned: (seed, task, evaluation)."""

from dataclasses import dataclass

import numpy as np

from bfmpipe.report.rows import Columns, count, distinct, select
from bfmpipe.types import Array, UserError

ZERO_SHOT = "zero-shot"


@dataclass(frozen=True)
class Runs:
    """Curves of all runs, at common points.

    seeds: rising; tasks: in the order of the table; env_steps, episodes: (evaluation,), spent a
    task; mean, standard_error, change_error, cosine: (seed, task, evaluation).
    """

    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    env_steps: Array
    episodes: Array
    mean: Array
    standard_error: Array
    change_error: Array
    cosine: Array


def gather(curves: Columns, *, domain: str, agent: str, family: str, method: str) -> Runs:
    """The runs of a method in a table of curves.

    Runs evaluated at different env_steps are interpolated linearly to the points of the run with
    the fewest.

    Raises:
        UserError: there are no runs, or a task lacks a seed that another one has.
    """
    rows = select(curves, domain=domain, agent=agent, family=family, method=method)
    what = f"{domain}, {agent}, {family}, {method}"
    if count(rows) == 0:
        raise UserError(f"no runs of {what} among the tables of adaptation")
    seeds, tasks = sorted(distinct(rows, "seed")), distinct(rows, "task")
    runs = [[select(rows, seed=seed, task=task) for task in tasks] for seed in seeds]
    for seed, of_seed in zip(seeds, runs, strict=True):
        for task, run in zip(tasks, of_seed, strict=True):
            if count(run) == 0:
                raise UserError(f"{what}: task {task} was not run with seed {seed}, others were")
    grid = min((run for of_seed in runs for run in of_seed), key=count)

    def stack(name: str) -> Array:
        x = grid["env_steps"]
        return np.array(
            [[np.interp(x, run["env_steps"], run[name]) for run in of_seed] for of_seed in runs]
        )

    return Runs(
        seeds=tuple(seeds),
        tasks=tuple(tasks),
        env_steps=grid["env_steps"],
        episodes=grid["episodes"],
        mean=stack("mean"),
        standard_error=stack("standard_error"),
        change_error=stack("change_error"),
        cosine=stack("cosine"),
    )


def gather_like(
    base: Runs, curves: Columns, *, domain: str, agent: str, family: str, method: str
) -> Runs:
    """`gather`, of a method whose seeds and tasks must be those of `base`, the zero-shot runs.

    Raises:
        UserError: they are not.
    """
    runs = gather(curves, domain=domain, agent=agent, family=family, method=method)
    if runs.seeds != base.seeds or set(runs.tasks) != set(base.tasks):
        raise UserError(
            f"{domain}, {agent}, {family}: {method} was run with seeds {list(runs.seeds)} on "
            f"{', '.join(runs.tasks)}, but {ZERO_SHOT} with seeds {list(base.seeds)} on "
            f"{', '.join(base.tasks)}"
        )
    order = [runs.tasks.index(task) for task in base.tasks]
    return Runs(
        seeds=runs.seeds,
        tasks=base.tasks,
        env_steps=runs.env_steps,
        episodes=runs.episodes,
        mean=runs.mean[:, order],
        standard_error=runs.standard_error[:, order],
        change_error=runs.change_error[:, order],
        cosine=runs.cosine[:, order],
    )

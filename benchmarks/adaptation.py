"""What the kernels' share of adaptation is: python -m benchmarks.adaptation CONFIG [SEED].

CONFIG is the experiment file of a finished run. On its first domain and agent, one thread, with the
kernels and with the same in plain torch (psi's own modules, the better vectorised form of the
returns), in turns:

- LoLA: wall time of an update on all tasks, and in it the frozen values and the leave-one-out
  returns. The rest is simulation and the actor.
- best of N: the values of all latents on all tasks, beside the time that playing them takes.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.leave_one_out import in_torch, weighted_sum
from benchmarks.measuring import start, table
from benchmarks.runs import Run
from bfmpipe.adaptation import lola
from bfmpipe.inference.ranking import latent_values
from bfmpipe.kernels import build_info
from bfmpipe.networks import project_z
from bfmpipe.stages.probe import _play_all

UPDATES, ROUNDS = 4, 5


def timed(function: Callable, spent: dict[str, float], name: str) -> Callable:
    def call(*args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        spent[name] += time.perf_counter() - start
        return result

    return call


@contextmanager
def plain_torch(model) -> Iterator[None]:
    with (
        patch.object(type(model), "psi_layers", lambda _: None),
        patch.object(lola, "leave_one_out", leave_one_out_in_torch),
    ):
        yield


def leave_one_out_in_torch(reward, bootstrap, z, mu, *, sigma, discount):
    settings = {"sigma": sigma, "discount": discount, "terminated": None}
    return in_torch(weighted_sum, reward, bootstrap, z, mu, **settings)


def lola_update(run: Run) -> dict[str, float]:
    """Milliseconds an update, in all and by part."""
    problem = run.problem()
    method = run.make("lola", problem, [0], run.settings("lola"))
    spent: dict[str, float] = defaultdict(float)
    with (
        patch.object(lola, "leave_one_out", timed(lola.leave_one_out, spent, "returns")),
        patch.object(problem.model, "q", timed(problem.model.q, spent, "values")),
    ):
        start = time.perf_counter()
        for _ in range(UPDATES):
            method.advance()
        spent["all"] = time.perf_counter() - start
    return {name: 1e3 * seconds / UPDATES for name, seconds in spent.items()}


@torch.no_grad()
def main(config: str, seed: int = 0) -> None:
    torch.set_num_threads(1)
    run = Run(config, [seed])
    model, domain, data, probe = run.models[0], run.domain, run.data, run.experiment.probe
    rng = np.random.default_rng(0)
    z = project_z(model.phi(torch.from_numpy(data.obs[rng.choice(data.index, probe.latents)])))
    starts = domain.start_states(probe.episodes, rng)

    start = time.perf_counter()
    _, obs = _play_all(run.pretrained[0], run.tasks, z, starts)
    playing = 1e3 * (time.perf_counter() - start)
    forms = {
        "kernels": nullcontext,
        "torch": partial(plain_torch, model),
    }
    updates: dict[str, list[dict[str, float]]] = defaultdict(list)
    ranking: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for form, within in forms.items():
            with within():
                updates[form].append(lola_update(run))
                start = time.perf_counter()
                latent_values(model, obs, z, run.w[0])
                ranking[form].append(1e3 * (time.perf_counter() - start))

    print(f"{run.domain_name}, {run.agent}, {len(run.tasks)} tasks, one thread; {build_info()}")
    rows = []
    for form, found in updates.items():
        parts = [
            float(np.median([u[part] for u in found])) for part in ("all", "values", "returns")
        ]
        share = (parts[1] + parts[2]) / parts[0]
        rows.append((form, *(f"{ms:.2f}" for ms in parts), f"{share:.1%}"))
    print(table(("LoLA, an update", "all, ms", "values, ms", "returns, ms", "share of both"), rows))
    rows = []
    for form, found in ranking.items():
        ms = float(np.median(found))
        share = ms / (ms + playing)
        rows.append((form, f"{ms:.1f}", f"{playing:.0f}", f"{share:.2%}"))
    head = (f"best of {len(z)} from {len(starts)} states", "values, ms", "playing, ms", "share")
    print(table(head, rows))


if __name__ == "__main__":
    start(main)

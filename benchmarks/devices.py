"""What adaptation costs at the papers' widths: python -m benchmarks.devices [cpu|cuda].

FB with its published widths on the walker, untrained, since an update costs the same whatever the
weights are: LoLA, ReLA and TD3 by their defaults on four tasks. Timed are two updates in a row,
since TD3's actor moves at every second one, with the steps that they take, and on that account an
adaptation of 50 episodes of 1,000 steps a task; evaluations are not among it. The simulator is on
the CPU, with one thread, as is torch there.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch

from benchmarks.measuring import Device, start, table
from bfmpipe import plugins
from bfmpipe.adaptation.base import Method, Problem
from bfmpipe.adaptation.off_policy import OffPolicyMethod
from bfmpipe.agents import fb
from bfmpipe.envs import make_domain
from bfmpipe.kernels import build_info
from bfmpipe.networks import project_z

TASKS = ("stand", "walk", "run", "flip")
EPISODES = 50
ROUNDS = {"cpu": 3, "cuda": 50}


def make_problem(device: str) -> Problem:
    domain = make_domain("walker", {})
    torch.manual_seed(0)
    model = fb.Model(fb.Config(), domain.obs_dim, domain.action_dim).requires_grad_(False)
    w = torch.randn(len(TASKS), model.z_dim)
    visited = domain.exploration_states(1000, np.random.default_rng(0))
    budget = EPISODES * domain.config.episode_steps
    tasks = domain.tasks("walker", list(TASKS), {})
    z = project_z(w).to(device)
    seen = domain.observe(domain.split(visited))
    model = model.eval().to(device)
    return Problem(domain, model, tasks, w.to(device), z, budget, visited, 1, seen)


def make(name: str, problem: Problem) -> Method:
    """The method at the point where it learns from every step."""
    module = plugins.load("adaptation", name)
    method: Method = module.Method(module.Config(), problem, [0])
    if isinstance(method, OffPolicyMethod):
        while method.env_steps <= method.config.warmup_steps:
            method.advance()
        method.learner.updates = 10**6  # what is warmed up moves
    return method


def advance_twice(method: Method) -> None:
    method.advance()
    method.advance()


def seconds(call: Callable[[], object], rounds: int, device: str) -> Iterator[float]:
    call()  # the first one makes buffers and chooses kernels
    for _ in range(rounds):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - began


def main(device: Device = "cpu") -> None:
    torch.set_num_threads(1)
    problem = make_problem(device)
    where = torch.cuda.get_device_name() if device == "cuda" else "one thread of the CPU"
    print(f"walker, FB of width {problem.model.config.hidden_dim}, {where}; {build_info()}")
    rows = []
    for name in ("lola", "rela", "td3"):
        method = make(name, problem)
        before = method.env_steps
        times = list(seconds(partial(advance_twice, method), ROUNDS[device], device))
        steps = (method.env_steps - before) / (len(times) + 1) / 2
        median = statistics.median(times) / 2
        hours = median * problem.budget / steps / 3600
        rows.append((name, f"{1e3 * median:.1f}", f"{steps:.0f}", f"{hours:.2f}"))
    print(table(("method", "an update, ms", "steps of a task", "50 episodes, h"), rows))


if __name__ == "__main__":
    start(main)

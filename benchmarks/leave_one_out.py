"""Time leave_one_out against torch on one CPU thread: python benchmarks/leave_one_out.py [cuda].

Two forms in plain torch, both vectorised over the rollouts, stand against it: one weighted sum over
time, and a loop over time. The table has the faster one. Microseconds a call, median of repeats.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch

from bfmpipe.kernels import build_info, leave_one_out
from bfmpipe.kernels.leave_one_out import LeaveOneOut

# tasks, states, k, nstep
CASES = [(1, 1, 16, 50), (1, 1, 256, 250), (1, 1, 4096, 250), (4, 10, 64, 100)]
D, DISCOUNT, SIGMA = 50, 0.98, 0.2


def weighted_sum(reward, bootstrap, *, discount, terminated):
    nstep = len(reward)
    weight = discount ** torch.arange(nstep + 1, device=reward.device, dtype=reward.dtype)
    if terminated is None:
        return torch.tensordot(weight[:-1], reward, 1) + weight[-1] * bootstrap
    step = torch.arange(nstep, device=reward.device, dtype=torch.int32)[:, None, None, None]
    last = step.where(terminated, nstep).amin(0)
    returns = torch.tensordot(weight[:-1], reward.where(step <= last, 0), 1)
    return returns + weight[-1] * bootstrap.where(last == nstep, 0)


def loop(reward, bootstrap, *, discount, terminated):
    returns = bootstrap
    if terminated is None:
        for step in reward.flip(0):
            returns = torch.add(step, returns, alpha=discount)
    else:
        factor = discount * terminated.logical_not().to(reward.dtype)
        for t in reversed(range(len(reward))):
            returns = torch.addcmul(reward[t], factor[t], returns)
    return returns


def in_torch(returns_of, reward, bootstrap, z, mu, *, sigma, discount, terminated) -> LeaveOneOut:
    returns = returns_of(reward, bootstrap, discount=discount, terminated=terminated)
    _, states, k = returns.shape
    advantages = returns - (returns.sum(-1, keepdim=True) - returns) / (k - 1)
    # the advantages of a group sum to zero: mu drops out
    total = torch.bmm(advantages.flatten(1)[:, None], z.flatten(1, 2))[:, 0]
    return LeaveOneOut(returns, advantages, total / (sigma**2 * states * k))


def microseconds(call: Callable[[], object], device: str, repeats: int = 30) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(repeats + 5):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:]) * 1e6


def main(device: str = "cpu") -> None:
    torch.set_num_threads(1)
    print(f"{device}, torch {torch.__version__}, {build_info()}")
    print("| tasks x states x k | nstep | ends | kernel, us | torch, us | ratio |")
    print("|---|---|---|---|---|---|")
    for tasks, states, k, nstep in CASES:
        reward = torch.randn(nstep, tasks, states, k, device=device)
        bootstrap = torch.randn(tasks, states, k, device=device)
        z = torch.randn(tasks, states, k, D, device=device)
        mu = torch.zeros(tasks, D, device=device)
        for terminated in (None, torch.rand(reward.shape, device=device) < 0.01):
            arguments = {"sigma": SIGMA, "discount": DISCOUNT, "terminated": terminated}
            kernel = partial(leave_one_out, reward, bootstrap, z, mu, **arguments)
            forms = [
                partial(in_torch, form, reward, bootstrap, z, mu, **arguments)
                for form in (weighted_sum, loop)
            ]
            for form in forms:
                torch.testing.assert_close(form(), kernel(), rtol=1e-3, atol=1e-3)
            ours = microseconds(kernel, device)
            best = min(microseconds(form, device) for form in forms)
            print(
                f"| {tasks} x {states} x {k} | {nstep} | {'yes' if terminated is not None else ''} "
                f"| {ours:.0f} | {best:.0f} | {best / ours:.1f} |"
            )


if __name__ == "__main__":
    main(*sys.argv[1:])

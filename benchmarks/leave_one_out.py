"""Time leave_one_out against torch on one CPU thread: python -m benchmarks.leave_one_out [cuda].

Two forms in plain torch, both vectorised over the rollouts, stand against it: one weighted sum over
time, and a loop over time. The table has the faster one. Exits with 1 if the median ratio with
terminations is below 8, or one size is slower.
"""

import statistics
from functools import partial

import torch

from benchmarks.measuring import Device, machine, start, table, time_alternately
from bfmpipe.kernels import build_info, leave_one_out
from bfmpipe.kernels.leave_one_out import LeaveOneOut

# tasks, states, k, nstep
CASES = [(1, 1, k, nstep) for k in (16, 64, 256, 1024, 4096) for nstep in (50, 100, 250)]
CASES += [(8, 8, 8, 50)]  # LoLA on the default profile
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


def main(device: Device = "cpu") -> int:
    torch.set_num_threads(1)
    print(f"{machine(device)}; {build_info()}")
    rows, ratios = [], {True: [], False: []}
    for tasks, states, k, nstep in CASES:
        reward = torch.randn(nstep, tasks, states, k, device=device)
        bootstrap = torch.randn(tasks, states, k, device=device)
        z = torch.randn(tasks, states, k, D, device=device)
        mu = torch.zeros(tasks, D, device=device)
        for ends in (True, False):
            terminated = torch.rand(reward.shape, device=device) < 0.01 if ends else None
            arguments = {"sigma": SIGMA, "discount": DISCOUNT, "terminated": terminated}
            calls = {"kernel": partial(leave_one_out, reward, bootstrap, z, mu, **arguments)}
            for form in (weighted_sum, loop):
                call = partial(in_torch, form, reward, bootstrap, z, mu, **arguments)
                torch.testing.assert_close(call(), calls["kernel"](), rtol=1e-3, atol=1e-3)
                calls[form.__name__] = call
            seconds = time_alternately(calls, block=0.01)
            best = min(("weighted_sum", "loop"), key=lambda name: seconds[name].wall)
            ours, theirs = seconds["kernel"], seconds[best]
            ratios[ends].append(theirs.wall / ours.wall)
            read = sum(x.nbytes for x in (reward, z, terminated) if x is not None)
            rows.append(
                (
                    f"{tasks} x {states} x {k}",
                    f"{nstep}",
                    "yes" if ends else "",
                    *(f"{1e6 * s:.1f}" for s in (ours.wall, ours.cpu, theirs.wall, theirs.cpu)),
                    best.replace("_", " "),
                    f"{theirs.wall / ours.wall:.1f}",
                    f"{1e-9 * read / ours.wall:.1f}",
                )
            )
    head = ("tasks x states x k", "nstep", "ends", "kernel, us", "CPU", "torch, us", "CPU")
    print(table((*head, "form", "ratio", "GB/s"), rows))
    for ends, found in ratios.items():
        print(
            f"{'with' if ends else 'without'} terminations: median {statistics.median(found):.1f}, "
            f"lowest {min(found):.1f}"
        )
    return int(statistics.median(ratios[True]) < 8 or min(ratios[True] + ratios[False]) < 1)


if __name__ == "__main__":
    start(main)

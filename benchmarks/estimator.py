"""How noisy LoLA's gradient is: python -m benchmarks.estimator [MODEL DATA].

The trace of the covariance of one gradient estimate, at the inferred latent, in units of that of
the leave-one-out baseline on shared start states, all from as many environment steps. On a
quadratic toy whose smoothed gradient is known, so that the bias can be told from the noise; and,
given a model's directory and its data set, on the maze's tasks.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from benchmarks.measuring import start, table
from bfmpipe import api
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.lola import Config, Method, score_gradient
from bfmpipe.kernels import leave_one_out
from bfmpipe.types import UserError

ESTIMATES = 64
"""Gradients of one start state each on the maze; on the toy, of 20,000 groups."""
FORMS: Mapping[str, tuple[str, str]] = {
    "leave-one-out, shared start states": ("leave-one-out", "shared"),
    "leave-one-out, own start states": ("leave-one-out", "own"),
    "no baseline, shared start states": ("none", "shared"),
    "no baseline, own start states": ("none", "own"),
}
OURS = next(iter(FORMS))


def toy_estimates(
    baseline: str, start_states: str, *, groups: int = 20_000, k: int = 8, offset_std: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Estimates (groups, d) of a quadratic's smoothed gradient, one a group, and the gradient (d,).

    f(z) = z^T A z / 2 + b^T z, so E f(mu + sigma eps) has the gradient A mu + b. A start state is
    worth a Gaussian offset.
    """
    d, sigma = 4, 0.3
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    root, b, mu = normal(d, d), normal(d), normal(d)
    A = -(root @ root.T) / d
    z = mu + sigma * normal(groups, 1, k, d)
    offset = offset_std * normal(groups, 1, 1 if start_states == "shared" else k)
    returns = ((z @ A) * z).sum(-1) / 2 + z @ b + offset
    means = mu.expand(groups, d)
    if baseline == "none":
        return score_gradient(returns, z, means, sigma), A @ mu + b
    nothing = torch.zeros_like(returns)
    found = leave_one_out(returns[None], nothing, z, means, sigma=sigma, discount=1.0)
    return found.score_gradient, A @ mu + b


def maze_estimates(problem: Problem, baseline: str, start_states: str) -> Tensor:
    """Estimates (ESTIMATES, T, d) by LoLA's own method at z_0."""
    config = Config.model_validate(
        {"baseline": baseline, "start_states": start_states, "normalise_advantages": False}
    )
    method = Method(config, problem, [0])
    return torch.stack([method.gradient(1) for _ in range(ESTIMATES)])


def spread(estimates: Tensor) -> Tensor:
    """Trace of the covariance over the first axis."""
    return estimates.double().var(0).sum(-1)


def show_toy() -> None:
    found = {name: toy_estimates(*form) for name, form in FORMS.items()}
    least = spread(found[OURS][0]).item()
    rows = []
    for name, (estimates, truth) in found.items():
        error = estimates.mean(0) - truth
        standard_error = estimates.std(0) / len(estimates) ** 0.5
        rows.append(
            (
                name,
                f"{spread(estimates).item() / least:.2f}",
                f"{(error / standard_error).abs().max():.1f}",
                f"{error.norm() / truth.norm():.1%}",
            )
        )
    head = (
        "quadratic toy",
        "variance, relative",
        "largest error, standard errors",
        "of the length",
    )
    print(table(head, rows))


def show_maze(model: str, data_file: str) -> None:
    pretrained = api.load(model)
    domain = pretrained.domain
    families = {"reach": {"target_size": 0.05}, "precise": {"target_size": 0.015}}
    names = [name for name in domain.task_names if name.startswith("reach") and "long" not in name]
    tasks = [task for family, s in families.items() for task in domain.tasks(family, names, s)]
    data = api.read_transitions(data_file)
    latent = api.infer(pretrained, tasks, data)
    visited = data.physics[data.index]
    problem = Problem(domain, pretrained.model, tasks, latent.w, latent.z, 10**9, visited, 1)
    variance = {name: spread(maze_estimates(problem, *form)) for name, form in FORMS.items()}
    of_family: Callable[[str], list[int]] = lambda f: [  # noqa: E731
        i for i, task in enumerate(tasks) if task.family == f
    ]
    rows = []
    for name, found in variance.items():
        ratio = (found / variance[OURS]).numpy()
        cells = [f"{np.exp(np.log(ratio[of_family(f)]).mean()):.2f}" for f in families]
        rows.append((name, *cells))
    print()
    print(table((f"{domain.name}, variance, relative", *families), rows))


def main(model: str = "", data: str = "") -> None:
    if model and not data:
        raise UserError("a MODEL needs its DATA: the data set that it was trained on")
    torch.set_num_threads(1)
    show_toy()
    if model:
        show_maze(model, data)


if __name__ == "__main__":
    start(main)

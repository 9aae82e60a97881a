"""What can be said of a task before adapting to it: will the model's latents help?

On n states of the data with features phi and rewards r, of the task's w_0 and z_0, and on rollouts
of the zero-shot policy:

    effective rank   exp of the entropy of the eigenvalues of cov(phi), as shares of their sum
                     (Roy & Vetterli 2007): how many directions the features use
    residual         1 - R^2 of the best fit of r by phi^T w + constant: what no w can express
    mismatch         1 - R^2 of the best fit of r by a r_0 + b: what the inferred w does not. w_0
                     stands for r_0 = phi^T w_0 where it is by least squares, for phi^T C^+ w_0 with
                     C = E[phi phi^T] where it is the expectation E[r phi]
    extrapolation    1 - cos(z_0, z) with the nearest of the latents of reaching states of the data,
                     which are what the policy was trained on
    correlation      of Q = psi(s, pi(s, z_0), z_0)^T w_0 with the discounted return that playing
                     z_0 from s gives, over start states s (Pearson)
    scale            those returns over Q, by least squares through the origin: 1 is calibrated. Q
                     here has the value of the constant that w leaves out (`inference.reward`)
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation.base import Problem, act_by_latent
from bfmpipe.config import Config
from bfmpipe.inference.goal import infer_goal
from bfmpipe.inference.reward import Inference, inverse_covariance, left_out
from bfmpipe.inference.spectrum import effective_rank
from bfmpipe.types import Array


class DiagnosisConfig(Config):
    """Settings of the diagnosis."""

    samples: int = Field(20_000, ge=2)
    """States of the data for the features and rewards."""
    latents: int = Field(2_000, ge=1)
    """Data-derived latents among which the nearest is looked for."""
    starts: int = Field(32, ge=3)
    """Start states of the rollouts: half resets, half states of the data."""
    tail: float = Field(0.02, gt=0, lt=1)
    """Rollouts last until gamma^steps is below this."""


class Diagnosis(NamedTuple):
    """The quantities of the module's docstring, each (T,), float64."""

    effective_rank: Array
    residual: Array
    mismatch: Array
    extrapolation: Array
    q_correlation: Array
    q_scale: Array


@torch.no_grad()
def diagnose(
    problem: Problem,
    obs: Tensor,
    rewards: Tensor,
    config: DiagnosisConfig,
    seed: int,
    inference: Inference | None = None,
) -> Diagnosis:
    """Diagnose T tasks before adapting to them.

    The rollouts are nobody's budget, and their start states are not the evaluation's.

    Args:
        problem: model, tasks, w_0, z_0, and states of the data.
        obs: (n, obs_dim), states of the data.
        rewards: (T, n), of reaching them.
        config: see DiagnosisConfig.
        seed: of start states.
        inference: what w_0 and z_0 are from; the defaults if None.
    """
    inference = inference or Inference()
    model, tasks = problem.model, len(problem.tasks)
    phi = model.phi(obs).double()
    centred = phi - phi.mean(0)
    rank = effective_rank(torch.linalg.eigvalsh(centred.mT @ centred / len(phi)))
    residual = unexplained(centred, rewards.double())
    w = problem.w.double()
    if inference.of(model) == "expectation":
        w = w @ inverse_covariance(centred if inference.centred else phi)
    mismatch = torch.cat(
        [unexplained((centred @ w[t])[:, None], rewards[t : t + 1].double()) for t in range(tasks)]
    )
    some = obs[: config.latents]
    known = infer_goal(model, some, Inference(), obs).z  # as in training, whatever w_0 is from
    cosine = (
        torch.nn.functional.normalize(problem.z, dim=-1)
        @ torch.nn.functional.normalize(known, dim=-1).mT
    )
    q, returns = _values_and_returns(problem, config, np.random.default_rng([seed, 0xD1A6]))
    correlation = [
        np.corrcoef(a, b)[0, 1] if a.std() * b.std() else np.nan
        for a, b in zip(q, returns, strict=True)
    ]
    shift = left_out(model, obs, rewards, problem.w, inference).numpy()
    q = q + shift[:, None] / (1 - model.discount)
    squares = (q * q).sum(1)
    scale = np.divide((q * returns).sum(1), squares, out=np.full(tasks, np.nan), where=squares > 0)
    return Diagnosis(
        effective_rank=np.full(tasks, rank),
        residual=residual.numpy(),
        mismatch=mismatch.numpy(),
        extrapolation=1 - cosine.amax(1).double().numpy(),
        q_correlation=np.array(correlation),
        q_scale=scale,
    )


def unexplained(x: Tensor, y: Tensor) -> Tensor:
    """1 - R^2 of the best fit of each row of y (T, n) by x (n, d), centred, and a constant; (T,).

    NaN where y is constant.
    """
    y = y - y.mean(1, keepdim=True)
    fit = y @ torch.linalg.pinv(x, rtol=1e-6).mT @ x.mT
    total = y.square().sum(1)
    return torch.where(total > 0, (y - fit).square().sum(1) / total, torch.nan).clamp(0, 1)


def _values_and_returns(
    problem: Problem, config: DiagnosisConfig, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Q and discounted returns, (T, starts), of the zero-shot policy."""
    model, domain, n = problem.model, problem.domain, config.starts
    resets = domain.start_states(n // 2, rng)
    rows = rng.integers(len(problem.visited), size=n - len(resets))
    starts = np.concatenate([resets, problem.visited[rows]])
    tasks = len(problem.tasks)
    env = problem.env(n)
    obs = torch.from_numpy(env.reset(np.tile(starts, (tasks, 1)))).view(tasks, n, -1)
    action = act_by_latent(model, obs, problem.z)
    rows_of = [x[:, None].expand(-1, n, -1).flatten(0, 1) for x in (problem.z, problem.w)]
    q = model.q(obs.flatten(0, 1), action.flatten(0, 1), *rows_of).view(tasks, n)
    returns = np.zeros((tasks, n))
    for t in range(math.ceil(math.log(config.tail) / math.log(model.discount))):
        flat = act_by_latent(model, obs, problem.z).flatten(0, 1).numpy()
        obs = torch.from_numpy(env.step(flat)).view(tasks, n, -1)
        returns += model.discount**t * problem.reward(env, flat)
    return q.double().numpy(), returns

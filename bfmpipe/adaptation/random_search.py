"""Random search over latents of states: does the model hold a better policy than the inferred one?

Candidate 0 is z_0; the others are those of reaching states that the data passed through
(`inference.goal`) and, for a share of them, proj(z_0 + sigma eps). A candidate's score is the mean
of lookahead's R over start states that all of a task's candidates share, and the best so far is
kept.

    all         every candidate is played from the same `states` start states, k at a time
    halving     rounds of equal cost: all k candidates, the better half of them, a quarter, ...,
                at last two. Each round adds start states, and scores are means over all of them.
                In it z_0 is never dropped (Karnin, Koren & Somekh 2013 without that).

So on its own estimate, never on the evaluation's, the kept latent is at least as good as z_0.
Behind the lookahead stands the frozen psi^T w_0.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.lookahead import LookaheadConfig, LookaheadMethod
from bfmpipe.envs.domain import Domain
from bfmpipe.inference.goal import infer_goal, needs_sample
from bfmpipe.inference.reward import Inference
from bfmpipe.networks import project_z
from bfmpipe.types import UserError


class Config(LookaheadConfig):
    """Settings of random search."""

    latents: int = Field(16, ge=2)
    """Candidates k played at a time; with halving all that there are."""
    near_fraction: float = Field(0.5, ge=0, le=1)
    """Share of candidates drawn around z_0 instead of from the data."""
    sigma: float = Field(0.2, gt=0)
    """Standard deviation of each coordinate of those, whose length is sqrt(d)."""
    allocation: Literal["all", "halving"] = "all"
    """How the budget is spread over candidates."""


class Method(LookaheadMethod):
    """Random search on all tasks at once."""

    needs_visited_obs = True
    config: Config

    def __init__(self, config: Config, problem: Problem, seeds: Sequence[int]) -> None:
        super().__init__(config, problem, seeds)
        self.halving = config.allocation == "halving"
        self.rounds = _rounds(config)
        if not self.halving:
            self.starts = self.task_starts(config.states)
        self.best: Tensor | None = None
        """Scores (T,) of the latents kept, on the method's own start states."""

    @classmethod
    def check(cls, config: Any, domain: Domain, budget: int) -> None:
        """Refuse budgets that compare nothing."""
        super().check(config, domain, budget)
        c, halving = config, config.allocation == "halving"
        smallest = (_rounds(c) * c.latents if halving else 2 * c.states) * c.horizon
        if budget < smallest:
            what = (
                f"{_rounds(c)} rounds of {c.latents} rollouts"
                if halving
                else f"two candidates from {c.states} start states"
            )
            raise UserError(
                f"{cls.method_name()}: a budget of {budget} environment steps is too small for "
                f"{what} of {c.horizon} steps ({smallest}); raise the budget, or lower latents, "
                "states or horizon"
            )

    def advance(self) -> bool:
        """Play the next candidates; the last time as many as the budget still pays for."""
        return self._halve() if self.halving else self._try_more()

    def candidates(self, n: int) -> Tensor:
        """n latents for every task, (T, n, d)."""
        problem, c = self.problem, self.config
        shape = len(problem.tasks), n
        rows = self.draws.by_seed(
            shape[0] * n, lambda m, rng: rng.integers(len(problem.visited), size=m)
        )
        z = self._reaching(problem.seen(rows)).unflatten(0, shape)
        noise = self.draws.normal(*z.shape)
        near = self.draws.uniform(*shape) < c.near_fraction
        return torch.where(near[..., None], project_z(problem.z[:, None] + c.sigma * noise), z)

    def _reaching(self, obs: Tensor) -> Tensor:
        """Latents (n, d) of being where obs (n, obs_dim) was observed, each by its own model."""
        problem, how = self.problem, Inference()
        found = []
        blocks = obs.chunk(len(problem.models))
        for model, seed, goals in zip(problem.models, self.draws.seeds, blocks, strict=True):
            sample = None
            if needs_sample(model, how):  # drawn anew each time, rather than kept in checkpoints
                n = min(how.samples, len(problem.visited))
                rng = np.random.default_rng(seed)
                sample = problem.seen(rng.choice(len(problem.visited), n, replace=False))
            found.append(infer_goal(model, goals, how, sample).z)
        return torch.cat(found)

    def _try_more(self) -> bool:
        c = self.config
        n = min(c.latents, self.left // (c.states * c.horizon))
        if n == 0:
            return False
        z = self.candidates(n)
        if self.best is None:
            z[:, 0] = self.problem.z
        scores = self.scores(z, self.starts)
        if self.best is not None:  # the first of equals stays
            z = torch.cat([self.z[:, None], z], 1)
            scores = torch.cat([self.best[:, None], scores], 1)
        self.best, choice = first_maximum(scores)
        self.z = _pick(z, choice[:, None])[:, 0]
        return True

    def _halve(self) -> bool:
        c = self.config
        if self.best is None:
            self.alive = self.candidates(c.latents)
            self.alive[:, 0] = self.problem.z
            self.total = torch.zeros(self.alive.shape[:2], device=self.alive.device)
            self.seen = self.round = 0
        elif self.round == self.rounds:
            return False
        k = self.alive.shape[1]
        self.round += 1
        share = self.left // (self.rounds - self.round + 1)
        states = share // (k * c.horizon)
        self.total += states * self.scores(self.alive, self.task_starts(states))
        self.seen += states
        self.best, choice = first_maximum(self.total / self.seen)
        self.z = _pick(self.alive, choice[:, None])[:, 0]
        if self.round < self.rounds:
            kept = survivors(self.total, math.ceil(k / 2))
            self.alive, self.total = _pick(self.alive, kept), self.total.gather(1, kept)
        return True


def first_maximum(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of scores (T, k), (T,), and the first place where it stands, (T,)."""
    choice = torch.from_numpy(np.argmax(scores.numpy(force=True), axis=1)).to(scores.device)
    return scores.gather(1, choice[:, None])[:, 0], choice


def survivors(scores: Tensor, n: int) -> Tensor:
    """Candidate 0 and the n - 1 best of the others, (T, n), of scores (T, k); 0 is first."""
    others = scores[:, 1:].argsort(dim=1, descending=True, stable=True)[:, : n - 1] + 1
    return torch.cat([torch.zeros_like(others[:, :1]), others.sort(1).values], 1)


def _pick(z: Tensor, rows: Tensor) -> Tensor:
    """Latents (T, n, d) of z (T, k, d) at rows (T, n)."""
    return z.gather(1, rows[..., None].expand(-1, -1, z.shape[-1]))


def _rounds(config: Config) -> int:
    """In which halving comes down to one candidate."""
    return max(1, math.ceil(math.log2(config.latents)))

"""Cross-entropy method over latents (Rubinstein 1999; de Boer et al. 2005).

A generation of k latents z_i = proj(mu + s eps_i), s the standard deviation of each coordinate,
is played by lookahead, all of them from the same start states. Of the m best, the elites,

    mu <- proj((1 - a) mu + a mean_elites z_i)
    s  <- max((1 - a) s + a std_elites z_i, s_min)

with the smoothing a. mu starts at z_0 and is what is evaluated; the score of a latent is the mean
over start states of lookahead's R, so the critic is the frozen psi^T w_0 behind the lookahead.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.draws import Generators
from bfmpipe.adaptation.lookahead import LookaheadConfig, LookaheadMethod
from bfmpipe.envs.domain import Domain
from bfmpipe.networks import project_z
from bfmpipe.types import UserError


class Config(LookaheadConfig):
    """Settings of the cross-entropy method; `latents` is the population k."""

    states: int = Field(4, ge=1)
    """Start states a generation; with the defaults it costs 16 episodes of 200 steps."""
    latents: int = Field(16, ge=2)
    """Latents k a generation, each played from all start states."""
    elite_fraction: float = Field(0.25, gt=0, le=1)
    """Share of a generation that the next one is drawn around; at least two latents."""
    smoothing: float = Field(0.7, gt=0, le=1)
    """Weight a of a generation; 1 forgets those before."""
    sigma: float = Field(0.2, gt=0)
    """First standard deviation of each coordinate of a latent, whose length is sqrt(d)."""
    minimum_sigma: float = Field(0.05, ge=0)
    """Below it the search would stand still."""


class CrossEntropy:
    """The search alone, T of them side by side: `ask` for points, `tell` their scores.

    Args:
        mean: (T, d), on the sphere.
        sigma: first standard deviation of every coordinate.
        elites: number of elites m, at least two.
        smoothing: a of the module's equations.
        minimum_sigma: s_min.
    """

    def __init__(
        self, mean: Tensor, *, sigma: float, elites: int, smoothing: float, minimum_sigma: float
    ) -> None:
        self.mean = mean.clone()
        self.std = torch.full_like(mean, sigma)
        self.elites = elites
        self.smoothing = smoothing
        self.minimum_sigma = minimum_sigma

    def ask(self, k: int, draws: Generators) -> Tensor:
        """k points of each search, (T, k, d), on the sphere."""
        tasks, d = self.mean.shape
        noise = draws.normal(tasks, k, d, dtype=self.mean.dtype)
        return project_z(self.mean[:, None] + self.std[:, None] * noise)

    def tell(self, points: Tensor, scores: Tensor) -> None:
        """Move to the best of points (T, k, d) with scores (T, k), higher is better.

        Where all scores are the same they say nothing, and nothing moves.
        """
        best = scores.argsort(dim=1, descending=True, stable=True)[:, : self.elites]
        elites = points.gather(1, best[..., None].expand(-1, -1, points.shape[-1]))
        mean = project_z(self.mean.lerp(elites.mean(1), self.smoothing))
        std = self.std.lerp(elites.std(1, correction=0), self.smoothing)
        tell = (scores.amax(1) > scores.amin(1))[:, None]
        self.mean = torch.where(tell, mean, self.mean)
        self.std = torch.where(tell, std.clamp_min(self.minimum_sigma), self.std)


class Method(LookaheadMethod):
    """The cross-entropy method on all tasks at once."""

    config: Config

    def __init__(self, config: Config, problem: Problem, seeds: Sequence[int]) -> None:
        super().__init__(config, problem, seeds)
        self.search = CrossEntropy(
            problem.z,
            sigma=config.sigma,
            elites=max(2, math.ceil(config.elite_fraction * config.latents)),
            smoothing=config.smoothing,
            minimum_sigma=config.minimum_sigma,
        )

    @classmethod
    def check(cls, config: Any, domain: Domain, budget: int) -> None:
        """Refuse budgets below one update, and a spread that would have to grow."""
        super().check(config, domain, budget)
        if config.minimum_sigma > config.sigma:
            raise UserError(
                f"{cls.method_name()}: minimum_sigma {config.minimum_sigma} is above sigma "
                f"{config.sigma}, where the search begins; lower it or raise sigma"
            )

    def advance(self) -> bool:
        """One generation; the last one from as many start states as the budget still pays for."""
        states = self.affordable_states
        if states == 0:
            return False
        z = self.search.ask(self.config.latents, self.draws)
        self.search.tell(z, self.scores(z, self.task_starts(states)))
        self.z = self.search.mean.clone()
        return True

"""CMA-ES over latents: the (mu/mu_w, lambda) evolution strategy of Hansen's tutorial.

Hansen 2016, "The CMA Evolution Strategy: A Tutorial", arXiv 1604.00772; its equation numbers in
brackets. A generation is x_i = m + sigma y_i, y_i ~ N(0, C). With y_(i) sorted from best to worst,
the recombination weights w_i (positive ones of the better half sum to 1), and C^-1/2 of C:

    m       <- m + sigma <y>,                   <y> = sum_{i <= mu} w_i y_(i)              (41, 42)
    p_sigma <- (1 - c_s) p_sigma + sqrt(c_s (2 - c_s) mu_eff) C^-1/2 <y>                       (43)
    sigma   <- sigma exp(c_s / d_s (|p_sigma| / E|N(0, I)| - 1))                               (44)
    p_c     <- (1 - c_c) p_c + h sqrt(c_c (2 - c_c) mu_eff) <y>                                (45)
    C       <- (1 + c_1 (1 - h) c_c (2 - c_c) - c_1 - c_mu sum_i w_i) C
               + c_1 p_c p_c^T + c_mu sum_i w_i' y_(i) y_(i)^T                             (46, 47)

where h is 0 while p_sigma is very long, and w_i' of a negative weight is w_i d / |C^-1/2 y_i|^2.
Every constant is the tutorial's (table 1).

The search point x is free, and proj(x) is played. So the score does not change along x: the search
on (s m, s sigma) plays the very same latents for every s > 0. After each generation m and sigma
are scaled by sqrt(d) / |m|, which therefore changes no latent: it only keeps sigma in units of the
sphere. Scores are compared by rank alone, averaged over start states that all latents of a
generation share. m starts at z_0, and proj(m) is evaluated.
"""

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.draws import Generators
from bfmpipe.adaptation.lookahead import LookaheadConfig, LookaheadMethod
from bfmpipe.networks import project_z


class Config(LookaheadConfig):
    """Settings of CMA-ES; `latents` is the population lambda."""

    states: int = Field(4, ge=1)
    """Start states a generation; with the defaults it costs 16 episodes of 200 steps."""
    latents: int = Field(16, ge=4)
    """Latents lambda a generation, each played from all start states; the tutorial's default is
    4 + floor(3 ln d): 14 for 32 dimensions, 17 for 100."""
    sigma: float = Field(0.2, gt=0)
    """First standard deviation of each coordinate of a latent, whose length is sqrt(d)."""
    negative_weights: bool = True
    """Whether the worse half of a generation takes away from C (active CMA)."""


class CMA:
    """The strategy alone, T of them side by side in float64: `ask` for points, `tell` their scores.

    Args:
        mean: (T, d), where to start.
        sigma: first step size.
        population: lambda.
        negative_weights: whether C also unlearns the directions of the worse half.
    """

    def __init__(
        self, mean: Tensor, sigma: float, population: int, *, negative_weights: bool = True
    ) -> None:
        self.mean = mean.double().clone()
        tasks, d = mean.shape
        self.sigma = torch.full((tasks,), sigma, dtype=torch.float64)
        self.C = torch.eye(d, dtype=torch.float64).expand(tasks, -1, -1).clone()
        self.p_sigma = torch.zeros_like(self.mean)
        self.p_c = torch.zeros_like(self.mean)
        self.generations = 0
        self._set_constants(d, population, negative_weights)
        self._decompose()

    def _set_constants(self, d: int, population: int, negative_weights: bool) -> None:
        mu = population // 2
        rank = torch.arange(1, population + 1, dtype=torch.float64)
        w = math.log((population + 1) / 2) - rank.log()  # (49)
        better, worse = w[:mu], w[mu:]
        self.mu = mu
        self.mu_eff = float(better.sum() ** 2 / better.square().sum())
        mu_eff_worse = float(worse.sum() ** 2 / worse.square().sum())
        self.c_sigma = (self.mu_eff + 2) / (d + self.mu_eff + 5)  # (55)
        self.d_sigma = 1 + 2 * max(0.0, math.sqrt((self.mu_eff - 1) / (d + 1)) - 1) + self.c_sigma
        self.c_c = (4 + self.mu_eff / d) / (d + 4 + 2 * self.mu_eff / d)  # (56)
        self.c_1 = 2 / ((d + 1.3) ** 2 + self.mu_eff)  # (57)
        gain = 0.25 + self.mu_eff + 1 / self.mu_eff - 2
        self.c_mu = min(1 - self.c_1, 2 * gain / ((d + 2) ** 2 + self.mu_eff))  # (58)
        negative = min(  # (50-53)
            1 + self.c_1 / self.c_mu,
            1 + 2 * mu_eff_worse / (self.mu_eff + 2),
            (1 - self.c_1 - self.c_mu) / (d * self.c_mu),
        )
        scale = negative / worse.abs().sum() if negative_weights else 0.0
        self.weights = torch.cat([better / better.sum(), worse * scale])
        self.expected_norm = math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d**2))

    def _decompose(self) -> None:
        """B and the square roots of the eigenvalues, C = B diag(D^2) B^T."""
        eigenvalues, self.B = torch.linalg.eigh(self.C)
        self.D = eigenvalues.clamp_min(1e-30).sqrt()

    def ask(self, draws: Generators) -> Tensor:
        """lambda points of each search, (T, lambda, d), float64."""
        tasks, d = self.mean.shape
        noise = draws.normal(tasks, len(self.weights), d, dtype=self.mean.dtype).to(self.mean)
        y = (noise * self.D[:, None]) @ self.B.mT
        return self.mean[:, None] + self.sigma[:, None, None] * y

    def tell(self, points: Tensor, scores: Tensor) -> None:
        """Learn from points (T, lambda, d) that `ask` gave, and scores (T, lambda).

        Higher is better. Where all scores are the same they say nothing, and nothing moves.
        """
        d = self.mean.shape[-1]
        self.generations += 1
        order = scores.argsort(dim=1, descending=True, stable=True)
        y = (points - self.mean[:, None]) / self.sigma[:, None, None]
        y = y.gather(1, order[..., None].expand(-1, -1, d))
        step = (self.weights[: self.mu, None] * y[:, : self.mu]).sum(1)

        whiten = (self.B / self.D[:, None]) @ self.B.mT
        c_s, c_c, c_1, c_mu = self.c_sigma, self.c_c, self.c_1, self.c_mu
        white = (whiten @ step[..., None])[..., 0]
        p_sigma = (1 - c_s) * self.p_sigma + math.sqrt(c_s * (2 - c_s) * self.mu_eff) * white
        length = p_sigma.norm(dim=-1)
        unbiased = math.sqrt(1 - (1 - c_s) ** (2 * self.generations))
        short = (length / unbiased < (1.4 + 2 / (d + 1)) * self.expected_norm).double()[:, None]
        p_c = (1 - c_c) * self.p_c + short * math.sqrt(c_c * (2 - c_c) * self.mu_eff) * step

        weights = self.weights.expand(len(y), -1)
        shrunk = weights * d / (y @ whiten).square().sum(-1).clamp_min(1e-30)
        weights = torch.where(weights < 0, shrunk, weights)
        rank_one = p_c[..., None] * p_c[:, None]
        rank_mu = y.mT @ (weights[..., None] * y)
        kept = 1 + c_1 * (1 - short) * c_c * (2 - c_c) - c_1 - c_mu * self.weights.sum()
        C = kept[..., None] * self.C + c_1 * rank_one + c_mu * rank_mu

        told = scores.amax(1) > scores.amin(1)
        row = told[:, None]
        self.mean = torch.where(row, self.mean + self.sigma[:, None] * step, self.mean)
        growth = torch.exp(c_s / self.d_sigma * (length / self.expected_norm - 1))
        self.sigma = torch.where(told, self.sigma * growth, self.sigma)
        self.p_sigma = torch.where(row, p_sigma, self.p_sigma)
        self.p_c = torch.where(row, p_c, self.p_c)
        self.C = torch.where(row[..., None], (C + C.mT) / 2, self.C)
        self._decompose()

    def rescale(self, length: float) -> None:
        """Give every mean this length, and sigma with it: nothing changes in direction."""
        factor = length / self.mean.norm(dim=-1)
        self.mean = self.mean * factor[:, None]
        self.sigma = self.sigma * factor


class Method(LookaheadMethod):
    """CMA-ES on all tasks at once."""

    config: Config

    def __init__(self, config: Config, problem: Problem, seeds: Sequence[int]) -> None:
        super().__init__(config, problem, seeds)
        # on the CPU: another device would choose other eigenvectors, and with them other points
        self.search = CMA(
            problem.z.cpu(),
            config.sigma,
            config.latents,
            negative_weights=config.negative_weights,
        )

    def advance(self) -> bool:
        """One generation; the last one from as many start states as the budget still pays for."""
        states = self.affordable_states
        if states == 0:
            return False
        points = self.search.ask(self.draws)
        z = project_z(points).to(self.z)
        self.search.tell(points, self.scores(z, self.task_starts(states)).cpu())
        self.search.rescale(math.sqrt(self.z.shape[-1]))
        self.z = project_z(self.search.mean).to(self.z)
        return True

"""Amortised adaptation: a small network, trained across tasks, maps transitions to an update of z.

Before it meets the tasks, the adapter is trained on J tasks that the model's features suggest. Task
j pays a clipped ramp of a direction v of the features, between two random quantiles of the data,

    r_j(s) = clip((phi(s)^T v_j - l_j) / (h_j - l_j), 0, 1),   v_j = phi(s_j) of a state, or random

and has its own inferred w_j and z_j. A pool of latents z_k, the z_j and those of states of data,
is played once; every training task rewards it, which gives the mean rewards G_jk. From m states
that z_j passed through, i = 1..m, with rewards r_i, the adapter proposes

    z = proj(z_0 + sum_i a_i x_i / |x_i|)    a_i = f(invariants of i and of the whole sample)

with an MLP f and x_i the weights of reaching state i: phi_i where a model's w is the expectation
E[r phi], C^+ phi_i where it is by least squares (`inference.goal`). So with a_i = r_i |x_i| what is
added to z_0 is what inference makes of the sample. The other of the two, y_i, has the reward that
w_0 stands for, y_i^T w_0. f is trained to maximise
sum_k softmax_k(beta cos(z, z_k)) G_jk, each task's G standardised: what the latents near the
proposal earned. It sees scalars that no rotation of the latents changes: few tasks teach it.

Adapting, it plays its current latent for some episodes, proposes from all states so far, and plays
the proposal; no gradient is taken. The steps of the pool are the model's, spent once for all tasks
to come, not the budget's: they are in `training_steps`.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from bfmpipe.adaptation.base import Method as BaseMethod
from bfmpipe.adaptation.base import Problem, act_by_latent, check_finite
from bfmpipe.agents import Model
from bfmpipe.config import Config as BaseConfig
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.envs.domain import Domain
from bfmpipe.inference.goal import infer_goal
from bfmpipe.inference.reward import Inference, infer, inverse_covariance
from bfmpipe.networks import project_z
from bfmpipe.types import Array, UserError

_INVARIANTS = 6


class Config(BaseConfig):
    """Settings of the adapter."""

    training_tasks: int = Field(128, ge=2)
    """J."""
    pool: int = Field(256, ge=1)
    """Latents of reaching states of the data, beside those of the training tasks."""
    pool_starts: int = Field(4, ge=1)
    """Start states that each of them is played from, for an episode."""
    samples: int = Field(10_000, ge=2)
    """States of the data that rewards are inferred from."""
    context: int = Field(256, ge=1)
    """States m that the adapter reads."""
    hidden_dim: int = Field(64, ge=1)
    beta: float = Field(30.0, gt=0)
    """Sharpness of the neighbourhood of a proposal."""
    learning_rate: float = Field(3e-3, gt=0)
    updates: int = Field(500, ge=1)
    """Updates of the adapter, on all training tasks each."""
    episodes: int = Field(4, ge=1)
    """Episodes a task that are played between proposals."""


class Adapter(nn.Module):
    """The map from states and rewards to a latent.

    Its last layer starts at zero: untrained, it proposes z_0.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            nn.Linear(_INVARIANTS, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), last
        )

    def forward(self, x: Tensor, y: Tensor, reward: Tensor, w: Tensor, z: Tensor) -> Tensor:
        """Latents (T, d) of x and y (T, m, d), rewards (T, m), w_0 and z_0 (T, d)."""
        direction = torch.nn.functional.normalize(x, dim=-1)
        scale = reward.abs().mean(1, keepdim=True).clamp_min(1e-8)
        r = reward / scale
        fit = (y * w[:, None]).sum(-1) / scale
        earned = torch.nn.functional.normalize((r[..., None] * x).mean(1), dim=-1)
        start = torch.nn.functional.normalize(z, dim=-1)
        invariants = torch.stack(
            [
                r.clamp(-10, 10) / 10,
                (r - fit).clamp(-10, 10) / 10,
                (direction * start[:, None]).sum(-1),
                (direction * earned[:, None]).sum(-1),
                (start * earned).sum(-1, keepdim=True).expand_as(r),
                (reward > 0).to(r).mean(1, keepdim=True).expand_as(r),
            ],
            dim=-1,
        )
        a = self.layers(invariants)
        return project_z(z + math.sqrt(z.shape[-1]) * (a * direction).mean(1))


class Method(BaseMethod):
    """The adapter on all tasks at once."""

    needs_visited_obs = True

    def __init__(self, config: Config, problem: Problem, seeds: Sequence[int]) -> None:
        super().__init__(config, problem, seeds)
        self.config = config
        self.steps = config.episodes * problem.domain.config.episode_steps
        self.training_steps = 0
        """Environment steps of the pools, of all models."""
        with torch.random.fork_rng(devices=[]):
            self.adapters = [
                Adapter(config.hidden_dim).to(problem.device).requires_grad_(False)
                for _ in problem.models
            ]
        """One a model."""
        self.inverses = [torch.empty(0, device=problem.device) for _ in problem.models]
        """C^+, one a model; empty before the adapters are trained."""
        self.trained = False
        tasks = len(problem.tasks)
        self.phi = torch.empty(tasks, 0, problem.z.shape[-1], device=problem.device)
        """Features of all states so far, (T, states, d)."""
        self.reward = torch.empty(tasks, 0, device=problem.device)

    @classmethod
    def check(cls, config: Config, domain: Domain, budget: int) -> None:
        """Refuse budgets that end before the first proposal."""
        steps = config.episodes * domain.config.episode_steps
        if budget < steps:
            raise UserError(
                f"{cls.method_name()}: a budget of {budget} environment steps a task is too small "
                f"for the {config.episodes} episodes before the first proposal ({steps}); "
                "raise the budget or lower episodes"
            )

    def advance(self) -> bool:
        """Play some episodes at the current latent, and propose from all states so far."""
        if self.left < self.steps:
            return False
        if not self.trained:
            sources = zip(self.problem.models, self.draws.numpy, self.draws.torch, strict=True)
            pairs = [self._train(*source) for source in sources]
            self.adapters = [adapter for adapter, _ in pairs]
            self.inverses = [inverse for _, inverse in pairs]
            self.trained = True
        self._collect()
        inputs = (self.phi, self.reward, self.problem.w, self.problem.z)
        of_models = (x.chunk(len(self.adapters)) for x in inputs)
        models = zip(self.problem.models, self.adapters, self.inverses, strict=True)
        each = zip(models, self.draws.torch, *of_models, strict=True)
        self.z = torch.cat([self._propose(*model, *one) for model, *one in each])
        return True

    @torch.no_grad()
    def _propose(
        self,
        model: Model,
        adapter: Adapter,
        inverse: Tensor,
        generator: torch.Generator,
        phi: Tensor,
        reward: Tensor,
        w: Tensor,
        z: Tensor,
    ) -> Tensor:
        """Latents of one model's tasks, from some of the states they passed."""
        rows = torch.randperm(phi.shape[1], generator=generator)[: self.config.context]
        rows = rows.to(phi.device)
        x_y = _x_y(model, phi[:, rows], inverse)
        proposal: Tensor = adapter(*x_y, reward[:, rows], w, z)
        return proposal

    @torch.no_grad()
    def _collect(self) -> None:
        problem, n = self.problem, self.config.episodes
        tasks = len(problem.tasks)
        env = problem.env(n)
        obs = problem.tensor(env.reset(self.draws.start_states(problem.domain, tasks * n)))
        phi, reward = [self.phi], [self.reward]
        for _ in range(problem.domain.config.episode_steps):
            action = act_by_latent(problem.model, obs.view(tasks, n, -1), self.z)
            flat = action.flatten(0, 1).numpy(force=True)
            obs = problem.tensor(env.step(flat))
            phi.append(problem.model.phi(obs).view(tasks, n, -1))
            reward.append(problem.tensor(problem.reward(env, flat)).float())
        self.phi, self.reward = torch.cat(phi, 1), torch.cat(reward, 1)
        check_finite(self.reward, problem, "a reward")
        self.env_steps += self.steps

    def _train(
        self, model: Model, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Adapter, Tensor]:
        """The adapter of a model, trained on tasks of its own, and C^+."""
        c = self.config
        with torch.no_grad():
            obs, weights = self._training_tasks(model, rng, generator)
            z, w, reward = weights
            goals = obs[torch.randint(len(obs), (c.pool,), generator=generator).to(obs.device)]
            latents = torch.cat([z, infer_goal(model, goals, Inference(), obs).z])
            inverse = inverse_covariance(model.phi(obs))
            starts = self.problem.domain.start_states(c.pool_starts, rng)
            context, context_reward, earned = self._play_pool(model, latents, starts, reward)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(rng.integers(2**31)))
            adapter = Adapter(c.hidden_dim).to(self.problem.device)
        x_y = _x_y(model, context, inverse)
        fit(adapter, *x_y, context_reward, w, z, latents, earned, c, generator)
        return adapter.requires_grad_(False), inverse

    def _training_tasks(
        self, model: Model, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Tensor, tuple[Tensor, Tensor, "Ramps"]]:
        """Observations of data states (n, obs_dim), and the tasks: z, w (J, d), and the rewards."""
        c, problem = self.config, self.problem
        obs = problem.seen(rng.integers(len(problem.visited), size=c.samples))
        phi = model.phi(obs)
        J, d = c.training_tasks, phi.shape[-1]
        goals = phi[torch.randint(len(phi), (J,), generator=generator).to(phi.device)]
        noise = torch.randn(J, d, generator=generator).to(phi)
        of_state = torch.rand(J, 1, generator=generator).to(phi) < 0.5
        v = torch.where(of_state, goals, noise)
        # the upper end is rarely reached, the lower one often: tasks pay in a small part of space
        share = torch.rand(J, 2, generator=generator).square()
        low = 1 - 0.5 * share.amax(1) - 1e-3
        high = 1 - 0.5 * share.amin(1).square() * share.amax(1)
        values = phi @ v.mT
        ends = [
            torch.stack([values[:, j].quantile(float(q[j])) for j in range(J)]) for q in (low, high)
        ]
        reward = Ramps(v, *ends)
        how = Inference(samples=len(phi))
        found = [infer(model, obs, r, how) for r in reward(phi).mT]
        w, z = (torch.stack(column) for column in zip(*found, strict=True))
        return obs, (z, w, reward)

    def _play_pool(
        self, model: Model, latents: Tensor, starts: Array, reward: "Ramps"
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States (J, m, d) that the latents of the tasks, the first ones, passed; rewards; G."""
        domain, J = self.problem.domain, self.config.training_tasks
        K, n = len(latents), len(starts)
        env = BatchedEnv(domain, K * n, self.problem.threads)
        obs = self.problem.tensor(env.reset(np.tile(starts, (K, 1))))
        rows = latents.repeat_interleave(n, dim=0)
        earned = torch.zeros(J, K, device=obs.device)
        seen, rewards = [], []
        steps = domain.config.episode_steps
        for _ in range(steps):
            obs = self.problem.tensor(env.step(model.actor(obs, rows).numpy(force=True)))
            features = model.phi(obs)
            paid = reward(features).view(K, n, J)
            earned += paid.mean(1).mT / steps
            own = torch.arange(J, device=obs.device)
            seen.append(features.view(K, n, -1)[:J])
            rewards.append(paid[own, :, own])
        self.training_steps += K * n * steps
        return torch.cat(seen, 1), torch.cat(rewards, 1), earned


def _x_y(model: Model, phi: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Rows x and y of rows phi (..., d): phi and C^+ phi, in the order that w's inference asks."""
    dual = (phi.double() @ inverse).to(phi)
    return (dual, phi) if Inference().of(model) == "least-squares" else (phi, dual)


def fit(
    adapter: Adapter,
    x: Tensor,
    y: Tensor,
    reward: Tensor,
    w: Tensor,
    z: Tensor,
    latents: Tensor,
    earned: Tensor,
    config: Config,
    generator: torch.Generator,
) -> None:
    """Train the adapter on J tasks by the module's objective.

    Args:
        adapter: what is trained.
        x: (J, m, d), the weights of reaching states that each task's z_0 passed.
        y: (J, m, d), whose product with w is the reward there that w stands for.
        reward: (J, m), the task's rewards there.
        w: (J, d), inferred.
        z: (J, d), z_0.
        latents: (K, d), the pool.
        earned: (J, K), what each of them earned.
        config: beta, learning rate, updates, context.
        generator: of the choice of states.
    """
    score = standardised(earned)
    direction = torch.nn.functional.normalize(latents, dim=-1)
    optimiser = torch.optim.Adam(adapter.parameters(), lr=config.learning_rate)
    for _ in range(config.updates):
        rows = torch.randint(x.shape[1], (config.context,), generator=generator).to(x.device)
        proposal = adapter(x[:, rows], y[:, rows], reward[:, rows], w, z)
        near = torch.nn.functional.normalize(proposal, dim=-1) @ direction.mT
        loss = -((config.beta * near).softmax(-1) * score).sum(-1).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()


def standardised(earned: Tensor) -> Tensor:
    """Each task's row of (J, K) with mean 0 and standard deviation 1; 0 where all are the same."""
    centred = earned - earned.mean(1, keepdim=True)
    return centred / earned.std(1, keepdim=True).clamp_min(1e-8)


class Ramps:
    """The rewards of J training tasks: clipped ramps of directions of the features."""

    def __init__(self, v: Tensor, low: Tensor, high: Tensor) -> None:
        self.v = v
        self.low = low
        self.height = (high - low).clamp_min(1e-6)

    def __call__(self, phi: Tensor) -> Tensor:
        """Rewards (n, J) of features (n, d)."""
        return ((phi @ self.v.mT - self.low) / self.height).clamp(0, 1)

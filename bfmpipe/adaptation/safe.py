"""Adaptation that does not fall: a candidate learns, the incumbent is evaluated until it is beaten.

1. Zero-shot episodes, with noise on the actions of every second one, fill the replay buffer. Those
   without calibrate the frozen value: Q = scale psi^T w_0 + shift, task by task (`calibrate`).
2. The residual critic learns from them before anything moves.
3. Rounds: the candidate's latent moves; then it plays the episodes that the incumbent has played,
   from the same start states, with noise on the same ones. By the exact test of the signs of the
   paired differences, it takes the incumbent's place if its return is higher, and goes back to the
   incumbent's latent if it is lower; else it goes on from where it is. After the last test nothing
   is left to wait for: there the higher return wins.

The policy that is evaluated is the incumbent. Its episodes are not played again, so a test costs
those of the candidate alone. All episodes enter the replay buffer.
"""

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from bfmpipe.adaptation.actor_critic import ActorCritic, LatentConfig, Schedule
from bfmpipe.adaptation.actors import LatentMover
from bfmpipe.adaptation.base import Method, Problem, act_by_latent, check_finite
from bfmpipe.adaptation.critics import MAZE, ResidualConfig, ResidualCritic
from bfmpipe.adaptation.draws import Generators
from bfmpipe.adaptation.off_policy import Replay
from bfmpipe.envs.batched import BatchedEnv
from bfmpipe.envs.domain import Domain
from bfmpipe.types import Array, UserError


class SafeConfig(LatentConfig, ResidualConfig):
    """Settings of calibration, warm-up and acceptance test; the others' defaults fit small models.

    An eighth of the paper's updates learns at ten times its rate, and its targets follow ten times
    as fast, so that the residual is not slower than the latent that ascends it. The base stays at
    z_0: what is tested need not be held near it. The presets have what differs: "small" makes a
    thirty-second of the paper's updates, as many as two cores allow in episodes of 1,000 steps.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {"updates_per_step": 0.03125, "latent_learning_rate": 1e-3},
        "small-point_mass_maze": MAZE,
    }

    updates_per_step: float = Field(0.125, gt=0)
    batch: int = Field(128, ge=1)
    critic_learning_rate: float = Field(1e-3, gt=0)
    target_tau: float = Field(0.05, gt=0, le=1)
    base_latent: Literal["current", "initial"] = "initial"
    latent_learning_rate: float = Field(5e-4, gt=0)
    latent_every: int = Field(2, ge=1)
    latent_warmup_updates: int = Field(200, ge=0)
    warmup_episodes: int = Field(8, ge=2, le=16)
    """Zero-shot episodes a task at the beginning; `latent_warmup_updates` learn from them. The
    candidate plays the same ones in a test."""
    calibrate: bool = True
    """Whether zero-shot returns give the frozen value its scale and shift."""
    confidence: float = Field(0.75, gt=0.5, lt=1)
    """Of an acceptance test but the last, one-sided."""


class Rollout(NamedTuple):
    """What environments passed through, (steps, T, n, ...); reward is (steps, T, n)."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor


class Playing:
    """Latents that are being played, in environments of their own; at first none are."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.left = 0
        """Steps to the end."""
        self.env: BatchedEnv | None = None
        self.z = self.noise_std = self.obs = torch.empty(0)
        self.rows: list[tuple[Tensor, ...]] = []
        """What `Rollout` has, of every step so far."""

    def begin(self, z: Tensor, starts: Array, steps: int, noise_std: Tensor) -> None:
        """Put them where they start; see `SafeMethod.play`."""
        tasks, n, _ = z.shape
        self.env = self.problem.env(n)
        self.obs = self.problem.tensor(self.env.reset(starts)).view(tasks, n, -1)
        self.z, self.noise_std, self.left, self.rows = z, noise_std, steps, []

    def step(self, draws: Generators) -> None:
        """One step of every environment."""
        assert self.env is not None
        with torch.no_grad():
            action = act_by_latent(self.problem.model, self.obs, self.z)
            noise = self.noise_std * draws.normal(*action.shape)
            action = (action + noise).clamp(-1, 1)
        flat = action.flatten(0, 1).numpy(force=True)
        next_obs = self.problem.tensor(self.env.step(flat)).view(*action.shape[:2], -1)
        reward = self.problem.tensor(self.problem.reward(self.env, flat).astype(np.float32))
        check_finite(reward, self.problem, "a reward")
        self.rows.append((self.obs, action, reward, next_obs))
        self.obs = next_obs
        self.left -= 1

    def end(self) -> Rollout:
        """All that was passed through; it is kept here no longer."""
        seen = Rollout(*(torch.stack(column) for column in zip(*self.rows, strict=True)))
        self.env, self.rows = None, []
        return seen

    def state(self) -> dict[str, Any]:
        """All of it but the problem."""
        kept = {**vars(self), "env": self.env and self.env.state()}
        del kept["problem"]
        return kept

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        vars(self).update(state)
        if state["env"] is not None:
            self.env = self.problem.env(self.z.shape[1])
            self.env.load_state(state["env"])


class SafeMethod(Method):
    """The module's rounds; a subclass says how the candidate moves, and what that costs."""

    def __init__(self, config: SafeConfig, problem: Problem, seeds: Sequence[int]) -> None:
        super().__init__(config, problem, seeds)
        self.config = config
        n, episode = config.warmup_episodes, problem.domain.config.episode_steps
        self.test_steps = n * episode
        """Environment steps that a test costs."""
        self.least_proposal = self.smallest_proposal(config)
        self.critic = ResidualCritic(problem, config, self.draws)
        self.mover = LatentMover(problem, config.latent_learning_rate, config.least_cosine)
        self.learner = ActorCritic(
            problem,
            config,
            self.critic,
            self.mover,
            Schedule(config.latent_every, config.latent_warmup_updates, 1),
            self.draws,
        )
        self.replay = Replay(problem)
        self.accepted: list[Tensor] = []
        """Of every test: whose candidate became the incumbent, (T,)."""
        self.rejected: list[Tensor] = []
        """Of every test: whose candidate went back to the incumbent, (T,)."""
        self.updates_due = 0.0
        self.playing = Playing(problem)
        self.phase: Literal["", "warm-up", "proposal", "test"] = ""
        """What is played, or was last."""
        self.last = False
        """Whether this round is the budget's last."""

    @classmethod
    def check(cls, config: SafeConfig, domain: Domain, budget: int) -> None:
        """Refuse budgets without one acceptance test, and tests that nothing can pass."""
        n, episode = config.warmup_episodes, domain.config.episode_steps
        proposal = cls.smallest_proposal(config)
        least = 2 * n * episode + proposal
        if budget < least:
            raise UserError(
                f"{cls.method_name()}: a budget of {budget} environment steps a task is too small "
                f"for one acceptance test ({n} episodes of warm-up, a proposal of {proposal} "
                f"steps, and {n} episodes of {episode} steps = {least}); raise the budget or lower "
                "warmup_episodes"
            )
        if 2.0**-n > 1 - config.confidence:
            raise UserError(
                f"{cls.method_name()}: no test of {n} pairs of episodes has a confidence of "
                f"{config.confidence}; raise warmup_episodes, or lower confidence to at most "
                f"{1 - 2.0**-n:g}"
            )

    @staticmethod
    @abstractmethod
    def smallest_proposal(config: Any) -> int:
        """Environment steps that it costs."""

    @abstractmethod
    def propose(self, steps: int) -> None:
        """Move the candidate, by at most so many environment steps, at least `least_proposal`.

        What has to be played for that is begun here (`play`), and `proposed` comes after it.
        """

    @abstractmethod
    def proposed(self, seen: Rollout) -> None:
        """Learn from what `propose` had played."""

    @property
    @abstractmethod
    def proposal(self) -> int:
        """Environment steps that a proposal takes where the budget allows it."""

    def advance(self) -> bool:
        """One step of the environments that play at the moment, with what is due after it."""
        if not self.playing.left and not self._begin():
            return False
        if self.playing.left:
            self.playing.step(self.draws)
            self.env_steps += self.playing.z.shape[1]
            if not self.playing.left:
                self._end()
        return True

    def _begin(self) -> bool:
        """Begin what comes next; False where the budget does not allow another round."""
        if not self.phase:
            tasks, n = len(self.problem.tasks), self.config.warmup_episodes
            self.starts = self.draws.start_states(self.problem.domain, tasks * n)
            """Of the episodes of the warm-up and all tests, (T n, physics_dim)."""
            self.phase = "warm-up"
            self._play_episodes(self.problem.z)
        elif self.phase == "proposal":
            self.phase = "test"
            self._play_episodes(self.mover.z.detach().clone())
        elif self.left < self.test_steps + self.least_proposal:
            return False
        else:
            # the last round takes what is left, so that the budget ends with a test
            rounds = max(1, self.left // (self.test_steps + self.proposal))
            self.last = rounds == 1
            self.phase = "proposal"
            self.propose(self.left // rounds - self.test_steps)
        return True

    def _end(self) -> None:
        """Learn from what has been played."""
        seen = self.playing.end()
        steps, _, n = seen.reward.shape
        self.replay.add(*(column.transpose(0, 1).flatten(1, 2) for column in seen))
        self.updates_due += steps * n * self.config.updates_per_step
        if self.phase == "warm-up":
            self._warmed_up(seen)
        elif self.phase == "proposal":
            self.proposed(seen)
        else:
            self._tested(seen.reward.double().sum(0))

    def _warmed_up(self, seen: Rollout) -> None:
        c = self.config
        self.returns = seen.reward.double().sum(0)
        """The incumbent's in the episodes of the warm-up, (T, n)."""
        if c.calibrate:
            states = torch.cat([seen.obs, seen.next_obs[-1:]])[:, :, ::2]
            values = torch.stack([self._zero_shot_value(obs) for obs in states])
            reward = seen.reward[:, :, ::2]
            self.critic.calibration = calibrate(values, reward, self.problem.model.discount)
        # beside those that are due: the first candidate has moved by them before its test
        for _ in range(c.latent_warmup_updates):
            self.learner.update(self.replay.sample(c.batch, self.draws))

    def _play_episodes(self, z: Tensor) -> None:
        """Begin the episodes of the warm-up and of every test, of latents (T, d)."""
        n = self.config.warmup_episodes
        noise = torch.where(torch.arange(n, device=z.device) % 2 == 0, 0.0, self.config.noise_std)
        steps = self.problem.domain.config.episode_steps
        self.play(z[:, None].expand(-1, n, -1), self.starts, steps, noise[:, None])

    @torch.no_grad()
    def _zero_shot_value(self, obs: Tensor) -> Tensor:
        """psi(s, pi(s, z_0), z_0)^T w_0, (T, n), of obs (T, n, obs_dim)."""
        z = self.problem.z
        return self.critic.frozen(obs, act_by_latent(self.problem.model, obs, z), z)

    def _tested(self, returns: Tensor) -> None:
        """Let the candidate win or lose by its returns (T, n)."""
        confidence = 0.5 if self.last else self.config.confidence
        candidate = self.mover.z.detach().clone()
        gain = (returns - self.returns).numpy(force=True)
        better, worse = (
            self.problem.tensor(sign_test(sign * gain) <= 1 - confidence) for sign in (1, -1)
        )
        self.z = torch.where(better[:, None], candidate, self.z)
        self.returns = torch.where(better[:, None], returns, self.returns)
        self.mover.put(self.z, worse)
        self.accepted.append(better)
        self.rejected.append(worse)

    def learn(self) -> None:
        """The updates that are due."""
        while self.updates_due >= 1:
            self.learner.update(self.replay.sample(self.config.batch, self.draws))
            self.updates_due -= 1

    def play(self, z: Tensor, starts: Array, steps: int, noise_std: Tensor) -> None:
        """Begin to play latents; what they pass through is paid for and enters the replay buffer.

        Args:
            z: (T, n, d).
            starts: (T n, physics_dim).
            steps: of every environment.
            noise_std: of the actions, anything that broadcasts to (T, n, 1).
        """
        self.playing.begin(z, starts, steps, noise_std)


@torch.no_grad()
def calibrate(values: Tensor, reward: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """Scale a and shift b of every task, so that a Q + b is the discounted return-to-go, (T,) each.

    Least squares of sum_t (a Q_t + b - G_t)^2, G_t = sum_{t <= k < S} gamma^(k-t) r_k
    + gamma^(S-t) (a Q_S + b): the calibrated value itself stands for what comes after the episode.
    A value that is the same in all states, or whose scale is not positive, knows nothing of these
    episodes: then a is 1.

    Args:
        values: Q (S + 1, T, n), of the states of n episodes.
        reward: (S, T, n).
        discount: gamma.
    """
    steps = len(reward)
    Q, r = values.double(), reward.double()
    to_go = torch.zeros_like(r)
    following = torch.zeros_like(r[0])
    for t in reversed(range(steps)):
        to_go[t] = following = r[t] + discount * following
    left = torch.arange(steps, 0, -1, dtype=Q.dtype, device=Q.device)
    tail = discount ** left[:, None, None]
    x, one = Q[:-1] - tail * Q[-1], (1 - tail).expand_as(r)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((0, 2))

    # what x says beyond the shift, against what the returns have beyond it
    across = dot(x, one) / dot(one, one)
    rest = x - across[:, None] * one
    square, product = dot(rest, rest), dot(rest, to_go)
    varies = square > 1e-10 * dot(x, x)  # beyond what rounding to float32 makes of a constant
    scale = torch.where(varies & (product > 0), product / square, 1.0)
    shift = dot(one, to_go - scale[:, None] * x) / dot(one, one)
    return scale.to(values), shift.to(values)


def sign_test(gain: Array) -> Array:
    """P that random signs make the sum of paired differences (T, n) as large as it is, (T,).

    Exact, over all 2^n signs: if each difference is as likely its opposite, a share p of all
    experiments has a value of p or less.
    """
    signs = np.array(list(itertools.product((1.0, -1.0), repeat=gain.shape[1])))
    sums = signs @ np.abs(gain).T  # (2^n, T)
    observed = gain.sum(1)
    slack = 1e-9 * np.abs(gain).sum(1)  # sums of the same numbers in another order
    return (sums >= observed - slack).mean(0)

"""Exploration by random network distillation: seek the states that a network cannot yet predict.

Burda et al. 2018 (arXiv:1810.12894), with the DDPG agent of URLB (Laskin et al. 2021,
arXiv:2110.15191). A fixed random network f and a predictor g, trained to give the same, read a
state s, normalised by its running mean and standard deviation and clipped. With sigma the running
standard deviation of the errors of newly visited states:

    e(s)    = mean_j (g_j(s) - f_j(s))^2                          error; the predictor's loss
    r(s')   = e(s') / sigma                                       intrinsic reward of reaching s'
    y       = sum_{k<n} gamma^k r(s_{t+k+1})
              + gamma^n min_i Q_i^-(s_{t+n}, pi(s_{t+n}) + eps)   n-step target
    L_Q     = sum_i mean (Q_i(s_t, a_t) - y)^2
    L_pi    = -mean min_i Q_i(s_t, pi(s_t) + eps)
    Q^-     moves by tau towards Q

eps is Gaussian noise, clipped; actions are clipped to [-1, 1]. Rewards are computed when a batch is
drawn, so they are those of the predictor as it is now. Episodes only end by the clock: no target
stops there. Unlike URLB, one batch of environments acts, the actor reads normalised states too, and
the two critics share no layers.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bfmpipe.data.explorer import Explorer as BaseExplorer
from bfmpipe.data.explorer import ExplorerConfig, History
from bfmpipe.data.tensors import load_training_state, training_state
from bfmpipe.types import Array, UserError

_SMALL: dict[str, Any] = {
    "hidden_dim": 256,
    "rnd_hidden_dim": 256,
    "rnd_output_dim": 128,
    "batch": 256,
    "learning_rate": 1e-3,
    "warmup": 1000,
    "updates_per_step": 1,
    "noise_std": 0.5,
}
"""What differs in the small preset: two to three minutes on a core for 250,000 steps of walker.

With so few updates the environments, which follow one actor, are told apart by the noise.
"""


class Config(ExplorerConfig):
    """Settings of the explorer; the defaults are those of the preset `full`."""

    preset: Literal["small", "full"] = "full"
    """Which defaults the settings below have: see `_SMALL`."""
    num_envs: int | None = Field(32, ge=1)
    warmup: int = Field(4000, ge=0)
    """Transitions by uniformly random actions before anything is learnt."""
    updates_per_step: int = Field(4, ge=1)
    """Updates after each step of all environments."""
    batch: int = Field(1024, ge=1)
    nstep: int = Field(3, ge=1)
    """Rewards before a target bootstraps."""
    discount: float = Field(0.99, ge=0, lt=1)
    learning_rate: float = Field(1e-4, gt=0)
    target_tau: float = Field(0.01, gt=0, le=1)
    hidden_dim: int = Field(1024, ge=1)
    """Width of actor and critics."""
    rnd_hidden_dim: int = Field(1024, ge=1)
    rnd_output_dim: int = Field(512, ge=1)
    obs_clip: float = Field(5.0, gt=0)
    """Largest normalised observation."""
    noise_std: float = Field(0.2, ge=0)
    """Of the exploration, and of eps."""
    noise_clip: float = Field(0.3, ge=0)
    """Largest eps."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        small = isinstance(given, dict) and given.get("preset") == "small"
        return {**_SMALL, **given} if small else given


class Moments:
    """Running mean and variance over rows, in float64, merged block by block (Chan et al.)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = np.zeros(width)
        self.squares = np.zeros(width)
        """Sums of squared distances to the mean."""

    @property
    def std(self) -> Array:
        """Population standard deviation (width,), never below 1e-6; 1 before any row."""
        if not self.count:
            return np.ones_like(self.mean)
        return np.sqrt(self.squares / self.count).clip(1e-6)

    def add(self, rows: Array) -> None:
        """Take rows (n, width) into account."""
        n, mean = len(rows), rows.mean(0, dtype=np.float64)
        total, shift = self.count + n, mean - self.mean
        self.squares += ((rows - mean) ** 2).sum(0) + shift**2 * (self.count * n / total)
        self.mean += shift * (n / total)
        self.count = total

    def state(self) -> Tensor:
        """Everything, as one float64 tensor (2 width + 1,)."""
        return torch.from_numpy(np.concatenate([[self.count], self.mean, self.squares]))

    def load_state(self, state: Tensor) -> None:
        """Continue from what `state` gave."""
        count, moments = state[0], state[1:].numpy()
        self.count = int(count)
        self.mean, self.squares = np.split(moments.copy(), 2)


class Explorer(BaseExplorer):
    """RND, learning while it collects; on the CPU, a seed decides every action."""

    def __init__(
        self, config: Config, obs_dim: int, action_dim: int, rng: np.random.Generator
    ) -> None:
        self.config = config
        self.action_dim = action_dim
        self.rng = rng
        self.updates = 0
        """Made so far."""
        self.obs_moments = Moments(obs_dim)
        self.error_moments = Moments(1)
        width, rnd = config.hidden_dim, (config.rnd_hidden_dim, config.rnd_output_dim)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            self.target = _features(obs_dim, *rnd).requires_grad_(False)
            self.predictor = _features(obs_dim, *rnd)
            self.actor = _normed(obs_dim, width, action_dim).append(nn.Tanh())
            self.critics = _Critics(obs_dim, action_dim, width)
            self.critic_targets = _Critics(obs_dim, action_dim, width).requires_grad_(False)
        self.critic_targets.load_state_dict(self.critics.state_dict())
        learners = {"predictor": self.predictor, "critics": self.critics, "actor": self.actor}
        self.optimisers = {
            name: torch.optim.Adam(module.parameters(), config.learning_rate, foreach=True)
            for name, module in learners.items()
        }
        self.modules = {
            **learners,
            "target": self.target,
            "critic_targets": self.critic_targets,
        }

    def start(self, num_envs: int) -> None:
        """Nothing is held over an episode."""

    def act(self, obs: Array) -> Array:
        """Actions (num_envs, action_dim): before the first update uniform, then actor and noise."""
        size = (len(obs), self.action_dim)
        if not self.updates:
            return self.rng.uniform(-1, 1, size).astype(np.float32)
        with torch.no_grad():
            action = self.actor(self.normalise(obs)).numpy()
        noise = self.config.noise_std * self.rng.standard_normal(size)
        return (action + noise).clip(-1, 1).astype(np.float32)

    def learn(self, history: History) -> None:
        """Note the newest states, and make the updates that are due.

        Raises:
            UserError: where episodes are shorter than `nstep`.
        """
        config = self.config
        if (longest := history.obs.shape[1] - 1) < config.nstep:
            raise UserError(
                f"explorer rnd: nstep ({config.nstep}) is more than the {longest} steps of an "
                "episode"
            )
        newest = history.newest()
        self.obs_moments.add(newest)
        with torch.no_grad():
            errors = self.errors(self.normalise(newest))
        self.error_moments.add(errors.numpy()[:, None])
        if history.transitions < config.warmup or not history.starts(config.nstep):
            return
        for _ in range(config.updates_per_step):
            episode, step = history.sample(config.batch, config.nstep, self.rng)
            path = history.obs[episode[:, None], step[:, None] + np.arange(config.nstep + 1)]
            self.update(self.normalise(path), torch.from_numpy(history.action[episode, step]))

    def normalise(self, obs: Array) -> Tensor:
        """Observations (..., obs_dim), float32, by the running moments, clipped."""
        moments, clip = self.obs_moments, self.config.obs_clip
        scaled = ((obs - moments.mean) / moments.std).clip(-clip, clip)
        return torch.from_numpy(scaled.astype(np.float32))

    def errors(self, states: Tensor) -> Tensor:
        """The predictor's errors e (...) at normalised states (..., obs_dim)."""
        return (self.predictor(states) - self.target(states)).square().mean(-1)

    def rewards(self, errors: Tensor) -> Tensor:
        """Intrinsic rewards (...) of states with these errors."""
        return errors / float(self.error_moments.std[0])

    def update(self, path: Tensor, action: Tensor) -> dict[str, Tensor]:
        """One step of the predictor, the critics and the actor; their losses.

        Args:
            path: normalised states (n, nstep + 1, obs_dim) s_t ... s_{t+nstep}.
            action: (n, action_dim) taken at s_t.
        """
        obs, reached = path[:, 0], path[:, 1:]
        errors = self.errors(reached)
        reward = self.rewards(errors.detach())
        losses = {"predictor": errors.mean()}
        self._descend("predictor", losses["predictor"])
        losses["critics"] = self.critic_loss(obs, action, reward, reached[:, -1])
        self._descend("critics", losses["critics"])
        self.critics.requires_grad_(False)
        losses["actor"] = self.actor_loss(obs)
        self._descend("actor", losses["actor"])
        self.critics.requires_grad_(True)
        with torch.no_grad():
            averages, values = self.critic_targets.parameters(), self.critics.parameters()
            torch._foreach_lerp_(list(averages), list(values), self.config.target_tau)
        self.updates += 1
        return {name: loss.detach() for name, loss in losses.items()}

    def critic_loss(self, obs: Tensor, action: Tensor, reward: Tensor, last: Tensor) -> Tensor:
        """L_Q; reward (n, nstep) of the states after obs, the last of which is `last`."""
        with torch.no_grad():
            factors = self.config.discount ** torch.arange(self.config.nstep + 1)
            following = self.critic_targets(last, self._noisy_action(last)).amin(0)
            y = (reward * factors[:-1]).sum(-1) + factors[-1] * following
        return (self.critics(obs, action) - y).square().mean(-1).sum()

    def actor_loss(self, obs: Tensor) -> Tensor:
        """L_pi."""
        return -self.critics(obs, self._noisy_action(obs)).amin(0).mean()

    def state(self) -> dict[str, Tensor]:
        """Networks, optimisers, running moments and the number of updates."""
        return {
            **training_state(self.modules, self.optimisers),
            "obs_moments": self.obs_moments.state(),
            "error_moments": self.error_moments.state(),
            "updates": torch.tensor(self.updates),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state` gave."""
        load_training_state(state, self.modules, self.optimisers)
        self.obs_moments.load_state(state["obs_moments"])
        self.error_moments.load_state(state["error_moments"])
        self.updates = int(state["updates"])

    def _noisy_action(self, obs: Tensor) -> Tensor:
        action = self.actor(obs)
        noise = self.config.noise_std * self.rng.standard_normal(action.shape, np.float32)
        clip = self.config.noise_clip
        return (action + torch.from_numpy(noise.clip(-clip, clip))).clamp(-1, 1)

    def _descend(self, name: str, loss: Tensor) -> None:
        optimiser = self.optimisers[name]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


class _Critics(nn.Module):
    """Two values (2, n) of states (n, obs_dim) and actions (n, action_dim)."""

    def __init__(self, obs_dim: int, action_dim: int, width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_normed(obs_dim + action_dim, width, 1) for _ in range(2))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """The two values."""
        x = torch.cat([obs, action], -1)
        return torch.cat([head(x) for head in self.heads], -1).T


def _features(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """A network of RND: two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )


def _normed(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """A network of URLB's agents: its first layer is normalised and bounded."""
    return nn.Sequential(
        nn.Linear(inputs, width),
        nn.LayerNorm(width),
        nn.Tanh(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, outputs),
    )

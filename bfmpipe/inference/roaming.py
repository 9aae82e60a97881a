"""A data set of a model's own making: it plays latents drawn at random.

For a model that comes without data: tasks are inferred from the states that its own policies visit.
Episodes begin where exploration does.
"""

from collections.abc import Iterator

import numpy as np
import torch
from pydantic import Field

from bfmpipe.agents import Model
from bfmpipe.config import Config
from bfmpipe.envs import Domain
from bfmpipe.envs.batched import BatchedEnv, threads
from bfmpipe.types import Array


class Roaming(Config):
    """How a model roams."""

    episodes: int = Field(100, ge=1)
    latent_steps: int = Field(150, ge=1)
    """Control steps that a latent is played before the next one is drawn."""
    noise_std: float = Field(0.0, ge=0)
    """Of Gaussian noise on the actions, which are clipped to [-1, 1]."""
    num_envs: int = Field(32, ge=1)
    """Episodes side by side; the others follow in rounds."""
    seed: int = Field(0, ge=0)


def rounds(model: Model, domain: Domain, config: Roaming) -> Iterator[dict[str, Array]]:
    """Episodes of a model that plays latents uniform on the sphere, a round of them at a time.

    Args:
        model: the model.
        domain: its domain.
        config: how.

    Returns:
        Columns of a data set (see `data.transitions`): episode and step (rows,), obs (rows,
        obs_dim), action (rows, action_dim) and physics (rows, physics_dim).

    Raises:
        UserError: where a simulation becomes unstable.
    """
    rng = np.random.default_rng(config.seed)
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    for first in range(0, config.episodes, config.num_envs):
        n = min(config.num_envs, config.episodes - first)
        yield _round(model, domain, config, range(first, first + n), rng, generator)


@torch.no_grad()
def _round(
    model: Model,
    domain: Domain,
    config: Roaming,
    episodes: range,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> dict[str, Array]:
    n, steps = len(episodes), domain.config.episode_steps
    obs = np.empty((n, steps + 1, domain.obs_dim), np.float32)
    action = np.zeros((n, steps + 1, domain.action_dim), np.float32)
    physics = np.empty((n, steps + 1, domain.physics_dim))
    env = BatchedEnv(domain, n, threads())
    seen = env.reset(domain.exploration_states(n, rng))
    obs[:, 0], physics[:, 0] = seen, env.physics
    for t in range(steps):
        if t % config.latent_steps == 0:
            z = model.sample_z(n, generator)
        chosen = model.actor(torch.from_numpy(seen), z).numpy()
        noise = config.noise_std * rng.standard_normal(chosen.shape)
        action[:, t] = (chosen + noise).clip(-1, 1)
        seen = env.step(action[:, t])
        obs[:, t + 1], physics[:, t + 1] = seen, env.physics
    rows = n * (steps + 1)
    return {
        "episode": np.repeat(np.array(episodes, np.int32), steps + 1),
        "step": np.tile(np.arange(steps + 1, dtype=np.int32), n),
        "obs": obs.reshape(rows, -1),
        "action": action.reshape(rows, -1),
        "physics": physics.reshape(rows, -1),
    }

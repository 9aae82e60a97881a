"""Stage collect: reward-free exploration of a domain, as a data set."""

from pathlib import Path

import numpy as np
from pydantic import Field

from bfmpipe import plugins
from bfmpipe.config import Config, parse
from bfmpipe.data import transitions
from bfmpipe.envs import make_domain
from bfmpipe.envs.batched import BatchedEnv, threads
from bfmpipe.progress import progress
from bfmpipe.stages.sections import Plugin, provenance


class Collect(Config):
    """Settings of the stage."""

    domain: Plugin
    explorer: Plugin
    episodes: int = Field(ge=1)
    """Episodes, all explored side by side, each from a start of its own."""
    seed: int = Field(ge=0)


def collect(cfg: Collect, *, dataset: Path) -> None:
    """Explore a domain without rewards and store every state and action."""
    domain = make_domain(cfg.domain.name, cfg.domain.settings)
    module = plugins.load("data", cfg.explorer.name)
    settings = parse(module.Config, cfg.explorer.settings, f"explorer {cfg.explorer.name}")
    rng = np.random.default_rng(cfg.seed)
    episodes, steps = cfg.episodes, domain.config.episode_steps
    explorer = module.Explorer(settings, episodes, domain.action_dim, rng)
    env = BatchedEnv(domain, episodes, threads())

    obs = np.empty((episodes, steps + 1, domain.obs_dim), np.float32)
    action = np.zeros((episodes, steps + 1, domain.action_dim), np.float32)
    physics = np.empty((episodes, steps + 1, domain.physics_dim))
    obs[:, 0] = env.reset(domain.exploration_states(episodes, rng))
    physics[:, 0] = env.physics
    with progress(steps, f"collect {domain.name}", "step") as bar:
        for t in range(steps):
            action[:, t] = explorer.act(obs[:, t])
            obs[:, t + 1] = env.step(action[:, t])
            physics[:, t + 1] = env.physics
            bar.update()

    rows = episodes * (steps + 1)
    data = transitions.Transitions(
        domain=domain.name,
        domain_settings=cfg.domain.settings,
        episode=np.repeat(np.arange(episodes, dtype=np.int32), steps + 1),
        step=np.tile(np.arange(steps + 1, dtype=np.int32), episodes),
        obs=obs.reshape(rows, -1),
        action=action.reshape(rows, -1),
        physics=physics.reshape(rows, -1),
    )
    origin = provenance(
        transitions.KIND, "collect", cfg, envs=cfg.domain.name, data=cfg.explorer.name
    )
    transitions.write(dataset, data, origin)
    print(f"{dataset}: {episodes * steps:,} transitions of {domain.name}")

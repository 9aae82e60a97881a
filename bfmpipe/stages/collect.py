"""Stage collect: reward-free exploration of a domain, as a data set."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from pydantic import Field

from bfmpipe import plugins
from bfmpipe.config import Config, parse
from bfmpipe.data import transitions
from bfmpipe.data.explorer import Explorer, History
from bfmpipe.data.opening import MADE_AGAIN, UnreadableError
from bfmpipe.data.tables import Provenance
from bfmpipe.envs import Domain, make_domain
from bfmpipe.envs.batched import BatchedEnv, threads
from bfmpipe.progress import progress
from bfmpipe.stages.sections import Plugin, provenance
from bfmpipe.types import Array, UserError


class Collect(Config):
    """Settings of the stage."""

    domain: Plugin
    explorer: Plugin
    episodes: int | None = Field(None, ge=1)
    """Episodes, each from a start of its own; none for an import."""
    seed: int = Field(ge=0)


def explored_episodes(module: ModuleType, name: str, episodes: int | None) -> int | None:
    """How many episodes an explorer is to act in; None for one that brings its own (`episodes`).

    Raises:
        UserError: where the setting is missing, or is given to one that brings its own.
    """
    imports = hasattr(module.Explorer, "episodes")
    if imports and episodes is not None:
        raise UserError(
            f"collect.episodes: {name} takes episodes from files; set collect.settings.max_episodes"
        )
    if not imports and episodes is None:
        raise UserError("collect.episodes is missing")
    return episodes


def collect(cfg: Collect, *, dataset: Path) -> None:
    """Explore a domain without rewards, or import what others explored; store it all."""
    domain = make_domain(cfg.domain.name, cfg.domain.settings)
    module = plugins.load("data", cfg.explorer.name)
    settings = parse(module.Config, cfg.explorer.settings, f"explorer {cfg.explorer.name}")
    episodes = explored_episodes(module, cfg.explorer.name, cfg.episodes)
    if episodes is None:
        _import(cfg, domain, module.Explorer(settings, domain), dataset)
        return
    rng = np.random.default_rng(cfg.seed)
    explorer = module.Explorer(settings, domain.obs_dim, domain.action_dim, rng)
    num_envs = min(settings.num_envs or episodes, episodes)
    rounds = _Rounds(dataset, _provenance(cfg))
    history, physics = _explore(domain, explorer, num_envs, episodes, rng, rounds)

    steps = domain.config.episode_steps
    rows = episodes * (steps + 1)
    data = transitions.Transitions(
        domain=domain.name,
        domain_settings=cfg.domain.settings,
        episode=np.repeat(np.arange(episodes, dtype=np.int32), steps + 1),
        step=np.tile(np.arange(steps + 1, dtype=np.int32), episodes),
        obs=history.obs.reshape(rows, -1),
        action=history.action.reshape(rows, -1),
        physics=physics.reshape(rows, -1),
    )
    transitions.write(dataset, data, _provenance(cfg))
    rounds.remove()
    print(f"{dataset}: {episodes * steps:,} transitions of {domain.name}")


def _explore(
    domain: Domain,
    explorer: Explorer,
    num_envs: int,
    episodes: int,
    rng: np.random.Generator,
    rounds: "_Rounds",
) -> tuple[History, Array]:
    """Observations and actions, and physics states (episodes, steps + 1, physics_dim)."""
    steps = domain.config.episode_steps
    history = History(
        np.empty((episodes, steps + 1, domain.obs_dim), np.float32),
        np.zeros((episodes, steps + 1, domain.action_dim), np.float32),
    )
    physics = np.empty((episodes, steps + 1, domain.physics_dim))
    columns = {"obs": history.obs, "action": history.action, "physics": physics}
    history.finished = rounds.resume(columns, explorer, rng)
    env = BatchedEnv(domain, num_envs, threads())
    total = -(-episodes // num_envs) * steps
    with progress(total, f"collect {domain.name}", "step") as bar:
        bar.update(history.finished // num_envs * steps)
        while history.finished < episodes:
            history.running = min(num_envs, episodes - history.finished)
            if history.running < env.num_envs:
                env = BatchedEnv(domain, history.running, threads())
            now = slice(history.finished, history.finished + history.running)
            obs, action = history.obs[now], history.action[now]
            explorer.start(history.running)
            obs[:, 0] = env.reset(domain.exploration_states(history.running, rng))
            physics[now, 0] = env.physics
            for t in range(steps):
                action[:, t] = explorer.act(obs[:, t])
                obs[:, t + 1] = env.step(action[:, t])
                physics[now, t + 1] = env.physics
                history.step = t + 1
                explorer.learn(history)
                bar.update()
            history.finished, history.running, history.step = now.stop, 0, 0
            if history.finished < episodes:
                rounds.save(now, columns, explorer, rng)
    return history, physics


class _Rounds:
    """The rounds of an unfinished exploration, in files beside the data set.

    A file a round, and one of the explorer's and the generator's state after the last of them. An
    exploration in one round writes none.
    """

    def __init__(self, dataset: Path, origin: Provenance) -> None:
        self.directory = dataset.with_name(f".{dataset.name}.rounds")
        self.state = self.directory / "state.safetensors"
        # what must agree: sums in another order (threads) are other bytes
        identity = {
            "settings": origin.settings,
            "code": origin.code,
            "versions": origin.versions,
            "threads": threads(),
        }
        self.identity = json.loads(json.dumps(identity))

    def save(
        self, now: slice, columns: Mapping[str, Array], explorer: Explorer, rng: np.random.Generator
    ) -> None:
        """Keep the episodes `now` of all columns, and the state after them."""
        import torch  # explorers that finish in one round need no torch

        from bfmpipe.data.tensors import save_tensors

        kept = {name: torch.from_numpy(column[now]) for name, column in columns.items()}
        save_tensors(self._of(now.start), kept, {"kind": "round"})
        header = {
            "kind": "exploration",
            "identity": self.identity,
            "generator": rng.bit_generator.state,
            "finished": now.stop,
        }
        save_tensors(self.state, explorer.state(), header)

    def resume(
        self, columns: Mapping[str, Array], explorer: Explorer, rng: np.random.Generator
    ) -> int:
        """Put back all that was kept of this very exploration; the number of its episodes.

        Zero where a file is damaged or missing: the state is of no use without all its rounds.
        """
        if not self.state.exists():
            return 0
        from bfmpipe.data.tensors import load_tensors

        finished = 0
        try:
            state, header = load_tensors(self.state)
            if header.get("identity") != self.identity:
                self.remove()  # settings, code or seed have changed since: start afresh
                return 0
            while finished < header["finished"]:
                kept, _ = load_tensors(self._of(finished))
                start, finished = finished, finished + len(kept["obs"])
                for name, column in columns.items():
                    column[start:finished] = kept[name].numpy()
        except UnreadableError:
            raise
        except UserError as error:
            said = str(error).partition(f"; {MADE_AGAIN}")[0]
            print(f"warning: {said}; exploration begins anew", file=sys.stderr)
            self.remove()
            return 0
        explorer.load_state(state)
        rng.bit_generator.state = header["generator"]
        return finished

    def remove(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def _of(self, episode: int) -> Path:
        return self.directory / f"from-episode-{episode:06}.safetensors"


def _provenance(cfg: Collect) -> Provenance:
    return provenance(
        transitions.KIND, "collect", cfg, envs=cfg.domain.name, data=cfg.explorer.name
    )


def _import(cfg: Collect, domain: Domain, recorded: Any, dataset: Path) -> None:
    rows = taken = 0

    def pieces() -> Iterator[dict[str, Array]]:
        nonlocal rows, taken
        with progress(recorded.total, f"collect {domain.name}", "episode") as bar:
            for episode in recorded.episodes():
                rows, taken = rows + len(episode["step"]), taken + 1
                yield episode
                bar.update()

    transitions.write_pieces(
        dataset,
        transitions.schema(domain.obs_dim, domain.action_dim, domain.physics_dim),
        pieces(),
        lambda: replace(_provenance(cfg), source=recorded.source),
    )
    if recorded.report:
        print(f"warning: {recorded.report}", file=sys.stderr)
    print(f"{dataset}: {rows - taken:,} transitions of {domain.name} in {taken:,} episodes")

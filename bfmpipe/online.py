"""Online training: the agent plays latents in its domain, and learns from all of it.

Episodes run side by side in rounds: they begin together, some in states of motions and the others
where the domain's own do, and none ends early. Every `latent_steps` each environment is given
another latent. Before the first update actions are random. A round in which the simulator meets a
huge value, as it may from a frame of a motion that jumps, is forgotten and begun anew elsewhere.
"""

import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from bfmpipe.agents.online import Agent, OnlineBatch, OnlineConfig
from bfmpipe.agents.trainer import NotFiniteError, Source
from bfmpipe.data.tensors import load_tensors, save_tensors
from bfmpipe.data.transitions import Transitions
from bfmpipe.envs import Domain
from bfmpipe.envs.batched import BatchedEnv, UnstableError
from bfmpipe.types import Array, UserError

_STARTS = 0x57A7  # sets these random numbers apart from everybody else's
_ATTEMPTS = 10  # at a round


class OnlineSource(Source):
    """Batches of what the agent did, with motions beside them.

    Args:
        domain: where it acts.
        agent: acts as it stands when it is its turn.
        motions: a data set whose episodes are the motions; no reward, and no action is read.
        seed: of all that is drawn here; batches are drawn by the training's own generator.
        threads: of the simulator.

    Raises:
        UserError: where no motion is as long as a latent encodes, or the memory is too small.
    """

    def __init__(
        self, domain: Domain, agent: Agent, motions: Transitions, seed: int, threads: int
    ) -> None:
        self.domain, self.agent, self.seed = domain, agent, seed
        c = self.config = agent.config.online
        self.steps = domain.config.episode_steps
        self.motion_obs = torch.from_numpy(np.asarray(motions.obs))
        self.motion_physics = motions.physics
        self.frames = motions.episode, motions.step
        self.stretches = torch.from_numpy(motions.index_of(agent.config.motion_length))
        if not len(self.stretches):
            raise UserError(
                f"no motion has the {agent.config.motion_length + 1} frames that a latent is made "
                f"of; the longest has {motions.step.max(initial=-1) + 1}: give longer ones or set "
                "a smaller motion_length"
            )
        self.env = BatchedEnv(domain, c.num_envs, threads)
        self.round, self.step = 0, 0
        """The running round, and control steps made in it."""
        self.attempt = 0
        """How often this round was begun anew."""
        segments = -(-self.steps // c.latent_steps)
        room = (c.rounds, c.num_envs)
        shapes = {
            "obs": (*room, self.steps + 1, domain.obs_dim),
            "action": (*room, self.steps, domain.action_dim),
            "z": (*room, segments, agent.config.z_dim),
            "physics": (*room, self.steps + 1, domain.physics_dim),
        }
        _check_memory(c, 4 * sum(map(math.prod, [*shapes.values(), shapes["physics"]])))
        self.obs, self.action = torch.empty(shapes["obs"]), torch.empty(shapes["action"])
        self.z, self.physics = torch.zeros(shapes["z"]), np.empty(shapes["physics"])
        self.generator = torch.Generator().manual_seed(self._seed)
        self._written: set[int] = set()

    @property
    def _seed(self) -> int:
        """Of what is drawn here: the training's own generator has the seed itself."""
        words = np.random.SeedSequence([self.seed, _STARTS]).generate_state(1, np.uint64)
        return int(words[0] >> 1)

    def to(self, device: torch.device) -> Self:
        """What batches are made of moves; the simulator stays."""
        for name in ("motion_obs", "stretches", "obs", "action", "z"):
            setattr(self, name, getattr(self, name).to(device))
        self.generator = torch.Generator(device).manual_seed(self._seed)
        return self

    def advance(self, done: int) -> None:
        """Act where it is the environments' turn."""
        c = self.config
        if done == 0:
            self._act(c.random_steps, at_random=True)
        elif done % c.updates == 0:
            self._act(c.steps)

    def sample(
        self, n: int, generator: torch.Generator, future_discount: float | None = None
    ) -> OnlineBatch:
        """n transitions drawn uniformly from those remembered, and n / L stretches of motions."""
        assert future_discount is None
        where, step = self._drawn(n, generator)
        next_obs = self.obs[*where, step + 1]
        frames = self._stretches(n // self.agent.config.motion_length, generator)
        return OnlineBatch(
            self.obs[*where, step],
            self.action[*where, step],
            next_obs,
            next_obs,
            self.z[*where, step // self.config.latent_steps],
            self.motion_obs[frames],
            self.motion_obs[frames + 1],
        )

    def _drawn(self, n: int, generator: torch.Generator) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Places and environments, and steps, of n transitions: whole rounds, then this one."""
        rounds, num_envs = self.obs.shape[:2]
        device, whole = self.obs.device, len(self._remembered())
        until, steps = whole * num_envs * self.steps, max(self.step, 1)
        i = torch.randint(until + num_envs * self.step, (n,), generator=generator, device=device)
        late, running = i >= until, (i - until).clamp_min(0)
        episode = torch.where(late, whole * num_envs + running // steps, i // self.steps)
        step = torch.where(late, running % steps, i % self.steps)
        return ((self.round - whole + episode // num_envs) % rounds, episode % num_envs), step

    @property
    def env_steps(self) -> int:
        """Control steps made, of all environments."""
        return (self.round * self.steps + self.step) * self.env.num_envs

    def experience(self) -> Transitions:
        """A data set of `experience` of the episodes remembered, or somewhat more.

        They are of rounds evenly spaced among all; the running one's end where it stands.
        """
        rounds = [(number, self.steps) for number in self._remembered()]
        if self.step:
            rounds.append((self.round, self.step))
        wanted = min(len(rounds), -(-self.config.experience // self.env.num_envs))
        middles = [(2 * i + 1) * len(rounds) // (2 * wanted) for i in range(wanted)]
        pieces = [self._episodes(*rounds[i]) for i in middles]
        columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        settings = self.domain.config.model_dump(mode="json")
        return Transitions(self.domain.name, settings, **columns)

    def _episodes(self, number: int, steps: int) -> dict[str, Array]:
        """Columns of a round's first steps."""
        slot, num_envs, rows = (
            number % len(self.obs),
            self.env.num_envs,
            self.env.num_envs * (steps + 1),
        )
        action = self.action.new_zeros(num_envs, steps + 1, self.domain.action_dim)
        action[:, :steps] = self.action[slot, :, :steps]
        episode = number * num_envs + np.arange(num_envs, dtype=np.int32)
        return {
            "episode": np.repeat(episode, steps + 1),
            "step": np.tile(np.arange(steps + 1, dtype=np.int32), num_envs),
            "obs": self.obs[slot, :, : steps + 1].cpu().numpy().reshape(rows, -1),
            "action": action.cpu().numpy().reshape(rows, -1),
            "physics": self.physics[slot, :, : steps + 1].reshape(rows, -1),
        }

    def state(self) -> dict[str, Tensor]:
        """The running round, and where the simulator and the generator stand."""
        slot, until = self.round % len(self.obs), slice(self.step + 1)
        return {
            "at": torch.tensor([self.round, self.step, self.attempt]),
            "simulator": torch.from_numpy(self.env.state()),
            "generator": self.generator.get_state(),
            "obs": self.obs[slot, :, until],
            "action": self.action[slot, :, : self.step],
            "z": self.z[slot],
            "physics": torch.from_numpy(self.physics[slot, :, until]),
        }

    def load_state(self, state: Mapping[str, Tensor], kept: Path) -> None:
        """Go on where `state` was taken, with the rounds before it from their files."""
        self.round, self.step, self.attempt = (int(x) for x in state["at"])
        for number in self._remembered():
            try:
                tensors, _ = load_tensors(_file(kept, number))
            except UserError as error:
                raise UserError(
                    f"{error}; without it the checkpoint is of no use: delete both to train anew"
                ) from error
            self._put(number, tensors)
            self._written.add(number)
        self._put(self.round, state)
        self.env.load_state(state["simulator"].numpy())
        self.generator.set_state(state["generator"])

    def keep(self, directory: Path) -> None:
        """Whole rounds, a file each."""
        for number in self._remembered():
            file, slot = _file(directory, number), number % len(self.obs)
            if number not in self._written:
                tensors = {name: getattr(self, name)[slot] for name in ("obs", "action", "z")}
                tensors["physics"] = torch.from_numpy(self.physics[slot])
                save_tensors(file, tensors, {"kind": "round"})
                self._written.add(number)

    def drop(self, directory: Path) -> None:
        """Files of rounds that are not remembered any more."""
        needed = {_file(directory, number) for number in self._remembered()}
        for file in directory.glob("round-*"):
            if file not in needed:
                file.unlink()

    def _remembered(self) -> range:
        """The whole rounds."""
        return range(max(0, self.round - len(self.obs) + 1), self.round)

    def _put(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        slot = number % len(self.obs)
        for name in ("obs", "action", "z"):
            value = tensors[name]
            getattr(self, name)[slot, :, : value.shape[1]] = value.to(self.obs.device)
        physics = tensors["physics"]
        self.physics[slot, :, : physics.shape[1]] = physics.numpy()

    def _act(self, steps: int, *, at_random: bool = False) -> None:
        made = 0
        while made < steps:
            slot, t = self.round % len(self.obs), self.step
            obs, latent_steps = self.obs[slot], self.config.latent_steps
            if t == 0:
                starts, _ = self._starts()
                obs[:, 0] = torch.from_numpy(self.env.reset(starts)).to(obs.device)
                self.physics[slot, :, 0] = starts
            z = self.z[slot, :, t // latent_steps]
            if t % latent_steps == 0:
                z.copy_(self._latents(len(z)))
            action = (
                self._random() if at_random else self.agent.explore(obs[:, t], z, self.generator)
            )
            self.action[slot, :, t] = action
            played = action.cpu().numpy()
            if not np.isfinite(played).all():
                raise NotFiniteError("an action is not finite")
            try:
                next_obs = self.env.step(played)
            except UnstableError as error:
                self._begin_anew(error)
                continue
            obs[:, t + 1] = torch.from_numpy(next_obs).to(obs.device)
            self.physics[slot, :, t + 1] = self.env.physics
            self.step += 1
            made += 1
            if self.step == self.steps:
                self.round, self.step, self.attempt = self.round + 1, 0, 0

    def _begin_anew(self, error: UnstableError) -> None:
        _, rows = self._starts()
        row, where = rows[error.simulation], "where the domain's episodes begin"
        if row >= 0:
            where = "in frame {1} of motion {0}".format(*(int(of[row]) for of in self.frames))
        what = (
            f"{self.domain.name}: an episode that began {where} became unstable after "
            f"{self.step} control steps"
        )
        if self.attempt + 1 == _ATTEMPTS:
            raise UserError(
                f"{what}, and so did {_ATTEMPTS - 1} others in its place; take such frames out of "
                "the motions"
            ) from error
        print(f"warning: {what}; round {self.round} begins anew", file=sys.stderr)
        self.step, self.attempt = 0, self.attempt + 1

    def _starts(self) -> tuple[Array, Array]:
        """Physics states (num_envs, physics_dim) that a round begins in; their rows in the motions.

        The row of a state that is of no motion is -1.
        """
        again = [self.attempt] if self.attempt else []
        rng = np.random.default_rng([self.seed, _STARTS, self.round, *again])
        num_envs = self.env.num_envs
        starts = self.domain.start_states(num_envs, rng)
        in_motion = np.flatnonzero(rng.random(num_envs) < self.config.motion_starts)
        rows = rng.integers(len(self.motion_physics), size=len(in_motion))
        starts[in_motion] = self.motion_physics[rows]
        begun = np.full(num_envs, -1)
        begun[in_motion] = rows
        return starts, begun

    def _latents(self, n: int) -> Tensor:
        """By goals among the states that were passed, and before there are any of the motions."""
        frames = self._stretches(n, self.generator)
        if self.round or self.step:
            where, step = self._drawn(n, self.generator)
            goals = self.obs[*where, step + 1]
        else:
            goals = self.motion_obs[frames[:n]]
        return self.agent.rollout_latents(goals, self.motion_obs[frames + 1], self.generator)

    def _stretches(self, n: int, generator: torch.Generator) -> Tensor:
        """Rows (n L,) of n stretches."""
        length, device = self.agent.config.motion_length, self.stretches.device
        drawn = torch.randint(len(self.stretches), (n,), generator=generator, device=device)
        frames = torch.arange(length, device=device)
        return (self.stretches[drawn][:, None] + frames).flatten()

    def _random(self) -> Tensor:
        shape = (self.env.num_envs, self.domain.action_dim)
        return torch.rand(shape, generator=self.generator, device=self.obs.device) * 2 - 1


def _file(directory: Path, number: int) -> Path:
    return directory / f"round-{number:06}.safetensors"


def _check_memory(config: OnlineConfig, size: int) -> None:
    """Refuse to remember more than the machine can.

    Memory is taken as it fills: too much would end the training hours later.
    """
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > there:
        raise UserError(
            f"to remember {config.rounds} rounds of {config.num_envs} environments takes "
            f"{size / 1e9:.0f} GB, and this machine has {there / 1e9:.0f}; set fewer rounds"
        )

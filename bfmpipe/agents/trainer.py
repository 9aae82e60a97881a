"""Training of any agent on a data set: resumable to the same bytes, with a divergence alarm."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bfmpipe.agents.base import Agent
from bfmpipe.config import Config
from bfmpipe.data.tensors import (
    load_tensors,
    load_training_state,
    save_tensors,
    training_state,
)
from bfmpipe.types import UserError


class TrainerConfig(Config):
    """How long to train, and what to write on the way."""

    updates: int = Field(1_000_000, ge=1)
    decay_fraction: float = Field(0.3, ge=0, le=1)
    """Share of the updates, at the end, over which learning rates fall linearly to zero."""
    checkpoint_every: int = Field(10_000, ge=1)
    log_every: int = Field(100, ge=1)
    """Updates averaged to one row of the table of losses."""
    divergence_margin: float = Field(0.2, gt=0)
    """The alarm: `fb_loss` above its minimum by this share of its range, while `q` climbs."""

    @model_validator(mode="after")
    def _checkpoints_end_rows(self) -> "TrainerConfig":
        # a checkpoint holds no half-averaged row, so it must stand at the end of one
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every ({self.checkpoint_every}) must be a multiple of log_every "
                f"({self.log_every})"
            )
        return self


class Rows(Protocol):
    """Rows that may be on disk: indexed with integers of any shape, they are an array in memory."""

    def __getitem__(self, rows: Any, /) -> Any:
        """The rows, with one axis more than the indices."""


@dataclass
class Data:
    """Transitions, sampled uniformly: row i leads to row i + stride.

    obs (rows, obs_dim) and action (rows, action_dim), tensors or rows on disk; index
    (transitions,) int64, the rows that have one `stride` rows further in the same episode.
    """

    obs: Tensor | Rows
    action: Tensor | Rows
    index: Tensor
    stride: int = 1

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """obs, action (the mean of the steps between), next_obs of n transitions."""
        i = self.index[torch.randint(len(self.index), (n,), generator=generator)]
        obs, next_obs = _take(self.obs, i), _take(self.obs, i + self.stride)
        if self.stride == 1:
            return obs, _take(self.action, i), next_obs
        between = _take(self.action, i[:, None] + torch.arange(self.stride))
        return obs, between.mean(1), next_obs


def _take(column: Tensor | Rows, rows: Tensor) -> Tensor:
    return column[rows] if isinstance(column, Tensor) else torch.from_numpy(column[rows.numpy()])


@dataclass
class Trainer:
    """Trains an agent; a checkpoint holds all its state.

    Args:
        agent: the agent.
        data: what it learns from.
        batch: transitions an update.
        config: see TrainerConfig.
        generator: the source of all randomness of the training.
        identity: what a checkpoint must agree with to be continued (settings, code, seed).
    """

    agent: Agent
    data: Data
    batch: int
    config: TrainerConfig
    generator: torch.Generator
    identity: Mapping[str, Any]
    done: int = 0
    losses: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Refuse data that cannot fill a batch."""
        if len(self.data.index) < self.batch:
            raise UserError(
                f"the data set has {len(self.data.index)} transitions, fewer than one batch of "
                f"{self.batch}; collect more or set a smaller batch"
            )

    def run(self, checkpoint: Path, progress: Callable[[int], object] = lambda _: None) -> None:
        """Train to the end, from `checkpoint` if it belongs to this training.

        Raises:
            UserError: where a loss is no longer a number; the last checkpoint is kept.
        """
        self._resume(checkpoint)
        progress(self.done)
        reported = self.done
        totals: dict[str, list[Tensor]] = defaultdict(list)
        while self.done < self.config.updates:
            batch = self.data.sample(self.batch, self.generator)
            metrics = self.agent.update(*batch, learning_rate_scale=self._learning_rate_scale())
            self.done += 1
            for name, value in metrics.items():
                totals[name].append(value)
            if self.done % self.config.log_every == 0 or self.done == self.config.updates:
                self._log(totals, checkpoint)
                totals.clear()
                progress(self.done - reported)
                reported = self.done
            if self.done % self.config.checkpoint_every == 0 and self.done < self.config.updates:
                self._save(checkpoint)

    @property
    def diverged_at(self) -> int | None:
        """The update at which the divergence alarm first rang, if it did."""
        rang = divergence(self.losses, self.config.divergence_margin)
        return int(self.losses[rang.index(True)]["update"]) if any(rang) else None

    def _learning_rate_scale(self) -> float:
        left = self.config.updates - self.done
        decay = self.config.decay_fraction * self.config.updates
        return min(1.0, left / decay) if decay else 1.0

    def _log(self, totals: Mapping[str, list[Tensor]], checkpoint: Path) -> None:
        row = {name: float(torch.stack(values).mean()) for name, values in totals.items()}
        for name, value in row.items():
            if value != value or abs(value) == float("inf"):
                kept = f"the last good state is in {checkpoint}" if checkpoint.exists() else ""
                raise UserError(
                    f"training broke down: '{name}' is {value} by update {self.done}; lower the "
                    f"learning rate or raise ortho_coef; {kept or 'no checkpoint was due yet'}"
                )
        last = self.losses[-1] if self.losses else {}  # what was not updated since stands as it was
        self.losses.append({**last, "update": self.done, **row})

    def _tensors(self) -> dict[str, Tensor]:
        agent = self.agent
        modules = {"model": agent.model, **agent.targets}
        tensors = training_state(modules, agent.optimisers)
        tensors["generator"] = self.generator.get_state()
        return tensors

    def _save(self, path: Path) -> None:
        header = {
            "kind": "checkpoint",
            "identity": json.loads(json.dumps(self.identity)),
            "done": self.done,
            "losses": self.losses,
        }
        save_tensors(path, self._tensors(), header)

    def _resume(self, path: Path) -> None:
        if not path.exists():
            return
        tensors, header = load_tensors(path)
        if header.get("identity") != json.loads(json.dumps(self.identity)):
            path.unlink()  # settings, code, data or seed have changed since: start afresh
            return
        agent = self.agent
        modules = {"model": agent.model, **agent.targets}
        load_training_state(tensors, modules, agent.optimisers)
        self.generator.set_state(tensors["generator"])
        self.done, self.losses = header["done"], header["losses"]
        agent.step = self.done


def divergence(
    losses: Sequence[Mapping[str, float]], margin: float, window: int = 10
) -> list[bool]:
    """Whether the alarm rings, row by row: the loss has turned while Q keeps climbing.

    On means over the last `window` rows: `fb_loss` is above its minimum so far by `margin` of its
    range so far, and `q` is at its maximum. Agents without these losses never ring it.
    """
    if not losses or not {"fb_loss", "q"} <= losses[0].keys():
        return [False] * len(losses)
    rang = []
    low, high, top = float("inf"), float("-inf"), float("-inf")
    for end in range(1, len(losses) + 1):
        if end < window:
            rang.append(False)
            continue
        rows = losses[end - window : end]
        loss, q = (sum(row[name] for row in rows) / window for name in ("fb_loss", "q"))
        low, high, top = min(low, loss), max(high, loss), max(top, q)
        # before the loss has fallen, being above its minimum says nothing
        fallen = end > 2 * window and high - low > 0
        rang.append(fallen and loss - low > margin * (high - low) and q == top)
    return rang

"""Training of any agent on a data set: resumable to the same bytes, with a divergence alarm."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bfmpipe.agents.base import Batch
from bfmpipe.agents.learner import Learner, LearnerConfig
from bfmpipe.data import checkpoints
from bfmpipe.data.tensors import save_tensors, training_state
from bfmpipe.types import UserError


class TrainerConfig(LearnerConfig):
    """How long to train, and what to write on the way."""

    updates: int = Field(1_000_000, ge=1)
    decay_fraction: float = Field(0.3, ge=0, le=1)
    """Share of the updates, at the end, over which learning rates fall linearly to zero."""
    checkpoint_every: int = Field(10_000, ge=1)
    """Updates between checkpoints, at most: where they take long there are more, by the clock."""
    log_every: int = Field(100, ge=1)
    """Updates averaged to one row of the table of losses."""
    evaluate_every: int | None = Field(None, ge=1)
    """Updates between evaluations of the model as it stands; by default only the end has one."""
    divergence_margin: float = Field(0.2, gt=0)
    """The alarm: the agent's watched loss above its minimum by this share of its range, while `q`
    climbs."""

    @model_validator(mode="after")
    def _checkpoints_end_rows(self) -> "TrainerConfig":
        # a checkpoint holds no half-averaged row, so it must stand at the end of one
        for name in ("checkpoint_every", "evaluate_every"):
            value = getattr(self, name)
            if value is not None and value % self.log_every:
                raise ValueError(
                    f"{name} ({value}) must be a multiple of log_every ({self.log_every})"
                )
        return self


class Rows(Protocol):
    """Rows that may be on disk: indexed with integers of any shape, they are an array in memory."""

    def __getitem__(self, rows: Any, /) -> Any:
        """The rows, with one axis more than the indices."""


class NotFiniteError(UserError):
    """A number that training gave is none."""


class Source(ABC):
    """Where a training's batches come from."""

    @abstractmethod
    def to(self, device: torch.device) -> Self:
        """The same with what is in memory on a device."""

    def check(self, batch: int) -> None:  # noqa: B027 - one that is online fills any
        """Refuse a batch that cannot be filled.

        Raises:
            UserError: it cannot.
        """

    @abstractmethod
    def sample(
        self, n: int, generator: torch.Generator, future_discount: float | None = None
    ) -> Any:
        """A batch of n rows, as the agent takes it."""

    def advance(self, done: int) -> None:  # noqa: B027 - a data set stands still
        """Called before each update with the number of those made.

        Raises:
            NotFiniteError: what was trained so far cannot act.
        """

    def state(self) -> dict[str, Tensor]:
        """All that what comes next depends on, but for what `keep` keeps."""
        return {}

    def load_state(self, state: Mapping[str, Tensor], kept: Path) -> None:  # noqa: B027
        """Go on where `state` was taken."""

    def keep(self, directory: Path) -> None:  # noqa: B027
        """Called before a checkpoint is written: file what need not be in each of them."""

    def drop(self, directory: Path) -> None:  # noqa: B027
        """Called after it: what earlier checkpoints needed alone may go."""


@dataclass(frozen=True)
class Data(Source):
    """Transitions, sampled uniformly: row i leads to row i + stride.

    obs (rows, obs_dim) and action (rows, action_dim), tensors or rows on disk; index
    (transitions,) int64, the rows that have one `stride` rows further in the same episode; last
    (transitions,) int64, the last rows of their episodes, for agents that read later states.
    """

    obs: Tensor | Rows
    action: Tensor | Rows
    index: Tensor
    stride: int = 1
    last: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """The same with what is in memory on a device."""
        move = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return type(self)(**{**vars(self), **move})

    def check(self, batch: int) -> None:
        """Refuse a batch of more transitions than there are."""
        if len(self.index) < batch:
            what = "transitions" if self.stride == 1 else f"stretches of {self.stride} steps"
            raise UserError(
                f"the data set has {len(self.index)} {what}, fewer than one batch of {batch}; "
                "collect more or set a smaller batch"
            )

    def sample(
        self, n: int, generator: torch.Generator, future_discount: float | None = None
    ) -> Batch:
        """n transitions; `future` is a state a geometric number of transitions later, or the last.

        Args:
            n: how many.
            generator: on the device of the tensors.
            future_discount: P(k transitions later) = (1 - d) d^(k-1); None leaves it out.
        """
        device = generator.device
        drawn = torch.randint(len(self.index), (n,), generator=generator, device=device)
        i = self.index[drawn]
        obs, next_obs = _take(self.obs, i), _take(self.obs, i + self.stride)
        if self.stride == 1:
            action = _take(self.action, i)
        else:
            steps = torch.arange(self.stride, device=device)
            action = _take(self.action, i[:, None] + steps).mean(1)
        if future_discount is None:
            return Batch(obs, action, next_obs, next_obs)
        assert self.last is not None
        uniform = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
        later = 1 + ((1 - uniform).log() / math.log(future_discount)).long()
        future = torch.minimum(i + self.stride * later, self.last[drawn])
        return Batch(obs, action, next_obs, _take(self.obs, future))


def _take(column: Tensor | Rows, rows: Tensor) -> Tensor:
    if isinstance(column, Tensor):
        return column[rows]
    return torch.from_numpy(column[rows.cpu().numpy()]).to(rows.device)


_DATA = "data/"  # what names of the data's state begin with in a checkpoint

Totals = dict[str, dict[int, Tensor]]
"""Metric -> update -> its value, (seeds,) or a scalar, since the last row."""


@dataclass
class Trainer:
    """Trains the agents of a learner; a checkpoint holds all its state.

    Args:
        learner: the agents, one a seed, and their generators.
        data: what they learn from.
        config: see TrainerConfig.
        identity: what a checkpoint must agree with to be continued (settings, code, seeds).
        evaluate: called every `evaluate_every` updates, if that is set, and at the end, with the
            number of updates; what it returns, JSON-able, is kept in `evaluations`. It must leave
            the agents and their generators alone.
    """

    learner: Learner
    data: Source
    config: TrainerConfig
    identity: Mapping[str, Any]
    evaluate: Callable[[int], list[dict[str, Any]]] | None = None
    losses: list[list[dict[str, float]]] = field(init=False)
    """One list of rows a seed."""
    evaluations: list[dict[str, Any]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Refuse data that cannot fill a batch."""
        self.agent = self.learner.agents[0]
        self.batch = self.agent.config.batch
        self.losses = [[] for _ in self.learner.agents]
        self.data.check(self.batch)
        self.data = self.data.to(self.learner.device)

    @property
    def done(self) -> int:
        """Updates made."""
        return self.learner.step

    def run(self, checkpoint: Path, progress: Callable[[int], object] = lambda _: None) -> None:
        """Train to the end, from `checkpoint` if it belongs to this training.

        One of another training is set aside, and this one begins anew; see `checkpoints`. One is
        written every `checkpoint_every` updates, and at the end of any row of losses at which
        `checkpoints.Clock` has it due.

        Raises:
            UserError: where a loss, a weight or an optimiser's moment is no longer a number; the
                last checkpoint is kept.
        """
        self._resume(checkpoint)
        clock = checkpoints.Clock()
        progress(self.done)
        reported, config, learner = self.done, self.config, self.learner
        totals: Totals = defaultdict(dict)
        future = self.agent.future_discount
        while self.done < config.updates:
            try:
                self.data.advance(self.done)
            except NotFiniteError as error:
                raise self._stopped(f"{error} after update {self.done}", checkpoint) from error
            batches = [self.data.sample(self.batch, g, future) for g in learner.generators]
            metrics = learner.update(batches, learning_rate_scale=self._learning_rate_scale())
            for name, value in metrics.items():
                totals[name][self.done] = value
            at_end = self.done == config.updates
            logs = self.done % config.log_every == 0 or at_end
            if logs:
                self._log(totals, checkpoint)
                totals.clear()
                progress(self.done - reported)
                reported = self.done
            every = config.evaluate_every
            evaluates = at_end or (every is not None and self.done % every == 0)
            due = self.done % config.checkpoint_every == 0 or (logs and clock.due)
            saves = due and not at_end
            if evaluates or saves:
                self._check_weights(checkpoint)
            if evaluates:
                learner.sync()
                if self.evaluate:
                    self.evaluations += self.evaluate(self.done)
            if saves:
                with clock.writing():
                    self._save(checkpoint)

    def diverged_at(self, seed_index: int = 0) -> int | None:
        """The update at which the divergence alarm first rang for a seed, if it did."""
        rows = self.losses[seed_index]
        rang = self.alarm(seed_index)
        return int(rows[rang.index(True)]["update"]) if any(rang) else None

    def alarm(self, seed_index: int = 0) -> list[bool]:
        """Whether the divergence alarm rings, row by row of a seed's losses."""
        margin = self.config.divergence_margin
        return divergence(self.losses[seed_index], margin, self.agent.watched_loss)

    def _learning_rate_scale(self) -> float:
        left = self.config.updates - self.done
        decay = self.config.decay_fraction * self.config.updates
        return min(1.0, left / decay) if decay else 1.0

    def _log(self, totals: Totals, checkpoint: Path) -> None:
        """One row a seed; the first read of the device since the last one."""
        values = {name: torch.stack([*t.values()]).view(len(t), -1) for name, t in totals.items()}
        means = {name: value.mean(0).tolist() for name, value in values.items()}
        if not all(math.isfinite(x) for mean in means.values() for x in mean):
            raise self._breakdown(totals, values, checkpoint)
        for i, rows in enumerate(self.losses):
            last = rows[-1] if rows else {}  # what was not updated since stands as it was
            row = {name: mean[i] for name, mean in means.items()}
            rows.append({**last, "update": self.done, **row})

    def _breakdown(
        self, totals: Totals, values: Mapping[str, Tensor], checkpoint: Path
    ) -> UserError:
        """Name the first number that is none, by update and then by phase."""
        found = [
            (update, name, row)
            for name, rows in values.items()
            for update, row in zip(totals[name], rows, strict=True)
            if not bool(row.isfinite().all())
        ]
        if not found:  # only their sum overflowed
            sums = [(name, rows.mean(0)) for name, rows in values.items()]
            found = [(self.done, n, row) for n, row in sums if not bool(row.isfinite().all())]
        update, name, row = min(found, key=lambda one: one[0])
        value = row[~row.isfinite()][0].item()
        broken = self._broken()
        where = f"; not finite: {broken}" if broken else ""
        return self._stopped(f"'{name}' is {value} at update {update}{where}", checkpoint)

    def _check_weights(self, checkpoint: Path) -> None:
        """The last update may have broken them, or what moves them, without a loss to show it."""
        broken = self._broken()
        if broken:
            raise self._stopped(f"not finite after update {self.done}: {broken}", checkpoint)

    def _broken(self) -> str:
        # second moments overflow first: Adam's steps are zero from then on, and no loss tells
        tensors = {**self.learner.tensors, **training_state({}, self.learner.optimisers)}
        names = [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"tensor '{names[0]}'{more}" if names else ""

    @staticmethod
    def _stopped(what: str, checkpoint: Path) -> UserError:
        kept = f"the last good state is in {checkpoint}" if checkpoint.exists() else ""
        return UserError(
            f"training broke down: {what}; lower the learning rates; "
            f"{kept or 'no checkpoint was due yet'}"
        )

    def _save(self, path: Path) -> None:
        header = {
            "kind": "checkpoint",
            "identity": self.identity,
            "done": self.done,
            "losses": self.losses,
            "evaluations": self.evaluations,
        }
        kept = checkpoints.kept(path, self.identity)
        self.data.keep(kept)
        beside = {f"{_DATA}{name}": tensor for name, tensor in self.data.state().items()}
        save_tensors(path, {**self.learner.state(), **beside}, header)
        self.data.drop(kept)

    def _resume(self, path: Path) -> None:
        found = checkpoints.resume(path, self.identity, "training")
        if found is None:
            return
        tensors, header = found
        self.learner.load_state(tensors, header["done"])
        beside = {k.removeprefix(_DATA): t for k, t in tensors.items() if k.startswith(_DATA)}
        self.data.load_state(beside, checkpoints.kept(path, self.identity))
        self.losses, self.evaluations = header["losses"], header["evaluations"]


def divergence(
    losses: Sequence[Mapping[str, float]], margin: float, watched: str, window: int = 10
) -> list[bool]:
    """Whether the alarm rings, row by row: the loss has turned while Q keeps climbing.

    On means over the last `window` rows: the `watched` loss is above its minimum so far by `margin`
    of its range so far, and `q` is at its maximum. Without these columns it never rings.
    """
    if not losses or not {watched, "q"} <= losses[0].keys():
        return [False] * len(losses)
    rang = []
    low, high, top = float("inf"), float("-inf"), float("-inf")
    for end in range(1, len(losses) + 1):
        if end < window:
            rang.append(False)
            continue
        rows = losses[end - window : end]
        loss, q = (sum(row[name] for row in rows) / window for name in (watched, "q"))
        low, high, top = min(low, loss), max(high, loss), max(top, q)
        # before the loss has fallen, being above its minimum says nothing
        fallen = end > 2 * window and high - low > 0
        rang.append(fallen and loss - low > margin * (high - low) and q == top)
    return rang

"""The data set: reward-free transitions as a Parquet table, one row a visited state.

An episode of T steps is T + 1 rows: row t holds the state at step t and the action taken there; the
last row's action is zero and leads nowhere. The next state of a row is the row below it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from bfmpipe.config import parse
from bfmpipe.data.tables import Provenance, read_table, write_table
from bfmpipe.types import Array, UserError

KIND = "transitions"

_LAYOUT = {
    "episode": ("int32", 1),
    "step": ("int32", 1),
    "obs": ("float32", 2),
    "action": ("float32", 2),
    "physics": ("float64", 2),
}
"""Columns as arrays, in the order of Transitions: dtype and number of axes."""


class DomainLike(Protocol):
    """What a data set is checked against; bfmpipe.envs.domain.Domain is one."""

    name: str
    config: Any
    obs_dim: int

    @property
    def action_dim(self) -> int:
        """Width of an action."""

    @property
    def physics_dim(self) -> int:
        """Width of a physics state."""


def check_domain(data: "Transitions", domain: DomainLike) -> None:
    """Refuse a data set of another domain.

    Raises:
        UserError: where the names, the clocks or the widths of the columns differ.
    """
    if data.domain != domain.name:
        raise UserError(f"the data set is of {data.domain}, the model of {domain.name}")
    given = parse(type(domain.config), data.domain_settings, "the data set's domain")
    if given.physics_steps != domain.config.physics_steps:
        raise UserError(
            f"the data set has {given.physics_steps} physics steps a control step, the model "
            f"{domain.config.physics_steps}; collect the data with the same physics_steps"
        )
    for name in ("obs", "action", "physics"):
        found, expected = getattr(data, name).shape[1], getattr(domain, f"{name}_dim")
        if found != expected:
            raise UserError(
                f"the data set's column '{name}' is {found} wide; {domain.name} has {expected}"
            )


def schema(obs_dim: int, action_dim: int, physics_dim: int) -> pa.Schema:
    """Columns of a data set; `physics` is qpos, qvel and act, enough to recompute any reward."""
    return pa.schema(
        [
            pa.field("episode", pa.int32(), nullable=False),
            pa.field("step", pa.int32(), nullable=False),
            pa.field("obs", pa.list_(pa.float32(), obs_dim), nullable=False),
            pa.field("action", pa.list_(pa.float32(), action_dim), nullable=False),
            pa.field("physics", pa.list_(pa.float64(), physics_dim), nullable=False),
        ]
    )


@dataclass(frozen=True)
class Transitions:
    """Columns of a data set of `rows` rows, and the domain it is of.

    episode, step: (rows,) int32; obs (rows, obs_dim) and action (rows, action_dim) float32;
    physics (rows, physics_dim) float64.
    """

    domain: str
    domain_settings: Mapping[str, Any]
    episode: Array
    step: Array
    obs: Array
    action: Array
    physics: Array

    @cached_property
    def index(self) -> Array:
        """Rows that have a next row in the same episode: one a transition, int64."""
        return self.index_of(1)

    def index_of(self, stride: int) -> Array:
        """Rows that have a row `stride` further in the same episode, int64."""
        until = max(0, len(self.episode) - stride)
        return np.flatnonzero(self.episode[stride:] == self.episode[:until])


def write(path: Path, data: Transitions, provenance: Provenance) -> None:
    """Write a data set, whole or not at all."""
    shape = schema(data.obs.shape[1], data.action.shape[1], data.physics.shape[1])
    columns = {name: getattr(data, name) for name in shape.names}
    write_table(path, shape, columns, provenance)


def read(path: Path | str) -> Transitions:
    """Read a data set and check what training relies on.

    Raises:
        UserError: for a file that is damaged or no data set, a column that is missing or of another
            type, numbers that are not finite, actions outside [-1, 1], or rows out of order.
    """
    path = Path(path)
    columns, provenance = read_table(path, KIND)
    try:
        domain = provenance.settings["domain"]
        name, settings = domain["name"], domain["settings"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: does not say which domain it is of") from error
    for column, (dtype, ndim) in _LAYOUT.items():
        if column not in columns:
            raise UserError(f"{path}: no column '{column}'; a data set has {', '.join(_LAYOUT)}")
        if columns[column].dtype != dtype or columns[column].ndim != ndim:
            wanted = dtype if ndim == 1 else f"lists of {dtype}, all of one length"
            raise UserError(f"{path}: column '{column}' does not hold {wanted}")
    data = Transitions(name, settings, *(columns[column] for column in _LAYOUT))
    for name in ("obs", "action", "physics"):
        values = getattr(data, name)
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            raise UserError(
                f"{path}: column '{name}' has a number that is not finite in row {row} "
                f"(episode {data.episode[row]}, step {data.step[row]}), one of {bad.sum()} such "
                "rows; remove those episodes or collect the data again"
            )
    if np.abs(data.action).max(initial=0) > 1:
        row = int(np.argmax(np.abs(data.action).max(axis=1) > 1))
        raise UserError(f"{path}: the action in row {row} is outside [-1, 1]")
    same = data.episode[1:] == data.episode[:-1]
    expected = np.where(same, data.step[:-1] + 1, 0)
    wrong = data.step != np.append(0, expected)[: len(data.step)]
    if wrong.any():
        raise UserError(
            f"{path}: rows are out of order from row {int(np.argmax(wrong))} on; an episode's rows "
            "must stand together, with step 0, 1, 2, ..."
        )
    return data

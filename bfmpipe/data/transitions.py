"""The data set: reward-free transitions as a Parquet table, one row a visited state.

An episode of T steps is T + 1 rows: row t holds the state at step t and the action taken there; the
last row's action is zero and leads nowhere. The next state of a row is the row below it.

A data set may be larger than memory: it is written piece by piece, and its wide columns are read
from the file where they are indexed (bfmpipe.data.columns). They are floats in no order, which
hardly compress, so they are stored as they are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bfmpipe.config import parse
from bfmpipe.data.columns import Column, blocks, open_column
from bfmpipe.data.tables import Provenance, open_table, reading, to_arrow
from bfmpipe.files import replacing
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

_WIDE = ("obs", "action", "physics")
OF_EPISODES = ("episode_steps", "start")
"""Settings of domains that data need not share with a model."""
_GROUP = 16384
"""Rows a row group: one page a column, since Parquet's writer begins another at 20,000 rows."""


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


def check_domain(data: "Transitions", domain: DomainLike, of: str = "the model") -> None:
    """Refuse a data set of another domain.

    Args:
        data: the data set.
        domain: what it must be of.
        of: whose domain that is, in messages.

    Raises:
        UserError: where the names, the settings of the body or the widths of the columns differ.
    """
    if data.domain != domain.name:
        raise UserError(f"the data set is of {data.domain}, {of} of {domain.name}")
    given = parse(type(domain.config), data.domain_settings, "the data set's domain")
    wanted = domain.config.model_dump(mode="json")
    for name, value in given.model_dump(mode="json").items():
        if name not in OF_EPISODES and value != wanted[name]:
            raise UserError(
                f"the data set is of {data.domain} with {name} {value}, {of} of {name} "
                f"{wanted[name]}; collect the data with the same {name}"
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
    physics (rows, physics_dim) float64. The latter three are arrays or, from a file, Columns.
    """

    domain: str
    domain_settings: Mapping[str, Any]
    episode: Array
    step: Array
    obs: Array | Column
    action: Array | Column
    physics: Array | Column

    @cached_property
    def index(self) -> Array:
        """Rows that have a next row in the same episode: one a transition, int64."""
        return self.index_of(1)

    def index_of(self, stride: int) -> Array:
        """Rows that have a row `stride` further in the same episode, int64."""
        until = max(0, len(self.episode) - stride)
        return np.flatnonzero(self.episode[stride:] == self.episode[:until])

    def last_of(self, stride: int) -> Array:
        """The last row of the episode of each entry of `index_of`, int64."""
        ends = np.append(np.flatnonzero(np.diff(self.episode)), len(self.episode) - 1)
        return ends[np.searchsorted(ends, self.index_of(stride))]


def write(path: Path, data: Transitions, provenance: Provenance) -> None:
    """Write a data set, whole or not at all."""
    shape = schema(data.obs.shape[1], data.action.shape[1], data.physics.shape[1])
    pieces = (
        {name: getattr(data, name)[rows] for name in shape.names}
        for rows in blocks(len(data.episode), _GROUP)
    )
    write_pieces(path, shape, pieces, lambda: provenance)


def write_pieces(
    path: Path,
    shape: pa.Schema,
    pieces: Iterable[Mapping[str, Array]],
    provenance: Callable[[], Provenance],
) -> None:
    """Write a data set piece by piece, whole or not at all; a few pieces are in memory at a time.

    Args:
        path: where to.
        shape: see `schema`.
        pieces: columns of any number of rows each; how the rows are cut makes no difference.
        provenance: called after the last piece.
    """
    narrow = [name for name in shape.names if name not in _WIDE]
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(
            temporary,
            shape,
            compression="none",
            use_dictionary=narrow,
            write_statistics=narrow,
            data_page_size=2**30,
            write_page_checksum=True,
            store_schema=True,
        ) as writer,
    ):
        held: list[Mapping[str, Array]] = []
        count = 0
        for piece in pieces:
            held.append(piece)
            count += len(piece["episode"])
            if count >= _GROUP:
                held, count = _write_groups(writer, shape, held, _GROUP)
        _write_groups(writer, shape, held, 1)
        writer.add_key_value_metadata(provenance().metadata())


def _write_groups(
    writer: pq.ParquetWriter, shape: pa.Schema, held: list[Mapping[str, Array]], least: int
) -> tuple[list[Mapping[str, Array]], int]:
    """Write row groups of what is held as long as `least` rows are left; the rest of it."""
    columns = {n: np.concatenate([piece[n] for piece in held]) for n in shape.names if held}
    rows, start = len(columns["episode"]) if held else 0, 0
    while rows - start >= least:
        group = {name: values[start : start + _GROUP] for name, values in columns.items()}
        writer.write_table(to_arrow(shape, group), row_group_size=_GROUP)
        start = min(start + _GROUP, rows)
    # copied, so that what was written can be freed
    rest = {name: values[start:].copy() for name, values in columns.items()}
    return [rest], rows - start


def read(path: Path | str, columns: Sequence[str] = _WIDE) -> Transitions:
    """Open a data set and check what training relies on.

    Args:
        path: the file. It must not be changed in place as long as the data are used.
        columns: those of obs, action and physics that are needed; the others are not even read.

    Raises:
        UserError: for a file that is damaged or no data set, a column that is missing or of another
            type, numbers that are not finite, actions outside [-1, 1], rows out of order, or a
            number that two episodes have.
    """
    path = Path(path)
    file, provenance = open_table(path, KIND)
    try:
        domain = provenance.settings["domain"]
        name, settings = domain["name"], domain["settings"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: does not say which domain it is of") from error
    with file, reading(path):
        _check_types(path, file.schema_arrow)
        table = file.read(columns=["episode", "step"])
        episode, step = (_whole(path, table, column) for column in ("episode", "step"))
        wide: dict[str, Array | Column] = {}
        for column in _WIDE:
            if column in columns:
                check = _Check(path, column, episode, step)
                wide[column] = open_column(path, file, column, check)
                check.end()
            else:
                width = file.schema_arrow.field(column).type.list_size
                wide[column] = Column(column, (len(episode), width), _LAYOUT[column][0])
    same = episode[1:] == episode[:-1]
    expected = np.where(same, step[:-1] + 1, 0)
    wrong = step != np.append(0, expected)[: len(step)]
    if wrong.any():
        raise UserError(
            f"{path}: rows are out of order from row {int(np.argmax(wrong))} on; an episode's rows "
            "must stand together, with step 0, 1, 2, ..."
        )
    starts = np.flatnonzero(step == 0)
    _, first = np.unique(episode[starts], return_index=True)
    if len(first) < len(starts):
        row = starts[np.setdiff1d(np.arange(len(starts)), first)[0]]
        raise UserError(
            f"{path}: episode {episode[row]} begins a second time in row {row}; an episode's rows "
            "must stand together, and each episode needs a number of its own"
        )
    return Transitions(name, settings, episode, step, **wide)


def _check_types(path: Path, found: pa.Schema) -> None:
    for column, (dtype, ndim) in _LAYOUT.items():
        if column not in found.names:
            raise UserError(f"{path}: no column '{column}'; a data set has {', '.join(_LAYOUT)}")
        kind = found.field(column).type
        is_list = pa.types.is_fixed_size_list(kind)
        value = kind.value_type if is_list else kind
        # str: Arrow calls float32 "float"
        if is_list != (ndim == 2) or str(value) != str(pa.from_numpy_dtype(np.dtype(dtype))):
            wanted = dtype if ndim == 1 else f"lists of {dtype}, all of one length"
            raise UserError(f"{path}: column '{column}' does not hold {wanted}")


def _whole(path: Path, table: pa.Table, name: str) -> Array:
    if table[name].null_count:
        raise UserError(f"{path}: column '{name}' has {table[name].null_count} empty rows")
    return np.array(table[name])


class _Check:
    """Looks through a column's values, row group by row group, and complains at the end."""

    def __init__(self, path: Path, name: str, episode: Array, step: Array) -> None:
        self.path, self.name, self.episode, self.step = path, name, episode, step
        self.row, self.count = 0, 0
        self.outside: int | None = None

    def __call__(self, start: int, values: Array) -> None:
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            self.row = self.row if self.count else start + int(np.argmax(bad))
            self.count += int(bad.sum())
        if self.name == "action" and self.outside is None and np.abs(values).max(initial=0) > 1:
            self.outside = start + int(np.argmax(np.abs(values).max(axis=1) > 1))

    def end(self) -> None:
        if self.count:
            raise UserError(
                f"{self.path}: column '{self.name}' has a number that is not finite in row "
                f"{self.row} (episode {self.episode[self.row]}, step {self.step[self.row]}), one "
                f"of {self.count} such rows; remove those episodes or collect the data again"
            )
        if self.outside is not None:
            raise UserError(f"{self.path}: the action in row {self.outside} is outside [-1, 1]")

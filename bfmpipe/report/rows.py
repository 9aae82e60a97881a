"""Tables as dicts of columns (column name -> array, all of one length): the little needed of them.

Order carries meaning throughout: methods, families and tasks stay in the order in which they first
appear; the stages give families by name and tasks as the configuration lists them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bfmpipe.types import Array

Columns = Mapping[str, Array]


def select(columns: Columns, **equal: object) -> dict[str, Array]:
    """The rows whose columns equal the given values; of a table without columns, itself."""
    if not columns:
        return {}
    keep = np.ones(count(columns), dtype=bool)
    for name, value in equal.items():
        keep &= np.asarray(columns[name] == value, dtype=bool)
    return {name: column[keep] for name, column in columns.items()}


def count(columns: Columns) -> int:
    """Number of rows."""
    return len(next(iter(columns.values()))) if columns else 0


def distinct(columns: Columns, *names: str) -> list[Any]:
    """Distinct values of a column, or tuples of several, in the order of first appearance."""
    if count(columns) == 0:
        return []
    if len(names) == 1:
        return list(dict.fromkeys(columns[names[0]].tolist()))
    return list(dict.fromkeys(zip(*(columns[name].tolist() for name in names), strict=True)))


def concatenate(tables: Sequence[Columns], names: Iterable[str]) -> dict[str, Array]:
    """The named columns of several tables, one below the other; no columns for no tables."""
    if not tables:
        return {}
    return {name: np.concatenate([table[name] for table in tables]) for name in names}


def one(columns: Columns, name: str) -> Any:
    """The value of a column of a single row."""
    (value,) = columns[name].tolist()
    return value

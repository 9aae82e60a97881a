"""State coverage: how many cells of a grid over a few named coordinates a data set has visited.

Each coordinate's range is cut into equal bins, and a cell is one combination of them; values beyond
the range count to the outermost bin, so that going ever further is no more coverage. The measure is
the number of visited cells. It needs no kernel and no scale taken from the data (an entropy that is
estimated on standardised states cannot tell a wide data set from a narrow one), it can be checked
by eye in a picture of the same cells, and it can only grow with data: compare equal numbers of
steps.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


class Axis(Protocol):
    """A coordinate: its range [low, high], cut into `bins`."""

    @property
    def low(self) -> float:
        """Lower end of the first bin."""

    @property
    def high(self) -> float:
        """Upper end of the last bin."""

    @property
    def bins(self) -> int:
        """Number of bins."""


def cells(values: ArrayLike, axes: Sequence[Axis]) -> Ints:
    """Bins (n, axes) of values (n, axes), each counted from 0.

    A bin contains its lower end; NaN is in no bin and raises ValueError.
    """
    x = np.asarray(values, np.float64)
    if np.isnan(x).any():
        raise ValueError("a coordinate is not a number")
    low, high = (np.array([getattr(axis, end) for axis in axes]) for end in ("low", "high"))
    bins = np.array([axis.bins for axis in axes])
    # clipped before it becomes an integer: infinities are outermost too
    return np.floor((x - low) / (high - low) * bins).clip(0, bins - 1).astype(np.int64)


class Visits:
    """Counts of visits to every cell of a grid.

    visits: (total,) how often; first: (total,) number of states seen before the first one in the
    cell, -1 where there was none. Cells are numbered with the last axis varying fastest.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        self.axes = tuple(axes)
        self.shape = tuple(axis.bins for axis in axes)
        self.visits = np.zeros(int(np.prod(self.shape)), np.int64)
        self.first = np.full_like(self.visits, -1)
        self.seen = 0

    def add(self, values: ArrayLike) -> None:
        """Count states (n, axes), in the order given."""
        place = np.ravel_multi_index(tuple(cells(values, self.axes).T), self.shape)
        found, first, count = np.unique(place, return_index=True, return_counts=True)
        new = self.visits[found] == 0
        self.first[found[new]] = self.seen + first[new]
        self.visits[found] += count
        self.seen += len(place)

    @property
    def occupied(self) -> Ints:
        """Numbers of the visited cells, ascending."""
        return np.flatnonzero(self.visits)

    @property
    def covered(self) -> int:
        """The measure: the number of visited cells."""
        return len(self.occupied)


def growth(first: ArrayLike, seen: ArrayLike) -> Ints:
    """Cells visited within the first `seen` (n,) states; `first` (cells,) as in `Visits`."""
    return np.searchsorted(np.sort(np.asarray(first)), np.asarray(seen), side="left")


def marginal(cell: Ints, visits: Ints, axes: Sequence[int], shape: Sequence[int]) -> Ints:
    """Visits by the bins of some axes only: an array of the shape of these axes.

    Args:
        cell: (n, all axes), the bins of each visited cell.
        visits: (n,).
        axes: which axes stay.
        shape: bins of all axes.
    """
    total = np.zeros([shape[axis] for axis in axes], np.int64)
    np.add.at(total, tuple(cell[:, axis] for axis in axes), visits)
    return total

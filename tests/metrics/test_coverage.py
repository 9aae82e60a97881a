"""Coverage of a small grid, counted by hand."""

from dataclasses import dataclass

import numpy as np
import pytest

from bfmpipe.metrics.coverage import Visits, cells, growth, marginal


@dataclass
class Axis:
    low: float
    high: float
    bins: int


# bins of .5 from -1 to 1, and of 10 from 0 to 30
AXES = (Axis(-1, 1, 4), Axis(0, 30, 3))


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ((-1, 0), (0, 0)),
        ((-0.51, 9.9), (0, 0)),
        ((-0.5, 10), (1, 1)),  # the lower end belongs to the bin
        ((0.999, 29.9), (3, 2)),
        ((1, 30), (3, 2)),  # and the upper end of the range to the last one
        ((-7, 31), (0, 2)),  # what lies outside to the outermost
        ((np.inf, -np.inf), (3, 0)),
    ],
)
def test_a_value_is_in_the_bin_that_holds_it(value, cell):
    assert cells([value], AXES).tolist() == [list(cell)]


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        cells([(0.0, np.nan)], AXES)


def test_visits_are_counted_with_the_first_of_them():
    visits = Visits(AXES)
    assert (visits.covered, visits.seen) == (0, 0)
    visits.add([(0.1, 5), (0.1, 15), (0.2, 5)])
    visits.add([(-0.9, 25), (0.1, 15), (0.7, 0)])
    visits.add(np.empty((0, 2)))
    # cells (2, 0), (2, 1), (0, 2), (3, 0), numbered by 3 i + j
    assert visits.occupied.tolist() == [2, 6, 7, 9]
    assert visits.visits[visits.occupied].tolist() == [1, 2, 2, 1]
    assert visits.first[visits.occupied].tolist() == [3, 0, 1, 5]
    assert visits.first[0] == -1
    assert (visits.covered, visits.seen) == (4, 6)


def test_how_states_are_cut_into_blocks_makes_no_difference():
    states = np.random.default_rng(0).normal(scale=(1, 20), size=(100, 2))
    whole, blocks = Visits(AXES), Visits(AXES)
    whole.add(states)
    for block in np.split(states, [1, 7, 60]):
        blocks.add(block)
    np.testing.assert_array_equal(whole.visits, blocks.visits)
    np.testing.assert_array_equal(whole.first, blocks.first)


def test_growth_counts_the_cells_first_visited_before():
    assert growth([5, 0, 3], [0, 1, 3, 4, 6]).tolist() == [0, 1, 1, 2, 3]


def test_a_marginal_sums_over_the_other_axes():
    cell = np.array([[0, 0, 1], [1, 0, 1], [1, 1, 0]])
    visits = np.array([5, 7, 2])
    assert marginal(cell, visits, (2, 1), (2, 2, 2)).tolist() == [[0, 2], [12, 0]]
    assert marginal(cell, visits, (0,), (2, 2, 2)).tolist() == [5, 9]

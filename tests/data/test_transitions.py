"""The data set: round trip, what a transition is, and what is refused."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import pytest

from bfmpipe.config import Config
from bfmpipe.data import transitions
from bfmpipe.data.tables import Provenance, write_table
from bfmpipe.types import UserError

LENGTHS = (4, 1, 3)  # rows an episode; the second has no transition
COLUMNS = ("episode", "step", "obs", "action", "physics")
ORIGIN = Provenance(
    "transitions", {"domain": {"name": "toy", "settings": {"physics_steps": 2}}}, "code"
)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    rows = sum(LENGTHS)
    return transitions.Transitions(
        domain="toy",
        domain_settings={"physics_steps": 2},
        episode=np.repeat(np.arange(3, dtype=np.int32), LENGTHS),
        step=np.concatenate([np.arange(n, dtype=np.int32) for n in LENGTHS]),
        obs=rng.standard_normal((rows, 3)).astype(np.float32),
        action=rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        physics=rng.standard_normal((rows, 5)),
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.parquet"


def changed(data, column, row, value):
    values = getattr(data, column).copy()
    values[row] = value
    return replace(data, **{column: values})


def test_every_value_comes_back_with_its_type(data, path):
    transitions.write(path, data, ORIGIN)
    back = transitions.read(path)
    assert (back.domain, back.domain_settings) == ("toy", {"physics_steps": 2})
    for name in COLUMNS:
        expected, found = getattr(data, name), getattr(back, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_the_file_has_the_declared_schema_and_no_time_in_it(data, path, tmp_path):
    transitions.write(path, data, ORIGIN)
    assert pq.read_schema(path).remove_metadata().equals(transitions.schema(3, 2, 5))
    again = tmp_path / "again.parquet"
    transitions.write(again, data, ORIGIN)
    assert again.read_bytes() == path.read_bytes()


def test_a_transition_never_crosses_an_episode_boundary(data):
    rows = data.index
    np.testing.assert_array_equal(rows, [0, 1, 2, 5, 6])
    np.testing.assert_array_equal(data.episode[rows], data.episode[rows + 1])
    np.testing.assert_array_equal(data.step[rows] + 1, data.step[rows + 1])


@pytest.mark.parametrize(
    ("stride", "rows"), [(1, [0, 1, 2, 5, 6]), (2, [0, 1, 5]), (3, [0]), (4, []), (8, []), (9, [])]
)
def test_a_longer_transition_never_crosses_an_episode_boundary_either(data, stride, rows):
    assert data.index_of(stride).tolist() == rows


@pytest.mark.parametrize(
    ("stride", "rows"), [(1, [3, 3, 3, 7, 7]), (2, [3, 3, 7]), (3, [3]), (4, []), (9, [])]
)
def test_the_last_row_of_an_episode_goes_with_each_transition(data, stride, rows):
    assert data.last_of(stride).tolist() == rows


def test_a_data_set_without_rows_has_no_transitions(data, path):
    empty = replace(data, **{name: getattr(data, name)[:0] for name in COLUMNS})
    transitions.write(path, empty, ORIGIN)
    assert len(transitions.read(path).index) == 0


def test_actions_on_the_border_are_valid(data, path):
    transitions.write(path, changed(data, "action", 2, (-1, 1)), ORIGIN)
    assert transitions.read(path).action[2].tolist() == [-1, 1]


@pytest.mark.parametrize(
    ("column", "row", "value", "said"),
    [
        ("obs", 2, np.nan, "column 'obs' has a number that is not finite in row 2 (episode 0, "),
        ("physics", 6, np.inf, "column 'physics' has a number that is not finite in row 6"),
        ("action", 5, np.nan, "column 'action' has a number that is not finite in row 5"),
        ("action", 1, 1.5, "the action in row 1 is outside [-1, 1]"),
        ("action", 6, (0, -1.001), "the action in row 6 is outside [-1, 1]"),
        ("step", 0, 1, "rows are out of order from row 0 on"),
        ("step", 3, 5, "rows are out of order from row 3 on"),
        ("episode", 1, 7, "rows are out of order from row 1 on"),
    ],
)
def test_bad_rows_are_named(data, path, column, row, value, said):
    transitions.write(path, changed(data, column, row, value), ORIGIN)
    with pytest.raises(UserError) as caught:
        transitions.read(path)
    assert str(caught.value).startswith(f"{path}: {said}")


def test_a_number_that_two_episodes_have_is_refused(data, path):
    # a longer transition would lead from the one into the other
    episode = np.repeat(np.array([4, 1, 4], np.int32), LENGTHS)
    transitions.write(path, replace(data, episode=episode), ORIGIN)
    with pytest.raises(UserError) as caught:
        transitions.read(path)
    assert str(caught.value) == (
        f"{path}: episode 4 begins a second time in row 5; an episode's rows must stand together, "
        "and each episode needs a number of its own"
    )
    unsorted = np.repeat(np.array([4, 1, 0], np.int32), LENGTHS)
    transitions.write(path, replace(data, episode=unsorted), ORIGIN)
    assert transitions.read(path).index.tolist() == [0, 1, 2, 5, 6]


def test_swapped_rows_are_refused(data, path):
    order = [1, 0, *range(2, sum(LENGTHS))]
    swapped = replace(data, **{name: getattr(data, name)[order] for name in COLUMNS})
    transitions.write(path, swapped, ORIGIN)
    with pytest.raises(UserError, match="out of order from row 0 on"):
        transitions.read(path)


def test_a_missing_column_is_named(data, path):
    schema = transitions.schema(3, 2, 5)
    write_table(path, schema.remove(4), {name: getattr(data, name) for name in COLUMNS[:4]}, ORIGIN)
    with pytest.raises(UserError, match="no column 'physics'; a data set has episode, step, obs"):
        transitions.read(path)


def test_a_column_of_another_type_is_named(data, path):
    schema = transitions.schema(3, 2, 5)
    wide = schema.set(2, schema.field("physics").with_name("obs"))
    columns = {name: getattr(data, name) for name in COLUMNS}
    write_table(path, wide, {**columns, "obs": np.zeros((sum(LENGTHS), 5))}, ORIGIN)
    with pytest.raises(UserError, match="column 'obs' does not hold lists of float32"):
        transitions.read(path)


def test_a_data_set_that_does_not_say_its_domain_is_refused(data, path):
    transitions.write(path, data, Provenance("transitions", {}, "code"))
    with pytest.raises(UserError, match="does not say which domain"):
        transitions.read(path)


def test_no_flipped_byte_changes_a_value_or_gives_a_traceback(data, path):
    transitions.write(path, data, ORIGIN)
    good = path.read_bytes()
    refused = 0
    for position in range(0, len(good), 9):
        content = bytearray(good)
        content[position] ^= 0x81
        path.write_bytes(content)
        try:
            back = transitions.read(path)
        except UserError:
            refused += 1
            continue
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(back, name), getattr(data, name))
    assert refused > 100


def test_data_of_another_body_are_refused(data):
    class Settings(Config):
        physics_steps: int = 2
        episode_steps: int = 100
        body: str = "own"

    class Domain(NamedTuple):
        config: Settings
        name: str = "toy"
        obs_dim: int = 3
        action_dim: int = 2
        physics_dim: int = 5

    own = replace(data, domain_settings={"physics_steps": 2, "episode_steps": 7})
    transitions.check_domain(own, Domain(Settings()))
    with pytest.raises(UserError, match="is of toy with body own, the model of body humenv"):
        transitions.check_domain(own, Domain(Settings(body="humenv")))

"""Columns that stay in the file: the rows of an array in memory, however they are asked for."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from bfmpipe.data import columns, transitions
from bfmpipe.data.columns import Column
from bfmpipe.data.tables import Provenance, to_arrow
from bfmpipe.types import UserError

ORIGIN = Provenance("transitions", {"domain": {"name": "toy", "settings": {}}}, "code")
ROWS = 40_000  # three row groups, the last one shorter
WIDE = ("obs", "action", "physics")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return transitions.Transitions(
        domain="toy",
        domain_settings={},
        episode=np.repeat(np.arange(ROWS // 100, dtype=np.int32), 100),
        step=np.tile(np.arange(100, dtype=np.int32), ROWS // 100),
        obs=rng.standard_normal((ROWS, 7), np.float32),
        action=rng.uniform(-1, 1, (ROWS, 3)).astype(np.float32),
        physics=rng.standard_normal((ROWS, 5)),
    )


@pytest.fixture(scope="module")
def path(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("columns") / "data.parquet"
    transitions.write(path, data, ORIGIN)
    return path


def test_wide_columns_stay_in_the_file(path):
    back = transitions.read(path)
    assert all(isinstance(getattr(back, name), Column) for name in WIDE)
    assert pq.ParquetFile(path).num_row_groups == 3


SOME = np.random.default_rng(1).integers(ROWS, size=1000)


@pytest.mark.parametrize(
    "rows",
    [
        SOME,
        np.sort(SOME),
        SOME.astype(np.int32),
        SOME.reshape(10, 20, 5),
        np.array([16383, 16384, 32767, 32768, ROWS - 1, 0]),
        np.array([-1, -ROWS, 3]),
        [5, 4],
        np.array([], np.int64),
        7,
        np.int64(-2),
        slice(None, None, 997),
        slice(16000, 17000),
        slice(-5, None),
        slice(0, 0),
        np.arange(ROWS) % 3 == 0,
        np.zeros(ROWS, bool),
    ],
    ids=lambda rows: type(rows).__name__,
)
@pytest.mark.parametrize("name", WIDE)
def test_rows_are_those_of_the_array(data, path, name, rows):
    column, array = getattr(transitions.read(path), name), getattr(data, name)
    found = column[rows]
    assert found.dtype == array.dtype
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array[rows], strict=True)


@pytest.mark.parametrize("name", WIDE)
def test_the_whole_column_is_the_array(data, path, name):
    column, array = getattr(transitions.read(path), name), getattr(data, name)
    assert (column.shape, column.ndim, len(column)) == (array.shape, 2, ROWS)
    np.testing.assert_array_equal(np.asarray(column), array, strict=True)
    assert np.asarray(column, np.float64).dtype == np.float64


@pytest.mark.parametrize("row", [ROWS, -ROWS - 1])
def test_a_row_that_is_not_there_is_no_other_row(path, row):
    with pytest.raises(IndexError, match="column 'obs' has rows 0 to 39999"):
        transitions.read(path).obs[[0, row]]


def test_a_column_that_was_not_asked_for_is_not_read(data, path):
    back = transitions.read(path, ("obs", "action"))
    assert back.physics.shape == data.physics.shape
    with pytest.raises(UserError, match="column 'physics' of the data set was not read"):
        back.physics[0]


def test_damage_in_a_column_that_was_not_asked_for_does_no_harm(path, tmp_path):
    chunk = pq.ParquetFile(path).metadata.row_group(1).column(4)
    content = bytearray(path.read_bytes())
    content[chunk.data_page_offset + chunk.total_compressed_size - 1] ^= 1
    damaged = tmp_path / "data.parquet"
    damaged.write_bytes(content)
    transitions.read(damaged, ("obs", "action"))
    with pytest.raises(UserError, match=r"damaged or not a Parquet file .*CRC"):
        transitions.read(damaged)


OTHER_WAYS = {
    "compressed": {"compression": "zstd"},
    "dictionaries": {"compression": "none", "use_dictionary": True},
    "several pages": {"compression": "none", "use_dictionary": False, "data_page_size": 4096},
    "another encoding": {
        "compression": "none",
        "use_dictionary": False,
        "use_byte_stream_split": True,
    },
    "second format of pages": {
        "compression": "none",
        "use_dictionary": False,
        "data_page_version": "2.0",
    },
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_a_file_written_in_another_way_gives_the_same_values(data, tmp_path, way):
    schema = transitions.schema(7, 3, 5).with_metadata(ORIGIN.metadata())
    table = to_arrow(schema, {name: getattr(data, name) for name in schema.names})
    path = tmp_path / "data.parquet"
    pq.write_table(table, path, row_group_size=9000, write_page_checksum=True, **OTHER_WAYS[way])
    back = transitions.read(path)
    for name in WIDE:
        np.testing.assert_array_equal(np.asarray(getattr(back, name)), getattr(data, name))
        np.testing.assert_array_equal(getattr(back, name)[SOME], getattr(data, name)[SOME])
    if way != "second format of pages":
        assert isinstance(back.obs, np.ndarray)


@pytest.mark.parametrize("rows", [1, 999, 16384, 16385, ROWS])
def test_how_a_data_set_is_cut_into_pieces_makes_no_difference(data, path, tmp_path, rows):
    pieces = (
        {name: getattr(data, name)[part] for name in ("episode", "step", *WIDE)}
        for part in columns.blocks(ROWS if rows > 1 else 50, rows)
    )
    cut = tmp_path / "data.parquet"
    transitions.write_pieces(cut, transitions.schema(7, 3, 5), pieces, lambda: ORIGIN)
    if rows > 1:
        assert cut.read_bytes() == path.read_bytes()
    else:
        np.testing.assert_array_equal(np.asarray(transitions.read(cut).obs), data.obs[:50])


def test_writing_what_was_read_gives_the_same_bytes(path, tmp_path):
    copy = tmp_path / "copy.parquet"
    transitions.write(copy, transitions.read(path), ORIGIN)
    assert copy.read_bytes() == path.read_bytes()


def test_pieces_that_end_in_an_error_leave_no_file(data, tmp_path):
    def pieces():
        yield {name: getattr(data, name) for name in ("episode", "step", *WIDE)}
        raise UserError("the source is broken")

    path = tmp_path / "data.parquet"
    with pytest.raises(UserError, match="the source is broken"):
        transitions.write_pieces(path, transitions.schema(7, 3, 5), pieces(), lambda: ORIGIN)
    assert not list(tmp_path.iterdir())

"""Parquet tables: the same values back, the same bytes again, and one sentence where damaged."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bfmpipe.data.tables import Provenance, read_table, write_table
from bfmpipe.types import UserError

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("seed", pa.int32(), nullable=False),
        pa.field("x", pa.float64(), nullable=False),
        pa.field("z", pa.list_(pa.float32(), 3), nullable=False),
    ]
)
ORIGIN = Provenance("toys", {"seed": 3, "nested": {"b": [1, 2.5], "a": None}}, "0123abcd")
COLUMNS = {
    "name": ["a", "", "é"],
    "seed": np.array([0, -1, 2**31 - 1]),
    "x": np.array([0.1, -0.0, 1e-320]),
    "z": np.arange(9, dtype=np.float32).reshape(3, 3) / 7,
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some" / "toys.parquet"
    write_table(path, SCHEMA, COLUMNS, ORIGIN)
    return path


def test_every_value_and_the_provenance_come_back(path):
    columns, origin = read_table(path, "toys")
    assert list(columns) == SCHEMA.names
    assert columns["name"].tolist() == COLUMNS["name"]
    for name in ("seed", "x", "z"):
        np.testing.assert_array_equal(columns[name], COLUMNS[name])
    assert np.signbit(columns["x"][1])
    assert columns["z"].dtype == np.float32
    assert origin == ORIGIN


def test_a_table_without_rows_comes_back(tmp_path):
    empty = {"name": [], "seed": [], "x": [], "z": np.empty((0, 3), np.float32)}
    write_table(tmp_path / "empty.parquet", SCHEMA, empty, ORIGIN)
    columns, _ = read_table(tmp_path / "empty.parquet", "toys")
    assert [len(column) for column in columns.values()] == [0, 0, 0, 0]
    assert columns["z"].shape == (0, 3)


def test_the_file_declares_the_schema(path):
    assert pq.read_schema(path).remove_metadata().equals(SCHEMA)


def test_the_versions_that_count_are_recorded(path):
    versions = json.loads(pq.read_schema(path).metadata[b"bfmpipe"])["versions"]
    assert versions["numpy"] == np.__version__
    assert versions["pyarrow"] == pa.__version__
    assert {"bfmpipe", "mujoco", "torch"} <= versions.keys()


def test_the_same_input_gives_the_same_bytes(path, tmp_path):
    write_table(tmp_path / "again.parquet", SCHEMA, COLUMNS, ORIGIN)
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_a_wrong_column_leaves_no_file(tmp_path):
    with pytest.raises(pa.ArrowInvalid):
        write_table(tmp_path / "x.parquet", SCHEMA, {**COLUMNS, "seed": ["one"] * 3}, ORIGIN)
    assert not list(tmp_path.iterdir())


def message(path, kind="toys"):
    with pytest.raises(UserError) as caught:
        read_table(path, kind)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


def test_a_missing_file_is_named(tmp_path):
    assert message(tmp_path / "none.parquet").endswith("no such file")


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_a_truncated_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    assert "damaged or not a Parquet file" in message(path)
    assert "run the pipeline again" in message(path)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b'{"a": "configuration"}', "text"),
        ("Überschrift\nund Text\n".encode(), "text"),
        (b"PK\x03\x04 and so on", "a zip"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (b"\x40\0\0\0\0\0\0\0{}", "a safetensors file"),
    ],
)
def test_a_healthy_file_of_another_kind_is_not_called_damaged(tmp_path, content, kind):
    (tmp_path / "x").write_bytes(content)
    assert message(tmp_path / "x") == f"{tmp_path / 'x'}: is {kind}, not a Parquet file"


def test_what_cannot_be_read_is_not_called_damaged(path, tmp_path, monkeypatch):
    assert message(tmp_path).endswith("is a directory, not a file")
    os.mkfifo(tmp_path / "pipe")
    assert message(tmp_path / "pipe").endswith("is a device, pipe or socket, not a file")
    nowhere = Path("/proc/self/mem")  # a regular file that cannot be read at 0
    if nowhere.exists():
        assert message(nowhere).endswith("cannot be read: Input/output error")

    def denied(*_, **__):
        raise PermissionError(errno.EACCES, "denied")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", denied)
        assert message(path).endswith("cannot be read: Permission denied")
    monkeypatch.setattr(pq, "ParquetFile", denied)  # only later, as over a network
    assert message(path).endswith("cannot be read: Permission denied")


def test_a_flipped_byte_in_a_data_page_is_refused(path):
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(3)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    last = start + chunk.total_compressed_size - 1
    content = bytearray(path.read_bytes())
    content[last] ^= 1
    path.write_bytes(content)
    assert "CRC" in message(path)


def test_a_table_of_others_is_refused(tmp_path):
    pq.write_table(pa.table({"x": [1.0]}), tmp_path / "foreign.parquet")
    text = message(tmp_path / "foreign.parquet")
    assert text.endswith("a Parquet file without bfmpipe's metadata; expected a table of toys")


def test_a_table_of_another_kind_is_refused(path):
    assert message(path, "curves").endswith("a table of toys; expected a table of curves")

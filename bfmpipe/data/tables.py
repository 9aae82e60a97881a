"""Parquet tables with a declared schema, page checksums and provenance, and no timestamps.

The same columns and provenance give the same bytes on the same machine.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bfmpipe.data.opening import beginning, refused, unreadable
from bfmpipe.files import replacing
from bfmpipe.types import Array, UserError

_KEY = b"bfmpipe"
_PACKAGES = ("bfmpipe", "dm_control", "mujoco", "numpy", "pyarrow", "torch")


@dataclass(frozen=True)
class Provenance:
    """What an artifact was made from.

    kind: what the artifact is ("transitions", "curves", ...); settings: the stage's settings;
    code: digest of the code that could reach it; versions: of the packages whose numerics count;
    source: what the settings do not say of what was read: files from outside the pipeline, the
    digest of a model's weights.
    """

    kind: str
    settings: Mapping[str, Any]
    code: str
    versions: Mapping[str, str] = field(
        default_factory=lambda: {name: version(name) for name in _PACKAGES}
    )
    source: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """JSON with sorted keys, without an empty `source`."""
        fields = {name: value for name, value in asdict(self).items() if name != "source" or value}
        return json.dumps(fields, sort_keys=True)

    def metadata(self) -> dict[bytes, bytes]:
        """What a Parquet file carries."""
        return {_KEY: self.to_json().encode()}


def write_table(
    path: Path, schema: pa.Schema, columns: Mapping[str, Any], provenance: Provenance
) -> None:
    """Write columns (lists, or arrays with one axis more for list columns) to a Parquet file.

    The file appears whole or not at all.
    """
    table = to_arrow(schema.with_metadata(provenance.metadata()), columns)
    with replacing(path) as temporary:
        pq.write_table(
            table, temporary, compression="zstd", write_page_checksum=True, store_schema=True
        )


def read_table(path: Path, kind: str) -> tuple[dict[str, Array], Provenance]:
    """Columns of a Parquet file written by `write_table`, as arrays, and its provenance.

    Raises:
        UserError: for a file that is missing, unreadable, damaged, or of another kind.
    """
    file, provenance = open_table(path, kind)
    with file, reading(path):
        table = file.read()
        names = table.column_names
    for name in names:
        if table[name].null_count:
            raise UserError(f"{path}: column '{name}' has {table[name].null_count} empty rows")
    return {name: _to_numpy(table[name]) for name in names}, provenance


def open_table(path: Path, kind: str) -> tuple[pq.ParquetFile, Provenance]:
    """An open Parquet file whose pages' checksums are verified, and its provenance.

    Raises:
        UserError: for a file that is missing, unreadable, damaged, or of another kind.
    """
    beginning(path)
    with reading(path):
        file = pq.ParquetFile(path, page_checksum_verification=True)
        metadata = {**(file.schema_arrow.metadata or {}), **(file.metadata.metadata or {})}
    try:
        provenance = Provenance(**json.loads(metadata[_KEY]))
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(
            f"{path}: a Parquet file without bfmpipe's metadata; expected a table of {kind}"
        ) from error
    if provenance.kind != kind:
        raise UserError(f"{path}: a table of {provenance.kind}; expected a table of {kind}")
    return file, provenance


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what Parquet's reader says of a file into one sentence, as a UserError."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:  # Arrow's own complaints have no number
            raise unreadable(path, error) from error
        raise refused(path, "a Parquet file", str(error).splitlines()[0]) from error


def to_arrow(schema: pa.Schema, columns: Mapping[str, Any]) -> pa.Table:
    """Columns (lists, or arrays with one axis more for list columns) as an Arrow table."""
    arrays = [_to_arrow(columns[column.name], column.type) for column in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def _to_arrow(values: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        flat = np.ascontiguousarray(values).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), kind.list_size)
    return pa.array(values, kind)


def _to_numpy(column: pa.ChunkedArray) -> Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else array.type
    if pa.types.is_fixed_size_list(array.type):
        values = np.array(array.flatten())  # a copy: Arrow's memory cannot be written to
        return values.reshape(-1, array.type.list_size)
    return array.to_numpy(zero_copy_only=False)

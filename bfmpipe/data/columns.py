"""Columns of a Parquet file that stay in the file: rows are read where they are indexed.

Where a column of fixed-width lists is neither compressed nor dictionary-encoded, and a row group
has it in one page, the format puts its values, as they are in memory, at the end of the page (after
header and levels). So they can be mapped instead of loaded, and what several jobs read is in memory
once. `open_column` compares every mapped byte with what Parquet's own reader gives, which also
checks the page's checksum.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bfmpipe.types import Array, UserError

_ENCODINGS = {"PLAIN", "RLE"}  # RLE is that of the levels


class Column:
    """Rows (n, width) of a file, seen as an array that cannot be written to.

    `column[rows]`, with integers of any shape, a mask or a slice, is an array in memory;
    `np.asarray(column)` is all of it.

    Args:
        name: of the column.
        shape: (n, width).
        dtype: of a value.
        content: the whole file's bytes, mapped; None where the column was not read.
        starts: the first row of each row group, ascending.
        offsets: where in the file each row group's first value begins.
    """

    ndim = 2

    def __init__(
        self,
        name: str,
        shape: tuple[int, int],
        dtype: Any,
        content: Array | None = None,
        starts: Array | None = None,
        offsets: Array | None = None,
    ) -> None:
        self.name, self.shape, self.dtype = name, shape, np.dtype(dtype)
        self._starts, self._offsets = starts, offsets
        self._row_bytes = shape[1] * self.dtype.itemsize
        self._windows = None
        if content is not None:
            # element i is the row that begins at byte i: rows of a file are aligned to nothing
            self._windows = np.ndarray(
                (len(content) - self._row_bytes + 1,), f"V{self._row_bytes}", content, strides=(1,)
            )

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Array:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        rows = np.asarray(rows)
        if rows.dtype == bool:
            (rows,) = rows.nonzero()
        if self._windows is None or self._starts is None or self._offsets is None:
            raise UserError(
                f"column '{self.name}' of the data set was not read; name it in `columns` of "
                "read_transitions"
            )
        flat = np.where(rows < 0, rows + len(self), rows).reshape(-1)
        if flat.size and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"column '{self.name}' has rows 0 to {len(self) - 1}")
        group = np.searchsorted(self._starts, flat, side="right") - 1
        found = self._windows[self._offsets[group] + (flat - self._starts[group]) * self._row_bytes]
        return found.view(self.dtype).reshape(*rows.shape, self.shape[1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        whole = np.empty(self.shape, self.dtype)
        for rows in blocks(len(self)):
            whole[rows] = self[rows]
        return whole if dtype is None else whole.astype(dtype, copy=False)


def blocks(n: int, rows: int = 16384) -> Iterator[slice]:
    """Slices of at most `rows` rows that make up n rows."""
    for start in range(0, n, rows):
        yield slice(start, min(start + rows, n))


def open_column(
    path: Path, file: pq.ParquetFile, name: str, check: Callable[[int, Array], None]
) -> "Array | Column":
    """A column of fixed-width lists, mapped where the file allows it and else in memory.

    Args:
        path: the file.
        file: the same file, open; it verifies the checksums.
        name: of the column.
        check: called with the first row and the values of one row group after the other.

    Raises:
        UserError: for empty values.
    """
    kind = file.schema_arrow.field(name).type
    shape = (file.metadata.num_rows, kind.list_size)
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    groups = range(file.metadata.num_row_groups)
    counts = [file.metadata.row_group(g).num_rows for g in groups]
    starts = np.cumsum([0, *counts])[:-1].astype(np.int64)
    found = [_offset(file, g, name, counts[g] * shape[1] * dtype.itemsize) for g in groups]
    offsets = [offset for offset in found if offset is not None]
    content = None
    if offsets and len(offsets) == len(groups) and shape[1]:
        content = np.memmap(path, np.uint8, mode="r")
    for g in groups:
        values = _decode(path, file, g, name)
        check(int(starts[g]), values)
        if content is not None:
            mapped = content[offsets[g] : offsets[g] + values.nbytes]
            if not np.array_equal(mapped, values.reshape(-1).view(np.uint8)):
                content = None  # the group's values are on several pages
    if content is not None:
        return Column(name, shape, dtype, content, starts, np.array(offsets, np.int64))
    whole = np.empty(shape, dtype)
    for g in groups:
        whole[starts[g] : starts[g] + counts[g]] = _decode(path, file, g, name)
    return whole


def _offset(file: pq.ParquetFile, group: int, name: str, size: int) -> int | None:
    """Where the values of a row group begin, if they stand there as they are in memory."""
    meta = file.metadata.row_group(group)
    for i in range(meta.num_columns):
        chunk = meta.column(i)
        if chunk.path_in_schema.split(".")[0] == name:
            plain = chunk.compression == "UNCOMPRESSED" and set(chunk.encodings) <= _ENCODINGS
            if not plain or chunk.has_dictionary_page or chunk.total_compressed_size < size:
                return None
            return int(chunk.data_page_offset + chunk.total_compressed_size - size)
    return None


def _decode(path: Path, file: pq.ParquetFile, group: int, name: str) -> Array:
    column = file.read_row_group(group, columns=[name]).column(0).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks)
    values = column.flatten()
    if column.null_count or values.null_count:
        raise UserError(f"{path}: column '{name}' has empty rows")
    flat = values.to_numpy(zero_copy_only=False)
    return flat.reshape(-1, column.type.list_size)

"""Rows of `records.py` as Parquet files: the column names are the field names, and equal rows give equal bytes.

Does not cover: image bytes, which `data/shards.py` streams in row groups.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from visionloop.errors import ArtifactError
from visionloop.files import atomic_path

RowT = TypeVar("RowT")

ROW_GROUP_ROWS = 1 << 16  # about 30 MB of the widest rows while they are written

_SIMPLE: Mapping[object, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    datetime: pa.timestamp("us", tz="UTC"),
}


def schema_of(kind: type[Any]) -> pa.Schema:
    """The Arrow schema of a dataclass of strings, numbers, UTC times, tuples of these, and their `| None`."""
    hints = get_type_hints(kind)
    return pa.schema([_field(field.name, hints[field.name]) for field in dataclasses.fields(kind)])


def write_rows(path: Path, kind: type[RowT], rows: Iterable[RowT], metadata: Mapping[str, str] | None = None) -> None:
    """Write dataclass rows of one kind to a Parquet file, whole or not at all; `metadata` goes into its schema.

    Rows are taken a row group at a time, so they may come from a generator that holds none of them.
    """
    schema = schema_of(kind)
    if metadata:
        schema = schema.with_metadata(dict(metadata))
    source = iter(rows)
    with atomic_path(path) as tmp, pq.ParquetWriter(tmp, schema, compression="zstd") as writer:
        while group := list(itertools.islice(source, ROW_GROUP_ROWS)):
            columns = [pa.array([getattr(row, field.name) for row in group], field.type) for field in schema]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def read_rows(path: Path, kind: type[RowT]) -> list[RowT]:
    """Read what `write_rows` wrote.

    Raises:
        ArtifactError: the file is missing, damaged, or of other columns.
    """
    schema = schema_of(kind)
    rows: list[RowT] = []
    pool: dict[str, str] = {}
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in schema.names if name not in file.schema_arrow.names]:
                raise ValueError(f"it has no column {missing[0]!r}")
            for batch in file.iter_batches(batch_size=ROW_GROUP_ROWS, columns=schema.names):
                rows += rows_of(pa.Table.from_batches([batch]).select(schema.names).cast(schema), kind, pool)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    return rows


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """The columns of `schema` as they lie in the file, for code that works on whole columns.

    Raises:
        ArtifactError: the file is missing, damaged, or of other columns.
    """
    try:
        return pq.read_table(path, columns=schema.names).select(schema.names).cast(schema)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def rows_of(table: pa.Table, kind: type[RowT], pool: dict[str, str] | None = None) -> list[RowT]:
    """The rows of a table that has at least the columns of `kind`.

    Texts that repeat within a column, as labels do, are one object each; `pool` carries them on to the next table.
    """
    pool = {} if pool is None else pool
    columns = [_values(table.column(field.name), pool) for field in schema_of(kind)]
    return [kind(*values) for values in zip(*columns, strict=True)]


def read_metadata(path: Path) -> dict[str, str]:
    """The `metadata` that `write_rows` was given.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    try:
        found = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error
    return {key.decode(): value.decode() for key, value in found.items()}


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    why = "it is missing" if isinstance(error, FileNotFoundError) else str(error).split("\n")[0][:120]
    return ArtifactError(f"{path} cannot be read ({why}); bring it back with `dvc checkout` or rebuild it with `dvc repro`.")


def _field(name: str, hint: object) -> pa.Field:
    parts = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType) and type(None) in parts:
        (inner,) = (part for part in parts if part is not type(None))
        return pa.field(name, _arrow(inner), nullable=True)
    return pa.field(name, _arrow(hint), nullable=False)


def _arrow(hint: object) -> pa.DataType:
    origin = get_origin(hint)
    if origin is Literal:
        return pa.string()
    if origin is tuple:
        return pa.list_(_SIMPLE[get_args(hint)[0]])
    return _SIMPLE[hint]


def _values(column: pa.ChunkedArray, pool: dict[str, str]) -> Iterable[object]:
    if pa.types.is_timestamp(column.type):  # to_pylist makes a time zone's object for each value
        naive = column.cast(pa.timestamp(column.type.unit)).to_pylist()
        return [value if value is None else value.replace(tzinfo=UTC) for value in naive]
    if pa.types.is_string(column.type):
        encoded = column.combine_chunks().dictionary_encode()
        if 2 * len(encoded.dictionary) <= len(column):
            words: list[str | None] = [pool.setdefault(word, word) for word in encoded.dictionary.to_pylist()]
            return [None if index is None else words[index] for index in encoded.indices.to_pylist()]
    values: list[Any] = column.to_pylist()
    if pa.types.is_list(column.type):
        return [value if value is None else tuple(value) for value in values]
    return values

"""A local folder of Parquet files as the Hugging Face hub holds image data sets: an image column and a label column.

The side follows from the names: `train-00000-of-00002.parquet`, `validation/0000.parquet`. Does not cover: downloading, and
data sets of other formats (WebDataset, image folders: see `archive` and `folder`).
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from visionloop.data.sources.base import Skipped, SourceImage, SourceOptions, utc_time
from visionloop.data.sources.csv import nearest
from visionloop.data.sources.layout import class_name, refuse_clashes, side_of
from visionloop.errors import DataError
from visionloop.records import Split

# Held in memory at a time; 64 photos of 1 MB are as many as a row group of the shards.
BATCH_ROWS = 64


class Options(SourceOptions):
    """The columns."""

    image: str = Field(default="image", description="column of struct<bytes, path> or of bytes")
    label: str = Field(default="label", description="column of whole numbers (ClassLabel) or of text")
    group: str | None = Field(default=None, description="column of what belongs on one side of the split")


class HuggingfaceSource:
    """The rows of every Parquet file below the folder, read a batch at a time.

    A label that is a number gets its name from the schema's `huggingface` metadata, where that has one. Rows without a label
    or without bytes are skipped.

    Raises:
        DataError: there is no Parquet file, one is damaged, or it lacks a column.
    """

    name = "huggingface"

    def __init__(self, root: Path, options: Options) -> None:
        self._root, self._options = root, options
        self.skipped: list[Skipped] = []
        self._files = sorted(path for path in root.rglob("*.parquet") if path.is_file() and not path.is_symlink())
        if not self._files:
            raise DataError(f"collect.path: {root} holds no Parquet file; put the data set's *.parquet there.")
        self._count = 0
        self._names: dict[Path, Sequence[str]] = {}
        for path in self._files:
            with _open(path) as file:
                schema = file.schema_arrow
                for column in filter(None, (options.image, options.label, options.group)):
                    if column not in schema.names:
                        raise DataError(f"{path}: there is no column {column!r}; {nearest(column, schema.names)}")
                _check_types(path, schema, options)
                self._names[path] = _class_names(schema, options.label)
                self._count += file.metadata.num_rows
        refuse_clashes({name for names in self._names.values() for name in names}, f"collect.path: {root}")

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[SourceImage]:
        labels: dict[object, str] = {}
        for path in self._files:
            name = path.relative_to(self._root).as_posix()
            side, time, names = _side(name), utc_time(path.stat().st_mtime_ns), self._names[path]
            labels.clear()
            for row, (image, given, group) in enumerate(self._rows(path)):
                data, inner = (image, None) if isinstance(image, bytes) else _parts(image)
                place = f"{name}/{row}" + (f"/{inner}" if inner else "")
                if given in (None, "", -1):  # -1 is what the hub writes for "unknown"
                    self.skipped.append(Skipped(place, "no_label"))
                elif not data:
                    self.skipped.append(Skipped(place, "missing"))
                else:
                    if given not in labels:
                        labels[given] = _label(given, names, path)
                        refuse_clashes(labels.values(), str(path))
                    yield SourceImage(
                        data, labels[given], place, time, side, "" if group is None else str(group), "huggingface"
                    )

    def _rows(self, path: Path) -> Iterator[tuple[bytes | dict[str, Any] | None, int | str | None, object]]:
        columns = [self._options.image, self._options.label, *filter(None, [self._options.group])]
        with _open(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
                groups = batch.column(columns[2]).to_pylist() if len(columns) > 2 else [None] * batch.num_rows
                yield from zip(
                    batch.column(columns[0]).to_pylist(), batch.column(columns[1]).to_pylist(), groups, strict=True
                )


@contextlib.contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # pre-buffering would hold a whole row group
            yield file
    except (OSError, pa.ArrowException) as error:
        why = str(error).splitlines()[0][:120]
        raise DataError(f"{path} cannot be read ({why}); fetch the file again.") from error


def _check_types(path: Path, schema: pa.Schema, options: Options) -> None:
    image, label = schema.field(options.image).type, schema.field(options.label).type
    if not (pa.types.is_binary(image) or pa.types.is_large_binary(image) or _has_bytes(image)):
        raise DataError(
            f"{path}: the column {options.image!r} is {image}, not bytes or struct<bytes, path>; name the image column in "
            "collect.options.image."
        )
    if not (pa.types.is_integer(label) or pa.types.is_string(label) or pa.types.is_large_string(label)):
        raise DataError(
            f"{path}: the column {options.label!r} is {label}, not whole numbers or text; name the label column in "
            "collect.options.label."
        )


def _has_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def _parts(image: dict[str, Any] | None) -> tuple[bytes | None, str | None]:
    return (image.get("bytes"), image.get("path")) if image else (None, None)


def _class_names(schema: pa.Schema, column: str) -> Sequence[str]:
    """The names of a ClassLabel feature; none where the schema does not tell."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"][column]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return [str(name) for name in names] if isinstance(names, list) else ()


def _label(given: int | str, names: Sequence[str], path: Path) -> str:
    if isinstance(given, int) and names:
        if not 0 <= given < len(names):
            raise DataError(f"{path}: label {given} is none of the {len(names)} classes that its schema names.")
        return class_name(names[given], str(path))
    return class_name(str(given).strip(), str(path))


def _side(name: str) -> Split | None:
    """The first word of the path that is a side, from the file up."""
    for part in reversed(name.removesuffix(".parquet").split("/")):
        for word in re.split(r"[^A-Za-z]+", part):
            if side := side_of(word):
                return side
    return None

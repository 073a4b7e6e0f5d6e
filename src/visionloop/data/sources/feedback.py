"""Labelled live images, as `visionloop feedback pull` writes them: `labels-<number>-<hash>.parquet`, append-only.

It joins the configured source where `collect.feedback` says so. Does not cover: getting them out of the prediction store.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from visionloop.data.sources.base import Skipped, SourceImage, SourceOptions
from visionloop.data.sources.layout import class_name
from visionloop.errors import DataError

_COLUMNS = ("data", "label", "path", "time", "labelled_by")


class Options(SourceOptions):
    """There is nothing to choose."""


class FeedbackSource:
    """Live images with the label that a person gave them; where one was labelled again, the newest label counts.

    Newest is by file number, then by row.

    Raises:
        DataError: a file is damaged or has other columns.
    """

    name = "feedback"

    def __init__(self, root: Path, options: Options | None = None) -> None:
        del options
        self.skipped: list[Skipped] = []
        self._files = sorted(root.glob("labels-*.parquet"), key=_number)
        newest: dict[str, tuple[int, int]] = {}
        for index, path in enumerate(self._files):
            row = 0
            for batch in _batches(path, ["prediction_id"]):
                for prediction_id in batch.column(0).to_pylist():
                    newest[prediction_id] = (index, row)
                    row += 1
        self._chosen = frozenset(newest.values())

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[SourceImage]:
        for index, path in enumerate(self._files):
            row = -1
            for batch in _batches(path, list(_COLUMNS)):
                for data, label, name, time, labelled_by in zip(*(batch.column(key) for key in _COLUMNS), strict=True):
                    row += 1
                    if (index, row) in self._chosen:
                        yield SourceImage(
                            data.as_py(),
                            class_name(label.as_py() or "", str(path)),
                            name.as_py(),
                            time.as_py().astimezone(UTC),
                            None,
                            labelled_by=labelled_by.as_py() or "",
                            time_stated=True,
                        )


def _number(path: Path) -> tuple[int, str]:
    match = re.match(r"labels-(\d+)", path.name)
    return (int(match[1]) if match else 0, path.name)


def _batches(path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(path) as file:
            if missing := sorted({*columns} - {*file.schema_arrow.names}):
                raise ValueError(f"it has no column {missing[0]!r}")
            yield from file.iter_batches(batch_size=64, columns=columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} cannot be read ({why.splitlines()[0][:120]}); move it away and run `visionloop feedback pull`, "
        "which writes its labels again."
    )

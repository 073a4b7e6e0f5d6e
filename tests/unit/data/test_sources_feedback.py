"""Labelled live images: the newest label of a prediction counts, and they join the configured source."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visionloop.config import CollectParams
from visionloop.data.shards import append, read_images
from visionloop.data.sources import open_sources
from visionloop.data.sources.feedback import FeedbackSource
from visionloop.errors import DataError

SCHEMA = pa.schema([
    ("data", pa.binary()), ("label", pa.string()), ("path", pa.string()), ("time", pa.timestamp("us", "UTC")),
    ("labelled_by", pa.string()), ("prediction_id", pa.string()),
])  # fmt: skip
TIME = datetime(2026, 5, 4, 12, tzinfo=UTC)


def save(folder: Path, name: str, *rows: tuple[str, str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    values = [(one.encode(), label, f"{one}.png", TIME, by, one) for one, label, by in rows]
    arrays = [pa.array(column, field.type) for column, field in zip(zip(*values, strict=True), SCHEMA, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), folder / name, compression="zstd")


def test_the_newest_label_of_a_prediction_counts(tmp_path: Path) -> None:
    save(tmp_path, "labels-2-aaaaaaaa.parquet", ("p1", "dog", "Éva"), ("p3", "cat", "Éva"), ("p3", "dog", "Jan"))
    save(tmp_path, "labels-10-00000000.parquet", ("p1", "cat", "Jan"))
    save(tmp_path, "labels-1-ffffffff.parquet", ("p1", "bee", "Jan"), ("p2", "bee", "Jan"))
    (tmp_path / ".gitkeep").touch()
    source = FeedbackSource(tmp_path)
    assert len(source) == 3
    assert [(image.path, image.label, image.labelled_by, image.data, image.time) for image in source] == [
        ("p2.png", "bee", "Jan", b"p2", TIME),
        ("p3.png", "dog", "Jan", b"p3", TIME),
        ("p1.png", "cat", "Jan", b"p1", TIME),
    ]


def test_a_damaged_file_and_other_columns_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"data": [b"1"]}), tmp_path / "labels-0-aaaaaaaa.parquet")
    with pytest.raises(DataError, match=r"labels-0-aaaaaaaa.parquet cannot be read \(it has no column 'prediction_id'\)"):
        FeedbackSource(tmp_path)
    (tmp_path / "labels-0-aaaaaaaa.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match=r"move it away and run `visionloop feedback pull`"):
        FeedbackSource(tmp_path)


def test_feedback_joins_the_configured_source_and_a_new_label_replaces_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "raw" / name).mkdir(parents=True)
        (tmp_path / "raw" / name / "a.jpg").write_bytes(name.encode())
    params = CollectParams(
        source="folder", path="raw", options={}, feedback=True, images_per_shard=10, max_skipped_share=0.05
    )

    def collect(params: CollectParams) -> dict[str, tuple[str, str, str]]:
        append(open_sources(params), Path("shards"), Path("images.parquet"), params.images_per_shard)
        return {row.path: (row.label, row.source, row.labelled_by) for row in read_images(Path("images.parquet"))}

    folder = {"cat/a.jpg": ("cat", "folder", "folder"), "dog/a.jpg": ("dog", "folder", "folder")}
    assert collect(params) == folder  # there is no data/feedback yet
    save(Path("data/feedback"), "labels-0-aaaaaaaa.parquet", ("p1", "dog", "Éva"))
    assert collect(params) == {**folder, "p1.png": ("dog", "feedback", "Éva")}
    save(Path("data/feedback"), "labels-1-aaaaaaaa.parquet", ("p1", "cat", "Jan"))
    assert collect(params) == {**folder, "p1.png": ("cat", "feedback", "Jan")}
    assert collect(params.model_copy(update={"feedback": False})) == folder

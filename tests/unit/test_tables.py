"""Rows go to Parquet and come back equal, and equal rows give equal bytes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pytest

from visionloop.errors import ArtifactError
from visionloop.records import LoggedPrediction, SplitRow
from visionloop.tables import read_metadata, read_rows, schema_of, write_rows


@dataclass(frozen=True)
class Row:
    name: str
    count: int
    share: float
    time: datetime
    side: Literal["left", "right"] | None
    values: tuple[float, ...] | None


ROWS = [
    Row("grün", 3, 0.1, datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), "left", (0.5, 0.25)),
    Row("", -1, 1e-300, datetime(1970, 1, 1, tzinfo=timezone(timedelta(hours=2))), None, None),
]


def test_rows_come_back_equal(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.parquet", Row, ROWS, {"seed": "7"})
    back = read_rows(tmp_path / "rows.parquet", Row)
    assert back == ROWS
    assert {row.time.tzinfo for row in back} == {UTC}
    assert read_metadata(tmp_path / "rows.parquet")["seed"] == "7"


def test_more_rows_than_one_row_group_come_back_and_share_their_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionloop.tables.ROW_GROUP_ROWS", 5)
    rows = [SplitRow(f"id {i}", "".join(["c", "at"]) if i % 4 else "dog", "train", f"id {i}", i) for i in range(12)]
    write_rows(tmp_path / "split.parquet", SplitRow, rows)
    back = read_rows(tmp_path / "split.parquet", SplitRow)
    assert back == rows
    assert len({id(row.label) for row in back if row.label == "cat"}) == 1


def test_equal_rows_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_rows(tmp_path / name, Row, ROWS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_no_rows_are_a_file_too(tmp_path: Path) -> None:
    write_rows(tmp_path / "none.parquet", SplitRow, [])
    assert read_rows(tmp_path / "none.parquet", SplitRow) == []


def test_the_widest_record_has_a_schema() -> None:
    schema = schema_of(LoggedPrediction)
    assert schema.field("probabilities").type == pa.list_(pa.float64())
    assert schema.field("label").nullable
    assert not schema.field("status").nullable


def test_a_missing_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"absent.parquet cannot be read \(it is missing\)"):
        read_rows(tmp_path / "absent.parquet", Row)
    write_rows(tmp_path / "cut.parquet", Row, ROWS)
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-9])
    with pytest.raises(ArtifactError, match=r"cut.parquet cannot be read .* `dvc checkout`"):
        read_rows(tmp_path / "cut.parquet", Row)


def test_other_columns_are_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "split.parquet", SplitRow, [SplitRow("a", "cat", "train", "a")])
    with pytest.raises(ArtifactError, match=r"split.parquet cannot be read \(it has no column 'name'\)"):
        read_rows(tmp_path / "split.parquet", Row)

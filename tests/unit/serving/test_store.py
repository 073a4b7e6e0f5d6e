"""The store: order, idempotence, feedback, schema, and sentences instead of tracebacks."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from serving import store as store_module
from serving.store import Store, absolute_url
from tests.helpers_serving import answered_row, rejected_row
from visionloop.errors import ServingError
from visionloop.records import Decision, Feedback, Window

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with Store(database_url) as opened:
        opened.create()
        yield opened


def change(url: str, *statements: str) -> None:
    """As another program would."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_a_row_comes_back_as_it_was_written(store: Store) -> None:
    rows = [answered_row("a", probabilities=(0.1, 0.2, 0.7)), rejected_row("b", "truncated")]
    assert store.write_predictions(rows) == 2
    assert store.recent_predictions() == rows


def test_a_prediction_is_taken_once(store: Store) -> None:
    rows = [answered_row(name) for name in "abc"]
    assert store.write_predictions(rows[:2]) == 2
    assert store.write_predictions(rows) == 1
    assert store.write_predictions(rows[:1]) == 0
    assert store.write_predictions([]) == 0
    assert store.counts()["answered"] == 3


def test_order_is_that_of_writing_even_when_the_clock_jumps_back(store: Store) -> None:
    times = (NOON, NOON - timedelta(days=1), NOON + timedelta(days=1), NOON - timedelta(hours=1))
    for name, time in zip("abcd", times, strict=True):
        store.write_predictions([replace(answered_row(name), time=time)])
    assert [row.prediction_id for row in store.recent_predictions()] == ["a", "b", "c", "d"]
    assert [row.prediction_id for row in store.recent_predictions(limit=2)] == ["c", "d"]


def test_windows_follow_one_another_without_gap_or_overlap(store: Store) -> None:
    store.write_predictions([answered_row(str(index), version="1") for index in range(10)])
    store.write_predictions([answered_row("other", version="2")])
    seen: list[str] = []
    for index in range(3):
        rows = store.recent_predictions("1", after=store.last_sequence("1"), limit=4)
        seen += [row.prediction_id for row in rows]
        window = Window(f"1-{index}", "1", rows[0].time, rows[-1].time, len(rows), 0)
        assert store.write_window(window, rows[-1].prediction_id) is True
        assert store.write_window(window, rows[-1].prediction_id) is False
    assert seen == [str(index) for index in range(10)]
    assert store.recent_predictions("1", after=store.last_sequence("1")) == []
    assert [window.window_id for window in store.windows()] == ["1-2", "1-1", "1-0"]
    assert store.last_sequence("2") == 0


def test_a_window_that_ends_at_an_unknown_prediction_is_refused(store: Store) -> None:
    with pytest.raises(ServingError, match="ends at nowhere, which the store does not have"):
        store.write_window(Window("1-0", "1", NOON, NOON, 1, 0), "nowhere")


def test_decisions_come_newest_first(store: Store) -> None:
    first = Decision("wait", "no signal differs", "1-0", "none")
    second = Decision("retrain", "accuracy is estimated 5 points lower", "1-1", "harm")
    store.write_decision(first)
    store.write_decision(second)
    assert store.decisions() == [second, first]
    assert store.decisions(limit=1) == [second]


def test_feedback_joins_its_prediction_and_the_newest_counts(store: Store) -> None:
    store.write_predictions([answered_row("a"), answered_row("b")])
    assert store.write_feedback([Feedback("a", "rot", "one", NOON), Feedback("b", "blau", "one", NOON)]) == 2
    assert store.write_feedback([Feedback("a", "rot", "one", NOON + timedelta(hours=1))]) == 0
    assert [row.target for row in store.recent_predictions()] == ["rot", "blau"]
    assert store.write_feedback([Feedback("a", "grün", "two", NOON)]) == 1
    assert [row.target for row in store.recent_predictions()] == ["grün", "blau"]
    assert store.counts()["feedback"] == 3


def test_a_source_that_comes_back_to_its_first_label_is_heard(store: Store) -> None:
    store.write_predictions([answered_row("a")])
    for label, changed in (("rot", 1), ("blau", 1), ("rot", 1), ("rot", 0)):
        assert store.write_feedback([Feedback("a", label, "one", NOON)]) == changed
        assert store.recent_predictions()[0].target == label
    assert store.counts()["feedback"] == 2  # both labels are kept, the newest counts


def test_the_last_of_several_labels_in_one_call_counts(store: Store) -> None:
    store.write_predictions([answered_row("a")])
    labels = ("rot", "blau", "rot", "grün", "rot")
    assert store.write_feedback([Feedback("a", label, "one", NOON) for label in labels]) == 3
    assert [row.label for row in store.labelled()] == ["rot"]
    store.write_feedback([Feedback("a", "blau", "one", NOON), Feedback("a", "blau", "two", NOON)])
    assert [(row.label, row.who) for row in store.labelled()] == [("blau", "two")]


def test_labelled_predictions_come_in_the_order_of_their_labels(store: Store) -> None:
    store.write_predictions([replace(answered_row(name), image_sha256=name * 64) for name in "abc"])
    store.write_feedback([Feedback(name, "blau", "one", NOON) for name in "cab"])
    store.write_feedback([Feedback("c", "grün", "two", NOON)])
    found = store.labelled()
    assert [(row.prediction_id, row.label, row.who, row.predicted) for row in found] == [
        ("a", "blau", "one", "rot"),
        ("b", "blau", "one", "rot"),
        ("c", "grün", "two", "rot"),
    ]
    assert found[0].time == answered_row("a").time
    assert (found[0].image_sha256, found[0].format) == ("a" * 64, "PNG")
    assert store.given_labels() == {"blau", "grün"}


def test_images_count_as_pulled_up_to_a_label(store: Store) -> None:
    store.write_predictions([replace(answered_row(name), image_sha256=name * 64) for name in "abc"])
    store.write_feedback([Feedback("a", "rot", "one", NOON), Feedback("b", "rot", "one", NOON)])
    assert store.unpulled_images() == {"a" * 64, "b" * 64}
    store.mark_pulled(store.labelled()[0].sequence)
    assert store.unpulled_images() == {"b" * 64}
    store.mark_pulled(store.labelled()[1].sequence)
    store.mark_pulled(0)  # an older mark takes nothing back
    assert store.unpulled_images() == set()
    store.write_feedback([Feedback("a", "blau", "one", NOON)])
    assert store.unpulled_images() == {"a" * 64}


def test_the_least_confident_images_without_a_label_come_first(store: Store) -> None:
    rows = [
        replace(answered_row(name), image_sha256=image, confidence=confidence)
        for name, image, confidence in (("a", "1", 0.9), ("b", "2", 0.4), ("c", "3", 0.5), ("d", "3", 0.5), ("e", "4", 0.6))
    ]
    store.write_predictions([*rows, rejected_row("r", "truncated")])
    found = store.least_confident(10, lambda image: image != "2")
    assert [(row.prediction_id, row.confidence) for row in found] == [("d", 0.5), ("e", 0.6), ("a", 0.9)]
    store.write_feedback([Feedback("c", "rot", "one", NOON)])  # the same image as d
    assert [row.prediction_id for row in store.least_confident(2, lambda _: True)] == ["b", "e"]


def test_predictions_are_found_by_id(store: Store) -> None:
    store.write_predictions([answered_row(str(number)) for number in range(1200)])
    store.write_feedback([Feedback("7", "blau", "one", NOON)])
    found = store.find_predictions(["7", "nobody", *map(str, range(1100)), "7"])
    assert len(found) == 1100
    assert (found["7"].target, found["8"].target) == ("blau", None)


def test_feedback_for_an_unknown_prediction_is_refused_whole(store: Store) -> None:
    store.write_predictions([answered_row("a")])
    with pytest.raises(ServingError, match="names prediction 'nobody', which the store does not have"):
        store.write_feedback([Feedback("a", "rot", "one", NOON), Feedback("nobody", "rot", "one", NOON)])
    assert store.counts()["feedback"] == 0


def test_losses_are_counted(store: Store) -> None:
    store.write_losses(3, "no space left on device", NOON)
    store.write_losses(4, "no space left on device", NOON)
    assert store.counts() == {"answered": 0, "rejected": 0, "feedback": 0, "windows": 0, "decisions": 0, "lost": 7}


def test_creating_twice_changes_nothing(store: Store) -> None:
    store.write_predictions([answered_row("a")])
    store.create()
    assert store.counts()["answered"] == 1


def test_sqlite_is_in_wal_mode(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path}/var/store.db") as opened:
        opened.create()
    connection = sqlite3.connect(tmp_path / "var/store.db")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_four_writers_at_once_lose_nothing(store: Store, database_url: str) -> None:
    def write(writer: int) -> None:
        with Store(database_url) as own:
            for index in range(20):
                own.write_predictions([answered_row(f"{writer}-{index}-{row}") for row in range(5)])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.counts()["answered"] == 400


def test_a_store_of_a_newer_visionloop_is_refused(store: Store, database_url: str) -> None:
    change(database_url, "UPDATE meta SET value = '99'")
    with pytest.raises(ServingError, match=r"has schema 99, this visionloop knows up to 2; update visionloop"):
        store.create()


def test_a_store_of_schema_1_is_brought_up_to_date_and_keeps_its_rows(store: Store, database_url: str) -> None:
    """What was added since is taken away again, as an old visionloop left it."""
    store.write_predictions([answered_row("p-1")])
    store.write_feedback([Feedback("p-1", "rot", "eva", datetime(2026, 1, 2, tzinfo=UTC))])
    new = ("unknown_score", "unknown", "review")
    dropped = (f"ALTER TABLE predictions DROP COLUMN {name}" for name in new)
    change(database_url, *dropped, "UPDATE meta SET value = '1'")
    with pytest.raises(ServingError, match=r"an older visionloop's: serve or predict once"):
        store.recent_predictions()
    store.create()
    store.create()  # and again, as every start does
    later = replace(answered_row("p-2"), unknown_score=3.5, unknown=True, review=False)
    assert store.write_predictions([later]) == 1
    old, back = store.recent_predictions()
    assert (old.target, [getattr(old, name) for name in new]) == ("rot", [None, None, None])
    assert back == later
    with pytest.raises(ServingError, match=r"schema 3, this visionloop knows up to 2"):
        change(database_url, "UPDATE meta SET value = '3' WHERE value = '2'")
        store.create()


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"this is no database" * 100)
    with (
        Store(f"sqlite:///{tmp_path}/store.db") as opened,
        pytest.raises(
            ServingError, match=r"store\.db refuses \(file is not a database\); the file is damaged: move it away"
        ),
    ):
        opened.create()


def test_a_store_without_tables_says_so(database_url: str) -> None:
    with Store(database_url) as opened, pytest.raises(ServingError, match=r"predictions.*it has no tables yet"):
        opened.recent_predictions()


def test_a_server_that_is_not_there_is_named_without_the_password(tmp_path: Path) -> None:
    with (
        Store(f"postgresql+psycopg://u:geheim@/d?host={tmp_path}") as opened,
        pytest.raises(
            ServingError, match=r"failed: No such file .*; check serve\.store_url and that the database runs"
        ) as caught,
    ):
        opened.create()
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "is not one that SQLAlchemy reads"),
        ("postgresql+nodriver://u:geheim@h/d", "is not one that SQLAlchemy reads"),
        ("mysql+pymysql://u:geheim@h/d", "driver of the store's database is not installed \\(pymysql\\)"),
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(ServingError, match=message) as caught:
        Store(url)
    assert "geheim" not in str(caught.value)


def test_a_relative_sqlite_path_means_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_url("sqlite:///var/store.db") == f"sqlite:///{tmp_path}/var/store.db"
    assert absolute_url("sqlite:////srv/store.db") == "sqlite:////srv/store.db"
    assert absolute_url("sqlite:///:memory:") == "sqlite:///:memory:"
    assert absolute_url("postgresql://h/d") == "postgresql://h/d"


def test_numbers_of_rows_and_times_are_as_wide_in_postgresql() -> None:
    """A sequence of 31 bits would end after two thousand million predictions."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    text = "".join(str(CreateTable(table).compile(dialect=dialect)) for table in store_module._metadata.sorted_tables)
    assert text.count("sequence BIGSERIAL NOT NULL") == 6
    assert text.count("TIMESTAMP WITH TIME ZONE") == 7
    assert "INTEGER" not in text

"""The prediction store: what the endpoint answered, what people said of it, and what was decided.

SQLAlchemy Core; SQLite in WAL mode by default, PostgreSQL by URL. Row types are those of `visionloop.records`. Rows are
ordered by `sequence`, an integer that only grows, so a clock that jumps does not reorder them. Imported by the model
server.

Does not cover: moving rows from the server into the store (`serving.spool`), and images (`serving.images`; here is their
hash).
A SQLite store outlives the death of any process; after a power cut its last second may be missing (`synchronous=NORMAL`).
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from visionloop.errors import ServingError
from visionloop.records import Decision, Feedback, LoggedPrediction, Window

SCHEMA_VERSION = 2  # 2: predictions have unknown_score, unknown and review
BUSY_TIMEOUT_MS = 10_000  # a writer waits this long for another one before it is refused
# Any constant of 63 bits would do. All writers in PostgreSQL take this lock, so that sequence numbers become visible in
# their order and a reader that remembers the last one it saw misses none. SQLite has one writer at a time by itself.
_WRITE_LOCK = 7_305_021_884_401_221
_ROWS_PER_STATEMENT = 500
_WRITES = "visionloop_writes"  # execution option: the transaction writes


class _Utc(sa.TypeDecorator[datetime]):
    """A UTC time, aware in Python on every database (SQLite keeps no zone)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone; times in the store are UTC and aware.")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class _Numbers(sa.TypeDecorator[tuple[float, ...]]):
    """A tuple of floats as compact JSON text, which both databases read back to the same bits."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: tuple[float, ...] | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> tuple[float, ...] | None:
        return None if value is None else tuple(json.loads(value))


_metadata = sa.MetaData()


def _sequence() -> sa.Column[int]:
    # SQLite counts up by itself only in a column of exactly INTEGER.
    return sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True)


_PREDICTION_TYPES: Mapping[str, sa.types.TypeEngine[Any]] = {
    "str": sa.Text(),
    "int": sa.BigInteger(),
    "float": sa.Double(),
    "bool": sa.Boolean(),
    "datetime": _Utc(),
    "tuple[float, ...]": _Numbers(),
}
_PREDICTION_FIELDS = tuple(field.name for field in fields(LoggedPrediction))


def _prediction_columns() -> Iterator[sa.Column[Any]]:
    for field in fields(LoggedPrediction):
        text = str(field.type)
        kind = "str" if text.startswith("Literal") else text.removesuffix(" | None")
        yield sa.Column(field.name, _PREDICTION_TYPES[kind], nullable=text.endswith("| None"))


_meta = sa.Table("meta", _metadata, sa.Column("key", sa.Text, primary_key=True), sa.Column("value", sa.Text, nullable=False))
_predictions = sa.Table(
    "predictions",
    _metadata,
    _sequence(),
    *_prediction_columns(),
    sa.UniqueConstraint("prediction_id"),
    sa.Index("predictions_by_version", "model_version", "sequence"),
    sqlite_autoincrement=True,  # a number is never given twice, even after old rows were removed
)
_feedback = sa.Table(
    "feedback",
    _metadata,
    _sequence(),
    sa.Column("prediction_id", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("time", _Utc, nullable=False),
    sa.UniqueConstraint("prediction_id", "label", "source"),
    sqlite_autoincrement=True,
)
_pulls = sa.Table(
    "pulls",
    _metadata,
    _sequence(),
    sa.Column("time", _Utc, nullable=False),
    sa.Column("feedback_sequence", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
_windows = sa.Table(
    "windows",
    _metadata,
    _sequence(),
    sa.Column("window_id", sa.Text, nullable=False, unique=True),
    sa.Column("model_version", sa.Text, nullable=False, index=True),
    sa.Column("start", _Utc, nullable=False),
    sa.Column("end", _Utc, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("rejected", sa.BigInteger, nullable=False),
    sa.Column("last_sequence", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
_decisions = sa.Table(
    "decisions",
    _metadata,
    _sequence(),
    sa.Column("time", _Utc, nullable=False),
    sa.Column("window_id", sa.Text, nullable=False, index=True),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("level", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
_losses = sa.Table(
    "losses",
    _metadata,
    _sequence(),
    sa.Column("time", _Utc, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A prediction with the label that counts, the newest one that somebody gave it."""

    sequence: int  # of the label; grows with each label that is given
    prediction_id: str
    label: str
    who: str
    predicted: str
    time: datetime  # UTC, of the prediction
    image_sha256: str
    format: str  # of the image: "JPEG", "PNG", ...


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """An answered image that nobody has labelled."""

    prediction_id: str
    predicted: str
    confidence: float
    time: datetime
    image_sha256: str


class Store:
    """The prediction store behind one SQLAlchemy URL. Safe to share between threads; connects when first used.

    >>> with Store("sqlite:///var/store.db") as store:
    ...     store.create()
    ...     rows = store.recent_predictions(limit=500)

    Raises:
        ServingError: the URL cannot be read, its driver is missing, or (from every method) the database refuses.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = sa.create_engine(absolute_url(url), pool_pre_ping=True)
        except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
            raise ServingError(
                f"The store URL is not one that SQLAlchemy reads ({_first_line(error)}); "
                "write sqlite:///var/store.db or postgresql+psycopg://user:password@host/database."
            ) from error
        except ImportError as error:
            raise ServingError(
                f"The driver of the store's database is not installed ({error.name}); `pip install {error.name}`."
            ) from error
        if self._engine.dialect.name not in ("sqlite", "postgresql"):
            raise ServingError(f"The store runs on SQLite and PostgreSQL, not on {self._engine.dialect.name}.")
        if self._engine.dialect.name == "sqlite":
            sa.event.listen(self._engine, "connect", _set_up_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        self._writer = self._engine.execution_options(**{_WRITES: True})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()

    def create(self) -> None:
        """Make the tables where they are missing, and add the columns that an older visionloop's lack, empty in old rows.

        A store of a newer visionloop is refused.
        """
        with self._translated():
            if self._engine.dialect.name == "sqlite" and self._engine.url.database:
                Path(self._engine.url.database).parent.mkdir(parents=True, exist_ok=True)
            with self._begin() as connection:
                _metadata.create_all(connection)
                query = sa.select(_meta.c.value).where(_meta.c.key == "schema")
                found = connection.execute(query).scalar()
                if found is None:
                    found = str(SCHEMA_VERSION)
                    connection.execute(_meta.insert().values(key="schema", value=found))
                elif int(found) < SCHEMA_VERSION:
                    _add_columns(connection)
                    found = str(SCHEMA_VERSION)
                    connection.execute(_meta.update().where(_meta.c.key == "schema").values(value=found))
        if int(found) > SCHEMA_VERSION:
            raise ServingError(
                f"The prediction store has schema {found}, this visionloop knows up to {SCHEMA_VERSION}; "
                "update visionloop, or point serve.store_url at another store."
            )

    def write_predictions(self, rows: Sequence[LoggedPrediction]) -> int:
        """Add rows and return how many were new. A row whose `prediction_id` is there already is left as it is."""
        values = [{name: getattr(row, name) for name in _PREDICTION_FIELDS} for row in rows]
        with self._translated(), self._begin() as connection:
            return self._insert_new(connection, _predictions, values, ["prediction_id"])

    def write_losses(self, rows: int, reason: str, time: datetime) -> None:
        """Note that `rows` predictions were answered but could not be logged."""
        with self._translated(), self._begin() as connection:
            connection.execute(_losses.insert().values(time=time, rows=rows, reason=reason))

    def recent_predictions(
        self, model_version: str | None = None, after: int | None = None, limit: int = 10_000
    ) -> list[LoggedPrediction]:
        """Predictions in the order in which they were stored, rejected images too.

        Without `after` these are the newest `limit` rows. With `after`, a sequence number as `last_sequence` gives it, they
        are the first `limit` rows behind it. `target` is the newest feedback's label, where there is one.
        """
        table = _predictions
        query = _rows_with_target().limit(limit)
        if model_version is not None:
            query = query.where(table.c.model_version == model_version)
        if after is None:
            query = query.order_by(table.c.sequence.desc())
        else:
            query = query.where(table.c.sequence > after).order_by(table.c.sequence)
        with self._translated(), self._engine.connect() as connection:
            found = [LoggedPrediction(**row) for row in connection.execute(query).mappings()]
        return found[::-1] if after is None else found

    def answered_before(self, row: LoggedPrediction) -> int:
        """How many images the same model (version and hash) answered before `row`, in the order of the store."""
        table = _predictions
        own = sa.select(table.c.sequence).where(table.c.prediction_id == row.prediction_id).scalar_subquery()
        query = sa.select(sa.func.count()).where(
            table.c.sequence < own,
            table.c.status == "ok",
            table.c.model_version == row.model_version,
            table.c.model_sha256 == row.model_sha256,
        )
        with self._translated(), self._engine.connect() as connection:
            return connection.execute(query).scalar_one()

    def last_sequence(self, model_version: str) -> int:
        """The sequence number at which the last closed window of a version ends; 0 when none was closed."""
        query = sa.select(sa.func.max(_windows.c.last_sequence)).where(_windows.c.model_version == model_version)
        with self._translated(), self._engine.connect() as connection:
            return connection.execute(query).scalar() or 0

    def write_window(self, window: Window, last_prediction_id: str) -> bool:
        """Close a window at its last prediction; False when it was closed before (and nothing changes)."""
        with self._translated(), self._begin() as connection:
            query = sa.select(_predictions.c.sequence).where(_predictions.c.prediction_id == last_prediction_id)
            sequence = connection.execute(query).scalar()
            if sequence is None:
                raise ServingError(f"Window {window.window_id} ends at {last_prediction_id}, which the store does not have.")
            values = {field.name: getattr(window, field.name) for field in fields(window)}
            row = {**values, "last_sequence": sequence}
            return self._insert_new(connection, _windows, [row], ["window_id"]) == 1

    def windows(self, limit: int = 100) -> list[Window]:
        """The newest `limit` closed windows, newest first."""
        query = sa.select(*(_windows.c[field.name] for field in fields(Window)))
        with self._translated(), self._engine.connect() as connection:
            found = connection.execute(query.order_by(_windows.c.sequence.desc()).limit(limit)).mappings()
            return [Window(**row) for row in found]

    def write_decision(self, decision: Decision, time: datetime | None = None) -> None:
        """Add a decision to the history; `time` is now unless given."""
        values = {field.name: getattr(decision, field.name) for field in fields(decision)}
        with self._translated(), self._begin() as connection:
            connection.execute(_decisions.insert().values(time=time or datetime.now(UTC), **values))

    def decisions(self, limit: int = 100) -> list[Decision]:
        """The newest `limit` decisions, newest first."""
        query = sa.select(*(_decisions.c[field.name] for field in fields(Decision)))
        with self._translated(), self._engine.connect() as connection:
            found = connection.execute(query.order_by(_decisions.c.sequence.desc()).limit(limit)).mappings()
            return [Decision(**row) for row in found]

    def find_predictions(self, prediction_ids: Iterable[str]) -> dict[str, LoggedPrediction]:
        """The predictions of these ids, refused images too, by id; `target` as in `recent_predictions`."""
        wanted = list(dict.fromkeys(prediction_ids))
        found: dict[str, LoggedPrediction] = {}
        with self._translated(), self._engine.connect() as connection:
            for start in range(0, len(wanted), _ROWS_PER_STATEMENT):
                query = _rows_with_target().where(
                    _predictions.c.prediction_id.in_(wanted[start : start + _ROWS_PER_STATEMENT])
                )
                rows = [LoggedPrediction(**row) for row in connection.execute(query).mappings()]
                found.update((row.prediction_id, row) for row in rows)
        return found

    def write_feedback(self, rows: Sequence[Feedback]) -> int:
        """Add labels that people gave, and return how many changed anything. All rows or none are written.

        The newest label of a prediction counts, and other ones are kept beside it. What counts already, from the same
        source, changes nothing; a source that comes back to an earlier label of its own makes that one the newest.

        Raises:
            ServingError: a prediction is not in the store; its id is named.
        """
        with self._translated(), self._begin() as connection:
            return sum(
                self._write_feedback(connection, rows[start : start + _ROWS_PER_STATEMENT])
                for start in range(0, len(rows), _ROWS_PER_STATEMENT)
            )

    def _write_feedback(self, connection: sa.Connection, rows: Sequence[Feedback]) -> int:
        ids = {row.prediction_id for row in rows}
        query = sa.select(_predictions.c.prediction_id).where(_predictions.c.prediction_id.in_(ids))
        unknown = ids.difference(connection.execute(query).scalars())
        if unknown:
            named = next(row.prediction_id for row in rows if row.prediction_id in unknown)
            raise ServingError(
                f"Feedback names prediction {named!r:.80}, which the store does not have; "
                "use the prediction_id that the endpoint answered."
            )
        table = _feedback
        query = sa.select(table.c.prediction_id, table.c.label, table.c.source).where(table.c.prediction_id.in_(ids))
        given = [(row.prediction_id, row.label, row.source) for row in connection.execute(query.order_by(table.c.sequence))]
        kept, newest = set(given), {key[0]: key for key in given}
        added: dict[tuple[str, str, str], Feedback] = {}
        again = []
        for row in rows:
            key = (row.prediction_id, row.label, row.source)
            if newest.get(row.prediction_id) == key:
                continue
            newest[row.prediction_id] = key
            if key in kept:
                again.append(key)
            added.pop(key, None)  # the last place of several counts
            added[key] = row
        if again:
            names = ("a_prediction", "a_label", "a_source")
            columns = (table.c.prediction_id, table.c.label, table.c.source)
            where = [column == sa.bindparam(name) for column, name in zip(columns, names, strict=True)]
            values = [dict(zip(names, key, strict=True)) for key in dict.fromkeys(again)]
            connection.execute(table.delete().where(*where), values)
        if added:
            values = [{field.name: getattr(row, field.name) for field in fields(row)} for row in added.values()]
            connection.execute(table.insert(), values)
        return len(added)

    def labelled(self) -> list[Labelled]:
        """Every labelled prediction with the label that counts, in the order in which these labels were given."""
        newest = sa.select(sa.func.max(_feedback.c.sequence)).group_by(_feedback.c.prediction_id)
        query = (
            sa.select(
                _feedback.c.sequence,
                _feedback.c.prediction_id,
                _feedback.c.label,
                _feedback.c.source.label("who"),
                _predictions.c.label.label("predicted"),
                _predictions.c.time,
                _predictions.c.image_sha256,
                _predictions.c.format,
            )
            .join(_predictions, _predictions.c.prediction_id == _feedback.c.prediction_id)
            .where(_feedback.c.sequence.in_(newest), _predictions.c.status == "ok")
            .order_by(_feedback.c.sequence)
        )
        with self._translated(), self._engine.connect() as connection:
            return [Labelled(**row) for row in connection.execute(query).mappings()]

    def least_confident(self, limit: int, usable: Callable[[str], bool]) -> list[Unlabelled]:
        """Up to `limit` answered images without a label, the least confident first; `usable` is asked with their SHA-256.

        An image that was answered several times is listed once, and not at all when one of its predictions has a label.
        """
        table = _predictions
        other = table.alias()
        seen = sa.select(other.c.image_sha256).join(_feedback, _feedback.c.prediction_id == other.c.prediction_id)
        query = (
            sa.select(
                table.c.prediction_id,
                table.c.label.label("predicted"),
                table.c.confidence,
                table.c.time,
                table.c.image_sha256,
            )
            .where(table.c.status == "ok", table.c.image_sha256.not_in(seen))
            .order_by(table.c.confidence, table.c.sequence.desc())
        )
        found: dict[str, Unlabelled] = {}
        with (
            self._translated(),
            self._engine.connect().execution_options(yield_per=1000) as connection,
            connection.execute(query) as rows,  # most are never read, and PostgreSQL holds them in a cursor of its own
        ):
            for row in rows.mappings():
                if len(found) == limit:
                    break
                if row["image_sha256"] not in found and usable(row["image_sha256"]):
                    found[row["image_sha256"]] = Unlabelled(**row)
        return list(found.values())

    def given_labels(self) -> set[str]:
        """Every label that somebody gave."""
        with self._translated(), self._engine.connect() as connection:
            return set(connection.execute(sa.select(_feedback.c.label).distinct()).scalars())

    def unpulled_images(self) -> set[str]:
        """SHA-256 of the images that were labelled after the last pull."""
        query = (
            sa.select(_predictions.c.image_sha256)
            .join(_feedback, _feedback.c.prediction_id == _predictions.c.prediction_id)
            .where(_feedback.c.sequence > _last_pulled())
        )
        with self._translated(), self._engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def mark_pulled(self, sequence: int) -> None:
        """Note that all labels up to this `Labelled.sequence` are in the training data as far as their images are kept."""
        with self._translated(), self._begin() as connection:
            if sequence > connection.execute(sa.select(_last_pulled())).scalar_one():
                connection.execute(_pulls.insert().values(time=datetime.now(UTC), feedback_sequence=sequence))

    def counts(self) -> dict[str, int]:
        """How much the store holds: answered, rejected, feedback, windows, decisions, lost (answered, not logged)."""

        def count(table: sa.Table, *where: sa.ColumnElement[bool]) -> Any:
            return sa.select(sa.func.count()).select_from(table).where(*where).scalar_subquery()

        lost = sa.select(sa.func.coalesce(sa.func.sum(_losses.c.rows), 0)).scalar_subquery()
        query = sa.select(
            count(_predictions, _predictions.c.status == "ok").label("answered"),
            count(_predictions, _predictions.c.status == "rejected").label("rejected"),
            count(_feedback).label("feedback"),
            count(_windows).label("windows"),
            count(_decisions).label("decisions"),
            lost.label("lost"),
        )
        with self._translated(), self._engine.connect() as connection:
            return {name: int(value) for name, value in connection.execute(query).mappings().one().items()}

    def _insert_new(
        self, connection: sa.Connection, table: sa.Table, values: Sequence[Mapping[str, Any]], key: Sequence[str]
    ) -> int:
        insert = (sqlite.insert if self._engine.dialect.name == "sqlite" else postgresql.insert)(table)
        statement = insert.on_conflict_do_nothing(index_elements=list(key))
        # `rowcount` differs between drivers. The transaction holds the write lock, so what is above the mark is ours.
        mark = connection.execute(sa.select(sa.func.max(table.c.sequence))).scalar() or 0
        for start in range(0, len(values), _ROWS_PER_STATEMENT):
            connection.execute(statement, [dict(row) for row in values[start : start + _ROWS_PER_STATEMENT]])
        query = sa.select(sa.func.count()).select_from(table).where(table.c.sequence > mark)
        return connection.execute(query).scalar_one()

    @contextlib.contextmanager
    def _begin(self) -> Iterator[sa.Connection]:
        with self._writer.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITE_LOCK)))
            yield connection

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sa.exc.SQLAlchemyError, sqlite3.Error, OSError) as error:
            cause = getattr(error, "orig", None) or error
            url = self._engine.url.render_as_string(hide_password=True)
            raise ServingError(f"The prediction store {url} refuses ({_first_line(cause)}); {_advice(cause)}") from error


def _add_columns(connection: sa.Connection) -> None:
    """Bring the table of predictions up to date. Each new column may be empty, so no old row needs a value."""
    there = {column["name"] for column in sa.inspect(connection).get_columns(_predictions.name)}
    for column in _predictions.columns:
        if column.name not in there:
            kind = column.type.compile(connection.dialect)
            connection.execute(sa.text(f"ALTER TABLE {_predictions.name} ADD COLUMN {column.name} {kind}"))


def _rows_with_target() -> sa.Select[Any]:
    """Predictions with all fields of `LoggedPrediction`; the target is the newest feedback's label, where there is one."""
    table = _predictions
    target = (
        sa.select(_feedback.c.label)
        .where(_feedback.c.prediction_id == table.c.prediction_id)
        .order_by(_feedback.c.sequence.desc())
        .limit(1)
        .scalar_subquery()
    )
    columns = [table.c[name] for name in _PREDICTION_FIELDS if name != "target"]
    return sa.select(*columns, sa.func.coalesce(target, table.c.target).label("target"))


def _last_pulled() -> sa.ScalarSelect[Any]:
    return sa.select(sa.func.coalesce(sa.func.max(_pulls.c.feedback_sequence), 0)).scalar_subquery()


def absolute_url(url: str) -> str:
    """The same store from every working directory: a relative SQLite path becomes absolute, other URLs stay.

    >>> absolute_url("sqlite:///var/store.db")
    'sqlite:////srv/project/var/store.db'
    """
    prefix = "sqlite:///"
    if not url.startswith(prefix) or url == prefix or url.startswith(prefix + ":memory:"):
        return url
    return prefix + str(Path(url.removeprefix(prefix)).absolute())


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions are begun below, not by the driver
    cursor = connection.cursor()
    try:
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = NORMAL")
    finally:
        cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later is refused at once when another writer came between; one that says from
    # the start that it writes waits its turn.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITES) else "BEGIN")


def _advice(cause: BaseException) -> str:
    text = str(cause).lower()
    if "no such table" in text or "no such column" in text or "does not exist" in text:
        return "it has no tables yet, or an older visionloop's: serve or predict once, or call Store.create()."
    if "malformed" in text or "not a database" in text:
        return "the file is damaged: move it away, and a new one is made at the next start."
    if "full" in text:
        return "free some disk space."
    if "readonly" in text or "permission" in text or "unable to open" in text:
        return "make the file and its folder writable."
    if "locked" in text:
        return "another process holds it; try again."
    return "check serve.store_url and that the database runs."


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]

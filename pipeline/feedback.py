"""Labels that people give to live images: judged, stored, and brought back as training data.

`label` and `import_file` put labels into the prediction store, `pull` writes the labelled images into
`data/feedback/labels-<number>-<hash>.parquet`, which the source `feedback` reads. Files are append-only: an image that is
labelled anew appears again, and the newest counts.

Does not cover: keeping images (`serving.images`), and who may label; everybody with access to the project may.
"""

from __future__ import annotations

import getpass
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from pipeline import repro
from serving.images import image_path, read_image
from serving.labels import BadRow, LabelRow, check_label, check_who, read_labels
from serving.repository import champion_folder
from serving.store import Labelled, Store, Unlabelled
from visionloop.card import load_card
from visionloop.errors import ArtifactError, LabelError
from visionloop.files import sha256_bytes, sha256_file, sync_folder
from visionloop.paths import FEEDBACK, LIVE_IMAGES, MODEL_REPOSITORY
from visionloop.progress import track
from visionloop.records import Feedback, LoggedPrediction

MIN_REMARK_LABELS = 20  # fewer say nothing of how somebody labels
MIN_JUDGED_LABELS = 30  # of one person; with ten classes 30 shuffled labels agree with the model on 0 to 6 images
MAX_JUDGED_CHANCE = 0.5  # where one class is most of the images, chance agreement is no fault
_ROWS_A_WRITE = 1000
_ROWS_WITHOUT_PROGRESS = 1000  # less than a second
_GROUP_BYTES = 16 << 20  # what is held in memory while writing
_FILE_BYTES = 256 << 20
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}

Change = Literal["new", "changed", "unchanged"]


@dataclass(frozen=True, slots=True)
class Given:
    """A label that was taken."""

    prediction_id: str
    label: str
    predicted: str
    change: Change
    before: str | None  # the label that counted until now
    image: Path | None  # where the image is kept; None where it is not


@dataclass(slots=True)
class Imported:
    """What became of a CSV file."""

    counts: Counter[Change] = field(default_factory=Counter)
    bad: list[BadRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pulled:
    """What a pull brought."""

    files: tuple[Path, ...]  # new below data/feedback
    images: int  # in these files
    up_to_date: int  # labelled images that an earlier pull brought
    missing: int  # labelled images that are not kept
    held_back: dict[str, int]  # who labelled at random, as it seems, and how many images were left out for it
    by: dict[str, int]  # who labelled the images of these files


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image that is worth labelling."""

    prediction_id: str
    predicted: str
    confidence: float
    time: datetime
    image: Path


def default_who() -> str:
    """The name under which the user of this process labels."""
    try:
        return check_who(getpass.getuser()) or "unknown"
    except (KeyError, OSError, LabelError):  # a container's user without a name
        return "unknown"


def label(store: Store, prediction_id: str, text: str, who: str, *, new_class: bool = False) -> Given:
    """Give one prediction a label; the same label again changes nothing, another one counts from now on.

    Raises:
        LabelError: the prediction is not known or was refused, or the label is not one.
    """
    row = LabelRow(1, prediction_id.strip(), text, who)
    judge = _Judge(store, [text] if new_class else [])
    given = judge.given(row, store.find_predictions([row.prediction_id]).get(row.prediction_id))
    store.write_feedback([Feedback(given.prediction_id, given.label, check_who(who), datetime.now(UTC))])
    return given


def import_file(store: Store, path: Path, who: str, new_classes: Collection[str] = ()) -> Imported:
    """Give the labels of a CSV file; a row that cannot be taken does not stop the rest. `who` stands in for an empty cell.

    Raises:
        LabelError: the file as a whole cannot be read.
    """
    judge, result = _Judge(store, new_classes), Imported()
    every = list(read_labels(path))
    rows = iter(track(every, f"import {path.name}") if len(every) > _ROWS_WITHOUT_PROGRESS else every)
    while batch := list(islice(rows, _ROWS_A_WRITE)):
        found = store.find_predictions(row.prediction_id for row in batch if isinstance(row, LabelRow))
        taken = []
        for row in batch:
            if isinstance(row, BadRow):
                result.bad.append(row)
                continue
            try:
                given = judge.given(row, found.get(row.prediction_id))
                person = check_who(row.who) or who
            except LabelError as error:
                result.bad.append(BadRow(row.line, error.reason, str(error)))
                continue
            found[row.prediction_id] = replace(found[row.prediction_id], target=given.label)
            result.counts[given.change] += 1
            taken.append(Feedback(given.prediction_id, given.label, person, datetime.now(UTC)))
        store.write_feedback(taken)
    return result


def remarks(labelled: Sequence[Labelled]) -> list[str]:
    """What is odd about all labels together, as sentences; empty where nothing is."""
    found = []
    if len(labelled) >= MIN_REMARK_LABELS:
        labels = {row.label for row in labelled}
        if len(labels) == 1:
            found.append(
                f"All {len(labelled)} labels say {labels.pop()!r}; label images of other classes too, or training takes "
                "this one for more frequent than it is."
            )
        if all(row.label == row.predicted for row in labelled):
            found.append(
                f"All {len(labelled)} labels are what the model said; copied answers teach nothing, so look at the images."
            )
    for who, rows in _by_person(labelled).items():
        if _at_random(rows):
            agree = sum(row.label == row.predicted for row in rows)
            found.append(
                f"{agree} of {len(rows)} labels of {who} agree with the model, no more than chance gives; rows of a file "
                "may have been shifted, so `visionloop feedback pull` holds them back."
            )
    return found


def pull(store: Store, *, anyway: bool = False, images: Path = LIVE_IMAGES, target: Path = FEEDBACK) -> Pulled:
    """Write the labelled images that no earlier pull brought into new files below `target`.

    An image that several predictions share is written once, with its newest label. Labels of somebody who agrees with the
    model no more than chance are left out, unless `anyway`. A pull that is interrupted is finished by the next one.

    Raises:
        ArtifactError: a file of an earlier pull is damaged.
        PipelineError: the pipeline runs; its inputs must stand still.
    """
    with repro.locked():
        labelled = store.labelled()
        for left in target.glob(".labels-*.tmp"):
            left.unlink()
        earlier = _read_earlier(target)
        random = {} if anyway else {who: rows for who, rows in _by_person(labelled).items() if _at_random(rows)}
        due, held, up_to_date = [], Counter[str](), 0
        for row in _one_per_image(labelled, earlier):
            if row.prediction_id in earlier and earlier[row.prediction_id].label == row.label:
                up_to_date += 1
            elif row.who in random:
                held[row.who] += 1
            else:
                due.append(row)
        by, missing = Counter[str](), 0

        def found() -> Iterator[tuple[Labelled, bytes]]:
            nonlocal missing
            for row in track(due, "pull") if len(due) > _ROWS_WITHOUT_PROGRESS else due:
                data = read_image(images, row.image_sha256) or _data_of(earlier.get(row.prediction_id), row.image_sha256)
                if data is None:
                    missing += 1
                else:
                    by[row.who] += 1
                    yield row, data

        files = _write(target, found())
        if labelled:
            # What is held back keeps its image: only labels before it count as pulled.
            first = min((row.sequence for row in labelled if row.who in held), default=labelled[-1].sequence + 1)
            store.mark_pulled(first - 1)
    return Pulled(files, by.total(), up_to_date, missing, dict(held), dict(by))


def sentences(pulled: Pulled) -> list[str]:
    """What a pull did, for people."""
    said = []
    if pulled.images:
        names, by = ", ".join(map(str, pulled.files)), ", ".join(f"{count} by {who}" for who, count in pulled.by.items())
        said.append(f"{pulled.images} labelled images are in {names} ({by}); `dvc repro` or `make run` trains on them.")
    else:
        said.append(f"Nothing is new: {pulled.up_to_date} labelled images were pulled before.")
    if pulled.missing:
        said.append(
            f"{pulled.missing} labelled images are not kept; their labels count in monitoring and cannot be trained on."
        )
    for who, count in pulled.held_back.items():
        said.append(
            f"{count} labels of {who} are held back: they agree with the model no more than chance gives. If they are right "
            "and the model is that wrong, `visionloop feedback pull --anyway`."
        )
    return said


def candidates(store: Store, limit: int, images: Path = LIVE_IMAGES) -> list[Candidate]:
    """Up to `limit` kept images without a label, the least confident first."""

    def usable(sha256: str) -> bool:
        return image_path(images, sha256).exists()

    return [_candidate(row, images) for row in store.least_confident(limit, usable)]


def _candidate(row: Unlabelled, images: Path) -> Candidate:
    path = image_path(images, row.image_sha256)
    return Candidate(row.prediction_id, row.predicted, row.confidence, row.time, path)


class _Judge:
    """What labels are judged by: the champion's classes, and what people named before."""

    def __init__(self, store: Store, new_classes: Collection[str]) -> None:
        self._classes = load_card(champion_folder(MODEL_REPOSITORY)).labels
        self._given = store.given_labels()
        self._new = new_classes

    def given(self, row: LabelRow, prediction: LoggedPrediction | None) -> Given:
        """The label of a row, as it is to be stored. Raises LabelError."""
        if not row.prediction_id:
            raise LabelError("unknown_prediction", "The prediction id is empty; `visionloop predict` prints it.")
        if prediction is None:
            raise LabelError(
                "unknown_prediction",
                f"The store has no prediction {row.prediction_id!r:.80}; take the id that the endpoint answered, about a "
                "second after it did.",
            )
        if prediction.status != "ok":
            raise LabelError(
                "refused_image", f"Prediction {row.prediction_id} is a refused image ({prediction.reason}); it has no label."
            )
        name = check_label(row.label, self._classes, self._given, self._new)
        change: Change = "new" if prediction.target is None else "unchanged" if prediction.target == name else "changed"
        kept = image_path(LIVE_IMAGES, prediction.image_sha256)
        image = kept if kept.exists() else None
        return Given(row.prediction_id, name, prediction.label or "", change, prediction.target, image)


def _by_person(labelled: Iterable[Labelled]) -> dict[str, list[Labelled]]:
    found: dict[str, list[Labelled]] = {}
    for row in labelled:
        found.setdefault(row.who, []).append(row)
    return found


def _at_random(rows: Sequence[Labelled]) -> bool:
    """Whether one person's labels agree with the model no more than if they were dealt at random to the same images.

    The agreement that chance gives is the sum over classes of share in the labels times share in the answers, as in Cohen's
    kappa (1960); agreement up to two standard errors above it counts as chance. Classes that the model never answered are
    left out, since it cannot agree on them.
    """
    answered = {row.predicted for row in rows}
    pairs = [(row.label, row.predicted) for row in rows if row.label in answered]
    if len(pairs) < MIN_JUDGED_LABELS:
        return False
    labels, answers = Counter(label for label, _ in pairs), Counter(predicted for _, predicted in pairs)
    chance = sum(labels[name] * answers[name] for name in labels) / len(pairs) ** 2
    agreement = sum(label == predicted for label, predicted in pairs) / len(pairs)
    return chance <= MAX_JUDGED_CHANCE and agreement <= chance + 2 * math.sqrt(chance * (1 - chance) / len(pairs))


def _one_per_image(labelled: Sequence[Labelled], earlier: Collection[str]) -> list[Labelled]:
    """The newest label of each image, under the prediction that an earlier pull wrote the image for, if there is one."""
    newest = {row.image_sha256: row for row in labelled}
    written = {row.image_sha256: row for row in labelled if row.prediction_id in earlier}
    found = []
    for sha256, row in newest.items():
        first = written.get(sha256, row)
        found.append(replace(row, prediction_id=first.prediction_id, time=first.time))
    return sorted(found, key=lambda row: row.sequence)


@dataclass(frozen=True, slots=True)
class _Earlier:
    """Where an earlier pull wrote an image last, and its label there."""

    label: str
    path: Path
    row: int


def _read_earlier(target: Path) -> dict[str, _Earlier]:
    """What earlier pulls wrote, by prediction id; the newest row of each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: dict[str, _Earlier] = {}
    for path in _files(target):
        try:
            table = pq.read_table(path, columns=["prediction_id", "label"])
        except (OSError, ValueError, pa.ArrowException) as error:
            raise _damaged(path, error) from error
        ids, labels = table.column("prediction_id").to_pylist(), table.column("label").to_pylist()
        found.update((id_, _Earlier(name, path, row)) for row, (id_, name) in enumerate(zip(ids, labels, strict=True)))
    return found


def _data_of(earlier: _Earlier | None, sha256: str) -> bytes | None:
    """The bytes of an image that an earlier pull wrote and that is not kept any more."""
    if earlier is None:
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    start = 0
    try:
        with pq.ParquetFile(earlier.path) as file:
            for batch in file.iter_batches(batch_size=64, columns=["data"]):
                if earlier.row < start + batch.num_rows:
                    data: bytes = batch.column(0)[earlier.row - start].as_py()
                    return data if sha256_bytes(data) == sha256 else None
                start += batch.num_rows
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(earlier.path, error) from error
    return None


def _damaged(path: Path, error: Exception) -> ArtifactError:
    why = (str(error).splitlines() or ["unknown"])[0][:120]
    return ArtifactError(
        f"{path} cannot be read ({why}); move it away and run `visionloop feedback pull`, which writes its labels again."
    )


def _files(target: Path) -> list[Path]:
    return sorted(target.glob("labels-*.parquet"), key=lambda path: (_number(path), path.name))


def _number(path: Path) -> int:
    digits = path.name.split("-")[1]
    return int(digits) if digits.isdigit() else 0


def _write(target: Path, stream: Iterator[tuple[Labelled, bytes]]) -> tuple[Path, ...]:
    """Write rows into new files of limited size."""
    files: list[Path] = []
    number = 1 + max(map(_number, _files(target)), default=0)
    while (first := next(stream, None)) is not None:
        files.append(_write_file(target, number + len(files), chain([first], stream)))
    return tuple(files)


def _write_file(target: Path, number: int, stream: Iterator[tuple[Labelled, bytes]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            pa.field("data", pa.binary(), nullable=False),
            pa.field("label", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),  # <prediction id>.<ending>
            pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),  # of the prediction
            pa.field("labelled_by", pa.string(), nullable=False),
            pa.field("prediction_id", pa.string(), nullable=False),
        ]
    )
    target.mkdir(parents=True, exist_ok=True)
    tmp = target / f".labels-{number:05d}.tmp"
    try:
        with pq.ParquetWriter(tmp, schema, compression="zstd", write_statistics=False) as writer:
            group: list[dict[str, object]] = []
            file_bytes = group_bytes = 0
            for row, data in stream:
                name = f"{row.prediction_id}.{_EXTENSIONS.get(row.format, row.format.lower())}"
                values = (data, row.label, name, row.time, row.who, row.prediction_id)
                group.append(dict(zip(schema.names, values, strict=True)))
                group_bytes += len(data)
                file_bytes += len(data)
                if group_bytes >= _GROUP_BYTES:
                    writer.write_table(pa.Table.from_pylist(group, schema=schema))
                    group, group_bytes = [], 0
                if file_bytes >= _FILE_BYTES:
                    break
            if group:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
        # The name carries the hash, so two files of one number from two clones do not fall on each other.
        path = target / f"labels-{number:05d}-{sha256_file(tmp)[:8]}.parquet"
        with tmp.open("rb") as written:
            os.fsync(written.fileno())
        tmp.rename(path)
        sync_folder(target)
    finally:
        tmp.unlink(missing_ok=True)
    return path

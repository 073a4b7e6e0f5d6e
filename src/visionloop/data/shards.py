"""Append-only Parquet shards of encoded images, and the list of the images that the data version holds.

New images make new shards; a shard that stands is never rewritten, so DVC hashes and moves only what is new. An image that
has gone from its source stays in its shard and leaves `images.parquet`.

Does not cover: compaction. Shards of images that have all gone stay until their source's folder is removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import shutil
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from visionloop.errors import ArtifactError, DataError, VisionloopError
from visionloop.files import sha256_bytes, sha256_file, sync_folder
from visionloop.progress import track
from visionloop.records import ImageRow
from visionloop.tables import read_rows, rows_of, schema_of, write_rows

if TYPE_CHECKING:  # readers of shards do not depend on where images once came from
    from visionloop.data.sources import Skipped, Source, SourceImage

# A row group is what is held in memory while writing and reading.
ROW_GROUP_BYTES = 16 << 20
ROW_GROUP_ROWS = 1024
MAX_SHARD_BYTES = 1 << 30  # a remote moves files one by one; also keeps `images_per_shard` harmless with large photos

_DATA = pa.field("data", pa.binary(), nullable=False)
# What a shard says of its rows; their place follows from where they lie.
_COLUMNS = [field for field in schema_of(ImageRow) if field.name not in ("shard", "row")]
_SCHEMA = pa.schema([*_COLUMNS, _DATA])


@dataclass(frozen=True)
class CollectSummary:
    """What `append` found and wrote."""

    images: int  # that the sources have now
    classes: int
    bytes: int
    new_images: int  # of these, not in a shard before
    gone_images: int  # in a shard, no longer in its source
    shards: int
    new_shards: int
    images_by_source: tuple[tuple[str, int], ...]
    skipped: tuple[Skipped, ...]


@dataclass
class _Collected:
    """What one source brought."""

    rows: list[ImageRow]
    new_images: int
    gone_images: int
    shards: int
    new_shards: int


def append(
    sources: Sequence[Source], shards: Path, images: Path, images_per_shard: int, max_skipped_share: float = 1.0
) -> CollectSummary:
    """Write what is new in each source as new shards below `shards/<source name>`, then the list of present images.

    A shard appears whole, so a run that is killed, or whose source fails, loses the shard it was writing and the next run
    goes on from there, to the same bytes as an undisturbed one. Shards of other sources than these are removed.

    Raises:
        DataError: a source brings no readable image, cannot go on, or more than `max_skipped_share` of the files that should
            be images cannot be read.
        ArtifactError: a shard that stands cannot be read.
    """
    _tidy(shards, {source.name for source in sources})
    collected = [_append_one(source, shards / source.name, images_per_shard, max_skipped_share) for source in sources]
    rows = [row for one in collected for row in one.rows]
    rows.sort(key=lambda row: (row.path, row.label, row.id, row.source))
    write_rows(images, ImageRow, rows)
    return CollectSummary(
        images=len(rows),
        classes=len({row.label for row in rows}),
        bytes=sum(row.size_bytes for row in rows),
        new_images=sum(one.new_images for one in collected),
        gone_images=sum(one.gone_images for one in collected),
        shards=sum(one.shards for one in collected),
        new_shards=sum(one.new_shards for one in collected),
        images_by_source=tuple((source.name, len(one.rows)) for source, one in zip(sources, collected, strict=True)),
        skipped=tuple(item for source in sources for item in source.skipped),
    )


def _append_one(source: Source, folder: Path, images_per_shard: int, max_skipped_share: float) -> _Collected:
    standing = _standing(folder)
    known = {_key(row.id, row.label, row.path): row for row in standing}
    present: set[bytes] = set()
    rows: list[ImageRow] = []

    def fresh() -> Iterator[tuple[str, SourceImage]]:
        for image in track(_sentences(source, folder), f"collect {source.name}", len(source)):
            image_id = sha256_bytes(image.data)
            key = _key(image_id, image.label, image.path)
            if key in present:
                continue
            present.add(key)
            if key in known:
                rows.append(_renewed(known[key], image))
            else:
                yield image_id, image

    stream = fresh()
    number = 1 + max((int(path.name.split("-")[1]) for path in folder.glob("part-*.parquet")), default=-1)
    new_images = new_shards = 0
    while (first := next(stream, None)) is not None:
        rest = itertools.chain([first], stream)
        new_rows = _write_shard(rest, source.name, folder, number + new_shards, images_per_shard)
        rows.extend(new_rows)
        new_images += len(new_rows)
        new_shards += 1
    _refuse_faults(source, len(rows), max_skipped_share)
    if not rows:
        raise DataError(f"The source {source.name} brought no readable image; {len(source.skipped)} files were passed over.")
    return _Collected(
        rows, new_images, len(known.keys() - present), len({row.shard for row in standing}) + new_shards, new_shards
    )


def _sentences(source: Source, folder: Path) -> Iterator[SourceImage]:
    """The images of `source`; what stops it is said in one sentence, with what stays."""
    count = 0
    try:
        for image in source:
            yield image
            count += 1
    except (OSError, VisionloopError) as error:
        why = error.strerror or str(error) if isinstance(error, OSError) else str(error)
        shards = len(list(folder.glob("part-*.parquet")))
        raise DataError(
            f"The source {source.name} stopped after {count:,} of {len(source):,} images: {why.rstrip('.')}. "
            f"{shards} whole {'shard stays' if shards == 1 else 'shards stay'}, and the next run goes on from there."
        ) from error


def _renewed(row: ImageRow, image: SourceImage) -> ImageRow:
    """The row of an image that stands in a shard, with what its source says of it now."""
    time = image.time if image.time_stated else row.time
    said = (image.group, image.labelled_by, time, image.split_hint)
    if said == (row.group, row.labelled_by, row.time, row.split_hint):
        return row
    return dataclasses.replace(row, group=image.group, labelled_by=image.labelled_by, time=time, split_hint=image.split_hint)


def _refuse_faults(source: Source, images: int, most: float) -> None:
    """Single bad files are passed over; many are a wrong path, a failing disk or a copy in progress."""
    faults = [item for item in source.skipped if item.is_fault]
    if len(faults) <= most * (images + len(faults)):
        return
    counts = ", ".join(f"{count:,} {reason}" for reason, count in Counter(item.reason for item in faults).most_common())
    names = ", ".join(item.path for item in faults[:5])
    raise DataError(
        f"The source {source.name} could not read {len(faults):,} of {images + len(faults):,} files ({counts}), more than "
        f"collect.max_skipped_share = {most:g} allows: {names}{', …' if len(faults) > 5 else ''}. Look at these files, or "
        "raise the share."
    )


def read_images(images: Path) -> list[ImageRow]:
    """The images of the data version, sorted by path.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return read_rows(images, ImageRow)


def read_bytes(shards: Path, rows: Iterable[ImageRow]) -> Iterator[tuple[ImageRow, bytes]]:
    """Yield each row with its encoded bytes, in the order in which they lie in the shards, not in that of `rows`.

    Each shard is opened once and read a row group at a time, skipping those that hold none of the rows.

    Raises:
        ArtifactError: a shard is missing, or the bytes are not those that the row's id names.
    """
    wanted: dict[str, dict[int, ImageRow]] = {}
    for row in rows:
        wanted.setdefault(row.shard, {})[row.row] = row
    for shard, places in sorted(wanted.items()):
        ordered = sorted(places)
        path = shards / shard
        with _open(path) as file:
            start = 0
            for group in range(file.num_row_groups):
                end = start + file.metadata.row_group(group).num_rows
                chosen = ordered[bisect_left(ordered, start) : bisect_left(ordered, end)]
                if chosen:
                    column = file.read_row_group(group, columns=["data"]).column("data").combine_chunks()
                    for place in chosen:
                        yield places[place], _checked(column[place - start].as_py(), places[place], path)
                start = end
        if ordered[-1] >= start:
            raise _damaged(path, f"it has {start} rows, row {ordered[-1]} was asked for")


def row_starts(shards: Path, shard: str) -> npt.NDArray[np.int64]:
    """The first row of each row group of a shard, and last the number of its rows.

    Raises:
        ArtifactError: the shard is missing or damaged.
    """
    with _open(shards / shard) as file:
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    return np.cumsum([0, *counts], dtype=np.int64)


def read_group(shards: Path, shard: str, group: int, rows: Sequence[int]) -> list[bytes]:
    """The encoded bytes of rows of one row group, counted from its first, in the order of `rows`; they are not checked.

    Raises:
        ArtifactError: the shard is missing or damaged.
    """
    with _open(shards / shard) as file:
        column = file.read_row_group(group, columns=["data"]).column("data").combine_chunks()
    return [column[row].as_py() for row in rows]


def _write_shard(
    stream: Iterator[tuple[str, SourceImage]], source: str, folder: Path, number: int, most_images: int
) -> list[ImageRow]:
    """Write up to `most_images` from `stream` to one new shard; return their rows."""
    rows: list[ImageRow] = []
    group: list[tuple[ImageRow, bytes]] = []
    group_bytes = shard_bytes = 0
    folder.mkdir(parents=True, exist_ok=True)
    tmp = folder / f".part-{number:05d}.tmp"
    try:
        # Encoded images do not compress again; statistics of them would copy whole images into the footer.
        with pq.ParquetWriter(
            tmp,
            _SCHEMA,
            compression={field.name: "none" if field.name == "data" else "zstd" for field in _SCHEMA},
            use_dictionary=["label", "source", "group", "labelled_by", "split_hint"],
            write_statistics=False,
        ) as writer:
            for index, (image_id, image) in enumerate(itertools.islice(stream, most_images)):
                size = len(image.data)
                row = ImageRow(
                    id=image_id,
                    label=image.label,
                    source=source,
                    group=image.group,
                    labelled_by=image.labelled_by,
                    path=image.path,
                    size_bytes=size,
                    time=image.time,
                    split_hint=image.split_hint,
                    shard="",
                    row=index,
                )
                rows.append(row)
                group.append((row, image.data))
                group_bytes += size
                shard_bytes += size
                if group_bytes >= ROW_GROUP_BYTES or len(group) >= ROW_GROUP_ROWS:
                    _write_group(writer, group)
                    group, group_bytes = [], 0
                if shard_bytes >= MAX_SHARD_BYTES:
                    break
            if group:
                _write_group(writer, group)
        # The name carries the hash, so two shards of one number from two clones do not fall on each other.
        target = folder / f"part-{number:05d}-{sha256_file(tmp)[:8]}.parquet"
        with tmp.open("rb") as written:
            os.fsync(written.fileno())
        tmp.rename(target)
        sync_folder(folder)
    finally:
        tmp.unlink(missing_ok=True)
    shard = f"{folder.name}/{target.name}"
    return [dataclasses.replace(row, shard=shard) for row in rows]


def _write_group(writer: pq.ParquetWriter, group: list[tuple[ImageRow, bytes]]) -> None:
    arrays = [pa.array([getattr(row, field.name) for row, _ in group], field.type) for field in _COLUMNS]
    arrays.append(pa.array([data for _, data in group], _DATA.type))
    writer.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA), row_group_size=len(group))


def _standing(folder: Path) -> list[ImageRow]:
    """The rows of the shards that stand."""
    rows: list[ImageRow] = []
    for path in sorted(folder.glob("part-*.parquet")):
        with _open(path) as file:
            table = file.read(columns=[field.name for field in _COLUMNS])
        count = table.num_rows
        table = table.append_column("shard", pa.array([f"{folder.name}/{path.name}"] * count, pa.string()))
        rows.extend(rows_of(table.append_column("row", pa.array(range(count), pa.int64())), ImageRow))
    return rows


def _tidy(shards: Path, names: set[str]) -> None:
    """Remove other sources' shards and what a killed run left."""
    for child in shards.iterdir() if shards.is_dir() else ():
        if child.is_dir() and child.name not in names:
            shutil.rmtree(child)
    for left in shards.glob("*/.part-*.tmp"):
        left.unlink()


@contextlib.contextmanager
def _open(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, str(error).split("\n")[0][:120]) from error


def _checked(data: bytes, row: ImageRow, path: Path) -> bytes:
    if sha256_bytes(data) != row.id:
        raise _damaged(path, f"row {row.row} does not hold the bytes of image {row.id[:12]}…")
    return data


def _damaged(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is missing or damaged ({why}); bring it back with `dvc checkout`, or remove it and run `dvc repro collect`."
    )


def _key(image_id: str, label: str, path: str) -> bytes:
    """What makes an image of one source the same image again, in 16 bytes, since a million of these are held."""
    return hashlib.blake2b("\0".join((image_id, label, path)).encode(), digest_size=16).digest()

"""Training images straight from the Parquet shards, decoded while training, for data whose decoded arrays fit no disk.

An epoch lays the shards' row groups in a random order, the images of each in a random order, and cuts the row into one equal
part for each process, so every image comes once over all of them. Each process then moves every image by a random way of up
to `window` places, so that a batch holds images of many row groups. What is held in memory are the encoded bytes of that
window, at most `WINDOW_BYTES`. The order depends on the seed, the epoch and the number of processes alone.

Shards that were collected class after class, as folders are, need a window of many row groups for batches of many classes;
`mixture` says how many there are.

Threads decode, since Pillow lets go of the interpreter while it does; of images below about 64 pixels the interpreter's own
part is the larger one, but these fit packed. Does not cover: random access, and images with stored variants.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from visionloop.data.packing import decode_image, load_meta, load_places
from visionloop.data.shards import read_group, row_starts
from visionloop.errors import ArtifactError
from visionloop.files import sha256_bytes
from visionloop.preprocess import PixelArray, PreprocessSpec

# Encoded bytes that wait for their turn: 16 row groups of the shards' 16 MiB.
WINDOW_BYTES = 256 << 20
_BATCHES_AHEAD = 4  # being decoded while the network works
_GROUPS_AHEAD = 2  # being read
_IMAGES_PER_TASK = 16  # a thread's work: few enough to share a batch, enough to pay for the hand-over

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StreamedSplit:
    """The training side where it is not packed."""

    labels: Integers  # [N], positions in PackedMeta.labels
    ids: list[str]  # [N], sha256 of the encoded image
    shards: Path  # the folder
    names: tuple[str, ...]  # of the shards, in the folder
    groups: Integers  # [G, 3]: shard, row group in it, its first row
    group: Integers  # [N], which of the groups holds the image
    row: Integers  # [N], in the row group
    size_bytes: Integers  # [N], encoded
    spec: PreprocessSpec
    workers: int  # threads that decode
    variants: int = 0

    @property
    def originals(self) -> int:
        """How many images were collected: all."""
        return len(self.ids)

    @property
    def window(self) -> int:
        """By how many places an image may be moved."""
        return max(1, int(WINDOW_BYTES / max(1.0, float(self.size_bytes.mean()))))

    @property
    def mixture(self) -> float:
        """Of how many row groups a batch holds images, about."""
        return min(1.0, self.window / len(self.ids)) * len(np.unique(self.group))


def load_streamed(packed: Path, shards: Path, workers: int) -> StreamedSplit:
    """The training side that stage `augment` noted in `packed` with `augment.store: stream`, read from `shards`.

    Raises:
        ArtifactError: the training side is packed; or a file or a shard is missing or damaged.
    """
    meta = load_meta(packed)
    if meta.store != "stream":
        raise ArtifactError(f"{packed} holds the training images, so there is nothing to stream; run `dvc repro augment`.")
    places = load_places(packed)
    groups: list[tuple[int, int, int]] = []
    group, row = np.empty((2, len(places.ids)), dtype=np.int64)
    for number, name in enumerate(places.names):
        starts = row_starts(shards, name)
        own = np.flatnonzero(places.shard == number)
        index = np.searchsorted(starts, places.row[own], side="right") - 1
        if len(own) and (index.max() >= len(starts) - 1 or index.min() < 0):
            raise ArtifactError(
                f"{shards / name} has {starts[-1]} rows, fewer than {packed} names; run `dvc repro augment`."
            )
        group[own], row[own] = len(groups) + index, places.row[own] - starts[index]
        groups += [(number, at, start) for at, start in enumerate(starts[:-1].tolist())]
    return StreamedSplit(
        labels=places.labels,
        ids=places.ids,
        shards=shards,
        names=places.names,
        groups=np.array(groups, dtype=np.int64).reshape(-1, 3),
        group=group,
        row=row,
        size_bytes=places.size_bytes,
        spec=meta.preprocess,
        workers=workers,
    )


@dataclass(frozen=True)
class Part:
    """What one process takes of an epoch."""

    images: Integers  # [n] in the order of training
    reading: Integers  # [n] places in `images` in the order of reading: row group after row group


def epoch_part(
    data: StreamedSplit, chosen: Integers, part: slice, shared: np.random.Generator, own: np.random.Generator
) -> Part:
    """One process's part of an epoch of the images `chosen`, which may repeat: those at `part` of the row that all make.

    `shared` is a generator that draws the same in all processes, `own` one of this process's own.
    """
    ranks = shared.permutation(len(data.groups))
    # By row group, within one at random.
    mine = chosen[np.lexsort((shared.random(len(chosen)), ranks[data.group[chosen]]))][part]
    moved = np.argsort(np.arange(len(mine)) + own.random(len(mine)) * data.window, kind="stable")
    reading = np.empty(len(mine), dtype=np.int64)
    reading[moved] = np.arange(len(mine))
    return Part(mine[moved], reading)


def stream(data: StreamedSplit, part: Part, batches: list[int]) -> Iterator[PixelArray]:
    """Decoded batches uint8 [n, H, W, 3] of so many images each, in the order of `part`.

    Raises:
        ArtifactError: a shard is missing or damaged.
        DataError: an image can no longer be decoded.
    """
    ends = np.cumsum(batches)
    place_read = np.empty(len(part.images), dtype=np.int64)  # of each image of the order: when it is read
    place_read[part.reading] = np.arange(len(part.images))
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(data.workers) as decoders:
        bytes_of = _Bytes(data, part, reader)
        ahead: deque[list[Future[PixelArray]]] = deque()
        try:
            for end, size in zip(ends.tolist(), batches, strict=True):
                needed = bytes_of.upto(int(place_read[end - size : end].max(initial=-1)) + 1)
                tasks = []
                for start in range(end - size, end, _IMAGES_PER_TASK):
                    places = range(start, min(start + _IMAGES_PER_TASK, end))
                    encoded = [(data.ids[part.images[place]], needed.pop(place)) for place in places]
                    tasks.append(decoders.submit(_decode, encoded, data.spec))
                ahead.append(tasks)
                if len(ahead) > _BATCHES_AHEAD:
                    yield _gathered(ahead.popleft())
            while ahead:
                yield _gathered(ahead.popleft())
        finally:
            for task in (task for tasks in ahead for task in tasks):
                task.cancel()
            bytes_of.cancel()


def read(data: StreamedSplit, chosen: Integers) -> PixelArray:
    """Images uint8 [n, H, W, 3] of the places `chosen`, which are read row group by row group."""
    by_group = np.argsort(data.group[chosen], kind="stable")
    found = np.concatenate(list(stream(data, Part(chosen[by_group], np.arange(len(chosen))), [len(chosen)])))
    images = np.empty_like(found)
    images[by_group] = found
    return images


class _Bytes:
    """The encoded images of a part by their place in the order of training, a row group at a time."""

    def __init__(self, data: StreamedSplit, part: Part, reader: ThreadPoolExecutor) -> None:
        self._data, self._part, self._reader = data, part, reader
        groups = data.group[part.images[part.reading]]
        cuts = np.flatnonzero(np.diff(groups)) + 1
        self._runs = [run for run in np.split(part.reading, cuts) if len(run)]
        self._asked = 0
        self._reads: deque[Future[list[bytes]]] = deque()
        self._read = self._taken = 0
        self._held: dict[int, bytes] = {}

    def upto(self, count: int) -> dict[int, bytes]:
        """Have the first `count` images in the order of reading; the caller takes out what it uses."""
        while self._read < count:
            while self._asked < len(self._runs) and len(self._reads) <= _GROUPS_AHEAD:
                self._reads.append(self._reader.submit(self._load, self._runs[self._asked]))
                self._asked += 1
            run = self._runs[self._taken]
            self._held.update(zip(run.tolist(), self._reads.popleft().result(), strict=True))
            self._taken += 1
            self._read += len(run)
        return self._held

    def cancel(self) -> None:
        for read in self._reads:
            read.cancel()

    def _load(self, run: Integers) -> list[bytes]:
        data, images = self._data, self._part.images[run]
        shard, group, first = data.groups[data.group[images[0]]].tolist()
        path = data.shards / data.names[shard]
        found = read_group(data.shards, data.names[shard], group, data.row[images].tolist())
        for image, row, encoded in zip(images.tolist(), data.row[images].tolist(), found, strict=True):
            if sha256_bytes(encoded) != data.ids[image]:
                raise ArtifactError(
                    f"{path}, row {first + row}, does not hold image {data.ids[image][:12]}…; bring the shard back with "
                    "`dvc checkout`."
                )
        return found


def _decode(encoded: list[tuple[str, bytes]], spec: PreprocessSpec) -> PixelArray:
    return np.stack([decode_image(image_id, data, spec) for image_id, data in encoded])


def _gathered(tasks: list[Future[PixelArray]]) -> PixelArray:
    return np.concatenate([task.result() for task in tasks])

"""Images for the endpoint: the held-out ones, as they are or shifted, sent through the client that users have.

Does not cover: which shifts there are (`monitoring.simulator`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

from serving.client import Client
from serving.store import Store
from visionloop.config import ServeParams
from visionloop.data.cleaning import read_clean
from visionloop.data.shards import read_bytes, read_images
from visionloop.data.splitting import read_split
from visionloop.errors import DataError, PipelineError
from visionloop.paths import CLEAN, IMAGES, SHARDS, SPLIT
from visionloop.progress import track
from visionloop.records import Prediction

IMAGES_A_REQUEST = 32
MOST_BYTES = 2_000_000_000  # of images in memory: 400 photos of 5 MB
SECONDS_TO_STORE = 30.0


@dataclass(frozen=True, slots=True)
class HeldOut:
    """An image that was not trained on."""

    path: str  # where its source had it
    label: str  # the true class
    data: bytes  # as it was collected: PNG, JPEG, ...


def held_out(limits: ServeParams, splits: Sequence[str] = ("val", "test"), most_bytes: int = MOST_BYTES) -> list[HeldOut]:
    """Images of the held-out sides that are within the server's limits, in a fixed order, `most_bytes` of them together.

    Raises:
        ArtifactError: the data stages did not run yet.
        DataError: there are none.
    """
    labels = {row.id: row.label for row in read_split(SPLIT) if row.split in splits}
    if not labels:
        raise DataError(f"There is no image in {' or '.join(splits)}; run `dvc repro split`.")
    pixels = {row.id: row.width_pixels * row.height_pixels for row in read_clean(CLEAN) if row.id in labels}
    served = [
        row
        for row in read_images(IMAGES)
        if row.id in labels
        and row.size_bytes <= limits.max_image_megabytes * 1e6
        and pixels[row.id] <= limits.max_image_megapixels * 1e6
    ]
    if not served:
        raise DataError(
            f"None of the {len(labels):,} held-out images is within serve.max_image_megabytes and "
            "serve.max_image_megapixels; raise them."
        )
    served.sort(key=lambda row: row.id)  # ids are hashes, so this order says nothing of the classes
    sizes = accumulate(row.size_bytes for row in served)
    rows = [row for row, size in zip(served, sizes, strict=True) if size <= most_bytes] or served[:1]
    found = {row.id: HeldOut(row.path, labels[row.id], data) for row, data in read_bytes(SHARDS, rows)}
    return [found[row.id] for row in rows]


def send(client: Client, images: Iterable[bytes], count: int, description: str) -> Iterator[Prediction]:
    """Send `count` images, some at a time, and yield the answers; progress goes to standard error."""
    stream = iter(images)

    def answers() -> Iterator[Prediction]:
        while batch := list(islice(stream, IMAGES_A_REQUEST)):
            yield from client.predict_images(batch)

    yield from track(answers(), description, count)


def wait_until_stored(store: Store, answered: int, timeout_seconds: float = SECONDS_TO_STORE) -> None:
    """Wait until the store has at least `answered` rows: the server journals first and stores a moment later.

    Raises:
        PipelineError: they do not come.
    """
    deadline = time.monotonic() + timeout_seconds
    while (found := store.counts()["answered"]) < answered:
        if time.monotonic() > deadline:
            raise PipelineError(
                f"The store has {found} of {answered} answered images after {timeout_seconds:g} s; "
                "the server's log (var/logs/triton.log) says why."
            )
        time.sleep(0.1)

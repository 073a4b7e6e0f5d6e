"""Images for the endpoint: the held-out ones, as they are or shifted, sent through the client that users have.

Does not cover: which shifts there are (`monitoring.simulator`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from serving.client import Client
from serving.store import Store
from visionloop.data.shards import read_bytes, read_images
from visionloop.data.splitting import read_split
from visionloop.errors import DataError, PipelineError
from visionloop.paths import IMAGES, SHARDS, SPLIT
from visionloop.progress import track
from visionloop.records import Prediction

IMAGES_A_REQUEST = 32
SECONDS_TO_STORE = 30.0


@dataclass(frozen=True, slots=True)
class HeldOut:
    """An image that was not trained on."""

    path: str  # where its source had it
    label: str  # the true class
    data: bytes  # as it was collected: PNG, JPEG, ...


def held_out(splits: Sequence[str] = ("val", "test")) -> list[HeldOut]:
    """The images of the held-out sides, in a fixed order.

    Raises:
        ArtifactError: the data stages did not run yet.
        DataError: there are none.
    """
    labels = {row.id: row.label for row in read_split(SPLIT) if row.split in splits}
    rows = [row for row in read_images(IMAGES) if row.id in labels]
    found = {row.id: HeldOut(row.path, labels[row.id], data) for row, data in read_bytes(SHARDS, rows)}
    if not found:
        raise DataError(f"There is no image in {' or '.join(splits)}; run `dvc repro split`.")
    return [found[id_] for id_ in sorted(found)]  # ids are hashes, so this order says nothing of the classes


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

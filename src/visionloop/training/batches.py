"""Batches gathered straight from the packed arrays, in an order that depends on the seed and the epoch alone.

Does not cover: streaming from the shards, for data sets too large for one array on disk.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from visionloop.data.augmentation import augment_batch
from visionloop.data.packing import PackedSplit
from visionloop.data.policy import AugmentPolicy

Batch = tuple[Tensor, Tensor]  # images uint8 [N, H, W, 3], labels int64 [N]
_READY = 3  # batches that wait on a GPU: one on its way, two made


def seed_of(seed: int, epoch: int, purpose: int) -> int:
    """A 63-bit seed of its own for each purpose of each epoch, so that an epoch can be repeated without its past."""
    return int(np.random.SeedSequence([seed, epoch, purpose]).generate_state(1, np.uint64)[0] >> 1)


def count(images: int, batch_size: int) -> int:
    """The steps of an epoch."""
    return max(1, -(-images // batch_size))


def train_batches(data: PackedSplit, policy: AugmentPolicy, *, batch_size: int, seed: int, epoch: int) -> Iterator[Batch]:
    """One epoch of shuffled, augmented batches, in the order that (`seed`, `epoch`) gives.

    Every image comes once. Batches are of equal size, give or take one image: a last batch of a single image would make a
    batch norm fail and its gradient count as much as a full one's.
    """
    order = np.random.default_rng(seed_of(seed, epoch, 0)).permutation(len(data.labels))
    generator = torch.Generator().manual_seed(seed_of(seed, epoch, 1))
    for indices in np.array_split(order, count(len(order), batch_size)):
        images = torch.from_numpy(data.images[indices])  # one gather copies the rows out of the map
        if not policy.is_identity:
            images = augment_batch(images, policy, generator)
        yield images, torch.from_numpy(data.labels[indices])


def plain_batches(data: PackedSplit, batch_size: int) -> Iterator[Batch]:
    """All images in their order, unchanged."""
    for start in range(0, len(data.labels), batch_size):
        stop = start + batch_size
        yield torch.from_numpy(np.array(data.images[start:stop])), torch.from_numpy(data.labels[start:stop])


def to_device(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Bring batches to the device; for CUDA a thread makes them ahead in pinned memory and the copies overlap the steps.

    On the CPU the batches pass as they are: a thread would take the cores from the steps.
    """
    if device.type != "cuda":
        yield from batches
        return
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=_READY)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for images, labels in batches:
                put((images.pin_memory(), labels.pin_memory()))
                if stop.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that trains
            put(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item[0].to(device, non_blocking=True), item[1].to(device, non_blocking=True)
    finally:
        stop.set()
        thread.join()

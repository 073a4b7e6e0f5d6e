"""Batches gathered straight from the packed arrays, in an order that depends on the seed and the epoch alone.

Does not cover: streaming from the shards, for data sets too large for one array on disk.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from visionloop.data.augmentation import augment_batch
from visionloop.data.balancing import balanced_order
from visionloop.data.mixing import mix_batch
from visionloop.data.packing import PackedSplit
from visionloop.data.policy import AugmentPolicy


class Batch(NamedTuple):
    """Images and what they show; mixed images show two classes."""

    images: Tensor  # uint8 [N, H, W, 3]
    labels: Tensor  # int64 [N]
    partners: Tensor | None = None  # int64 [N], the other image's label; None where nothing is mixed
    shares: Tensor | None = None  # float32 [N] of [0, 1], how much `labels` counts; `partners` count the rest

    def loss(self, per_image: Callable[[Tensor], Tensor]) -> Tensor:
        """The mean of a loss that takes labels [N] and gives a value per image [N].

        For a loss that is linear in the target, as cross-entropy with or without smoothing is, this equals the loss of the
        soft targets (`soft_targets`).
        """
        own = per_image(self.labels)
        if self.partners is None or self.shares is None:
            return own.mean()
        return (own * self.shares + per_image(self.partners) * (1 - self.shares)).mean()

    def soft_targets(self, classes: int) -> Tensor:
        """Probabilities float32 [N, classes] of the labels, for losses that take them whole."""
        targets = torch.zeros(len(self.labels), classes, device=self.labels.device)
        own = torch.ones_like(targets[:, 0]) if self.shares is None else self.shares
        targets.scatter_add_(1, self.labels[:, None], own[:, None])
        if self.partners is not None:
            targets.scatter_add_(1, self.partners[:, None], (1 - own)[:, None])
        return targets

    def each(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """This batch with every tensor changed, as to another device."""
        return Batch(*(None if part is None else function(part) for part in self))  # type: ignore[arg-type]


_READY = 3  # batches that wait on a GPU: one on its way, two made


def seed_of(seed: int, epoch: int, purpose: int) -> int:
    """A 63-bit seed of its own for each purpose of each epoch, so that an epoch can be repeated without its past."""
    return int(np.random.SeedSequence([seed, epoch, purpose]).generate_state(1, np.uint64)[0] >> 1)


def count(images: int, batch_size: int) -> int:
    """The steps of an epoch."""
    return max(1, -(-images // batch_size))


def train_batches(data: PackedSplit, policy: AugmentPolicy, *, batch_size: int, seed: int, epoch: int) -> Iterator[Batch]:
    """One epoch of shuffled, augmented batches, in the order that (`seed`, `epoch`) gives.

    Every image comes once, unless the policy balances the classes by its sampler (`balanced_order`). Batches are of equal
    size, give or take one image: a last batch of a single image would make a batch norm fail and its gradient count as much
    as a full one's.
    """
    generator = np.random.default_rng(seed_of(seed, epoch, 0))
    if policy.balance == "sampler":
        order = balanced_order(data.labels, policy.balance_strength, generator)
    else:
        order = generator.permutation(len(data.labels))
    generator = np.random.default_rng(seed_of(seed, epoch, 1))
    for indices in np.array_split(order, count(len(order), batch_size)):
        # One gather copies the rows out of the map.
        images = augment_batch(torch.from_numpy(data.images[indices]), policy, generator)
        labels = torch.from_numpy(data.labels[indices])
        if policy.mixes:
            mixed = mix_batch(images, policy, generator)
            yield Batch(mixed.images, labels, labels[mixed.partners], mixed.shares)
        else:
            yield Batch(images, labels)


def plain_batches(data: PackedSplit, batch_size: int) -> Iterator[Batch]:
    """All images in their order, unchanged."""
    for start in range(0, len(data.labels), batch_size):
        stop = start + batch_size
        yield Batch(torch.from_numpy(np.array(data.images[start:stop])), torch.from_numpy(data.labels[start:stop]))


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
            for batch in batches:
                put(batch.each(Tensor.pin_memory))
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
            yield item.each(lambda part: part.to(device, non_blocking=True))
    finally:
        stop.set()
        thread.join()

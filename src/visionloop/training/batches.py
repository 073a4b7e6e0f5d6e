"""Batches gathered straight from the packed arrays, in an order that depends on the seed and the epoch alone.

Where several processes train together (`distributed`), each makes its part of every batch; the parts in a row are, bit for
bit, the batch that one process would make.

Where the training side is streamed (`streaming`), each process makes batches of images of its own part of the shards, and
mixes them among themselves; so a batch of several processes is not the one that a single process would make.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visionloop.data.augmentation import alternate, change_images, draw_changes
from visionloop.data.balancing import balanced_order
from visionloop.data.mixing import mix_batch, mix_images, plan_mix
from visionloop.data.packing import PackedSplit
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import ConfigError
from visionloop.training.distributed import Ranks
from visionloop.training.streaming import StreamedSplit, epoch_part, read, stream


class Batch(NamedTuple):
    """Images and what they show; mixed images show two classes."""

    images: Tensor  # uint8 [N, H, W, 3]
    labels: Tensor  # int64 [N]
    partners: Tensor | None = None  # int64 [N], the other image's label; None where nothing is mixed
    shares: Tensor | None = None  # float32 [N] of [0, 1], how much `labels` counts; `partners` count the rest
    full: Tensor | None = None  # the images in full size, for a teacher, where `images` are smaller

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


def batch_sizes(images: int, batch_size: int) -> list[int]:
    """How many images each batch of an epoch has, over all processes: equal, give or take one.

    A last batch of a single image would make a batch norm fail, and its gradient count as much as a full one's.
    """
    steps = count(images, batch_size)
    return [images // steps + (step < images % steps) for step in range(steps)]


def train_batches(
    data: PackedSplit | StreamedSplit,
    policy: AugmentPolicy,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    ranks: Ranks | None = None,
) -> Iterator[Batch]:
    """One epoch of shuffled, augmented batches, in the order that (`seed`, `epoch`) gives.

    Every image comes once, unless the policy balances the classes by its sampler (`balanced_order`). `batch_size` is over
    all processes, of which each yields its part of every batch; see `batch_sizes`.

    Raises:
        ConfigError: a batch has fewer images than there are processes.
        ArtifactError, DataError: of streamed images, see `streaming.stream`.
    """
    ranks = ranks or Ranks.single(torch.device("cpu"))
    generator = np.random.default_rng(seed_of(seed, epoch, 0))
    if policy.balance == "sampler":
        order = balanced_order(data.labels, policy.balance_strength, generator)
    else:
        order = generator.permutation(len(data.labels))
    mirrored = mirrored_in(epoch, len(data.labels), seed)
    sizes = batch_sizes(len(order), batch_size)
    require_parts(sizes, ranks)
    if isinstance(data, StreamedSplit):
        own_seed = seed_of(seed, epoch, 1)
        yield from _streamed(data, policy, order, sizes, shared=generator, seed=own_seed, ranks=ranks, mirrored=mirrored)
        return
    generator = np.random.default_rng(seed_of(seed, epoch, 1))
    height, width = data.images.shape[1:3]
    start = 0
    for size in sizes:
        indices, start = order[start : start + size], start + size
        # What happens to an image is drawn for the whole batch by every process, so that it depends on no other's part.
        drawn = draw_changes(size, policy, generator)
        alternate(drawn, policy, mirrored[indices])
        rows = np.arange(size)[ranks.part(size)]
        labels = torch.from_numpy(data.labels[indices])
        if not policy.mixes:
            # One gather copies the rows out of the map.
            images = change_images(torch.from_numpy(data.images[indices[rows]]), policy, drawn[rows])
            yield Batch(images, labels[rows])
            continue
        plan = plan_mix(size, height, width, policy, generator).of(rows)
        needed, places = np.unique(np.concatenate([rows, plan.partners]), return_inverse=True)
        changed = change_images(torch.from_numpy(data.images[indices[needed]]), policy, drawn[needed])
        own = changed if len(rows) == size else changed[places[: len(rows)]]
        images = mix_images(own, changed[places[len(rows) :]], policy, plan)
        yield Batch(images, labels[rows], labels[plan.partners], torch.from_numpy(plan.shares))


def _streamed(
    data: StreamedSplit,
    policy: AugmentPolicy,
    order: npt.NDArray[np.int64],
    sizes: list[int],
    *,
    shared: np.random.Generator,
    seed: int,
    ranks: Ranks,
    mirrored: npt.NDArray[np.bool_],
) -> Iterator[Batch]:
    """One process's batches of streamed images; `shared` draws the same in all processes."""
    own = np.random.default_rng([seed, ranks.rank])
    each = np.arange(ranks.world)[:, None]
    spread = np.array(sizes) // ranks.world + (each < np.array(sizes) % ranks.world)  # [processes, steps], as `Ranks.part`
    ends = spread.sum(axis=1).cumsum()
    part = epoch_part(data, order, slice(ends[ranks.rank] - spread[ranks.rank].sum(), ends[ranks.rank]), shared, own)
    place = 0
    for pixels in stream(data, part, spread[ranks.rank].tolist()):
        chosen = part.images[place : place + len(pixels)]
        place += len(pixels)
        drawn = draw_changes(len(chosen), policy, own)
        alternate(drawn, policy, mirrored[chosen])
        images = change_images(torch.from_numpy(pixels), policy, drawn)
        labels = torch.from_numpy(data.labels[chosen])
        if policy.mixes:
            mixed = mix_batch(images, policy, own)
            yield Batch(mixed.images, labels, labels[mixed.partners], mixed.shares)
        else:
            yield Batch(images, labels)


def mirrored_in(epoch: int, images: int, seed: int) -> npt.NDArray[np.bool_]:
    """Whom an alternating flip mirrors in an epoch [images]: about half, drawn by the seed; in the next, the others."""
    first = np.random.default_rng(seed_of(seed, 0, 4)).random(images) < 0.5
    return first if epoch % 2 else ~first


def look(data: PackedSplit | StreamedSplit, chosen: npt.NDArray[np.int64]) -> Tensor:
    """Some training images as they are, uint8 [n, H, W, 3], of sorted places int64 [n]."""
    return torch.from_numpy(read(data, chosen) if isinstance(data, StreamedSplit) else np.asarray(data.images[chosen]))


def require_parts(sizes: list[int], ranks: Ranks) -> None:
    """Refuse batches of which a process would get no image.

    Raises:
        ConfigError: with the numbers.
    """
    if min(sizes) < ranks.world:
        raise ConfigError(
            f"A batch has {min(sizes)} images and {ranks.world} processes share it, so some would have none; raise "
            "train.batch_size, or lower compute.processes."
        )


def plain_batches(data: PackedSplit, batch_size: int, ranks: Ranks | None = None) -> Iterator[Batch]:
    """All images in their order, unchanged; of several processes each has its part of them, which may be none."""
    part = ranks.part(len(data.labels)) if ranks else slice(0, len(data.labels))
    for start in range(part.start, part.stop, batch_size):
        stop = min(start + batch_size, part.stop)
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

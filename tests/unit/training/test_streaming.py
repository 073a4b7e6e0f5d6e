"""Streamed training images: each once an epoch over all processes, in an order that repeats, with the packed pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visionloop.config import ComputeParams
from visionloop.data import packing, shards
from visionloop.data.executor import make_executor
from visionloop.data.packing import PackedMeta, load_meta, load_sample, load_split, pack
from visionloop.data.policy import AugmentPolicy
from visionloop.data.sources import Skipped, SourceImage
from visionloop.errors import ArtifactError
from visionloop.preprocess import PreprocessSpec, encode_png
from visionloop.records import SPLITS, SplitRow
from visionloop.training import streaming
from visionloop.training.batches import Batch, look, train_batches
from visionloop.training.distributed import Ranks
from visionloop.training.streaming import StreamedSplit, load_streamed

CPU = torch.device("cpu")
IMAGES, TRAIN = 130, 100
SPEC = PreprocessSpec(8, 8)


class Drawn:
    """A source of pictures, class after class as folders are; the first pixel of each is its number."""

    name = "drawn"
    skipped: list[Skipped] = []  # noqa: RUF012 - a source's own list

    def __len__(self) -> int:
        return IMAGES

    def __iter__(self) -> Iterator[SourceImage]:
        for number in range(IMAGES):
            pixels = np.full((8, 8, 3), number, dtype=np.uint8)
            label = "abc"[number * 3 // IMAGES]
            yield SourceImage(encode_png(pixels), label, f"{label}/{number:03}.png", datetime(2026, 1, 1, tzinfo=UTC), None)


@dataclasses.dataclass(frozen=True)
class World:
    folder: Path

    @property
    def stream(self) -> StreamedSplit:
        return load_streamed(self.folder / "stream", self.folder / "shards", 2)

    @property
    def shard_files(self) -> list[Path]:
        return sorted((self.folder / "shards").rglob("*.parquet"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """130 images in 3 shards of row groups of 7, of them 100 to train on; packed, and streamed with a sample of 30."""
    folder = tmp_path_factory.mktemp("stream")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ROW_GROUP_ROWS", 7)
        patch.setattr(packing, "SAMPLE_IMAGES", 30)
        shards.append([Drawn()], folder / "shards", folder / "images.parquet", 50)
        images = shards.read_images(folder / "images.parquet")
        # Every thirteenth triple is held out, so that groups have holes.
        side = [0 if index % 13 < 10 else 1 + index % 13 // 12 for index in range(IMAGES)]
        rows = [SplitRow(row.id, row.label, SPLITS[on], row.id) for row, on in zip(images, side, strict=True)]
        read = partial(shards.read_bytes, folder / "shards")
        for store in ("packed", "stream"):
            with make_executor(ComputeParams(workers=1, dask=None), IMAGES) as executor:
                pack(
                    rows, images, read, folder / store, spec=SPEC, policy=AugmentPolicy(), executor=executor,
                    store=store,
                )  # fmt: skip
    yield World(folder)


def epoch(data: StreamedSplit, number: int = 1, rank: int = 0, of: int = 1, **policy: Any) -> list[Batch]:
    ranks = Ranks(rank, of, CPU)
    return list(train_batches(data, AugmentPolicy(**policy), batch_size=16, seed=5, epoch=number, ranks=ranks))


def shown(batches: list[Batch]) -> list[int]:
    return torch.cat([batch.images for batch in batches])[:, 0, 0, 0].tolist()


def test_only_a_sample_of_the_training_images_is_decoded(world: World) -> None:
    whole, streamed = load_meta(world.folder / "packed"), load_meta(world.folder / "stream")
    assert streamed.counts == whole.counts == {"train": TRAIN, "val": 20, "test": 10}
    assert (streamed.data_id, streamed.store, whole.store) == (whole.data_id, "stream", "packed")
    train = load_split(world.folder / "packed", "train")
    sample = load_sample(world.folder / "stream")
    assert streamed.sample == len(sample.ids)
    assert 30 <= len(sample.ids) <= 32
    assert np.bincount(sample.labels).min() >= 9, "each class has its share"
    places = [train.ids.index(name) for name in sample.ids]
    assert np.array_equal(sample.images, train.images[places])
    assert np.array_equal(sample.labels, train.labels[places])
    assert streamed.mean == pytest.approx([float(sample.images.mean() / 255)] * 3)
    for side in ("val", "test"):
        one, two = load_split(world.folder / "packed", side), load_split(world.folder / "stream", side)
        assert np.array_equal(one.images, two.images)
        assert one.ids == two.ids
    assert not (world.folder / "stream" / "train.images.npy").exists()
    assert np.array_equal(load_sample(world.folder / "packed").images, train.images)


@pytest.mark.parametrize("of", [1, 2, 3])
def test_every_image_comes_once_an_epoch_over_all_processes_with_its_label(world: World, of: int) -> None:
    data, train = world.stream, load_split(world.folder / "packed", "train")
    number_of = dict(zip(train.ids, train.images[:, 0, 0, 0].tolist(), strict=True))
    label_of = {number_of[name]: label for name, label in zip(train.ids, train.labels.tolist(), strict=True)}
    parts = [epoch(data, rank=rank, of=of) for rank in range(of)]
    seen = [number for part in parts for number in shown(part)]
    assert sorted(seen) == sorted(number_of.values())
    labels = torch.cat([batch.labels for part in parts for batch in part]).tolist()
    assert labels == [label_of[number] for number in seen]
    # All make as many steps, and a step's parts differ by one image at most.
    steps = [[len(batch.labels) for batch in part] for part in parts]
    assert [sum(sizes) for sizes in zip(*steps, strict=True)] == [15, 15, 14, 14, 14, 14, 14]
    assert all(max(sizes) - min(sizes) <= 1 for sizes in zip(*steps, strict=True))


def test_an_epoch_repeats_and_the_next_one_is_another(world: World) -> None:
    policy: dict[str, Any] = {"brightness": 0.2, "mixup": 0.4}
    first, again, following = (epoch(world.stream, number, 1, 2, **policy) for number in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True) if a is not None and b is not None)
    assert shown(first) != shown(following)
    assert first[0].partners is not None


def test_a_window_moves_images_across_row_groups_and_no_further(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    data = world.stream
    group_of = {int(number): int(group) for number, group in zip(_numbers(world), data.group, strict=True)}

    def groups(window_images: int) -> list[int]:
        """How many row groups the images of each batch come from."""
        monkeypatch.setattr(streaming, "WINDOW_BYTES", int(window_images * data.size_bytes.mean()) + 1)
        assert data.window == window_images
        return [len({group_of[number] for number in shown([batch])}) for batch in epoch(data)]

    narrow, wide = groups(1), groups(TRAIN)
    assert max(narrow) <= 5  # 15 images in a row of groups of 4 to 7
    assert np.mean(wide) > 2 * np.mean(narrow)
    monkeypatch.setattr(streaming, "WINDOW_BYTES", int(10 * data.size_bytes.mean()) + 1)
    part = streaming.epoch_part(data, np.arange(TRAIN), slice(0, TRAIN), np.random.default_rng(0), np.random.default_rng(1))
    assert np.abs(part.reading - np.arange(TRAIN)).max() <= 10
    assert (part.reading != np.arange(TRAIN)).any()


def test_the_sampler_balances_streamed_classes(world: World) -> None:
    few = world.stream
    labels = np.where(few.labels == 2, 0, few.labels)  # two classes of about 67 and 33 images
    data = dataclasses.replace(few, labels=labels)
    drawn = torch.cat([batch.labels for batch in epoch(data, balance="sampler")])
    assert drawn.bincount().tolist() == [50, 50]


def test_a_network_may_look_at_some_images_before_it_learns(world: World) -> None:
    chosen = np.array([3, 50, 51, 99])
    packed = load_split(world.folder / "packed", "train")
    assert torch.equal(look(world.stream, chosen), look(packed, chosen))
    assert look(packed, chosen)[:, 0, 0, 0].tolist() == packed.images[chosen][:, 0, 0, 0].tolist()


def test_an_epoch_left_early_leaves_no_thread(world: World) -> None:
    import threading

    before = threading.active_count()
    batches = train_batches(world.stream, AugmentPolicy(), batch_size=16, seed=0, epoch=1)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_refusals(world: World, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no decoded training images, since augment\.store is 'stream'"):
        load_split(world.folder / "stream", "train")
    with pytest.raises(ArtifactError, match="holds the training images, so there is nothing to stream"):
        load_streamed(world.folder / "packed", world.folder / "shards", 2)
    with pytest.raises(ArtifactError, match="is missing or damaged"):
        load_streamed(world.folder / "stream", tmp_path, 2)
    (tmp_path / "drawn").mkdir()
    for number, file in enumerate(world.shard_files):  # the shards' contents exchanged
        (tmp_path / "drawn" / file.name).write_bytes(world.shard_files[number - 1].read_bytes())
    with pytest.raises(ArtifactError, match=r"does not hold image|fewer than"):
        list(
            train_batches(
                load_streamed(world.folder / "stream", tmp_path, 2), AugmentPolicy(), batch_size=16, seed=0, epoch=1
            )
        )
    meta = load_meta(world.folder / "stream")
    assert PackedMeta.model_validate(meta.model_dump()) == meta


def _numbers(world: World) -> list[int]:
    """The number of each streamed image, in the order of its side."""
    train = load_split(world.folder / "packed", "train")
    assert train.ids == world.stream.ids
    return [int(number) for number in train.images[:, 0, 0, 0]]

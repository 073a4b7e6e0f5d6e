"""Packed arrays hold the preprocessed pixels, in an order that only content decides, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data.conftest import Draw
from visionloop.config import ComputeParams
from visionloop.data.executor import make_executor
from visionloop.data.packing import META, PackedMeta, data_id, load_meta, load_split, pack
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import ArtifactError, DataError
from visionloop.preprocess import PixelArray, PreprocessSpec, preprocess
from visionloop.records import SPLITS, ImageRow, SplitRow

SPEC = PreprocessSpec(12, 10)
POLICY = AugmentPolicy(horizontal_flip=True, rotation_degrees=5)


def darker(images: PixelArray, policy: AugmentPolicy, generator: np.random.Generator) -> PixelArray:
    """A change that can be told: half as bright, and the red of the first pixel drawn."""
    changed = images // 2
    changed[:, 0, 0, 0] = generator.integers(0, 256, len(images))
    return changed


class World:
    """Ten drawn images on three sides, and the folder they are packed into."""

    def __init__(self, folder: Path, draw: Draw, image_row: Callable[..., ImageRow]) -> None:
        self.folder = folder
        self.encoded = {f"{'dog' if seed % 2 else 'cat'}/{seed}.png": draw(seed) for seed in range(10)}
        self.images = [image_row(data, path) for path, data in self.encoded.items()]
        self.rows = [
            SplitRow(row.id, row.label, SPLITS[0 if index < 6 else 1 if index < 8 else 2], row.id)
            for index, row in enumerate(self.images)
        ]

    def read(self, rows: Iterable[ImageRow]) -> Iterator[tuple[ImageRow, bytes]]:
        return ((row, self.encoded[row.path]) for row in rows)

    def pack(self, **changes: Any) -> PackedMeta:
        values: dict[str, Any] = {"rows": self.rows, "images": self.images, "read": self.read, **changes}
        with make_executor(ComputeParams(workers=1, dask=None), 10) as executor:
            return pack(
                values["rows"],
                values["images"],
                values["read"],
                self.folder,
                spec=SPEC,
                policy=values.get("policy", POLICY),
                executor=executor,
                seed=values.get("seed", 0),
                augment=darker,
            )


@pytest.fixture
def world(tmp_path: Path, draw: Draw, image_row: Callable[..., ImageRow]) -> World:
    return World(tmp_path / "packed", draw, image_row)


def test_arrays_hold_what_preprocess_gives(world: World) -> None:
    meta = world.pack()
    assert (meta.labels, meta.counts) == (("cat", "dog"), {"train": 6, "val": 2, "test": 2})
    by_id = {row.id: row for row in world.images}
    for split in SPLITS:
        side = load_split(world.folder, split)
        assert side.ids == sorted(row.id for row in world.rows if row.split == split)
        assert isinstance(side.images, np.memmap)
        for pixels, label, image_id in zip(side.images, side.labels, side.ids, strict=True):
            assert np.array_equal(pixels, preprocess(world.encoded[by_id[image_id].path], SPEC))
            assert meta.labels[label] == by_id[image_id].label


def test_mean_and_std_are_of_the_training_pixels(world: World) -> None:
    meta = world.pack()
    pixels = load_split(world.folder, "train").images.astype(np.float64) / 255
    assert meta.mean == pytest.approx(pixels.mean(axis=(0, 1, 2)), abs=1e-12)
    assert meta.std == pytest.approx(pixels.std(axis=(0, 1, 2)), abs=1e-9)


def test_order_of_rows_and_reading_has_no_say(world: World) -> None:
    world.pack()
    before = {path.name: path.read_bytes() for path in world.folder.iterdir()}
    world.pack(rows=world.rows[::-1], images=world.images[::-1], read=lambda rows: reversed(list(world.read(rows))))
    assert {path.name: path.read_bytes() for path in world.folder.iterdir()} == before
    assert sorted(before) == sorted([META, *(f"{s}.{e}" for s in SPLITS for e in ("images.npy", "labels.npy", "ids.txt"))])
    assert [path.name for path in world.folder.parent.iterdir()] == ["packed"]


def test_meta_comes_back_equal(world: World) -> None:
    meta = world.pack()
    assert load_meta(world.folder) == meta
    assert (meta.preprocess, meta.policy, meta.data_id) == (SPEC, POLICY, data_id(world.rows))


def test_data_id_names_ids_labels_and_sides() -> None:
    rows = [SplitRow("a", "cat", "train", "x"), SplitRow("b", "dog", "test", "y")]
    assert data_id(rows) == data_id(rows[::-1])
    assert data_id(rows) == data_id([SplitRow("a", "cat", "train", "z"), rows[1]])
    changed = [("c", "cat", "train"), ("a", "dog", "train"), ("a", "cat", "val")]
    assert len({data_id(rows), *(data_id([SplitRow(*one, "x"), rows[1]]) for one in changed)}) == 4  # type: ignore[arg-type]


def test_a_failure_leaves_the_old_folder(world: World) -> None:
    meta = world.pack()

    def dies(rows: Iterable[ImageRow]) -> Iterator[tuple[ImageRow, bytes]]:
        yield from list(world.read(rows))[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.pack(read=dies)
    assert load_meta(world.folder) == meta
    assert [path.name for path in world.folder.parent.iterdir()] == ["packed"]


def test_what_a_killed_run_left_is_gone_after_the_next(world: World) -> None:
    """A child is killed by SIGKILL while it packs; the old folder stands, and the next run tidies."""
    meta = world.pack()
    before = {path.name: path.read_bytes() for path in world.folder.iterdir()}
    child = os.fork()
    if child == 0:

        def killed(rows: Iterable[ImageRow]) -> Iterator[tuple[ImageRow, bytes]]:
            yield from list(world.read(rows))[:3]
            os.kill(os.getpid(), signal.SIGKILL)

        world.pack(read=killed)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(list(world.folder.parent.iterdir())) == 2  # the folder and the torso beside it
    assert {path.name: path.read_bytes() for path in world.folder.iterdir()} == before
    assert world.pack() == meta
    assert [path.name for path in world.folder.parent.iterdir()] == ["packed"]


def test_variants_fill_the_small_class_and_disturb_nothing_else(world: World) -> None:
    plain = world.pack()
    world.folder.rename(world.folder.with_name("plain"))
    # Of the six training images (cat, dog, cat, dog, ...) two dogs go to the other sides, so that cats are three to one.
    rows = [
        dataclasses.replace(row, split="val") if row.split == "train" and row.label == "dog" and index > 1 else row
        for index, row in enumerate(world.rows)
    ]
    policy = AugmentPolicy(horizontal_flip=True, balance="variants")
    none = world.pack(rows=rows)
    reference = {split: load_split(world.folder, split) for split in SPLITS}
    images = {split: np.array(side.images) for split, side in reference.items()}
    meta = world.pack(rows=rows, policy=policy)
    train = load_split(world.folder, "train")
    assert (meta.variants, meta.counts["train"], train.variants, train.originals) == (2, 6, 2, 4)
    assert (meta.mean, meta.std) == (none.mean, none.std)
    assert np.array_equal(train.images[:4], images["train"])
    dog = reference["train"].ids[int(np.flatnonzero(reference["train"].labels == 1)[0])]
    assert train.ids == [*reference["train"].ids, f"{dog}+1", f"{dog}+2"]
    assert train.labels[4:].tolist() == [1, 1]
    original = images["train"][reference["train"].ids.index(dog)]
    for variant in train.images[4:]:
        assert np.array_equal(variant.reshape(-1)[1:], original.reshape(-1)[1:] // 2)
    assert train.images[4, 0, 0, 0] != train.images[5, 0, 0, 0]
    for split in ("val", "test"):
        side = load_split(world.folder, split)
        assert (side.ids, side.variants) == (reference[split].ids, 0)
        assert np.array_equal(side.images, images[split])
    again = world.pack(rows=rows, policy=policy)
    assert again == meta
    other_seed = world.pack(rows=rows, policy=policy, seed=1)
    assert len({plain.data_id, none.data_id, meta.data_id, other_seed.data_id}) == 4


def test_an_image_twice_among_the_collected_is_packed_once(world: World) -> None:
    twice = dataclasses.replace(world.images[0], path="zzz/copy.png")
    asked: list[str] = []

    def read(rows: Iterable[ImageRow]) -> Iterator[tuple[ImageRow, bytes]]:
        for row in rows:
            asked.append(row.path)
            yield row, world.encoded[row.path]

    world.pack(images=[*world.images, twice], read=read)
    assert sorted(asked) == sorted(world.encoded)


def test_an_image_that_was_not_collected_is_named(world: World) -> None:
    with pytest.raises(DataError, match=rf"1 images of the split are not among .*{world.images[0].id[:12]}"):
        world.pack(images=world.images[1:])


def test_an_image_that_no_longer_decodes_is_named(world: World) -> None:
    world.encoded["cat/0.png"] = b"x"
    with pytest.raises(DataError, match=rf"Image {world.images[0].id[:12]}… passed `clean` but cannot be decoded now"):
        world.pack()


def test_missing_and_mismatched_files_are_refused(world: World) -> None:
    with pytest.raises(ArtifactError, match=r"meta.json cannot be read .*`dvc repro augment`"):
        load_meta(world.folder)
    world.pack()
    np.save(world.folder / "val.labels.npy", np.array([0, 2]))
    with pytest.raises(ArtifactError, match=r"arrays and meta\.json do not belong together"):
        load_split(world.folder, "val")
    (world.folder / "val.images.npy").write_bytes(b"cut")
    with pytest.raises(ArtifactError, match="side val, cannot be read"):
        load_split(world.folder, "val")
    text = json.loads((world.folder / META).read_text())
    (world.folder / META).write_text(json.dumps({**text, "more": 1}))
    with pytest.raises(ArtifactError, match="not of this visionloop"):
        load_meta(world.folder)

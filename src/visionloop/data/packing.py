"""Decode once: the images of each side as one uint8 array on disk, which training and evaluation map into memory.

Arrays are written with plain writes at offsets: pages of a memory map would count as this process's memory until the disk
has them. What is held per image is its rows, an id of 64 bytes and a place.

Where the training side is too large for that, it stays in the shards: its labels, ids and places are noted here, and
`training.streaming` decodes the images in every epoch. Validation and test images, which are few, are packed all the same,
and so is a sample of the training images, which the checks of augmentation and the calibration of INT8 look at.

Does not cover: augmentation while training.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from visionloop.data.balancing import variant_sources
from visionloop.data.executor import in_batches, map_batches
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import ArtifactError, DataError, ImageError
from visionloop.files import sync_folder, write_json, write_text
from visionloop.preprocess import PixelArray, PreprocessSpec, preprocess
from visionloop.progress import track
from visionloop.records import SPLITS, ImageRow, Split, SplitRow

META = "meta.json"
# `clean` has judged the size of every image that comes here; Pillow's own limit must not stop what it let pass.
_MAX_PIXELS = 2_000_000_000
_BATCH_IMAGES = 64
_BATCH_BYTES = 8 << 20
_VARIANTS_AT_ONCE = 256
# Training images that stay packed where the others are streamed; of 1,000 classes each has 4.
SAMPLE_IMAGES = 4096

# Uint8 [N, H, W, 3] to the same, changed by the policy. Passed in, so that who only reads arrays does not depend on how
# images are changed.
Augment = Callable[[PixelArray, AugmentPolicy, np.random.Generator], PixelArray]
ReadBytes = Callable[[Iterable[ImageRow]], Iterator[tuple[ImageRow, bytes]]]


class PackedMeta(BaseModel):
    """What the packed arrays are: `meta.json` beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...]  # sorted; the position is the number in `<split>.labels.npy`
    preprocess: PreprocessSpec
    mean: tuple[float, float, float]  # of the training pixels / 255, RGB
    std: tuple[float, float, float]
    counts: dict[Split, int]
    policy: AugmentPolicy
    data_id: str  # names this data version, see `data_id` and `_with_variants`
    variants: int = 0  # the last so many training images are stored variants of the others
    store: Literal["packed", "stream"] = "packed"  # stream: training images are read from the shards
    sample: int = 0  # packed training images where the others are streamed


@dataclass(frozen=True)
class PackedSplit:
    """One side of the data set."""

    images: npt.NDArray[np.uint8]  # [N, H, W, 3], mapped from disk, read-only
    labels: npt.NDArray[np.int64]  # [N], positions in PackedMeta.labels
    ids: list[str]  # [N], sha256 of the encoded image; of a variant the image's, "+" and the variant's number
    variants: int = 0  # stored variants among the training images, which stand last

    @property
    def originals(self) -> int:
        """How many images were collected; they stand first."""
        return len(self.ids) - self.variants


@dataclass(frozen=True)
class Places:
    """Where the images of a streamed training side lie."""

    labels: npt.NDArray[np.int64]  # [N], positions in PackedMeta.labels
    ids: list[str]  # [N], sha256 of the encoded image
    names: tuple[str, ...]  # of the shards
    shard: npt.NDArray[np.int64]  # [N], a position in `names`
    row: npt.NDArray[np.int64]  # [N], in the shard
    size_bytes: npt.NDArray[np.int64]  # [N], encoded


def pack(
    rows: Sequence[SplitRow],
    images: Sequence[ImageRow],
    read: ReadBytes,
    folder: Path,
    *,
    spec: PreprocessSpec,
    policy: AugmentPolicy,
    executor: Executor,
    seed: int = 0,
    augment: Augment | None = None,
    store: Literal["packed", "stream"] = "packed",
) -> PackedMeta:
    """Decode and resize the split images into `folder`, which appears whole or not at all.

    Images of a side stand in the order of their ids, so the arrays depend on the content of the data set alone. `read`
    brings the encoded bytes of image rows, in any order (see `shards.read_bytes`). Where the policy balances by variants,
    copies of small classes' training images, changed by `augment` with numbers from `seed`, follow the originals; mean and
    std are of the originals. With `store` "stream" only a sample of the training images is decoded, whose mean and std are
    taken.

    Raises:
        DataError: an image of the split is not among `images`, or can no longer be decoded.
    """
    labels = tuple(sorted({row.label for row in rows}))
    number = {label: index for index, label in enumerate(labels)}
    places = _Places(rows)
    found = places.first_of(images)
    _remove_leftovers(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        sides = {split: [rows[index] for index in places.rows_of(split)] for split in SPLITS}
        numbers = {split: np.array([number[row.label] for row in sides[split]], dtype=np.int64) for split in SPLITS}
        sources = np.zeros(0, dtype=np.int64)
        if policy.balance == "variants":
            sources = variant_sources(numbers["train"], policy.balance_strength)
        counts = {split: len(sides[split]) + (len(sources) if split == "train" else 0) for split in SPLITS}
        files: dict[Split, str] = {split: split for split in SPLITS}
        packed, sample = dict(counts), np.zeros(0, dtype=np.int64)
        if store == "stream":
            sample = _sample(numbers["train"], SAMPLE_IMAGES)
            _write_places(tmp, sides["train"], found)
            left_out = np.setdiff1d(np.arange(counts["train"]), sample)
            found = _without(found, {sides["train"][index].id for index in left_out})
            files["train"], packed["train"] = "sample", len(sample)
            _write_names(tmp, "sample", numbers["train"][sample], [sides["train"][index].id for index in sample])
            places.renumber("train", sample)
        arrays = {split: _ArrayFile(tmp / f"{files[split]}.images.npy", packed[split], spec) for split in SPLITS}
        try:
            moments = _decode_all(track(read(found), "decode", len(found)), executor, spec, places, arrays)
            if len(sources):
                assert augment is not None, "balance variants needs `augment`"
                generator = np.random.default_rng([seed, 1])
                _append_variants(
                    arrays["train"], len(sides["train"]), sources, lambda images: augment(images, policy, generator)
                )
        finally:
            for array in arrays.values():
                array.close()
        for split in SPLITS:
            names, own = [row.id for row in sides[split]], numbers[split]
            if split == "train":
                names, own = names + _variant_names(names, sources), np.concatenate([own, own[sources]])
            _write_names(tmp, split, own, names)
        mean, std = moments.result()
        meta = PackedMeta(
            labels=labels,
            preprocess=spec,
            mean=mean,
            std=std,
            counts=counts,
            policy=policy,
            data_id=_with_variants(data_id(rows), len(sources), policy, seed),
            variants=len(sources),
            store=store,
            sample=len(sample),
        )
        write_json(tmp / META, meta.model_dump(mode="json"))
        _publish(tmp, folder)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return meta


def _decode_all(
    encoded: Iterable[tuple[ImageRow, bytes]],
    executor: Executor,
    spec: PreprocessSpec,
    places: _Places,
    arrays: Mapping[Split, _ArrayFile],
) -> _Moments:
    """Write every image to its place; return the moments of the training images."""
    moments = _Moments()
    batches = in_batches(encoded, _BATCH_IMAGES, _BATCH_BYTES, size=lambda item: len(item[1]))
    jobs = ([(row.id, data) for row, data in batch] for batch in batches)
    for ids, pixels in map_batches(executor, _Preprocess(spec), jobs):
        split_numbers, positions = places.of(ids)
        for image, split_number, position in zip(pixels, split_numbers, positions, strict=True):
            arrays[SPLITS[split_number]].write(int(position), image)
        moments.add(pixels[split_numbers == SPLITS.index("train")])
    return moments


def _append_variants(
    array: _ArrayFile, position: int, sources: npt.NDArray[np.int64], change: Callable[[PixelArray], PixelArray]
) -> None:
    """Write a changed copy of each of the images `sources`, from `position` on."""
    parts = np.array_split(sources, -(-len(sources) // _VARIANTS_AT_ONCE))
    for part in track(parts, "variants", len(sources), len):
        array.write(position, change(array.read(part)))
        position += len(part)


def _write_names(folder: Path, name: str, labels: npt.NDArray[np.int64], ids: Sequence[str]) -> None:
    np.save(folder / f"{name}.labels.npy", labels)
    write_text(folder / f"{name}.ids.txt", "".join(f"{image_id}\n" for image_id in ids))


def data_id(rows: Iterable[SplitRow]) -> str:
    """The name of a data version: sha256 over the sorted (id, label, split)."""
    digest = hashlib.sha256()
    for image_id, label, split in sorted((row.id, row.label, row.split) for row in rows):
        digest.update(f"{image_id}\0{label}\0{split}\n".encode())
    return digest.hexdigest()


def _with_variants(data: str, variants: int, policy: AugmentPolicy, seed: int) -> str:
    """The name of a data version with stored variants: what they were made of, how and from which seed."""
    if not variants:
        return data
    return hashlib.sha256(f"{data}\0{variants}\0{seed}\0{policy.model_dump_json()}".encode()).hexdigest()


def load_meta(folder: Path) -> PackedMeta:
    """Read `meta.json` of a packed folder.

    Raises:
        ArtifactError: it is missing or not of this form.
    """
    path = folder / META
    try:
        return PackedMeta.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); run `dvc repro augment`.") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not of this visionloop; rebuild it with `dvc repro augment`.") from error


def load_split(folder: Path, split: Split) -> PackedSplit:
    """Map one side's images and read its labels and ids.

    Raises:
        ArtifactError: a file is missing, damaged, or the three do not belong together; or the side is streamed.
    """
    meta = load_meta(folder)
    if split == "train" and meta.store == "stream":
        raise ArtifactError(
            f"{folder} holds no decoded training images, since augment.store is 'stream', and this work needs them; set it "
            "to 'packed' and run `dvc repro augment`."
        )
    return _load(folder, split, meta.counts[split], meta, meta.variants if split == "train" else 0)


def load_sample(folder: Path) -> PackedSplit:
    """Collected training images to look at: all of a packed side, without its stored variants; of a streamed one a sample.

    Raises:
        ArtifactError: see `load_split`.
    """
    meta = load_meta(folder)
    if meta.store == "stream":
        return _load(folder, "sample", meta.sample, meta, 0)
    train = load_split(folder, "train")
    originals = slice(train.originals)
    return PackedSplit(train.images[originals], train.labels[originals], train.ids[originals])


def load_places(folder: Path) -> Places:
    """Where the images of a streamed training side lie.

    Raises:
        ArtifactError: a file is missing, damaged, or they do not belong together.
    """
    meta = load_meta(folder)
    try:
        with np.load(folder / "train.places.npz", allow_pickle=False) as file:
            names, shard, row, size = (file[name] for name in ("names", "shard", "row", "size_bytes"))
        labels = np.load(folder / "train.labels.npy", allow_pickle=False)
        ids = (folder / "train.ids.txt").read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{folder}, side train, cannot be read ({error}); run `dvc repro augment`.") from error
    if not len(ids) == len(labels) == len(shard) == len(row) == len(size) == meta.counts["train"]:
        raise ArtifactError(f"{folder}, side train: places and {META} do not belong together; run `dvc repro augment`.")
    return Places(labels, ids, tuple(names.tolist()), shard, row, size)


def _load(folder: Path, name: str, count: int, meta: PackedMeta, variants: int) -> PackedSplit:
    try:
        images = np.load(folder / f"{name}.images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / f"{name}.labels.npy", allow_pickle=False)
        ids = (folder / f"{name}.ids.txt").read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}, side {name}, cannot be read ({error}); run `dvc repro augment`.") from error
    fits = (
        images.shape == (count, meta.preprocess.height, meta.preprocess.width, 3)
        and images.dtype == np.uint8
        and labels.shape == (count,)
        and len(ids) == count
        and (count == 0 or (labels.min() >= 0 and labels.max() < len(meta.labels)))
    )
    if not fits:
        raise ArtifactError(f"{folder}, side {name}: arrays and {META} do not belong together; run `dvc repro augment`.")
    return PackedSplit(images, labels, ids, variants)


def _sample(labels: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """Places int64 [about `most`] of a sample of `labels` [N]: of each class its share, rounded up, the first ones.

    A side stands in the order of its ids, which are hashes, so the first ones are a random choice.
    """
    share = min(1.0, most / max(1, len(labels)))
    chosen = [np.zeros(0, dtype=np.int64)]
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        chosen.append(positions[: math.ceil(len(positions) * share)])
    return np.sort(np.concatenate(chosen))


def _without(images: Sequence[ImageRow], ids: set[str]) -> list[ImageRow]:
    return [row for row in images if row.id not in ids]


def _write_places(folder: Path, side: Sequence[SplitRow], found: Sequence[ImageRow]) -> None:
    """Note where the images of the training side lie, in its order."""
    rows = {row.id: row for row in found}
    own = [rows[row.id] for row in side]
    names, shard = np.unique([row.shard for row in own], return_inverse=True)
    np.savez(
        folder / "train.places.npz",
        names=names,
        shard=shard.astype(np.int64),
        row=np.array([row.row for row in own], dtype=np.int64),
        size_bytes=np.array([row.size_bytes for row in own], dtype=np.int64),
    )


def decode_image(image_id: str, data: bytes, spec: PreprocessSpec) -> PixelArray:
    """An image of the data set, which `clean` let pass, as the model's input.

    Raises:
        DataError: it cannot be decoded any more.
    """
    try:
        return preprocess(data, spec, max_pixels=_MAX_PIXELS)
    except ImageError as error:
        raise DataError(f"Image {image_id[:12]}… passed `clean` but cannot be decoded now: {error}") from error


class _Places:
    """Where each image of the split goes: its side, and its position by id."""

    def __init__(self, rows: Sequence[SplitRow]) -> None:
        ids = np.array([row.id for row in rows], dtype="S64")
        split = np.array([SPLITS.index(row.split) for row in rows], dtype=np.int8)
        self._by_id = np.argsort(ids, kind="stable")
        self._ids, self._split = ids[self._by_id], split[self._by_id]
        self._position = np.zeros(len(rows), dtype=np.int64)
        for number in range(len(SPLITS)):
            on_side = self._split == number
            self._position[on_side] = np.arange(on_side.sum())

    def renumber(self, split: Split, kept: npt.NDArray[np.int64]) -> None:
        """Let the images at the sorted places `kept` of a side stand in a row; the others have no place any more."""
        on_side = self._split == SPLITS.index(split)
        self._position[on_side] = np.searchsorted(kept, self._position[on_side])

    def rows_of(self, split: Split) -> npt.NDArray[np.int64]:
        """Indices of the rows of a side, in the order of their ids."""
        chosen: npt.NDArray[np.int64] = self._by_id[self._split == SPLITS.index(split)]
        return chosen

    def of(self, ids: Sequence[str]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int64]]:
        """The number of the side and the position on it of images of the split."""
        index = np.searchsorted(self._ids, np.array(ids, dtype="S64"))
        return self._split[index], self._position[index]

    def first_of(self, images: Sequence[ImageRow]) -> list[ImageRow]:
        """Of each image of the split its first row among `images`, in their order."""
        ids = np.array([row.id for row in images], dtype="S64")
        unique, first = np.unique(ids, return_index=True)
        known = np.isin(self._ids, unique)
        if not known.all():
            missing = self._ids[~known]
            raise DataError(
                f"{len(missing)} images of the split are not among the collected ones (first: {missing[0][:12].decode()}…); "
                "run `dvc repro` from the start."
            )
        return [images[index] for index in np.sort(first[np.isin(unique, self._ids)])]


class _ArrayFile:
    """A .npy file of images uint8 [N, H, W, 3], written and read at positions."""

    def __init__(self, path: Path, count: int, spec: PreprocessSpec) -> None:
        self._shape = (spec.height, spec.width, 3)
        self._bytes = spec.height * spec.width * 3
        with path.open("wb") as file:
            header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": (count, *self._shape)}
            np.lib.format.write_array_header_1_0(file, header)
            self._start = file.tell()
            file.truncate(self._start + count * self._bytes)
        self._handle = os.open(path, os.O_RDWR)

    def write(self, position: int, image: PixelArray) -> None:
        """Put one image, or several from here on."""
        data = np.ascontiguousarray(image).data.cast("B")
        offset = self._start + position * self._bytes
        while data:  # a write may be cut short; a full disk raises
            done = os.pwrite(self._handle, data, offset)
            data, offset = data[done:], offset + done

    def read(self, positions: npt.NDArray[np.int64]) -> PixelArray:
        """Images [n, H, W, 3] that were written before."""
        data = b"".join(os.pread(self._handle, self._bytes, self._start + int(at) * self._bytes) for at in positions)
        return np.frombuffer(bytearray(data), dtype=np.uint8).reshape(-1, *self._shape)

    def close(self) -> None:
        """Flush to the disk."""
        os.fsync(self._handle)
        os.close(self._handle)


def _variant_names(ids: Sequence[str], sources: npt.NDArray[np.int64]) -> list[str]:
    """ "<id>+1" is the first variant of the image <id>."""
    seen: dict[int, int] = {}
    names = []
    for source in sources.tolist():
        seen[source] = seen.get(source, 0) + 1
        names.append(f"{ids[source]}+{seen[source]}")
    return names


def _remove_leftovers(folder: Path) -> None:
    """What a killed run left beside the folder; DVC lets one run at a time write it."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(left)


@dataclass(frozen=True)
class _Preprocess:
    """The work of one process on one batch."""

    spec: PreprocessSpec

    def __call__(self, batch: Sequence[tuple[str, bytes]]) -> tuple[list[str], PixelArray]:
        pixels = np.empty((len(batch), self.spec.height, self.spec.width, 3), dtype=np.uint8)
        for index, (image_id, data) in enumerate(batch):
            pixels[index] = decode_image(image_id, data, self.spec)
        return [image_id for image_id, _ in batch], pixels


class _Moments:
    """Mean and standard deviation of pixels as exact integer sums, so that the order of batches does not matter."""

    def __init__(self) -> None:
        self._count = 0
        self._sum = [0, 0, 0]
        self._squares = [0, 0, 0]

    def add(self, images: PixelArray) -> None:
        flat = images.reshape(-1, 3)
        self._count += len(flat)
        for channel in range(3):
            histogram = np.bincount(flat[:, channel], minlength=256)
            values = np.arange(256)
            self._sum[channel] += int(histogram @ values)
            self._squares[channel] += int(histogram @ values**2)

    def result(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        means = [total / self._count / 255 for total in self._sum]
        variances = [squares / self._count / 255**2 - mean**2 for squares, mean in zip(self._squares, means, strict=True)]
        # One gray level at least: a channel without any spread must not become a division by zero in the network.
        stds = [max(max(variance, 0.0) ** 0.5, 1 / 255) for variance in variances]
        return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def _publish(tmp: Path, folder: Path) -> None:
    """Put a finished folder in place of another one by renames."""
    for file in tmp.iterdir():  # the arrays are on disk already; syncing them again costs nothing
        with file.open("rb") as written:
            os.fsync(written.fileno())
    sync_folder(tmp)
    tmp.chmod(0o755)
    if folder.exists():
        old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        folder.rename(old / "old")
        tmp.rename(folder)
        shutil.rmtree(old)
    else:
        tmp.rename(folder)
    sync_folder(folder.parent)

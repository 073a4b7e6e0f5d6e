"""Decode once: the images of each side as one uint8 array on disk, which training and evaluation map into memory.

Does not cover: augmentation, which runs on the packed training batches, and data sets too large for one array on disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

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
    data_id: str  # sha256 over the sorted (id, label, split): names this data version


@dataclass(frozen=True)
class PackedSplit:
    """One side of the data set."""

    images: npt.NDArray[np.uint8]  # [N, H, W, 3], mapped from disk, read-only
    labels: npt.NDArray[np.int64]  # [N], positions in PackedMeta.labels
    ids: list[str]  # [N], sha256 of the encoded image


def pack(
    rows: Sequence[SplitRow],
    images: Sequence[ImageRow],
    read: ReadBytes,
    folder: Path,
    *,
    spec: PreprocessSpec,
    policy: AugmentPolicy,
    executor: Executor,
) -> PackedMeta:
    """Decode and resize the split images into `folder`, which appears whole or not at all.

    Images of a side stand in the order of their ids, so the arrays depend on the content of the data set alone. `read`
    brings the encoded bytes of image rows, in any order (see `shards.read_bytes`); arrays are written through a memory map,
    so memory does not grow with the data set.

    Raises:
        DataError: an image of the split is not among `images`, or can no longer be decoded.
    """
    labels = tuple(sorted({row.label for row in rows}))
    number = {label: index for index, label in enumerate(labels)}
    sides = {split: sorted((row for row in rows if row.split == split), key=lambda row: row.id) for split in SPLITS}
    place = {row.id: (split, index) for split in SPLITS for index, row in enumerate(sides[split])}
    found = {row.id: row for row in reversed(images) if row.id in place}
    if missing := place.keys() - found.keys():
        raise DataError(
            f"{len(missing)} images of the split are not among the collected ones (first: {min(missing)[:12]}…); "
            "run `dvc repro` from the start."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    tmp = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        arrays = {
            split: np.lib.format.open_memmap(
                tmp / f"{split}.images.npy", mode="w+", dtype=np.uint8, shape=(len(sides[split]), spec.height, spec.width, 3)
            )
            for split in SPLITS
        }
        moments = _Moments()
        batches = in_batches(
            track(read(found.values()), "decode", len(found)), _BATCH_IMAGES, _BATCH_BYTES, size=lambda item: len(item[1])
        )
        jobs = ([(row.id, data) for row, data in batch] for batch in batches)
        for ids, pixels in map_batches(executor, _Preprocess(spec), jobs):
            for image_id, image in zip(ids, pixels, strict=True):
                split, index = place[image_id]
                arrays[split][index] = image
            moments.add(pixels[[place[image_id][0] == "train" for image_id in ids]])
        for split in SPLITS:
            arrays[split].flush()
            np.save(tmp / f"{split}.labels.npy", np.array([number[row.label] for row in sides[split]], dtype=np.int64))
            write_text(tmp / f"{split}.ids.txt", "".join(f"{row.id}\n" for row in sides[split]))
        mean, std = moments.result()
        meta = PackedMeta(
            labels=labels,
            preprocess=spec,
            mean=mean,
            std=std,
            counts={split: len(sides[split]) for split in SPLITS},
            policy=policy,
            data_id=data_id(rows),
        )
        write_json(tmp / META, meta.model_dump(mode="json"))
        _publish(tmp, folder)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    return meta


def data_id(rows: Iterable[SplitRow]) -> str:
    """The name of a data version: sha256 over the sorted (id, label, split)."""
    digest = hashlib.sha256()
    for image_id, label, split in sorted((row.id, row.label, row.split) for row in rows):
        digest.update(f"{image_id}\0{label}\0{split}\n".encode())
    return digest.hexdigest()


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
        ArtifactError: a file is missing, damaged, or the three do not belong together.
    """
    meta = load_meta(folder)
    try:
        images = np.load(folder / f"{split}.images.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / f"{split}.labels.npy", allow_pickle=False)
        ids = (folder / f"{split}.ids.txt").read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder}, side {split}, cannot be read ({error}); run `dvc repro augment`.") from error
    count = meta.counts[split]
    fits = (
        images.shape == (count, meta.preprocess.height, meta.preprocess.width, 3)
        and images.dtype == np.uint8
        and labels.shape == (count,)
        and len(ids) == count
        and (count == 0 or (labels.min() >= 0 and labels.max() < len(meta.labels)))
    )
    if not fits:
        raise ArtifactError(f"{folder}, side {split}: arrays and {META} do not belong together; run `dvc repro augment`.")
    return PackedSplit(images, labels, ids)


@dataclass(frozen=True)
class _Preprocess:
    """The work of one process on one batch."""

    spec: PreprocessSpec

    def __call__(self, batch: Sequence[tuple[str, bytes]]) -> tuple[list[str], PixelArray]:
        pixels = np.empty((len(batch), self.spec.height, self.spec.width, 3), dtype=np.uint8)
        for index, (image_id, data) in enumerate(batch):
            try:
                pixels[index] = preprocess(data, self.spec, max_pixels=_MAX_PIXELS)
            except ImageError as error:
                raise DataError(f"Image {image_id[:12]}… passed `clean` but cannot be decoded now: {error}") from error
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
    for file in tmp.iterdir():
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

"""Any classification data set of `torchvision.datasets`, by its name.

It is looked for below `collect.path`; only `download: true` fetches it, into `data/downloads`. Does not cover: detection,
segmentation and video sets, whose targets are no classes.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from visionloop.data.sources.base import Skipped, SourceImage, SourceOptions, read_regular
from visionloop.data.sources.layout import class_name, side_of
from visionloop.errors import ConfigError, DataError
from visionloop.paths import DOWNLOADS
from visionloop.preprocess import encode_png
from visionloop.records import Split

# The sets that are arrays say nothing about when an image was made.
NO_TIME = datetime(1970, 1, 1, tzinfo=UTC)


class Options(SourceOptions):
    """Which set, and whether it may be fetched."""

    dataset: str = Field(min_length=1, description="a name of torchvision.datasets: CIFAR10, MNIST, Flowers102, ...")
    download: bool = Field(default=False, description="fetch it into data/downloads")
    split: str | None = Field(default=None, description="the set's own `split`, as EMNIST's letters; all sides where null")


class TorchvisionSource:
    """Every side of a data set; files as they are where the set is made of class folders, else lossless PNG.

    Raises:
        ConfigError: torchvision has no such set, or the set has no such split.
        DataError: the set is not there, is damaged, cannot be fetched, or is no classification set.
    """

    name = "torchvision"

    def __init__(self, root: Path, options: Options) -> None:
        self._options = options
        self._root = DOWNLOADS if options.download else root
        self._kind = _dataset(options.dataset)
        self.skipped: list[Skipped] = []
        self._sides = list(self._open())

    def __len__(self) -> int:
        return sum(len(data) for _, data in self._sides)

    def __iter__(self) -> Iterator[SourceImage]:
        for side, data in self._sides:
            prefix = f"{side}/" if side else ""
            names = [_class_text(one) for one in getattr(data, "classes", None) or ()]
            if files := getattr(data, "samples", None):
                yield from self._files(files, names, side)
                continue
            for index in range(len(data)):
                image, target = data[index]
                label = self._label(target, names)
                pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
                path = f"{prefix}{label}/{index:06d}.png"
                yield SourceImage(encode_png(pixels), label, path, NO_TIME, side, labelled_by=self._options.dataset)

    def _files(self, files: list[tuple[str, int]], names: list[str], side: Split | None) -> Iterator[SourceImage]:
        for file, target in files:
            path = Path(file).relative_to(self._root).as_posix()
            read = read_regular(file)
            if isinstance(read, tuple):
                label = self._label(target, names)
                yield SourceImage(read[0], label, path, read[1], side, labelled_by=self._options.dataset)
            else:
                self.skipped.append(Skipped(path, read))

    def _label(self, target: object, names: list[str]) -> str:
        name = self._options.dataset
        if isinstance(target, bool) or not hasattr(target, "__index__"):
            raise DataError(f"torchvision's {name} has {type(target).__name__} where a class is expected; take another set.")
        index = int(target.__index__())
        return class_name(names[index] if 0 <= index < len(names) else str(index), f"torchvision's {name}")

    def _open(self) -> Iterator[tuple[Split | None, Any]]:
        takes, split = inspect.signature(self._kind.__init__).parameters, self._options.split
        if "train" in takes or _takes_train(self._kind):
            extra = {} if split is None else {"split": split}
            yield "train", self._make(train=True, **extra)
            yield "test", self._make(train=False, **extra)
        elif "split" not in takes:
            yield None, self._make()
        elif split is not None:
            yield side_of(split), self._make(split=split)
        else:
            for word in ("train", "val", "valid", "test"):
                try:
                    yield side_of(word), self._make(split=word)
                except _NoSuchSplitError:
                    continue

    def _make(self, **arguments: Any) -> Any:
        name = self._options.dataset
        if self._options.download:
            if "download" not in inspect.signature(self._kind.__init__).parameters and not _takes_train(self._kind):
                raise DataError(
                    f"torchvision cannot fetch {name}; bring it below collect.path by hand and set download: false."
                )
            arguments["download"] = True
        try:
            return self._kind(root=str(self._root), **arguments)
        except ValueError as error:
            if "argument split" not in str(error):
                raise DataError(f"torchvision's {name} cannot be opened: {_first_line(error)}.") from error
            if self._options.split is None:
                raise _NoSuchSplitError from error
            raise ConfigError(f"collect.options.split: {_first_line(error)}") from error
        except (OSError, RuntimeError) as error:
            if self._options.download:
                raise DataError(
                    f"{name} could not be fetched into {self._root}: {_first_line(error)}. Run this again."
                ) from error
            raise DataError(
                f"torchvision's {name} is not below {self._root} ({_first_line(error)}); put it there, or set "
                f"collect.options.download: true, which fetches it into {DOWNLOADS}."
            ) from error
        except TypeError as error:
            raise DataError(
                f"torchvision's {name} takes other arguments ({_first_line(error)}); take another set."
            ) from error


class _NoSuchSplitError(Exception):
    """The set does not know the word that was tried."""


def _dataset(name: str) -> type[Any]:
    import torchvision.datasets

    found = {one: getattr(torchvision.datasets, one) for one in torchvision.datasets.__all__}
    kinds = {one: kind for one, kind in found.items() if isinstance(kind, type) and hasattr(kind, "__getitem__")}
    if name not in kinds:
        near = difflib.get_close_matches(name.casefold(), {one.casefold(): one for one in kinds}, n=1, cutoff=0.5)
        close = next((one for one in kinds if near and one.casefold() == near[0]), None)
        hint = f"did you mean {close!r}?" if close else "its documentation lists them."
        raise ConfigError(f"collect.options.dataset: torchvision has no data set {name!r}; {hint}")
    return kinds[name]


def _takes_train(kind: type[Any]) -> bool:
    """Whether it is one of the MNIST family, some of which hide `train` and `download` in their keyword arguments."""
    import torchvision.datasets

    return issubclass(kind, torchvision.datasets.MNIST)


def _class_text(name: object) -> str:
    """A class's name; ImageNet gives several words for one, of which the first is taken."""
    return str(name[0] if isinstance(name, tuple | list) else name)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160].rstrip(".")

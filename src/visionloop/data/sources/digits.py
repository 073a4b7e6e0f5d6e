"""The 1,797 handwritten digits of scikit-learn: bundled, so the whole road runs without a download.

Does not cover: scikit-learn's other data sets, which it downloads.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from visionloop.data.sources.base import Skipped, SourceImage, SourceOptions
from visionloop.preprocess import encode_png

# When the digits were given to the UCI repository; a fixed time keeps the shards equal from run to run.
DIGITS_TIME = datetime(1998, 7, 1, tzinfo=UTC)


class Options(SourceOptions):
    """There is nothing to choose."""


class DigitsSource:
    """Gray PNG of 8 x 8 pixels; the set's 0..16 becomes 0..255."""

    name = "digits"

    def __init__(self, root: Path | None = None, options: Options | None = None) -> None:
        del root, options
        from sklearn.datasets import load_digits  # a second of importing that no other source needs

        bunch = load_digits()
        self._pixels = np.rint(bunch.images * 255 / 16).astype(np.uint8)
        self._labels = [str(label) for label in bunch.target]
        self.skipped: list[Skipped] = []

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[SourceImage]:
        for index, (pixels, label) in enumerate(zip(self._pixels, self._labels, strict=True)):
            yield SourceImage(encode_png(pixels), label, f"{label}/{index:04d}.png", DIGITS_TIME, None, labelled_by="digits")

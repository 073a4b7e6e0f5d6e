"""Small copies of every image of a set, in a temporary file: 3 kB each, which is 3 GB for a million.

Read and written by position with `pread` and `pwrite`, never mapped, so that memory holds only what was asked for. The file
has no name in its folder, so nothing is left behind even when the process is killed.

Does not cover: making the copies, which `fingerprints` does.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from visionloop.preprocess import PixelArray

THUMB_SIDE = 32
_SHAPE = (THUMB_SIDE, THUMB_SIDE, 3)
_BYTES = THUMB_SIDE * THUMB_SIDE * 3


class Thumbs:
    """`count` RGB images of 32 x 32 pixels on disk; one that was never put is black.

    >>> with Thumbs(2, Path("reports")) as thumbs:
    ...     thumbs.put(1, image.tobytes())
    ...     thumbs.read(np.array([1])).shape
    (1, 32, 32, 3)
    """

    def __init__(self, count: int, folder: Path) -> None:
        self.count = count
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by __exit__
        os.ftruncate(self._file.fileno(), count * _BYTES)

    def __enter__(self) -> Thumbs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def put(self, index: int, pixels: bytes) -> None:
        """Write the uint8 RGB pixels, 32 * 32 * 3 bytes, of image `index`."""
        assert len(pixels) == _BYTES and 0 <= index < self.count, (len(pixels), index, self.count)
        written = os.pwrite(self._file.fileno(), pixels, index * _BYTES)
        assert written == _BYTES, written

    def read(self, indices: npt.NDArray[np.int64]) -> PixelArray:
        """The images at `indices` [n] in that order, uint8 [n, 32, 32, 3]."""
        out = np.empty((len(indices), *_SHAPE), dtype=np.uint8)
        if not len(indices):
            return out
        assert indices.min() >= 0 and indices.max() < self.count, (indices.min(), indices.max(), self.count)
        # One read for each run of neighbours.
        starts = np.flatnonzero(np.diff(indices, prepend=indices[0] - 2) != 1)
        ends = np.append(starts[1:], len(indices))
        flat = out.reshape(-1).data
        for start, end, first in zip(starts.tolist(), ends.tolist(), indices[starts].tolist(), strict=True):
            self._fill(flat[start * _BYTES : end * _BYTES], first * _BYTES)
        return out

    def batches(self, size: int) -> Iterator[tuple[int, PixelArray]]:
        """All images in order, `size` at a time: the position of the first, and uint8 [n, 32, 32, 3]."""
        for start in range(0, self.count, size):
            yield start, self.read(np.arange(start, min(start + size, self.count), dtype=np.int64))

    def _fill(self, part: memoryview, offset: int) -> None:
        # One call may bring less than was asked for, and never more than 2 GiB.
        while part:
            got = os.preadv(self._file.fileno(), [part], offset)
            assert got > 0, "the temporary file of small copies was shortened from outside"
            part, offset = part[got:], offset + got

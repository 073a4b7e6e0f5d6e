"""Some rows of packed sides as one more side: nothing is copied until a batch is gathered.

Does not cover: images that are streamed from the shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from visionloop.data.packing import PackedSplit


class _Rows:
    """Rows of several image arrays uint8 [N, H, W, 3], as far as training and prediction ask of an array."""

    def __init__(self, parts: Sequence[npt.NDArray[np.uint8]], rows: npt.NDArray[np.int64]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(part) for part in parts)])
        self._rows = rows
        self.shape = (len(rows), *parts[0].shape[1:])
        self.dtype, self.ndim = np.dtype(np.uint8), 4

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        chosen = self._rows[key]
        found = np.empty((len(chosen), *self.shape[1:]), dtype=np.uint8)
        for part, start in zip(self._parts, self._starts, strict=False):
            mine = (chosen >= start) & (chosen < start + len(part))
            found[mine] = part[chosen[mine] - start]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)


def take(sides: Sequence[PackedSplit], rows: npt.NDArray[np.int64]) -> PackedSplit:
    """The images at `rows`, counted through `sides` one after another, as a side of its own.

    Stored variants are rows like any other, and stand last as on every side if they do in `rows`.
    """
    ids = [name for side in sides for name in side.ids]
    labels = np.concatenate([side.labels for side in sides])
    chosen = [ids[row] for row in rows.tolist()]
    images = cast(npt.NDArray[np.uint8], _Rows([side.images for side in sides], rows))
    return PackedSplit(images, labels[rows], chosen, sum("+" in name for name in chosen))

"""Which images a model's data version had, and on which side: a small file beside each published model.

The gate needs it to tell images that the served model has learnt from, test images that stand since then, and images
that are new to it. Ids are cut to 16 hexadecimal digits, so that a million images take 9 MB: among as many, two share
these by chance once in 37 million data sets.

Does not cover: the images themselves, which may be gone when a later model is judged.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from visionloop.errors import ArtifactError
from visionloop.records import SplitRow

UNSEEN, LEARNT, TEST = 0, 1, 2
_DIGITS = 16


@dataclass(frozen=True)
class Seen:
    """The images of one data version."""

    keys: npt.NDArray[np.uint64]  # [N], the first digits of the ids, sorted
    test: npt.NDArray[np.bool_]  # [N], whether the image was test; else the model learnt from it or was chosen by it

    @classmethod
    def of(cls, rows: Sequence[SplitRow]) -> Seen:
        """The images of a split."""
        keys = _keys([row.id for row in rows])
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], np.array([row.split == "test" for row in rows], dtype=np.bool_)[order])

    def sides(self, ids: Sequence[str]) -> npt.NDArray[np.int8]:
        """For each id `UNSEEN`, `LEARNT` (train or val) or `TEST`; int8 [len(ids)]."""
        asked = _keys(ids)
        found = np.full(len(asked), UNSEEN, dtype=np.int8)
        if len(self.keys) == 0:
            return found
        places = np.minimum(np.searchsorted(self.keys, asked), len(self.keys) - 1)
        known = self.keys[places] == asked
        found[known] = np.where(self.test[places[known]], TEST, LEARNT)
        return found

    def to_bytes(self) -> bytes:
        """The content of the file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, keys=self.keys, test=self.test)
        return buffer.getvalue()


def read_seen(path: Path) -> Seen | None:
    """Read what `to_bytes` made; None where there is no file, beside a model that an earlier visionloop published.

    Raises:
        ArtifactError: the file is damaged.
    """
    try:
        # From bytes: of a damaged file numpy leaves the handle open.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            keys, test = arrays["keys"], arrays["test"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ArtifactError(
            f"{path} cannot be read ({type(error).__name__}); restore it with `dvc checkout`, or remove it, and every "
            "present test image counts as one that its model was tested on."
        ) from error
    if keys.dtype != np.uint64 or test.dtype != np.bool_ or keys.shape != test.shape or keys.ndim != 1:
        raise ArtifactError(f"{path} is no list of images of this visionloop; restore it with `dvc checkout`, or remove it.")
    return Seen(keys, test)


def _keys(ids: Sequence[str]) -> npt.NDArray[np.uint64]:
    return np.array([int(name[:_DIGITS], 16) for name in ids], dtype=np.uint64)

"""A file of `torch.save` as tensors, looked through before torch reads it: never code, never more than the file holds.

Does not cover: which network they fit (`weights`, `table`), and whether the file is the one that its card names
(`files.read_verified`).
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from visionloop.errors import ArtifactError

_ZIP = b"PK\x03\x04"


def read_tensors(data: bytes, name: str) -> object:
    """What `torch.save` wrote, read with `weights_only=True`: tensors, numbers and text in lists and mappings.

    torch inflates what is compressed, so that 300 kB may become 300 MB; it writes nothing compressed itself.

    >>> read_tensors(Path("model.pt").read_bytes(), "model.pt")

    Raises:
        ArtifactError: the file is damaged, holds code or anything compressed, or a tensor of it has NaN; `name` is how the
            message calls it.
    """
    if data.startswith(_ZIP):
        _check_zip(data, name)
    try:
        value: object = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(
            f"{name} cannot be read as tensors ({_reason(error)}); save it with `torch.save(model.state_dict(), path)`."
        ) from error
    for key, tensor in _tensors(value):
        if tensor.is_floating_point() and torch.isnan(tensor).any():
            raise ArtifactError(f"{name} has NaN in {key[:60]!r}; take an earlier file, or train again with a lower rate.")
    return value


def _check_zip(data: bytes, name: str) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            entries = file.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise ArtifactError(
            f"{name} cannot be read as tensors (it is cut short or damaged: {_reason(error)}); fetch or build it again."
        ) from error
    size = sum(entry.file_size for entry in entries)
    if size > len(data) or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ArtifactError(
            f"{name} is compressed: its {len(data) / 1e6:.1f} MB would become {size / 1e6:,.1f} MB; torch writes no such "
            "file. Save it with `torch.save(model.state_dict(), path)`."
        )


def _tensors(value: object, key: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _tensors(item, str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, key)


def _reason(error: Exception) -> str:
    """torch's own words, which advise to read the file unsafely from the second sentence on."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0][:100]

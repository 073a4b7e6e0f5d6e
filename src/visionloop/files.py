"""Files that are whole or absent: atomic writes, and hashes that are checked on the bytes that are used.

Does not cover: appending (the store's spool does that), and folders, which are published by `os.rename` where they are made.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from visionloop.errors import ArtifactError


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Give a temporary path beside `target`; on success flush it to disk and rename it over `target`, else remove it.

    >>> with atomic_path(Path("model.onnx")) as tmp:
    ...     onnx.save(model, tmp)
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=f".tmp{target.suffix}")
    os.close(handle)
    tmp = Path(name)
    try:
        yield tmp
        with tmp.open("rb") as written:
            os.fsync(written.fileno())
        tmp.chmod(0o644)
        tmp.replace(target)
        sync_folder(target.parent)
    finally:
        tmp.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_open(target: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file for `target` in `mode` ("w", text as UTF-8, or "wb"); see `atomic_path`."""
    with atomic_path(target) as tmp, tmp.open(mode, encoding=None if "b" in mode else "utf-8") as file:
        yield file


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target`, whole or not at all."""
    with atomic_open(target, "wb") as file:
        file.write(data)


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` as UTF-8, whole or not at all."""
    write_bytes(target, text.encode())


def write_json(target: Path, value: object) -> None:
    """Write `value` as indented JSON with a final newline, whole or not at all; NaN and infinity are refused."""
    write_text(target, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename in it outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content as 64 hexadecimal digits, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read_verified(path: Path, sha256: str) -> bytes:
    """Read a file once and return its bytes only if their SHA-256 is `sha256`.

    The bytes that were hashed are the bytes that are returned, so a file exchanged after the check cannot slip in.

    Raises:
        ArtifactError: the file is missing or its hash differs.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}); run `dvc repro` or `dvc pull` to bring it back."
        ) from error
    got = sha256_bytes(data)
    if got != sha256:
        raise ArtifactError(
            f"{path} is damaged or was exchanged: its card says sha256 {sha256[:12]}…, the file has {got[:12]}…; "
            f"restore it with `dvc checkout --force {path}` or rebuild it with `dvc repro`."
        )
    return data

"""The state of an interrupted training: one file, whole or absent, refused when damaged or of another training.

The file is a line of JSON (hash of the rest, fingerprint, epochs done) and then torch's own format, read back with
`weights_only=True`. Random states are not in it: every epoch seeds its own (see `batches.seed_of`).
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from visionloop.files import sha256_bytes, write_bytes

NAME = "checkpoint.bin"
SMALLER = "smaller.bin"  # of a second training, in which a smaller network learns from the first
_FORMAT = 1
# Saving may take this share of the time, so that epochs of a tenth of a second are not spent on writing.
_TIME_SHARE = 0.05


class Checkpoints:
    """Saves to and restores from one folder.

    `fingerprint` names the training: data, parameters, architecture, versions. A checkpoint of another one is not used.
    """

    def __init__(self, folder: Path, fingerprint: str, name: str = NAME) -> None:
        self._path = folder / name
        self._fingerprint = fingerprint
        self._saved_at = time.monotonic()
        self._save_seconds = 0.0

    def due(self) -> bool:
        """Whether saving now keeps to its share of the time; the first time it always does."""
        return time.monotonic() - self._saved_at >= self._save_seconds / _TIME_SHARE

    def save(self, epochs_done: int, state: Mapping[str, Any]) -> None:
        """Write the state after `epochs_done` epochs over the one before, whole or not at all."""
        start = time.monotonic()
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        payload = buffer.getvalue()
        head = {
            "format": _FORMAT,
            "sha256": sha256_bytes(payload),
            "fingerprint": self._fingerprint,
            "epochs_done": epochs_done,
        }
        write_bytes(self._path, json.dumps(head).encode() + b"\n" + payload)
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - start

    def restore(self) -> tuple[dict[str, Any] | None, str]:
        """The saved state, or None, and a sentence that says which; the sentence is "" where nothing was saved."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return (
                None,
                f"The checkpoint {self._path} cannot be read ({error.strerror}); training starts from the beginning.",
            )
        head_text, _, payload = data.partition(b"\n")
        try:
            head = json.loads(head_text)
            known = head["format"] == _FORMAT
            sha256, fingerprint, epochs_done = head["sha256"], head["fingerprint"], int(head["epochs_done"])
        except (ValueError, KeyError, TypeError):
            known, sha256, fingerprint, epochs_done = True, "", "", 0
        if not known or sha256 != sha256_bytes(payload):
            return None, f"The checkpoint {self._path} is damaged and is not used; training starts from the beginning."
        if fingerprint != self._fingerprint:
            return None, (
                f"The checkpoint {self._path} is of other data, parameters or versions and is not used; "
                "training starts from the beginning."
            )
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        return state, f"Training goes on after epoch {epochs_done}, from {self._path}."

    def clear(self) -> None:
        """Remove the checkpoint; the folder stays, empty, because `dvc.yaml` names it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        for file in self._path.parent.iterdir():
            if file.is_file():  # the checkpoint, and temporary files of a killed save
                file.unlink()

"""How far two forms of one model (torch, ONNX, INT8, served) are apart on the same images, and the golden answers.

Needs no torch, so that what comes after the export runs without it. Does not cover: whether INT8 is good enough, which is a
question of accuracy and speed (`quantize.py`).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visionloop.errors import ArtifactError, ParityError
from visionloop.runtime import Floats, Images, OnnxModel

# Two classes closer than this are a tie, which float32 sums in another order may break the other way.
_TIE = 1e-4


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two answers to the same images are apart."""

    max_logit_difference: float
    max_embedding_difference: float
    top1_agreement: float  # share of images with the same first class


@dataclass(frozen=True)
class Golden:
    """Held-out images and the answers that every later form of the model must repeat: the content of `golden.npz`."""

    images: Images  # uint8 [N, H, W, 3]
    ids: tuple[str, ...]  # [N], sha256 of the encoded image
    logits: Floats  # [N, K]
    embedding: Floats  # [N, D]

    def to_bytes(self) -> bytes:
        """The content of the file; equal arrays give equal bytes."""
        buffer = io.BytesIO()
        np.savez(buffer, images=self.images, ids=np.array(self.ids), logits=self.logits, embedding=self.embedding)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Golden:
        """Read what `to_bytes` made. Raises ArtifactError where it is something else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                ids = tuple(str(item) for item in file["ids"])
                return cls(file["images"], ids, file["logits"], file["embedding"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"golden.npz cannot be read ({error}); rebuild it with `dvc repro export`.") from error


def compare(expected: tuple[Floats, Floats], got: tuple[Floats, Floats]) -> Parity:
    """Largest differences and the agreement of the first class between two answers (logits, embedding)."""
    return Parity(
        max_logit_difference=_difference(expected[0], got[0]),
        max_embedding_difference=_difference(expected[1], got[1]),
        top1_agreement=float((expected[0].argmax(axis=1) == got[0].argmax(axis=1)).mean()),
    )


def prove_parity(model: OnnxModel, golden: Golden, *, tolerance: float, name: str = "ONNX") -> Parity:
    """Compare a model with the golden answers, with all images in one batch and one by one; return the larger differences.

    Both are asked because a graph with a batch size baked in, or a kernel chosen by batch size, is right in one only.

    Raises:
        ParityError: a logit differs by more than `tolerance`, or an image gets another first class.
    """
    logits = golden.logits
    found: list[Parity] = []
    for batch_size in (len(golden.images), 1):
        answer = model.run_all(golden.images, batch_size)
        parity = compare((logits, golden.embedding), answer)
        found.append(parity)
        where = f"{name} on {len(golden.images)} golden images at batch size {batch_size}"
        if parity.max_logit_difference > tolerance:
            raise ParityError(
                f"{where}: a logit differs by {parity.max_logit_difference:.3g}, more than the {tolerance:g} allowed, so "
                "this is not the model that gave the golden answers; rebuild with `dvc repro`, and if it stays, try another "
                "opset."
            )
        ordered = np.sort(logits, axis=1)
        is_tie = ordered[:, -1] - ordered[:, -2] < _TIE if logits.shape[1] > 1 else np.zeros(len(logits), bool)
        wrong = int(((answer[0].argmax(axis=1) != logits.argmax(axis=1)) & ~is_tie).sum())
        if wrong:
            raise ParityError(
                f"{where}: {wrong} of them get another first class, though no logit differs by more than {tolerance:g}; "
                "lower `export.max_logit_difference` to see where, and rebuild with `dvc repro`."
            )
    return Parity(
        max(item.max_logit_difference for item in found),
        max(item.max_embedding_difference for item in found),
        min(item.top1_agreement for item in found),
    )


def accuracy(logits: Floats, labels: Sequence[int] | npt.NDArray[np.int64]) -> float:
    """Share of images [N] whose largest logit [N, K] is that of their label."""
    return float((logits.argmax(axis=1) == np.asarray(labels)).mean())


def _difference(expected: Floats, got: Floats) -> float:
    return float(np.abs(expected.astype(np.float64) - got).max(initial=0.0))

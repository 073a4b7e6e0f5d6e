"""How far two forms of one model (torch, ONNX, INT8, served) are apart on the same images, and the golden answers.

Needs no torch, so that what comes after the export runs without it. Does not cover: whether INT8 is good enough, which is a
question of accuracy and speed (`quantize.py`).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from visionloop.card import ModelCard
from visionloop.compression.targets import processor
from visionloop.errors import ArtifactError, ParityError
from visionloop.paths import GOLDEN
from visionloop.runtime import Floats, Images, OnnxModel

# Of a model on another machine, see `logit_error`. On a processor without VNNI INT8 forms of digits networks with 7-bit
# weights were at most 0.002 (ONNX Runtime) and 0.010 (OpenVINO) from exact integers. 8-bit ones, whose sums it cuts, were
# 0.11 to 0.32 away and lost 0.9 to 3.9 points; a CNN's per tensor, which lost none, was 0.008 and 0.09.
ELSEWHERE = 0.05
# In the lineage of a card: the processor (`targets.processor`) that the golden answers were given on.
PROCESSOR = "processor"
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


def logit_error(expected: Floats, got: Floats) -> float:
    """Distance of logits [N, K] from the expected ones, as a share of how far these spread over images (both as 2-norms).

    A shift that is the same for all classes of an image changes no answer and is not counted.
    """
    expected, got = (values - values.mean(axis=1, keepdims=True) for values in (expected, got))
    spread = float(np.linalg.norm(expected - expected.mean(axis=0)))
    return float(np.linalg.norm(got - expected)) / max(spread, 1e-12)


def check_golden(model: OnnxModel, card: ModelCard, folder: Path) -> None:
    """Check that a published model answers on this machine as where it was made; without golden answers nothing is asked.

    The same file does not give the same logits everywhere: a processor without VNNI cuts the sums of 8-bit weights, an older
    runtime may compute otherwise. Accuracy was measured where the model was made, and holds for those answers alone.

    Raises:
        ArtifactError: the logits lie further from the golden ones than `ELSEWHERE`, or the golden answers are damaged.
    """
    if GOLDEN not in card.files:
        return
    golden = Golden.from_bytes(card.read_file(folder, GOLDEN))
    error = logit_error(golden.logits, model.run_all(golden.images)[0])
    if error <= ELSEWHERE:
        return
    made, here = card.lineage.get(PROCESSOR, "unknown"), processor()
    cause = "this is another processor or runtime than where it was made"
    if card.precision == "int8" and (made, here) == ("cpu-vnni", "cpu"):
        cause = "it was quantized on a processor with VNNI, and this one has none, so that sums of 8-bit weights are cut"
    raise ArtifactError(
        f"The model in {folder} answers {len(golden.images)} golden images otherwise here: its logits are {error:.2f} of "
        f"their spread away, and {ELSEWHERE:g} is allowed. Probably {cause}; on a machine like this one run "
        "`dvc repro --force --single-item quantize`, then `dvc repro`."
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

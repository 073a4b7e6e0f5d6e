"""Every form of one model on the same images, pair by pair, against stated tolerances: the parity contract.

A pair is a reference and a form that must answer like it: torch and ONNX, ONNX and what is shipped, offline and served. Each
pair has three numbers (top-1 agreement, largest and mean logit distance) and a limit for each. Logits are calibrated, so a
distance of d changes the odds of two classes by at most a factor of exp(2 d).

Does not cover: the golden answers of one pair at export (`compression.parity`), and accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from visionloop.config import Tolerance

Floats = npt.NDArray[np.floating[Any]]

# Two classes closer than this are a tie, which float32 sums in another order may break the other way.
TIE = 1e-4
# Below it a probability in float32 has too few digits left for its logarithm to say anything.
FLOOR = 1e-30
# In place of a tolerance, of pairs that no verdict depends on: INT8 that is not shipped, and INT8 that is another network.
TOLD = "told"
LEARNT = "learnt"
# Why the two forms of a pair may differ at all.
REASONS = {
    "onnx": "Both compute in float32; sums run in another order, and the graph has folded what torch keeps apart.",
    "shipped": "INT8 rounds on purpose, in ranges set on images as collected, which alone count; FP32 is the same graph.",
    LEARNT: "It learnt to be rounded, so it is another network; `quantize` has judged its accuracy and each class on val.",
    TOLD: "It is not shipped, so nothing depends on it: reports/compression.html says why.",
    "tensor": "The same file in the same runtime; another batch size may sum in another order.",
    "bytes": "As by tensor, with another Pillow's decoding before it and float32 probabilities after it.",
}


@dataclass(frozen=True, slots=True)
class Distance:
    """How far two forms are apart on the same images."""

    images: int
    agreement: float  # share of images with the same first class; where the reference has a tie, either counts
    max_logit_distance: float
    mean_logit_distance: float
    max_embedding_distance: float | None = None  # relative to the largest number of the reference's


@dataclass(frozen=True)
class Pair:
    """Two forms, what is between them, and what of that is too much."""

    name: str  # "torch_onnx", as in the report
    reference: str  # in words
    form: str
    tolerance: str  # its key in parity.tolerances, and in REASONS; or TOLD or LEARNT
    distance: Distance
    by_image: Floats  # [N], largest logit distance of each image
    disagreeing: tuple[int, ...]  # positions of images with another first class, those of ties too
    over: tuple[str, ...]  # a sentence for each number beyond its limit


def compare(
    name: str,
    forms: tuple[str, str],
    expected: Floats,
    got: Floats,
    *,
    tolerance: tuple[str, Tolerance | None],
    embeddings: tuple[Floats, Floats] | None = None,
    answers: Sequence[int] | None = None,
    judged: int | None = None,
) -> Pair:
    """Compare logits [N, K] of a reference and a form, N at least 1.

    `answers` [N] are the classes that the form names, where it says more than logits; only the first `judged` images count
    in the distance, all unless named. NaN is beyond every limit; without limits the pair is told and not judged.

    >>> compare("torch_onnx", ("torch", "ONNX FP32"), logits, others, tolerance=("onnx", params.tolerances.onnx)).over
    ()
    """
    wide = np.asarray(expected, np.float64)
    by_image = np.abs(wide - got).max(axis=1)
    named = np.asarray(got).argmax(axis=1) if answers is None else np.asarray(answers)
    others = np.flatnonzero(wide.argmax(axis=1) != named)
    ordered = np.sort(wide, axis=1)
    tied = ordered[:, -1] - ordered[:, -2] < TIE if wide.shape[1] > 1 else np.ones(len(wide), bool)
    embedding = None
    if embeddings is not None:
        scale = max(1.0, float(np.abs(embeddings[0]).max(initial=0.0)))
        embedding = float(np.abs(np.asarray(embeddings[0], np.float64) - embeddings[1]).max(initial=0.0)) / scale
    count = len(wide) if judged is None else judged
    distance = Distance(
        images=count,
        agreement=1 - float((~tied[others[others < count]]).sum()) / count,
        max_logit_distance=float(by_image[:count].max()),
        mean_logit_distance=float(np.abs(wide - got)[:count].mean()),
        max_embedding_distance=embedding,
    )
    key, limits = tolerance
    over = tuple(_over(distance, limits, f"{forms[0]} and {forms[1]}", f"parity.tolerances.{key}")) if limits else ()
    return Pair(name, *forms, key, distance, by_image, tuple(int(index) for index in others), over)


def log_probabilities(probabilities: Floats) -> Floats:
    """Logits [N, K] of probabilities [N, K], but for a constant of each image: what probabilities still say of them."""
    found: Floats = np.log(np.maximum(np.asarray(probabilities, np.float64), FLOOR))
    return found


def flat(pairs: Sequence[Pair]) -> dict[str, dict[str, float]]:
    """The numbers of the pairs by their names, for the report."""
    return {
        pair.name: {name: value for name, value in asdict(pair.distance).items() if value is not None and name != "images"}
        for pair in pairs
    }


def other_decoder(offline: Mapping[str, str], served: Mapping[str, str]) -> str:
    """A sentence that says in which libraries two Pythons differ, "" where they do not.

    >>> other_decoder({"pillow": "13.0.0"}, {"pillow": "11.3.0"})
    'The served models decode with another pillow (11.3.0) than the project (13.0.0).'
    """
    names = [name for name in offline if served.get(name) != offline[name]]
    if not names:
        return ""
    here, there = (", ".join(found.get(name, "none") for name in names) for found in (offline, served))
    return f"The served models decode with another {', '.join(names)} ({there}) than the project ({here})."


def _over(distance: Distance, limits: Tolerance, forms: str, key: str) -> list[str]:
    said = []
    if not distance.agreement >= limits.min_agreement:  # not the other way round: NaN must fail
        wrong = round((1 - distance.agreement) * distance.images)
        said.append(
            f"{forms} agree on {distance.agreement:.2%} of {distance.images} images ({wrong} differ), below "
            f"{key}.min_agreement: {limits.min_agreement:g}"
        )
    for name, words in (("max_logit_distance", "up to"), ("mean_logit_distance", "on average")):
        found, limit = getattr(distance, name), getattr(limits, name)
        if not found <= limit:
            said.append(f"{forms} differ by {words} {found:.3g} of a logit, above {key}.{name}: {limit:g}")
    # The embedding has no natural scale; the logits are one matrix away from it.
    if distance.max_embedding_distance is not None and not distance.max_embedding_distance <= limits.max_logit_distance:
        said.append(
            f"{forms} differ by up to {distance.max_embedding_distance:.3g} of the embedding's largest number, above "
            f"{key}.max_logit_distance: {limits.max_logit_distance:g}"
        )
    return said

"""Which of two models to take: a paired test on the same images, and a budget for the answer's time.

Does not cover: the paired test itself (`comparison`), and the gate between a new model and the served one (`gate`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from visionloop.errors import BlockedError
from visionloop.evaluation.comparison import Comparison
from visionloop.models import Family


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is known of one model before the choice."""

    family: Family
    architecture: str
    correct: Mapping[str, bool]  # id of a test image -> whether it was answered rightly
    latency_ms: float  # median for one image, ONNX Runtime, this machine
    megabytes: float  # of the ONNX file

    @property
    def accuracy(self) -> float:
        """On the test images."""
        return sum(self.correct.values()) / len(self.correct)


@dataclass(frozen=True, slots=True)
class Selection:
    """The choice, and its reason in a sentence or two."""

    family: Family
    reason: str


def choose(cnn: Candidate, vit: Candidate, comparison: Comparison, *, alpha: float, max_latency_ms: float) -> Selection:
    """The rule: over the budget drops out; then the significantly more accurate; then the faster.

    Raises:
        BlockedError: both are over the latency budget.
    """
    late = [one for one in (cnn, vit) if one.latency_ms > max_latency_ms]
    if len(late) == 2:
        raise BlockedError(
            f"Both models are over select.max_latency_ms = {max_latency_ms:g}: the {_named(cnn)} takes "
            f"{cnn.latency_ms:.2f} ms, the {_named(vit)} {vit.latency_ms:.2f} ms; raise it, or train smaller networks."
        )
    if late:
        (other,) = (one for one in (cnn, vit) if one is not late[0])
        return Selection(
            other.family,
            f"The {_named(late[0])} takes {late[0].latency_ms:.2f} ms, over the budget of {max_latency_ms:g} ms; "
            f"the {_named(other)} takes {other.latency_ms:.2f} ms.",
        )
    better, worse = (cnn, vit) if comparison.difference > 0 else (vit, cnn)
    apart = (
        f"{comparison.only_first + comparison.only_second} of {comparison.images} test images are answered rightly by one "
        f"model only, {comparison.only_first} by the {_named(cnn)} and {comparison.only_second} by the {_named(vit)} "
        f"(McNemar p = {comparison.p_value:.3g})"
    )
    if comparison.p_value < alpha:
        return Selection(
            better.family,
            f"The {_named(better)} is more accurate: {better.accuracy:.2%} against {worse.accuracy:.2%}; {apart}, below "
            f"alpha = {alpha:g}.",
        )
    # Equal times are decided by accuracy, and then for the CNN, whose INT8 form gains more.
    faster, slower = sorted((cnn, vit), key=lambda one: (one.latency_ms, -one.accuracy))
    return Selection(
        faster.family,
        f"No difference in accuracy is proved: {cnn.accuracy:.2%} ({_named(cnn)}) against {vit.accuracy:.2%} "
        f"({_named(vit)}); {apart}, not below alpha = {alpha:g}. The {_named(faster)} is the faster: "
        f"{faster.latency_ms:.2f} ms against {slower.latency_ms:.2f} ms for one image.",
    )


def _named(one: Candidate) -> str:
    return f"{one.family.upper().replace('VIT', 'ViT')} {one.architecture}"

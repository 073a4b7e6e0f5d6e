"""Each branch of the rule with its sentence."""

from __future__ import annotations

import pytest

from visionloop.errors import BlockedError
from visionloop.evaluation.comparison import compare
from visionloop.evaluation.selection import Candidate, Selection, choose


def outcomes(both: int, only_first: int, only_second: int, neither: int) -> tuple[dict[str, bool], dict[str, bool]]:
    pairs = [(True, True)] * both + [(True, False)] * only_first + [(False, True)] * only_second + [(False, False)] * neither
    return {str(i): a for i, (a, _) in enumerate(pairs)}, {str(i): b for i, (_, b) in enumerate(pairs)}


def decide(counts: tuple[int, int, int, int], cnn_ms: float, vit_ms: float, budget: float = 20.0) -> Selection:
    first, second = outcomes(*counts)
    cnn = Candidate("cnn", "small_resnet", first, cnn_ms, 0.3)
    vit = Candidate("vit", "small_vit", second, vit_ms, 0.6)
    return choose(cnn, vit, compare(first, second, 0.95), alpha=0.05, max_latency_ms=budget)


def test_a_proved_difference_beats_speed() -> None:
    selection = decide((150, 2, 20, 8), cnn_ms=0.1, vit_ms=5.0)
    assert selection.family == "vit"
    assert "more accurate: 94.44% against 84.44%; 22 of 180 test images" in selection.reason


def test_without_proof_the_faster_is_taken() -> None:
    selection = decide((170, 2, 5, 3), cnn_ms=0.1, vit_ms=5.0)
    assert selection.family == "cnn"
    assert "No difference in accuracy is proved" in selection.reason
    assert "(McNemar p = 0.453)" in selection.reason
    assert decide((170, 2, 5, 3), cnn_ms=1.0, vit_ms=1.0).family == "vit"  # equally fast: the more accurate
    assert decide((170, 5, 5, 0), cnn_ms=1.0, vit_ms=1.0).family == "cnn"


def test_the_budget_comes_first() -> None:
    selection = decide((150, 2, 20, 8), cnn_ms=0.1, vit_ms=25.0)
    assert selection.family == "cnn"
    assert selection.reason.startswith("The ViT small_vit takes 25.00 ms, over the budget of 20 ms")
    with pytest.raises(BlockedError, match="Both models are over"):
        decide((150, 2, 20, 8), cnn_ms=21.0, vit_ms=25.0)

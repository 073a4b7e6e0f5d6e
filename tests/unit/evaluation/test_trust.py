"""visionloop.evaluation.trust: the numbers of a calibration on test images, by hand; and its pictures are pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from visionloop.card import Calibration, UnknownRule
from visionloop.evaluation.calibration_pictures import rest_png, trusted_png, unknowns_png
from visionloop.evaluation.predictions import SplitPredictions
from visionloop.evaluation.trust import Trusted, trust_detail, trust_numbers
from visionloop.evaluation.unknowns import KINDS, choose
from visionloop.unknown import SCORES, judge

CALIBRATION = Calibration(
    temperature=0.5,
    precision_thresholds={"a": 0.9, "b": None},
    unknown=UnknownRule(score="probability", threshold=0.4, kept=0.95),
    review_below=0.65,
    review_share=0.25,
)
LOGITS = np.array([[1.5, 0], [0.2, 0], [0, 1.5], [1.2, 0]], np.float32)
TARGETS = np.array([0, 1, 1, 1])


def trusted(calibration: Calibration = CALIBRATION) -> Trusted:
    probabilities = calibration.apply(LOGITS)
    doubt = judge(calibration, LOGITS.astype(np.float64) / calibration.temperature, np.zeros((4, 2)), None)
    return Trusted(SplitPredictions(("w", "x", "y", "z"), TARGETS, probabilities), LOGITS, doubt, calibration)


def test_the_numbers_by_hand() -> None:
    found = trust_numbers(trusted(), {"noise": np.array([0.45, 0.3]), "letters": np.array([0.5])}, 0.95)
    # Confidences are 0.953, 0.599, 0.953 and 0.917: the second goes to a person, the fourth is wrong.
    assert found["reviewed"] == 0.25
    assert found["rest_accuracy"] == pytest.approx(2 / 3, abs=1e-4)
    # Above their class's threshold are the first and the fourth; no answer of class b is ever sure.
    assert (found["sure"], found["sure_precision"]) == (0.5, 0.5)
    assert found["known_kept"] == 0.75  # only the second is stranger than 0.4, by 0.0013
    assert found["unknown_found"] == 0.75  # half of the noise and all letters
    assert found["aurc"] == pytest.approx((0 + 0 + 1 / 3 + 2 / 4) / 4, abs=1e-4)
    assert found["temperature"] == 0.5
    assert found["log_loss_raw"] == pytest.approx(-np.log(1 / (1 + np.exp([-1.5, 0.2, -1.5, 1.2]))).mean(), abs=1e-4)


def test_without_a_rule_and_without_a_sure_answer_their_numbers_are_left_out() -> None:
    plain = CALIBRATION.model_copy(update={"unknown": None, "precision_thresholds": {"a": None, "b": None}})
    found = trust_numbers(trusted(plain), {}, 0.95)
    assert found["sure"] == 0
    assert not {"sure_precision", "known_kept", "unknown_auroc"} & set(found)


def test_the_detail_has_the_bins_of_before_and_after() -> None:
    found = trust_detail(trusted(), 0.95)
    assert found["unknown"]["score"] == "probability"
    assert sum(one["images"] for one in found["bins"]) == 4
    raw = [one["confidence"] for one in found["bins_raw"]]
    assert max(raw) == pytest.approx(1 / (1 + np.exp(-1.5)), abs=1e-3)


def test_the_pictures_are_the_same_bytes_each_time() -> None:
    rng = np.random.default_rng(0)
    known = {score: rng.normal(size=20) for score in SCORES}
    measured = choose(known, {score: {kind: rng.normal(1, 1, 20) for kind in KINDS} for score in SCORES})
    for first, again in (
        (trusted_png(trusted(), "t"), trusted_png(trusted(), "t")),
        (rest_png(trusted(), "t"), rest_png(trusted(), "t")),
        (unknowns_png(measured, "t"), unknowns_png(measured, "t")),
    ):
        assert first == again
        assert min(Image.open(io.BytesIO(first)).size) > 300

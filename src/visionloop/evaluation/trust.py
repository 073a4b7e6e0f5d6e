"""What a calibration is worth on the test images, which had no part in it: numbers, and the bins behind its picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from visionloop.card import Calibration
from visionloop.evaluation.calibration import (
    Bin,
    area_under_risk,
    expected_error,
    first_class,
    log_loss,
    reliability,
    rest,
    share_interval,
)
from visionloop.evaluation.predictions import Floats, SplitPredictions
from visionloop.evaluation.unknowns import separation
from visionloop.features import softmax
from visionloop.unknown import Doubt


@dataclass(frozen=True)
class Trusted:
    """Test images under a calibration."""

    predictions: SplitPredictions  # with calibrated probabilities
    logits: npt.NDArray[np.float32]  # [N, K], as they were before
    doubt: Doubt
    calibration: Calibration

    def bins(self, *, raw: bool = False, adaptive: bool = False, confidence_level: float = 0.95) -> list[Bin]:
        """The bins of the reliability picture; `raw` before the temperature."""
        probabilities = softmax(self.logits) if raw else self.predictions.probabilities
        flags = first_class(probabilities, self.predictions.targets)
        return reliability(*flags, adaptive=adaptive, confidence_level=confidence_level)


def trust_numbers(trusted: Trusted, foreign: Mapping[str, Floats], confidence_level: float) -> dict[str, float]:
    """Flat numbers, rounded to four digits, the small `aurc` to six; what is not defined is left out.

    `foreign` are the scores of foreign images, by kind.

    - log_loss_raw, calibration_error_raw, adaptive_calibration_error(_raw): before the temperature, and in bins of equal
      size; the calibrated log loss and error stand among the other metrics.
    - aurc: mean risk over all coverages.
    - reviewed, rest_accuracy: the share that goes to a person, and how accurate the others are.
    - sure, sure_precision: the share of answers above their class's threshold, and how many of these are right.
    - known_kept, unknown_found: of test images, the share not called unknown; of foreign ones, the share called so.
    - unknown_auroc, unknown_fpr95: how the score separates the two, each kind counting alike.
    """
    test, doubt, calibration = trusted.predictions, trusted.doubt, trusted.calibration
    confidence, correct = first_class(test.probabilities, test.targets)
    numbers: dict[str, float | None] = {
        "temperature": calibration.temperature,
        "log_loss_raw": log_loss(trusted.logits, test.targets),
        "calibration_error_raw": expected_error(trusted.bins(raw=True)),
        "adaptive_calibration_error_raw": expected_error(trusted.bins(raw=True, adaptive=True)),
        "adaptive_calibration_error": expected_error(trusted.bins(adaptive=True)),
        "aurc": area_under_risk(confidence, correct),
    }
    left = rest(confidence, correct, calibration.review_below, confidence_level)
    numbers |= {"reviewed": left.reviewed, "rest_accuracy": left.accuracy}
    numbers |= {"rest_accuracy_low": left.low, "rest_accuracy_high": left.high}
    # A class that no threshold makes precise is never sure.
    least = [x if x is not None else np.inf for x in calibration.precision_thresholds.values()]
    sure = confidence >= np.array(least)[test.predicted]
    numbers |= {"sure": float(sure.mean()), **_share("sure_precision", correct[sure], confidence_level)}
    if doubt.unknown is not None and doubt.score is not None and calibration.unknown is not None:
        found = separation(doubt.score, foreign, confidence_level)
        threshold = calibration.unknown.threshold
        numbers |= _share("known_kept", ~doubt.unknown, confidence_level)
        numbers["unknown_found"] = float(np.mean([(scores > threshold).mean() for scores in foreign.values()]))
        numbers |= {"unknown_auroc": found.auroc, "unknown_auroc_low": found.low, "unknown_auroc_high": found.high}
        numbers["unknown_fpr95"] = found.fpr95
    # One mistake among 200 images, the least certain one, is an area of 0.000025.
    return {name: round(value, 6 if name == "aurc" else 4) for name, value in numbers.items() if value is not None}


def trust_detail(trusted: Trusted, confidence_level: float) -> dict[str, Any]:
    """The calibration itself, and the bins of the reliability picture before and after, for detail.json."""

    def bins(*, raw: bool, adaptive: bool) -> list[dict[str, float]]:
        found = trusted.bins(raw=raw, adaptive=adaptive, confidence_level=confidence_level)
        return [{name: round(value, 4) for name, value in asdict(one).items()} for one in found]

    return {
        **trusted.calibration.model_dump(mode="json"),
        "bins_raw": bins(raw=True, adaptive=False),
        "bins": bins(raw=False, adaptive=False),
        "adaptive_bins_raw": bins(raw=True, adaptive=True),
        "adaptive_bins": bins(raw=False, adaptive=True),
    }


def _share(name: str, flags: np.ndarray, confidence_level: float) -> dict[str, float | None]:
    if not len(flags):
        return {}
    low, high = share_interval(int(flags.sum()), len(flags), confidence_level)
    return {name: float(flags.mean()), f"{name}_low": low, f"{name}_high": high}

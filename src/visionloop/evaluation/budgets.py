"""Limits on the numbers of a report, and the sentence that says which of them is passed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from visionloop.errors import ArtifactError, BlockedError

OVER_BUDGET = "over_budget"  # the key of a report: a list of sentences, empty where all is within


def judge(numbers: Mapping[str, float], budgets: Mapping[str, float | None], section: str) -> list[str]:
    """A sentence for each number over its budget; none where `budgets` has None.

    A number whose name ends in "error" may be at most its budget, any other has to reach it. One that the report does not
    have, or has as NaN, because there was nothing to measure it on, is over its budget: nobody showed that it is within.

    >>> judge({"corruption_accuracy": 0.7}, {"corruption_accuracy": 0.75}, "robustness")
    ['corruption_accuracy is 0.7000, below robustness.budgets.corruption_accuracy: 0.75']
    """
    sentences = []
    for name, limit in budgets.items():
        if limit is None:
            continue
        key = f"{section}.budgets.{name}: {limit:g}"
        if math.isnan(numbers.get(name, math.nan)):
            sentences.append(f"{name} could not be measured, which {key} asks for")
        elif name.endswith("error") and numbers[name] > limit:
            sentences.append(f"{name} is {numbers[name]:.4f}, above {key}")
        elif not name.endswith("error") and numbers[name] < limit:
            sentences.append(f"{name} is {numbers[name]:.4f}, below {key}")
    return sentences


def refuse_over_budget(report: Path) -> None:
    """Stop where the report of an earlier stage, which DVC was told to skip, says that a budget is passed.

    Raises:
        BlockedError: a budget is passed.
        ArtifactError: the report is missing or damaged.
    """
    try:
        over = [str(sentence) for sentence in json.loads(report.read_text(encoding="utf-8"))[OVER_BUDGET]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{report} cannot be read ({error}); run `dvc repro {report.stem}`.") from error
    if over:
        raise BlockedError(f"{report} is over its budget: {'; '.join(over)}.")

"""A report over budget stops the stages after it, whatever DVC was told to skip."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionloop.errors import ArtifactError, BlockedError
from visionloop.evaluation.budgets import refuse_over_budget
from visionloop.files import write_json


def test_a_report_over_budget_blocks_and_one_within_lets_pass(tmp_path: Path) -> None:
    report = tmp_path / "robustness.json"
    write_json(report, {"corruption_accuracy": 0.9, "over_budget": []})
    refuse_over_budget(report)
    write_json(report, {"over_budget": ["a is 1, below b: 2", "c is 3, above d: 2"]})
    with pytest.raises(BlockedError, match="over its budget: a is 1, below b: 2; c is 3, above d: 2") as caught:
        refuse_over_budget(report)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", [None, "", "[]", '{"corruption_accuracy": 1}', '{"over_budget": 3}'])
def test_a_report_that_is_missing_or_none_is_named(tmp_path: Path, text: str | None) -> None:
    report = tmp_path / "robustness.json"
    if text is not None:
        report.write_text(text)
    with pytest.raises(ArtifactError, match=r"robustness.json cannot be read .*dvc repro robustness"):
        refuse_over_budget(report)

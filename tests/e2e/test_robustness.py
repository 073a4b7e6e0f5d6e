"""A model over a budget of robustness is neither quantized nor deployed, and the report says which budget."""

from __future__ import annotations

import json
import sys

from tests.e2e.project import Project


def test_a_model_over_budget_goes_no_further_and_the_report_says_why(own_road: Project) -> None:
    shipped = (own_road.root / "models/shipped/card.json").read_bytes()
    own_road.set_param(r"^  budgets: .*$", "  budgets: {clean_accuracy: 0.01, corruption_accuracy: 1}")
    done = own_road.run("dvc", "repro", "deploy", code=None)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert "BlockedError: Robustness is over budget: corruption_accuracy is 0." in said
    assert "below robustness.budgets.corruption_accuracy: 1" in said
    assert "Traceback" not in said and "Running stage 'quantize'" not in said
    report = json.loads((own_road.root / "reports/robustness.json").read_text())
    assert report["passed"] == 0 and len(report["over_budget"]) == 1
    assert (own_road.root / "reports/robustness/corruptions.png").is_file()
    # Neither does a stage that DVC is told to run alone.
    refused = own_road.run(sys.executable, "-m", "pipeline.stages.quantize", code=2)
    assert "reports/robustness.json is over its budget: corruption_accuracy is 0." in refused.stderr
    assert (own_road.root / "models/shipped/card.json").read_bytes() == shipped

"""The best values as a diff that a patch tool takes, in a params file that is valid and has all its comments."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline import tuning
from tests.unit.tuning.studies import ROOT, plan, study
from visionloop.config import load_params
from visionloop.errors import ConfigError
from visionloop.tuning import page
from visionloop.tuning.results import Results, collect

_SPACE = {
    "train.cnn.learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    "train.cnn.options.width": {"choices": [8, 4]},
    "train.weight_decay": {"choices": [0.05, 0.25]},
    "augment.rotation_degrees": {"low": 0, "high": 20, "step": 4},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    made = study(plan(space=_SPACE, trials=10, epochs=1, sampler="random"), tmp_path_factory.mktemp("study"))
    made.work()
    return collect(made.plan, made.study, made.trials(), val_images=48, max_latency_ms=20.0)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def comments(text: str) -> list[str]:
    return re.findall(r"(?<=\s)# .*", text)


def test_apply_writes_the_values_and_keeps_everything_else(results: Results, project: Path) -> None:
    before = (project / "params.yaml").read_text()
    row = next(row for row in results.complete if row.values["train.weight_decay"] == 0.25)
    said = tuning.apply(results, row)
    after, params = (project / "params.yaml").read_text(), load_params(project / "params.yaml")
    assert params.train.of("cnn").weight_decay == 0.25
    assert params.train.of("vit").weight_decay == load_params(ROOT / "params.yaml").train.weight_decay
    assert params.train.cnn.learning_rate == row.values["train.cnn.learning_rate"]
    assert comments(after) == comments(before)
    assert len(after.splitlines()) == len(before.splitlines())
    assert f"params.yaml has the values of trial {row.number} now: " in said
    changed = [new for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert {line.split(":")[0].strip() for line in changed} <= {"learning_rate", "options", "override", "rotation_degrees"}


def test_the_diff_makes_of_the_one_file_the_other(results: Results, project: Path) -> None:
    after, diff = tuning.change(results, results.best)
    assert diff.startswith("--- a/params.yaml\n+++ b/params.yaml\n@@ ")
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=project, check=True)
    assert (project / "params.yaml").read_text() == after


def test_values_that_the_file_has_change_nothing(results: Results, project: Path) -> None:
    baseline = results.baseline
    assert baseline is not None
    assert baseline.number == 0
    before = (project / "params.yaml").read_bytes()
    assert tuning.change(results, baseline)[1] == ""
    assert tuning.apply(results, baseline) == "params.yaml has the values of trial 0 already."
    assert (project / "params.yaml").read_bytes() == before


def test_a_trial_that_is_not_there_is_refused_with_the_best_ones(results: Results) -> None:
    with pytest.raises(ConfigError, match=f"no complete trial 99; the best are {results.best.number}, "):
        results.trial(99)


def test_the_report_is_json_and_says_the_gain(results: Results) -> None:
    report = json.loads(json.dumps(results.report(), allow_nan=False))
    assert report["trials"] == report["complete"] == 10
    assert report["val_accuracy"] == round(max(row.accuracy or 0 for row in results.complete), 4)
    assert report["val_accuracy"] >= report["baseline_val_accuracy"]
    assert sum(report["importances"].values()) == pytest.approx(1, abs=0.001)
    assert set(report["best"]) == set(_SPACE)


def test_the_page_needs_nothing_from_outside_and_names_every_trial(results: Results, project: Path) -> None:
    html = page.render(results, tuning.change(results, results.best)[1])
    assert not re.search(r"https?://|<script|<link|<img|url\(", html)
    assert len(re.findall(r'<tr class="', html)) == 10
    for key in _SPACE:
        assert f"<figcaption>{key}</figcaption>" in html
    assert "prefers-color-scheme: dark" in html

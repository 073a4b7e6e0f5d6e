"""Two runs side by side: out of git and DVC's cache, by a real repository, and what is said where one is not there."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline import comparing, process
from pipeline.comparing import Answers, Run, side_by_side
from pipeline.comparing_page import render
from visionloop.errors import PipelineError

LABELS = [str(number % 3) for number in range(90)]


def answers(wrong: int, count: int = 90) -> Answers:
    labels = {f"{number:03}": label for number, label in enumerate(LABELS[:count])}
    return Answers(labels, {name: "0" if int(name) < wrong and label == "1" else label for name, label in labels.items()})


def run(name: str, wrong: int, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "title": name, "params": {"train.epochs": 30, "clean.reject": ["blank"]}, "selected": "cnn",
        "metrics": {"cnn": {"accuracy": 1 - wrong / 90, "accuracy_low": 0.9, "accuracy_high": 1.0, "log_loss": 0.1}},
        "figures": {"quantize: test_accuracy": 0.9}, "answers": {"cnn": answers(wrong)},
    }  # fmt: skip
    return Run(name, **{**values, **changes})


def test_what_differs_is_listed_and_judged_on_the_same_images() -> None:
    new = run("new", 0, params={"train.epochs": 5, "clean.reject": ["blank"], "<b>": 1})
    found = side_by_side(run("old", 60), new)
    assert found.params == [("train.epochs", "30", "5"), ("<b>", "-", "1")]
    assert found.figures == []
    (pair,) = found.pairs
    assert pair.title == "CNN"
    assert pair.sentence.startswith("new against old: better by 22.2 points (95 % interval ")
    assert pair.sentence.endswith(" on 90 images).")
    (one,) = [change for change in pair.classes if change.gained]
    assert (one.label, one.images, one.gained, one.lost) == ("1", 30, 20, 0)
    assert re.fullmatch(r"\+0\.2222 \(\+0\.\d+ to \+0\.\d+\)", found.metrics[0][3])
    page = render(found)
    assert "&lt;b&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    buffer = io.StringIO()
    comparing.show(found, Console(file=buffer, width=120))
    assert "1: 33.3% to 100.0% of 30 images, 20 gained, 0 lost" in buffer.getvalue()


def test_other_test_images_other_families_and_nothing_shared() -> None:
    both = {"cnn": answers(0), "vit": answers(3)}
    found = side_by_side(run("old", 0, answers=both, selected="vit"), run("new", 0, answers={"cnn": answers(0, 60)}))
    assert [pair.title for pair in found.pairs] == ["CNN", "selected, CNN against ViT"]
    assert "evaluated on 90 test images and 60; this is said of those that both have" in found.pairs[0].sentence
    apart = side_by_side(run("old", 0), run("new", 0, answers={"cnn": Answers({"x": "1"}, {"x": "1"})}))
    assert "not evaluated on one common image" in apart.pairs[0].sentence
    lacking = run("new", 0, answers={}, lacks=("The answers are gone.",))
    assert side_by_side(run("old", 0), lacking).pairs == []
    assert "The answers are gone." in render(side_by_side(run("old", 0), lacking))


def write_run(wrong: int) -> None:
    folder = Path("reports/evaluate/cnn")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps({"images": 90, "accuracy": 1 - wrong / 90}))
    said = answers(wrong)
    rows = [
        {"id": name, "split": "test", "label": said.labels[name], "predicted": said.predicted[name]} for name in said.labels
    ]
    (folder / "predictions.parquet").unlink(missing_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "predictions.parquet")
    Path("params.yaml").write_text(f"train:\n  epochs: {wrong}\n")


def git(*arguments: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@test.invalid"]
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


def test_a_revision_is_read_from_git_and_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_NO_ANALYTICS", "DO_NOT_TRACK"):
        monkeypatch.setenv(name, "1")
    git("init", "-q")
    Path("params.yaml").write_text("{}")
    git("add", ".")
    git("commit", "-qm", "no run yet")
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], check=True, env=process.quiet_environment())
    write_run(60)
    command = [sys.executable, "-m", "dvc", "add", "-q", "reports/evaluate/cnn/predictions.parquet"]
    subprocess.run(command, check=True, env=process.quiet_environment())
    git("add", ".")
    git("commit", "-qm", "first run")
    write_run(0)

    buffer = io.StringIO()
    comparing.compare("HEAD", None, Console(file=buffer, width=120))
    assert ", first run)" in buffer.getvalue()
    assert "better by 22.2 points" in buffer.getvalue()
    assert "train.epochs" in Path("reports/compare.html").read_text()

    with pytest.raises(PipelineError, match=r"git has no revision 'nowhere'; `git log --oneline`"):
        comparing.read_run("nowhere")
    with pytest.raises(
        PipelineError, match=r"no run yet\) holds no results: there is no reports/evaluate/cnn/metrics\.json"
    ):
        comparing.read_run("HEAD~1")
    shutil.rmtree(".dvc/cache")
    (lack,) = comparing.read_run("HEAD").lacks
    assert lack.startswith("The answers of the CNN of ")
    assert "are not in DVC's cache, nor in a remote" in lack

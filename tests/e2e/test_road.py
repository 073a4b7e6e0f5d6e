"""The pipeline under real DVC: every stage runs from what it declares alone, and only what changed runs again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.e2e import alone
from tests.e2e.project import Project

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stage", alone.stages(ROOT))
def test_a_stage_runs_from_what_it_declares_and_writes_what_it_declares(road_folder: Path, stage: str) -> None:
    """The road was walked with each stage in a folder of the declared deps and params.yaml alone."""
    assert (road_folder / "alone" / stage).read_text() == ""


def test_nothing_runs_twice(road: Project) -> None:
    assert "Data and pipelines are up to date" in road.run("dvc", "status", "dvc.yaml").stdout
    assert "Data and pipelines are up to date" in road.run("dvc", "repro", "--dry").stdout


def test_only_what_a_parameter_touches_is_stale(own_road: Project) -> None:
    own_road.set_param(r"^  mistake_images: .*$", "  mistake_images: 3")
    status = json.loads(own_road.run("dvc", "status", "dvc.yaml", "--json").stdout)
    assert set(status) == {"evaluate@cnn", "evaluate@vit"}
    own_road.set_param(r"^  mistake_images: .*$", "  mistake_images: 24")
    own_road.set_param(
        r"^    architecture: small_vit\n    learning_rate: .*$", "    architecture: small_vit\n    learning_rate: 0.01"
    )
    assert set(json.loads(own_road.run("dvc", "status", "dvc.yaml", "--json").stdout)) == {"train@vit"}


@pytest.mark.parametrize("stage", ["collect", "clean", "split"])
def test_the_same_data_stages_give_the_same_bytes(road: Project, stage: str, tmp_path: Path) -> None:
    assert alone.run(stage, road.root, tmp_path) == ""
    [table] = [name for name in alone.declaration(ROOT, stage)["outs"] if name.endswith(".parquet")]
    assert (tmp_path / table).read_bytes() == (road.root / table).read_bytes()


def test_every_kept_image_stands_on_one_side(road: Project) -> None:
    split = pd.read_parquet(road.root / "data/split.parquet")
    shares = split["split"].value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.7, abs=0.01)
    assert shares["val"] == pytest.approx(0.2, abs=0.01)
    assert shares["test"] == pytest.approx(0.1, abs=0.01)
    assert split.groupby("cluster")["split"].nunique().max() == 1
    assert split["id"].is_unique


def test_dvc_verbs(own_road: Project) -> None:
    metrics = json.loads(own_road.run("dvc", "metrics", "show", "--json").stdout)
    assert 0 <= metrics[""]["data"]["reports/evaluate/cnn/metrics.json"]["data"]["accuracy"] <= 1
    assert "collect" in own_road.run("dvc", "dag").stdout
    own_road.run("dvc", "plots", "show", "--out", "plots")
    page = (own_road.root / "plots" / "index.html").read_text()
    assert "confusion" in page
    own_road.run("dvc", "push")
    own_road.set_param(r"^  label_smoothing: .*$", "  label_smoothing: 0.11")
    difference = own_road.run("dvc", "params", "diff").stdout
    assert "train.label_smoothing" in difference
    assert "0.11" in difference
    shutil.rmtree(own_road.root / "data" / "packed")
    shutil.rmtree(own_road.root / ".dvc" / "cache")
    own_road.run("dvc", "pull", "data/packed")
    assert (own_road.root / "data" / "packed" / "meta.json").exists()


def test_an_experiment_changes_one_parameter_and_reports_it(own_road: Project) -> None:
    own_road.run("git", "add", "-A")
    own_road.run("git", "commit", "-qm", "state")
    own_road.run("dvc", "exp", "run", "-S", "train.epochs=1", "train@cnn", timeout=400)
    shown = own_road.run("dvc", "params", "diff", "HEAD").stdout
    assert "train.epochs" in shown
    assert "reports/train/cnn/metrics.json" in own_road.run("dvc", "metrics", "diff", "HEAD").stdout


def test_a_wrong_parameter_stops_the_first_stage(own_road: Project) -> None:
    own_road.set_param(r"^  early_stopping_epochs: .*$", "  early_stoping_epochs: 3")
    done = own_road.run("dvc", "repro", "-f", "-s", "collect", code=None)
    assert done.returncode != 0
    assert "unknown key 'train.early_stoping_epochs'; did you mean 'early_stopping_epochs'?" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_cross_validation_runs_when_it_is_asked_for_and_its_answers_reach_clean(own_road: Project) -> None:
    own_road.cli("crossvalidate", "cnn", "--accept", timeout=500)
    report = own_road.root / "reports/crossvalidate/cnn"
    numbers = json.loads((report / "metrics.json").read_text())
    split = pd.read_parquet(own_road.root / "data/split.parquet")
    answers = pd.read_parquet(report / "out_of_fold.parquet")
    held = split[split["split"] != "test"].set_index("id")
    assert numbers["folds"] == 5 and numbers["images"] == len(answers) == len(held)
    assert (answers.set_index("id")["fold"] == held["fold"].loc[answers["id"]]).all()
    assert set(json.loads(own_road.run("dvc", "status", "dvc.yaml", "--json").stdout)) == {"clean"}
    said = own_road.run("dvc", "repro", "train@cnn", "train@vit", timeout=500).stdout
    assert f"Labels of {len(held):,} images are judged by the cnn's out-of-fold answers" in said
    assert "Running stage 'train" not in said, "a remark on a label changes no image"

"""The `visionloop` command: what it refuses, its exit codes, and that it starts at once."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline import cli
from serving.repository import publish
from tests import helpers_serving
from visionloop.errors import PipelineError
from visionloop.preprocess import encode_png

ROOT = Path(__file__).parents[3]
VERBS = ("doctor", "find-rate", "run", "predict", "serve", "up", "monitor", "simulate", "status")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a tiny published model, enough for what needs no DVC."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    helpers_serving.ship(tmp_path / "models" / "shipped")
    publish(tmp_path / "models" / "shipped", tmp_path / "model_repository", helpers_serving.DEPLOY)
    (tmp_path / "images").mkdir()
    for number in range(3):
        pixels = np.full((8, 8, 3), 80 * number, np.uint8)
        (tmp_path / "images" / f"{number}.PNG").write_bytes(encode_png(pixels))
    return tmp_path


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['visionloop', '--help']\n"
        "from pipeline import cli\n"
        "try: cli.main()\n"
        "except SystemExit: print([n for n in ('torch', 'prefect', 'evidently', 'pandas') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for verb in VERBS:
        assert f" {verb} " in done.stdout


def test_outside_of_a_project_it_says_so(tmp_path: Path) -> None:
    done = call(tmp_path, "status")
    assert done.returncode == 1
    assert done.stderr == (
        f"{tmp_path} is in no visionloop project (params.yaml and dvc.yaml); change to the project's folder.\n"
    )
    assert call(tmp_path, "predict", "--help").returncode == 0


def test_the_project_is_found_from_below(project: Path) -> None:
    assert cli.project_root(project / "images") == project
    with pytest.raises(PipelineError):
        cli.project_root(project.parent)


def test_predict_offline_takes_files_and_folders_relative_to_the_caller(project: Path) -> None:
    (project / "images" / "bad.jpg").write_bytes(b"no image")
    (project / "images" / "notes.txt").write_text("not looked at")
    done = call(project / "images", "predict", ".", "nowhere.png", "--offline", "--json")
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    names = [Path(line["file"]).name for line in lines]
    assert names == ["0.PNG", "1.PNG", "2.PNG", "bad.jpg", "nowhere.png"]
    assert [("error" in line) for line in lines] == [False, False, False, True, True]
    assert all(line["label"] in helpers_serving.LABELS for line in lines[:3])
    assert sum(lines[0]["probabilities"]) == pytest.approx(1, abs=1e-6)
    assert "2 of 5 images were refused" in done.stderr


def test_predict_without_an_endpoint_says_what_to_start(project: Path) -> None:
    done = call(project, "predict", "images")
    assert done.returncode == 1
    assert "No endpoint runs in this folder; start one with `visionloop up`" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_folder_is_refused(project: Path) -> None:
    (project / "empty").mkdir()
    done = call(project, "predict", "empty", "--offline")
    assert done.returncode == 1
    assert "There is no image in" in done.stderr


def test_a_misused_command_exits_with_2(project: Path) -> None:
    assert call(project, "predict").returncode == 2
    assert call(project, "simulate", "--count", "0").returncode == 2


def test_an_option_of_a_recipe_without_a_name_is_refused(project: Path) -> None:
    done = call(project, "recipe", "--small")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "--small and --force are of a recipe that is applied; name one, `visionloop recipe` lists them.\n"


def test_status_tells_the_rest_where_dvc_cannot_be_asked(project: Path) -> None:
    done = call(project, "status")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith("pipeline   This folder is no DVC project")
    assert lines[1].startswith("model      version 1,")
    assert "decision   none yet" in lines
    assert json.loads(call(project, "status", "--json").stdout)["stale_stages"] is None


def test_find_rate_takes_a_family_and_wants_packed_images(project: Path) -> None:
    done = call(project, "find-rate", "vti")
    assert (done.returncode, done.stderr) == (1, "find-rate takes the family cnn or vit, got 'vti'.\n")
    done = call(project, "find-rate", "vit")
    assert done.returncode == 1
    assert done.stderr.endswith("run `dvc repro augment`.\n")

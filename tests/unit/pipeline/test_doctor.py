"""`pipeline.doctor` in folders that lack one thing each."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pipeline import doctor

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with all that doctor looks at, and without model, data or environments."""
    for name in ("params.yaml", "dvc.yaml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/foreign").mkdir()
    shutil.copy(ROOT / ".dvc/config", tmp_path / ".dvc/config")
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failed() -> dict[str, str]:
    return {check.name: check.sentence for check in doctor.checks() if not check.ok}


def test_all_is_well_here(folder: Path) -> None:
    assert failed() == {}
    names = [check.name for check in doctor.checks()]
    assert names[:5] == ["python", "git", "dvc", "pins", "params"]
    assert names[-1] == "ports"


def test_a_wrong_pin_is_named(folder: Path) -> None:
    lock = folder / "requirements.lock"
    lock.write_text(lock.read_text().replace("fastapi==", "fastapi==99."))
    assert "the lock says 99." in failed()["pins"]
    assert "run `make setup`" in failed()["pins"]


def test_weights_that_are_not_there_are_named(folder: Path) -> None:
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("    weights: null\n", "    weights: models/absent.pt\n", 1))
    assert failed()["params"] == (
        "train.cnn: The weights file models/absent.pt does not exist; give its path from the project's folder."
    )


def test_a_wrong_parameter_is_named(folder: Path) -> None:
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("  keep_days:", "  keep_day:"))
    assert "did you mean 'keep_days'?" in failed()["params"]


def test_compiling_without_a_compiler_is_refused_before_any_stage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert failed() == {}
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace("  compile: never", "  compile: always"))
    assert failed()["params"].startswith(
        "train.compile is 'always', but there is no C++ compiler 'no-such-compiler'; install one"
    )


def test_a_missing_folder_a_wrong_source_and_a_pipe_among_the_images_are_named(folder: Path) -> None:
    os.mkfifo(folder / "data/raw/pipe.jpg")
    assert failed() == {
        "images": "data/raw/pipe.jpg is a pipe, socket or device, which DVC cannot hash; remove or rename it."
    }
    (folder / "data/foreign").rmdir()
    said = "calibrate.foreign is data/foreign, which is no folder; make it, it may be empty."
    assert failed()["params"] == said
    shutil.rmtree(folder / "data/raw")
    assert failed() == {"params": "collect.path is data/raw, which is no folder; name the folder of your images."}
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("source: digits", "source: foldr"))
    assert failed() == {"params": "collect.source: there is no source 'foldr'; did you mean 'folder'?"}


def test_no_repository_and_no_dvc(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(folder / ".git")
    shutil.rmtree(folder / ".dvc")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(folder.parent))
    assert set(failed()) == {"git", "dvc"}


def test_no_triton_environment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONLOOP_TRITON_VENV", str(folder / "nowhere"))
    assert "is not there; run `make setup`" in failed()["triton"]

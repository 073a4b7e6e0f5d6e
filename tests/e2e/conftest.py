"""What is made once for all end-to-end tests: the road, a copy of the project in which `dvc repro` ran on bundled data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.e2e import alone, warm
from tests.e2e.project import Project, copy_project

Once = Callable[[str, Callable[[Path], None]], Path]
# What a test of this road says holds for any model and any number of images, so it walks with few of both.
QUICK = {
    r"^  epochs: .*$": "  epochs: 2",
    r"^  budgets:.*\n(?:    .*\n)*": "  budgets: {}\n",  # two epochs reach none
    r"^  explained_images: .*$": "  explained_images: 2",
    r"^  images: 500 .*$": "  images: 60",  # of robustness
    r"^  attack_images: .*$": "  attack_images: 20",
    r"^  epsilons: .*$": "  epsilons: [2, 8]",
    r"^  pgd_steps: .*$": "  pgd_steps: 3",
    r"^  calibration_images: .*$": "  calibration_images: 64",
    r"^  search_seconds: .*$": "  search_seconds: 1",
    r"^  measure_seconds: .*$": "  measure_seconds: 0.1",
    r"^  qat_epochs: .*$": "  qat_epochs: 0",
    r"^  images: 64 .*$": "  images: 12",  # of parity
    r"^  odd_pictures: .*$": "  odd_pictures: 1",
    r"^      min_agreement: 0.95 .*$": "      min_agreement: 0.5",  # of INT8, on twelve images and after two epochs
    r"^      mean_logit_distance: 0.5 .*$": "      mean_logit_distance: 2",
}


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)`: a folder that `make` filled, for the first worker that asks and all others. Do not change it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base

    def folder(name: str, make: Callable[[Path], None]) -> Path:
        root, done = shared / name, shared / f"{name}.done"
        with FileLock(str(shared / f"{name}.lock"), timeout=900):
            if not done.exists():
                shutil.rmtree(root, ignore_errors=True)
                root.mkdir()
                make(root)
                done.touch()
        return root

    return folder


@pytest.fixture(scope="session")
def road_folder(once: Once) -> Path:
    """`project`, and beside it `alone`: what each stage did wrong when it ran from what it declares alone."""

    def walk(folder: Path) -> None:
        project = copy_project(folder / "project")
        for pattern, value in QUICK.items():
            project.set_param(pattern, value)
        project.run("git", "commit", "-qam", "a quick road")
        env = {**alone.install(folder / "bin", folder / "alone"), alone.PYTHON: str(warm.folder() / "python")}
        output = project.run("dvc", "repro", timeout=800, env=env)
        (folder / "road.log").write_text(output.stdout + output.stderr)

    return once("road", walk)


@pytest.fixture(scope="session")
def road(road_folder: Path) -> Project:
    """The project after `dvc repro` with two epochs. Do not change it."""
    return Project(road_folder / "project")


@pytest.fixture
def own_road(road: Project, tmp_path: Path) -> Project:
    """A private copy of the road, its DVC cache included, to change at will."""
    shutil.copytree(road.root, tmp_path / "project", symlinks=True, ignore=shutil.ignore_patterns("var"))
    return Project(tmp_path / "project")

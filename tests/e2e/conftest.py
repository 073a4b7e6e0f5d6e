"""The road, walked once for all end-to-end tests: a copy of the project in which `dvc repro` ran on the bundled data."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from tests.e2e.project import Project, copy_project


@pytest.fixture(scope="session")
def road(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after `dvc repro` with two epochs; made by the first worker that asks, shared by all. Do not change it."""
    shared = (
        tmp_path_factory.getbasetemp().parent if os.environ.get("PYTEST_XDIST_WORKER") else tmp_path_factory.getbasetemp()
    )
    root, done = shared / "road", shared / "road.done"
    with FileLock(str(shared / "road.lock"), timeout=900):
        if not done.exists():
            shutil.rmtree(root, ignore_errors=True)
            project = copy_project(root)
            project.set_param(r"^  epochs: .*$", "  epochs: 2")
            project.set_param(r"^  budgets:.*\n(?:    .*\n)*", "  budgets: {}\n")  # two epochs reach none
            project.run("git", "commit", "-qam", "two epochs")
            output = project.run("dvc", "repro", timeout=800)
            (shared / "road.log").write_text(output.stdout + output.stderr)
            done.touch()
    return Project(root)


@pytest.fixture
def own_road(road: Project, tmp_path: Path) -> Project:
    """A private copy of the road, its DVC cache included, to change at will."""
    shutil.copytree(road.root, tmp_path / "project", symlinks=True, ignore=shutil.ignore_patterns("var"))
    return Project(tmp_path / "project")

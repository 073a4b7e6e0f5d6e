"""A copy of the project to run its commands in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.e2e import warm

ROOT = Path(__file__).parents[2]
TRITON_VENV = Path(os.environ.get("VISIONLOOP_TRITON_VENV", ROOT / ".venv-triton"))

COLD_PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def environment(**more: str) -> dict[str, str]:
    """The environment of a user who activated the project's environment, telemetry off, `warm.folder()` in front."""
    return {
        **os.environ,
        "PATH": os.pathsep.join((str(warm.folder()), COLD_PATH)),
        "VISIONLOOP_TRITON_VENV": str(TRITON_VENV),
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@test.invalid",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@test.invalid",
        **more,
    }


@dataclass(frozen=True)
class Project:
    """A copy of the project; its commands use the copy's own code."""

    root: Path

    def run(
        self, *command: str, timeout: float = 300, code: int | None = 0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy; `code` is the exit code to insist on, None for any; `env` adds to its environment."""
        done = subprocess.run(
            command,
            cwd=self.root,
            env=environment(PYTHONPATH=f"{self.root / 'src'}{os.pathsep}{self.root}") | dict(env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if code is not None:
            assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    def cli(self, *arguments: str, timeout: float = 300, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run the `visionloop` command in the copy."""
        return self.run(sys.executable, "-m", "pipeline.cli", *arguments, timeout=timeout, code=code)

    def set_param(self, pattern: str, value: str) -> None:
        """Replace the first text that matches `pattern` in params.yaml."""
        path = self.root / "params.yaml"
        text, count = re.subn(pattern, value, path.read_text(), count=1, flags=re.M)
        assert count == 1, pattern
        path.write_text(text)


def copy_project(target: Path) -> Project:
    """Copy the project's files, those that git has or would take, into a git repository of its own."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    (target / "dvc.lock").unlink(missing_ok=True)
    project = Project(target)
    project.run("git", "init", "-q")
    project.run("git", "add", "-A")
    project.run("git", "commit", "-qm", "start")
    return project

"""What torch.compile lacks is named with the way to get it."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest

from visionloop import compiler


def a_compiler(folder: Path, name: str) -> None:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_the_compiler_of_the_environment_then_gpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert compiler.missing().startswith("there is no C++ compiler 'g++'; install one (Debian, Ubuntu: apt-get install g++)")
    a_compiler(tmp_path, "g++")
    assert "C++ compiler" not in compiler.missing()
    monkeypatch.setenv("CXX", "mine")
    assert compiler.missing().startswith("there is no C++ compiler 'mine'")
    a_compiler(tmp_path, "mine")
    assert "C++ compiler" not in compiler.missing()


def test_the_headers_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_compiler(tmp_path, "g++")
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    found = compiler.missing()
    assert found.startswith(f"Python's headers are not there ({tmp_path / 'Python.h'}); install them")
    assert found.endswith("apt-get install python3-dev)")
    (tmp_path / "Python.h").touch()
    assert compiler.missing() == ""

"""`pipeline.repro` against real DVC, on a small pipeline of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from pipeline import process, repro
from visionloop.errors import BlockedError, PipelineError

ROOT = Path(__file__).parents[3]
DVC_YAML = """
stages:
  first:
    cmd: python first.py
    deps: [first.py]
    outs: [first.txt]
  each:
    foreach: [a, b]
    do:
      cmd: echo ${item} > ${item}.txt
      deps: [first.txt]
      outs: ["${item}.txt"]
  last:
    cmd: python last.py
    deps: [a.txt, b.txt, last.py]
    outs: [last.txt]
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fresh")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "first.py").write_text("print('one line')\nopen('first.txt', 'w').write('1')\n")
    (root / "last.py").write_text("open('last.txt', 'w').write('1')\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True, env=process.quiet_environment())
    return root


@pytest.fixture
def root(fresh: Path, tmp_path: Path) -> Path:
    shutil.copytree(fresh, tmp_path / "project")
    return tmp_path / "project"


def dag(folder: Path) -> list[list[str]]:
    """Pairs of stages of the pipeline, the first before the second."""
    said = subprocess.run(
        [sys.executable, "-m", "dvc", "dag", "--dot"],
        cwd=folder,
        env=process.quiet_environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    edges = [line.replace('"', "").rstrip(";").split(" -> ") for line in said.splitlines() if " -> " in line]
    return [edge for edge in edges if not any(name.startswith("experiments/") for name in edge)]


def test_each_stage_of_the_project_comes_after_what_it_needs() -> None:
    names = repro.stage_names(ROOT)
    assert names[0] == "collect"
    assert names[-5:] == ["gate", "parity", "deploy", "reference", "report"]
    edges = dag(ROOT)
    assert {name for edge in edges for name in edge} == set(names)
    assert all(names.index(before) < names.index(after) for before, after in edges)


@pytest.mark.parametrize(("student", "teacher", "first"), [("vit", "cnn", "train@cnn"), ("cnn", "vit", "train@vit")])
def test_a_training_waits_for_its_teacher(tmp_path: Path, student: str, teacher: str, first: str) -> None:
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["train"][student]["teacher"] = teacher
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    edges = dag(tmp_path)
    assert (["train@cnn", "train@vit"] in edges, ["train@vit", "train@cnn"] in edges) == (
        teacher == "cnn",
        teacher == "vit",
    )
    names = repro.stage_names(tmp_path)
    assert next(name for name in names if name.startswith("train@")) == first
    assert all(names.index(before) < names.index(after) for before, after in edges)


def test_runs_then_skips_and_says_stage_k_of_n(root: Path) -> None:
    lines: list[str] = []
    result = repro.reproduce(on_line=lines.append, root=root)
    assert result.ran == ("first", "each@a", "each@b", "last")
    assert result.skipped == ()
    assert set(result.seconds) == set(result.ran)
    assert lines[0] == "[1/4] first"
    assert lines[1] == "        one line"
    assert lines[2].startswith("[1/4] first: ")
    assert lines[-1].startswith("[4/4] last: ")
    assert not any("git add" in line or "lock file" in line for line in lines)

    assert repro.stage_names(root) == ["first", "each@a", "each@b", "last"]
    (root / "last.py").write_text("open('last.txt', 'w').write('2')\n")
    assert repro.status(root) == ["last"]
    lines.clear()
    result = repro.reproduce(on_line=lines.append, root=root)
    assert result.ran == ("last",)
    assert result.skipped == ("first", "each@a", "each@b")
    assert lines[:2] == ["[1/4] first: unchanged", "[2/4] each@a: unchanged"]
    lines.clear()
    assert repro.reproduce(["each@b"], on_line=lines.append, single=True, root=root).ran == ()
    assert lines == ["[1/1] each@b: unchanged"]


def test_a_refusal_is_the_stages_own_sentence(root: Path) -> None:
    (root / "first.py").write_text(
        "import sys\nprint('DataError: data/raw is empty; add images.', file=sys.stderr)\nsys.exit(1)"
    )
    with pytest.raises(PipelineError, match=r"^Stage first stopped: DataError: data/raw is empty; add images\.$"):
        repro.reproduce(on_line=lambda _line: None, root=root)


def test_a_gate_that_says_no_keeps_exit_code_2(root: Path) -> None:
    (root / "first.py").write_text("import sys\nprint('BlockedError: too slow.', file=sys.stderr)\nsys.exit(2)")
    with pytest.raises(BlockedError, match=r"^Stage first says no: too slow\.$") as caught:
        repro.reproduce(on_line=lambda _line: None, root=root)
    assert caught.value.exit_code == 2


def test_a_broken_dvc_yaml_is_one_sentence(root: Path) -> None:
    (root / "dvc.yaml").write_text("stages:\n  x:\n    command: true\n")
    with pytest.raises(PipelineError, match=r"^DVC stopped: .*validation failed: 2 errors"):
        repro.reproduce(on_line=lambda _line: None, root=root)


def test_no_project_is_said(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match=r"has no dvc\.yaml; run this in the project's folder"):
        repro.reproduce(root=tmp_path)


SLEEPER = "import pathlib, os, time\npathlib.Path('pid').write_text(str(os.getpid()))\ntime.sleep(60)\n"
# A shell that starts the tests in the background leaves Ctrl-C ignored, and Python then takes no notice of it either.
RUN = """
import pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pipeline import repro
repro.reproduce(on_line=repr, root=pathlib.Path(sys.argv[1]))
"""


def start(root: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a run whose first stage sleeps; return the run and the process id of the stage."""
    (root / "first.py").write_text(SLEEPER)
    run = subprocess.Popen([sys.executable, "-c", RUN, str(root)], cwd=Path(__file__).parents[3], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (root / "pid").exists() or not (root / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return run, int((root / "pid").read_text())


def gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def test_ctrl_c_ends_the_stage_and_a_second_run_is_refused_meanwhile(root: Path) -> None:
    run, stage = start(root)
    try:
        with pytest.raises(PipelineError, match=rf"The pipeline runs already \(process {run.pid}\)"):
            repro.reproduce(root=root)
        run.send_signal(signal.SIGINT)
        run.wait(60)
        assert gone(stage, 5)
    finally:
        process.reap(repro.MARK, str(root))
        run.kill()
        run.wait()


def test_the_orphan_of_a_killed_run_is_ended_before_the_next(root: Path) -> None:
    run, stage = start(root)
    try:
        os.kill(run.pid, signal.SIGKILL)
        run.wait(60)
        (root / "first.py").write_text("open('first.txt', 'w').write('1')\n")
        lines: list[str] = []
        result = repro.reproduce(["first"], on_line=lines.append, root=root)
        assert gone(stage, 1)
        assert result.ran == ("first",)
        assert "of an earlier, killed run were still alive" in lines[0]
    finally:
        process.reap(repro.MARK, str(root))

"""Stands for `python` where DVC runs the stages: each runs in a folder that has its declared deps and params.yaml alone.

There an undeclared read fails, and an undeclared write is seen. What is declared comes back to the project; what was wrong
is noted for the tests. A stage that cannot run alone then runs in the project, so that the later ones have their say too.

Does not cover: the check of params.yaml that the first stage of a run makes under DVC (`pipeline.preflight`).
"""

from __future__ import annotations

import functools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

NOTES = "VISIONLOOP_TEST_NOTES"  # environment variable: the folder of the notes, a file for each stage that ran
PYTHON = "VISIONLOOP_TEST_PYTHON"  # environment variable: the program that runs a stage
STAGES = "pipeline.stages."


def stages(root: Path) -> list[str]:
    """The stages of dvc.yaml in its order, "train@cnn" for an item of a `foreach`."""
    return [
        f"{name}@{item}" if "foreach" in entry else name
        for name, entry in _entries(root).items()
        for item in entry.get("foreach", [""])
    ]


def declaration(root: Path, stage: str) -> dict[str, list[str]]:
    """A stage's cmd, deps and outs with the item and the parameters filled in."""
    name, _, item = stage.partition("@")
    entry = _entries(root)[name]
    body = entry.get("do", entry)

    def names(key: str) -> list[str]:
        found = [one if isinstance(one, str) else next(iter(one)) for one in body.get(key, [])]
        values = {
            "${item}": item,
            "${key}": item,
            "${item.teacher}": "none",
            "${collect.path}": "data/raw",
            "${calibrate.foreign}": "data/foreign",
        }
        return [functools.reduce(lambda name, one: name.replace(*one), values.items(), name) for name in found]

    return {
        "cmd": body["cmd"].replace("${item}", item).replace("${key}", item).split(" "),
        "deps": names("deps"),
        "outs": names("outs") + names("metrics") + names("plots"),
    }


def install(folder: Path, notes: Path) -> dict[str, str]:
    """Write the program that stands for `python` into `folder`; the environment that DVC has to have."""
    folder.mkdir()
    notes.mkdir()
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__)}" "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    path = (str(folder), str(Path(sys.executable).parent), os.environ["PATH"])
    return {"PATH": os.pathsep.join(path), NOTES: str(notes)}


def run(stage: str, root: Path, folder: Path) -> str:
    """Run a stage of the project `root` in the new `folder`, from what it declares alone; what was wrong, "" if nothing."""
    declared = declaration(root, stage)
    for name in [*declared["deps"], "params.yaml"]:
        _copy(root / name, folder / name)
    before = _files(folder)
    # Without the name of the stage it does not ask for `pipeline.preflight`, which is no dep of any stage.
    env = {name: value for name, value in os.environ.items() if name != "DVC_STAGE"}
    done = subprocess.run(
        [os.environ.get(PYTHON, sys.executable), *declared["cmd"][1:]],
        cwd=folder,
        env={**env, "PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}", "PYTHONDONTWRITEBYTECODE": "1"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    sys.stderr.write(done.stderr)
    if done.returncode:
        return f"{stage} ends with exit code {done.returncode}:\n{done.stderr}"
    outs = [folder / name for name in declared["outs"]]
    wrong = [f"{stage} declares {out.relative_to(folder)} and did not write it" for out in outs if not out.exists()]
    for file, state in _files(folder).items():
        if file not in before and not any(out == file or out in file.parents for out in outs):
            wrong.append(f"{stage} wrote {file.relative_to(folder)} undeclared")
        elif before.get(file, state) != state:
            wrong.append(f"{stage} changed {file.relative_to(folder)}, which it declares to read")
    return "\n".join(wrong)


def main() -> None:
    """As `python -m pipeline.stages.<stage> <item>` in the project's folder."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["-m"] and arguments[1].startswith(STAGES):
        stage = "@".join([arguments[1].removeprefix(STAGES), *arguments[2:]])
        root, note = Path.cwd(), Path(os.environ[NOTES]) / stage
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            wrong = run(stage, root, folder)
            note.write_text(wrong)
            if not wrong:
                for out in declaration(root, stage)["outs"]:
                    _copy(folder / out, root / out)
                return
    raise SystemExit(subprocess.call([sys.executable, *arguments]))


@functools.cache
def _entries(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    return found


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """The files below, with size and time of change."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    main()

"""Every precondition of this machine and this checkout, one sentence each: what was found, or what to do.

Nothing is changed or started. Does not cover: whether the model is any good; `dvc metrics show` says that.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline import endpoints, preflight, watched
from serving.server import free_port, preconditions
from visionloop.config import ServeParams, load_params, load_section
from visionloop.data.sources import check_source
from visionloop.errors import ConfigError, VisionloopError

LOCK = Path("requirements.lock")
# Packages whose exact version was found to matter (docs/troubleshooting.md), and those that most of the work stands on.
PINNED = ("prefect", "fastapi", "sqlalchemy", "pandas", "evidently", "dvc", "torch", "torchvision", "onnxruntime", "numpy",
          "openvino", "tritonclient")  # fmt: skip
# What one pipeline run, its cache and the live system's files need for the bundled data, with room to spare.
FREE_GIGABYTES = 2
# Training on two cores peaks at about 1 GB; Triton, Prefect and the Evidently UI together need about as much.
FREE_MEMORY_GIGABYTES = 2


@dataclass(frozen=True, slots=True)
class Check:
    """One precondition. `blocks` says whether `visionloop run` refuses without it."""

    name: str
    ok: bool
    sentence: str
    blocks: bool = True


def checks() -> list[Check]:
    """Check everything, in the order in which a newcomer would mend it."""
    found: list[Check] = []
    for name, check in _CHECKS:
        try:
            found += check()
        except (VisionloopError, OSError, subprocess.SubprocessError) as error:
            found.append(Check(name, False, str(error)))
    return found


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info[:2] == (3, 11)
    advice = "" if ok else "; the locks are made for 3.11: `make setup PYTHON=/path/to/python3.11`"
    yield Check("python", ok, f"Python is {version}{advice}.")


def _git() -> Iterator[Check]:
    if shutil.which("git") is None:
        yield Check("git", False, "git is not installed, and DVC needs it: `apt-get install git`.")
        return
    inside = subprocess.run(["git", "rev-parse", "--is-inside-work-tree"], capture_output=True, text=True, check=False)
    ok = inside.returncode == 0
    why = (inside.stderr.strip().splitlines() or ["unknown"])[0]
    sentence = "This is a git repository." if ok else f"DVC needs a git repository, and git says {why!r}; clone the project."
    yield Check("git", ok, sentence)


def _dvc() -> Iterator[Check]:
    ok = Path(".dvc/config").is_file() and Path("dvc.yaml").is_file()
    yield Check("dvc", ok, "DVC is set up." if ok else "There is no .dvc/config or dvc.yaml here; restore them from git.")


def _pins() -> Iterator[Check]:
    if not LOCK.is_file():
        yield Check("pins", False, f"{LOCK} is missing; restore it from git.")
        return
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", LOCK.read_text(encoding="utf-8"), re.M))
    wrong = []
    for name in PINNED:
        try:
            got = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            got = "missing"
        if got != locked.get(name):
            wrong.append(f"{name} is {got}, the lock says {locked.get(name)}")
    sentence = (
        f"{'; '.join(wrong)}: remove .venv and run `make setup`." if wrong else f"{len(PINNED)} pinned packages agree."
    )
    yield Check("pins", not wrong, sentence)


def _params() -> Iterator[Check]:
    params = load_params()
    check_source(params.collect)
    if not Path(params.collect.path).is_dir():  # DVC looks at it whatever the source
        yield Check(
            "params", False, f"collect.path is {params.collect.path}, which is no folder; name the folder of your images."
        )
        return
    if not Path(params.calibrate.foreign).is_dir():  # and at this one
        foreign = params.calibrate.foreign
        yield Check("params", False, f"calibrate.foreign is {foreign}, which is no folder; make it, it may be empty.")
        return
    if found := list(preflight.problems(params)):
        yield Check("params", False, " ".join(found))
        return
    yield Check("params", True, "params.yaml is valid.")


def _images() -> Iterator[Check]:
    found = watched.obstacles()
    yield Check("images", not found, " ".join(found) or "DVC can read the folders that it watches.")


def _triton() -> Iterator[Check]:
    for found in preconditions():
        yield Check(found.name, found.ok, found.sentence)


def _writable() -> Iterator[Check]:
    places = [Path(name) for name in (".", "data", "models", "reports", "var", ".dvc") if Path(name).exists()]
    denied = [str(place) for place in places if not os.access(place, os.W_OK)]
    sentence = (
        f"No write permission for {', '.join(denied)}; `chown` them to yourself." if denied else "All folders are writable."
    )
    yield Check("permissions", not denied, sentence)


def _disk() -> Iterator[Check]:
    free = shutil.disk_usage(".").free / 1e9
    ok = free >= FREE_GIGABYTES
    advice = "" if ok else f"; {FREE_GIGABYTES} GB are needed: free some, `dvc gc --workspace` removes old results"
    yield Check("disk", ok, f"{free:.0f} GB of disk are free{advice}.")


def _memory() -> Iterator[Check]:
    free = psutil.virtual_memory().available / 1e9
    ok = free >= FREE_MEMORY_GIGABYTES
    advice = "" if ok else f"; about {FREE_MEMORY_GIGABYTES} GB are needed: close other programs"
    yield Check("memory", ok, f"{free:.1f} GB of memory are free{advice}.", blocks=False)


def _ports() -> Iterator[Check]:
    if running := endpoints.find():
        yield Check("ports", True, f"The endpoint runs already (process {running.pid}, HTTP {running.triton_http}).", False)
        return
    try:
        serve = load_section(ServeParams)
    except ConfigError:
        return  # said under `params`
    wanted = {
        "Triton HTTP": serve.http_port,
        "Triton gRPC": serve.grpc_port,
        "Triton metrics": serve.metrics_port,
        "Prefect": serve.prefect_port,
        "Evidently": serve.evidently_port,
    }
    moved, taken = [], set(wanted.values())
    for name, port in wanted.items():
        got = free_port(port, taken - {port})
        if got != port:
            moved.append(f"{name} {port} is taken, {got} will be used")
    yield Check("ports", True, f"{'; '.join(moved)}." if moved else "All ports are free.", blocks=False)


_CHECKS: tuple[tuple[str, Callable[[], Iterator[Check]]], ...] = (
    ("python", _python),
    ("git", _git),
    ("dvc", _dvc),
    ("pins", _pins),
    ("params", _params),
    ("images", _images),
    ("permissions", _writable),
    ("disk", _disk),
    ("memory", _memory),
    ("triton", _triton),
    ("ports", _ports),
)

"""One thin script per DVC stage: load the parameters, read the ins, call the library, write the outs."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal

import psutil

from visionloop.errors import ConfigError, VisionloopError
from visionloop.paths import IMAGES, PARAMS, RUN

PASSED = RUN / "preflight"  # what passed last


def family_argument(argv: Sequence[str]) -> Literal["cnn", "vit"]:
    """The one argument of the stages that run once per family.

    Raises:
        ConfigError: there is none, more than one, or another word.
    """
    if argv[1:] == ["cnn"]:
        return "cnn"
    if argv[1:] == ["vit"]:
        return "vit"
    got = " ".join(argv[1:]) or "nothing"
    raise ConfigError(f"This stage takes the family, `cnn` or `vit`, and got {got!r}; `dvc repro` runs it for both.")


def run_stage(main: Callable[[], None]) -> int:
    """Run a stage's `main`; print a refusal as one sentence and return its exit code, 0 when all went well.

    Under DVC the whole of params.yaml is checked against this machine before, see `pipeline.preflight`.
    """
    if "DVC_STAGE" in os.environ and not _passed():
        # In another process, and by name: what it imports decides about no stage's result.
        code = subprocess.run([sys.executable, "-m", "pipeline.preflight"], check=False).returncode
        if code:
            return code
    try:
        main()
    except VisionloopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def seconds_so_far() -> float:
    """Since this process began, its imports too."""
    return round(time.time() - psutil.Process().create_time(), 1)


def spin_briefly() -> None:
    """Let torch's threads wait for each other awake for a moment only, then asleep; to call before torch is loaded.

    They wait by spinning, a millisecond or so. Where another program has one of the cores, each of the many short steps then
    costs a time slice: with a load of 6 on 2 cores, 8 epochs that take 22 s asleep were not done after 100 s. Asleep at once
    is no answer either: waking costs more than a short operation takes. MobileNetV3-small, two threads, images a second: 660
    asleep, 1,160 with this spin, 1,240 with torch's own on idle cores; 278, 360 and 143 beside four busy processes (one
    trial each). OpenMP reads the variable when torch is loaded; only GNU's, which torch's Linux packages carry, has it.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def fingerprints() -> tuple[str, str]:
    """Names of what `pipeline.preflight` checks: params.yaml, and the list of images that `collect` may have written."""
    images = IMAGES.stat() if IMAGES.is_file() else None
    return (
        hashlib.sha256(PARAMS.read_bytes() if PARAMS.is_file() else b"").hexdigest(),
        f"{images.st_size}-{images.st_mtime_ns}" if images else "none",
    )


def _passed() -> bool:
    return PASSED.is_file() and PASSED.read_text(encoding="utf-8").split() == list(fingerprints())

"""One thin script per DVC stage: load the parameters, read the ins, call the library, write the outs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Literal

from visionloop.errors import ConfigError, VisionloopError


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
    """Run a stage's `main`; print a refusal as one sentence and return its exit code, 0 when all went well."""
    try:
        main()
    except VisionloopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0

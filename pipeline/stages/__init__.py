"""One thin script per DVC stage: load the parameters, read the ins, call the library, write the outs."""

from __future__ import annotations

import sys
from collections.abc import Callable

from visionloop.errors import VisionloopError


def run_stage(main: Callable[[], None]) -> int:
    """Run a stage's `main`; print a refusal as one sentence and return its exit code, 0 when all went well."""
    try:
        main()
    except VisionloopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0

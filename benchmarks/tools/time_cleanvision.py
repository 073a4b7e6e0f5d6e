"""Seconds that cleanvision's default run takes on a folder: `python time_cleanvision.py FOLDER`, printed as the last line.

Runs in the environment of benchmarks/requirements.lock; importing is not counted. Imports nothing of visionloop.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from cleanvision import Imagelab


def main() -> None:
    """Time `find_issues` with two processes and everything else as it comes."""
    paths = [str(path) for path in sorted(Path(sys.argv[1]).rglob("*.jpg"))]
    start = time.perf_counter()
    Imagelab(filepaths=paths).find_issues(n_jobs=2, verbose=False)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()

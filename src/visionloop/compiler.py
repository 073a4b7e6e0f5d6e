"""Whether torch.compile finds what it needs on this machine: a C++ compiler and Python's headers; knows no torch.

Does not cover: whether what it makes is faster, or right; `visionloop.training.execution` measures the first.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path


def missing() -> str:
    """What has to be installed before torch.compile works, as the end of a sentence; "" where nothing is missing.

    The compiler is the one that torch takes: that of the environment variable CXX, else g++, on a Mac clang++.
    """
    cxx = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(cxx) is None:
        return f"there is no C++ compiler '{cxx}'; install one (Debian, Ubuntu: apt-get install g++), or name yours in CXX"
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if not headers.is_file():
        return f"Python's headers are not there ({headers}); install them (Debian, Ubuntu: apt-get install python3-dev)"
    return ""

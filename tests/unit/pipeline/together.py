"""What the processes of test_launch.py do: meet in a folder, then end as they are told."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    folder, how = Path(sys.argv[1]), sys.argv[2]
    rank = os.environ["RANK"]
    (folder / f"{rank}.pid").write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")
    while len(list(folder.glob("*.pid"))) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    if rank == "1" and how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == "1" and how == "refused":
        return 1
    time.sleep(480)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""A stage as several processes on this machine that work together, through torch's own launcher, `torchrun`.

The processes find each other over the loopback interface, and each gets its share of the cores. When one ends badly the
others are told to stop, and are killed `GRACE_SECONDS` later.

Does not cover: several machines; there `torchrun` starts the stage itself (docs/train-on-several-machines.md).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.process import DIE_WITH_PARENT
from visionloop.errors import PeerError, PipelineError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

GRACE_SECONDS = 10


def launched() -> bool:
    """Whether this process is one of several that a launcher has started."""
    return "WORLD_SIZE" in os.environ


def launch(module: str, arguments: Sequence[str], processes: int) -> None:
    """Run `python -m module arguments` as so many processes, and return when all have ended well.

    Raises:
        PipelineError: one ended badly; it names which and how. What it said has been printed.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
    # Between processes of one machine nothing needs another interface, where a firewall may stand in the way.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Its own report of a failure is a page long; the sentences below and the process's own say it.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="127.0.0.1",
        max_restarts=0,  # starting again is the caller's decision: it goes on from the checkpoint
        shutdown_timeout=GRACE_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)(
            "-I", "-S", "-c", DIE_WITH_PARENT, str(os.getpid()), sys.executable, "-u", "-m", module, *arguments
        )
    except ChildFailedError as error:
        raise PipelineError(_sentence(error.failures, processes)) from None
    except SignalException as error:
        raise PipelineError(f"Stopped by {error.sigval.name}; run again to go on from the last checkpoint.") from None


def _sentence(failures: Mapping[int, ProcessFailure], processes: int) -> str:
    """Which process ended first, and how; those that ended because of it are left out."""
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    own = {rank: code for rank, code in codes.items() if code not in (-signal.SIGTERM, PeerError.exit_code)} or codes
    rank, code = min(own.items(), key=lambda item: item[1])  # a signal, which is negative, before an exit code
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}" + (", most often for lack of memory" if code == -9 else "")
    else:
        how = f"ended with exit code {code}; what it said stands above"
    return (
        f"Process {rank + 1} of the {processes} that work together {how}. The others were stopped; run again to go on from "
        "the last checkpoint."
    )

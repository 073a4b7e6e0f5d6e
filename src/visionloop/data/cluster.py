"""A Dask cluster as the place where batches run: the connection, the check that its workers agree, the ways it can fail.

The scheduler gives the work of a dead worker to another one. A batch travels with its bytes, so it can be repeated anywhere,
and workers need no shared disk.

Does not cover: starting a cluster; docs/scale-out.md shows that.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from visionloop.data.executor import IN_FLIGHT, Workers, died_twice
from visionloop.errors import ConfigError, DataError, PipelineError

Result = TypeVar("Result")

CONNECT_SECONDS = 10.0
WORKERS_SECONDS = 10.0  # for the first worker to register
LOOK_SECONDS = 2.0  # between two looks at who is still there
LOST_SECONDS = 60.0  # without one worker, after which the work is given up
# Other versions of these may cut the connection, or decode and resize a picture to other pixels.
_SAME = ("python", "dask", "distributed", "numpy", "pillow", "simplejpeg")
_SAME_ON_SCHEDULER = ("python", "dask", "distributed")


class Cluster(Workers):
    """The workers of a Dask scheduler. Closes its connection, and not the cluster, at the end of a `with` block.

    Raises:
        ConfigError: nothing answers at `address`, no worker is there, or one runs other versions than this process.
    """

    def __init__(self, address: str) -> None:
        import dask
        from distributed import Client
        from distributed.versions import VersionMismatchWarning

        self._address = address
        self._closing = ExitStack()
        # A batch is bytes and has to travel; the advice to load them on the workers does not apply.
        self._closing.enter_context(dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 GB"}))
        try:
            asyncio.run(_greet(address))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", VersionMismatchWarning)  # `_refuse_other_versions` says it in a sentence
                client: Any = Client  # its methods are only partly typed
                self._client = client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="visionloop")
            self._closing.callback(self._client.close)
            self._require_workers()
            self._refuse_other_versions()
            self._workers, self._looked_at = set(self._client.nthreads()), time.monotonic()
            self.in_flight = max(IN_FLIGHT, 2 * sum(self._client.nthreads().values()))
            # Hashing megabytes for a name that nobody asks for again would cost more than some of the work.
            self._executor = self._client.get_executor(pure=False)
        except (OSError, ValueError, ImportError) as error:
            self._closing.close()
            raise ConfigError(
                f"`compute.dask` is {address!r}, and no Dask scheduler answers there ({_first_line(error)}); start one with "
                "`dask scheduler`, or set `compute.dask: null` to work on this machine."
            ) from error
        except BaseException:
            self._closing.close()
            raise

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """As in `concurrent.futures`."""
        future: Future[Result] = self._executor.submit(fn, *args, **kwargs)
        return future

    def result(self, future: Future[Result]) -> Result:
        """Wait for one result.

        Raises:
            DataError: the work has killed several workers.
            PipelineError: the scheduler has gone, or there has been no worker for a minute.
        """
        from distributed import KilledWorker

        self._tell_of_lost_workers()
        while True:
            try:
                return future.result(timeout=LOST_SECONDS)
            except KilledWorker as error:
                raise DataError(died_twice("one batch on the Dask cluster")) from error
            except CancelledError as error:
                raise PipelineError(
                    f"The Dask scheduler at {self._address} has gone or has cancelled the work; look at its log, then run "
                    "again."
                ) from error
            except TimeoutError:
                if future.done():  # the work's own
                    raise
                if not self._client.nthreads():
                    raise PipelineError(
                        f"The Dask cluster at {self._address} has lost its last worker; start workers with `dask worker "
                        f"{self._address}`, then run again."
                    ) from None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._executor.shutdown(wait=False)  # whoever leaves the `with` block early wants none of what is left
        self._closing.close()

    def _tell_of_lost_workers(self) -> None:
        """One line where workers have gone, asked for seldom: it is a call to the scheduler."""
        if time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        workers = set(self._client.nthreads())
        if lost := self._workers - workers:
            print(  # noqa: T201 - who watches the bar wants to know why it has become slow
                f"the Dask cluster has lost {', '.join(sorted(lost))}; its work runs again; workers left: {len(workers)}",
                file=sys.stderr,
                flush=True,
            )
        self._workers = workers

    def _require_workers(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=WORKERS_SECONDS)
        except TimeoutError as error:
            raise ConfigError(
                f"The Dask cluster at {self._address} has no workers; start some with `dask worker {self._address}`, or set "
                "`compute.dask: null` to work on this machine."
            ) from error

    def _refuse_other_versions(self) -> None:
        found = self._client.get_versions(packages=["pillow", "simplejpeg"])
        here = _packages(found["client"])
        others: list[tuple[str, Mapping[str, Any], tuple[str, ...]]] = [
            ("the scheduler", found["scheduler"], _SAME_ON_SCHEDULER),
            *((f"the worker {address}", versions, _SAME) for address, versions in found["workers"].items()),
        ]
        for who, versions, names in others:
            there = _packages(versions)
            for name in names:
                if there.get(name) != here.get(name):
                    raise ConfigError(
                        f"`compute.dask`: {who} has {name} {there.get(name) or 'not at all'}, and this process has "
                        f"{here.get(name)}; install the same lock file on both, or set `compute.dask: null`."
                    )
        for address, code in self._client.run(code_digest, on_error="return").items():
            if code != code_digest():
                problem = "lacks visionloop" if isinstance(code, BaseException) else "has another version of visionloop"
                detail = f" ({_first_line(code)})" if isinstance(code, BaseException) else ""
                raise ConfigError(
                    f"`compute.dask`: the worker {address} {problem}{detail}; install this project there, as "
                    "docs/scale-out.md shows, and start it anew, or set `compute.dask: null`."
                )


@functools.cache
def code_digest() -> str:
    """SHA-256 over the names and bytes of visionloop's own modules: equal where equal work gives equal results."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()


async def _greet(address: str) -> None:
    """Shake hands with a scheduler. Dask's own client waits for ever for one that takes the call and says nothing."""
    from distributed.comm.core import connect
    from distributed.security import Security

    security: Any = Security  # not typed
    call: Any = connect
    comm = await asyncio.wait_for(
        call(address, timeout=CONNECT_SECONDS, **security().get_connection_args("client")), CONNECT_SECONDS
    )
    await comm.close()


def _packages(versions: Mapping[str, Any] | None) -> dict[str, str]:
    """Names in lower case; of Python the first two numbers, since a bug fix changes no result."""
    packages = {name.lower(): str(version) for name, version in ((versions or {}).get("packages") or {}).items() if version}
    if "python" in packages:
        packages["python"] = ".".join(packages["python"].split(".")[:2])
    return packages


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__

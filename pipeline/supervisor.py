"""`visionloop up`: Triton, Prefect's server and worker, and the Evidently UI under one roof, on loopback.

One `up` per project holds `var/run/up.lock`. A part that crashes is started again after 1, 2, 4, ... s; after
RESTARTS crashes within RESTART_WINDOW_SECONDS it is given up and said so, and the others go on. Ctrl-C and SIGTERM stop
everything within about 10 s. Where `up` itself is killed, its children get SIGTERM from the kernel, and what is left over
is ended by the next `up`.

Does not cover: several machines (compose.yaml, an orchestrator of containers).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from monitoring import workspace
from pipeline import orchestrator, process
from pipeline.endpoints import Endpoints
from serving.repository import read_release
from serving.server import TritonServer, free_port
from visionloop.config import ServeParams, load_section
from visionloop.errors import PipelineError, ServingError, VisionloopError
from visionloop.paths import ENDPOINTS, EVIDENTLY_WORKSPACE, LIVE_IMAGES, LOGS, MODEL_REPOSITORY, RUN, SPOOL

MARK = "VISIONLOOP_UP"  # environment variable of every process that `up` starts
RESTARTS = 5
RESTART_WINDOW_SECONDS = 600.0
LONGEST_PAUSE_SECONDS = 30.0
POLL_SECONDS = 0.5
RELEASE_SECONDS = 5.0  # how often a newly published model is looked for
START_SECONDS = 120.0  # Prefect's server makes its database at the first start
STOP_SECONDS = 5.0  # between SIGTERM and SIGKILL
MAX_LOG_BYTES = 20 << 20


def server(serve: ServeParams, *, run_dir: Path = RUN, log: Path | None = None) -> TritonServer:
    """The Triton server of this project, as `up` and `serve` run it; not started yet."""
    return TritonServer(
        MODEL_REPOSITORY,
        http_port=serve.http_port,
        grpc_port=serve.grpc_port,
        metrics_port=serve.metrics_port,
        store_url=serve.store_url,
        spool=SPOOL,
        run_dir=run_dir,
        log=log or LOGS / "triton.log",
        max_image_megabytes=serve.max_image_megabytes,
        max_image_megapixels=serve.max_image_megapixels,
        images=LIVE_IMAGES,
        keep_images=serve.keep_images,
        keep_images_megabytes=serve.keep_images_megabytes,
    )


def triton_endpoints(triton: TritonServer) -> Endpoints:
    """Where a started server listens."""
    return Endpoints(
        pid=os.getpid(),
        triton_http=triton.http_url,
        triton_grpc=triton.grpc_url,
        triton_metrics=f"http://127.0.0.1:{triton.ports.metrics}/metrics",
    )


@dataclass
class Part:
    """One thing that is kept running: how to start it, whether it lives, how to end it."""

    name: str
    start: Callable[[], None]
    alive: Callable[[], bool]
    stop: Callable[[], None]
    crashes: list[float] = field(default_factory=list)  # monotonic times
    due: float | None = None  # when to start it again
    given_up: bool = False


class Keeper:
    """Starts parts again that crashed, with growing pauses, up to a limit."""

    def __init__(self, parts: list[Part], say: Callable[[str], None]) -> None:
        self.parts = parts
        self._say = say

    def step(self, now: float) -> None:
        """Look after every part once."""
        for part in self.parts:
            if part.given_up:
                continue
            if part.due is None:
                if not part.alive():
                    self._crashed(part, now)
            elif now >= part.due:
                part.due = None
                self._start(part, now)

    def _start(self, part: Part, now: float) -> None:
        try:
            part.start()
        except VisionloopError as error:
            self._say(f"{part.name}: {error}")
            self._crashed(part, now)
        else:
            self._say(f"{part.name} is started again.")

    def _crashed(self, part: Part, now: float) -> None:
        part.crashes = [*(time_ for time_ in part.crashes if now - time_ < RESTART_WINDOW_SECONDS), now]
        part.stop()
        if len(part.crashes) > RESTARTS:
            part.given_up = True
            minutes = RESTART_WINDOW_SECONDS / 60
            self._say(
                f"{part.name} crashed {len(part.crashes)} times within {minutes:g} minutes and is left alone; "
                f"read its log in {LOGS}, then stop `visionloop up` and start it again."
            )
            return
        pause = min(2.0 ** (len(part.crashes) - 1), LONGEST_PAUSE_SECONDS)
        part.due = now + pause
        self._say(f"{part.name} stopped by itself; it is started again in {pause:g} s.")


class Child:
    """A program in the background, its output in a log file."""

    def __init__(self, name: str, command: list[str], env: Mapping[str, str]) -> None:
        self._command, self._env = command, env
        self.log = LOGS / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".old.log"))
        with self.log.open("ab") as log:
            self._process = process.spawn(self._command, env=self._env, stdout=log)

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def terminate(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self) -> None:
        """End it: SIGTERM, then SIGKILL."""
        if self._process is None:
            return
        self.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def up(say: Callable[[str], None] = print) -> int:
    """Start everything, say where it is, and keep it running until Ctrl-C or SIGTERM. Returns the exit code.

    Raises:
        PipelineError: another `up` holds the project, or a part does not start.
        ArtifactError: no model was published yet.
    """
    root = Path.cwd().resolve()
    read_release(MODEL_REPOSITORY)  # without a model nothing needs to be started to say so
    with _only_one(), stopping_on_signals():
        if left := process.reap(MARK, str(root)):
            say(f"{left} processes of an earlier `up` were still alive; they are stopped now.")
        house = _House(root, say)
        try:
            house.start()
            house.watch()
        except KeyboardInterrupt:
            say("Stopping.")
        finally:
            ignore_signals()
            begin = time.monotonic()
            house.stop()
            say(f"Everything is stopped ({time.monotonic() - begin:.1f} s).")
    return 1 if any(part.given_up for part in house.keeper.parts) else 0


def serve_alone(say: Callable[[str], None] = print) -> int:
    """Run Triton alone until Ctrl-C or SIGTERM, and load what is published meanwhile. Returns the exit code.

    Raises:
        ServingError: it does not start, or ended by itself.
        ArtifactError: no model was published yet.
    """
    with stopping_on_signals():
        try:
            with server(load_section(ServeParams)) as triton:
                triton_endpoints(triton).write()
                say(f"Triton answers on {triton.http_url} (HTTP) and {triton.grpc_url} (gRPC). Ctrl-C stops it.")
                while triton.pid is not None:
                    time.sleep(RELEASE_SECONDS)
                    if triton.pid is not None and triton.reload_if_released():
                        say(f"Triton serves version {read_release(MODEL_REPOSITORY).champion} now.")
                raise ServingError(f"Triton ended by itself; its log is {LOGS / 'triton.log'}.")
        except KeyboardInterrupt:
            say("Triton is stopped.")
            return 0
        finally:
            ENDPOINTS.unlink(missing_ok=True)


class _House:
    """All parts together."""

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        self._root, self._say = root, say
        serve = load_section(ServeParams)
        self._prefect_port = free_port(serve.prefect_port)
        self._evidently_port = free_port(serve.evidently_port, {self._prefect_port})
        mark = {MARK: str(root)}
        os.environ.update(mark)  # Triton's processes inherit it
        self._environment = {**orchestrator.environment(root, self._prefect_port), **mark}
        # A new secret each time: the UI only shows; `visionloop monitor` writes files.
        evidently_environment = {**process.quiet_environment(**mark), **workspace.ui_environment(secrets.token_hex(16))}
        self._triton = server(serve)
        self._prefect = Child("prefect-server", orchestrator.server_command(self._prefect_port), self._environment)
        self._worker = Child("prefect-worker", orchestrator.worker_command(), self._environment)
        self._evidently = Child(
            "evidently", workspace.ui_command(EVIDENTLY_WORKSPACE, self._evidently_port), evidently_environment
        )
        self.keeper = Keeper(
            [
                Part("Triton", self._start_triton, lambda: self._triton.pid is not None, self._triton.stop),
                *(
                    Part(name, child.start, child.alive, child.stop)
                    for name, child in (
                        ("Prefect server", self._prefect),
                        ("Prefect worker", self._worker),
                        ("Evidently UI", self._evidently),
                    )
                ),
            ],
            say,
        )

    def start(self) -> None:
        """Start everything and say where it is."""
        for moved in workspace.prepare_workspace(EVIDENTLY_WORKSPACE):
            self._say(f"A broken Evidently snapshot was put aside: {moved}.")
        self._say("Starting Triton, Prefect and the Evidently UI; the first time takes about half a minute.")
        self._prefect.start()
        self._evidently.start()
        self._triton.start()
        self._say(f"Triton answers on {self._triton.http_url} (HTTP) and {self._triton.grpc_url} (gRPC).")
        _wait_for(f"http://127.0.0.1:{self._prefect_port}/api/health", self._prefect, "Prefect's server")
        self._register()
        self._worker.start()
        _wait_for(f"http://127.0.0.1:{self._evidently_port}/", self._evidently, "The Evidently UI")
        found = self._publish()
        self._say(
            "\n".join(
                (
                    "",
                    f"  Triton      {found.triton_http} HTTP, {found.triton_grpc} gRPC, {found.triton_metrics}",
                    f"  Prefect     {found.prefect}",
                    f"  Evidently   {found.evidently}",
                    "",
                    "  Elsewhere: visionloop predict <image>, visionloop simulate --shift blur, visionloop monitor",
                    f"  Logs are in {LOGS}. Ctrl-C stops everything.",
                )
            )
        )

    def watch(self) -> None:
        """Keep everything running until an exception, which a signal raises."""
        look_at_release = time.monotonic() + RELEASE_SECONDS
        while True:
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            self.keeper.step(now)
            if now >= look_at_release and self._triton.pid is not None:
                look_at_release = now + RELEASE_SECONDS
                self._reload()

    def stop(self) -> None:
        """End everything, and whatever the parts started."""
        children = (self._worker, self._prefect, self._evidently)
        for child in children:
            child.terminate()
        self._triton.stop()
        for child in children:
            child.stop()
        process.reap(MARK, str(self._root), grace_seconds=2)
        ENDPOINTS.unlink(missing_ok=True)

    def _start_triton(self) -> None:
        self._triton.start()
        self._publish()

    def _reload(self) -> None:
        try:
            if self._triton.reload_if_released():
                self._say(f"Triton serves version {read_release(MODEL_REPOSITORY).champion} now.")
        except VisionloopError as error:
            self._say(f"Triton: {error}")

    def _publish(self) -> Endpoints:
        found = triton_endpoints(self._triton).model_copy(
            update={
                "prefect": f"http://127.0.0.1:{self._prefect_port}",
                "evidently": workspace.project_page(self._evidently_port),
            }
        )
        found.write()
        return found

    def _register(self) -> None:
        log = LOGS / "prefect-setup.log"
        with log.open("ab") as file:
            child = process.spawn(orchestrator.setup_command(), env=self._environment, stdout=file, cwd=self._root)
            code = child.wait(START_SECONDS)
        if code != 0:
            last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"])[-1]
            raise PipelineError(f"Prefect does not take the deployments ({last}); the log is {log}.")


def _wait_for(url: str, child: Child, name: str) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy stands before 127.0.0.1
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with opener.open(url, timeout=5):
                return
        except urllib.error.HTTPError as error:
            error.close()
            return  # it answers
        except OSError:
            if not child.alive():
                raise PipelineError(f"{name} ended while it started; its log is {child.log}.") from None
            if time.monotonic() > deadline:
                raise PipelineError(f"{name} does not answer after {START_SECONDS:g} s; its log is {child.log}.") from None
        time.sleep(0.2)


@contextlib.contextmanager
def _only_one() -> Iterator[None]:
    path = RUN / "up.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise PipelineError(
                f"`visionloop up` runs already in this folder (process {file.read().strip() or 'unknown'}); "
                "stop that one first, or use it: `visionloop status` says where it is."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP act as Ctrl-C inside; the former handlers come back afterwards."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """From here on a second Ctrl-C does not disturb the stopping."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)

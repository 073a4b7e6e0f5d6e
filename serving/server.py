"""The embedded Triton server: a real `tritonserver` from a pip package, on loopback, that leaves nothing behind.

`TritonServer` lays out a private folder (backend, links to the two packages that the models import), starts the server under
`serving/guard.py`, waits until both models answer, and says in a sentence why it does not start. The environment that
carries the server is `.venv-triton` of the project, or the folder that VISIONLOOP_TRITON_VENV names.

The admin key stands in the server's command line, where other users of the same machine can read it; Triton takes it no
other way. Does not cover: production, where the official Triton image serves the same repository (its version must be
25.08 or newer; the one from pip is older, has known faults against hostile clients, and therefore listens on 127.0.0.1
only).
"""

from __future__ import annotations

import ctypes.util
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

import serving
import visionloop
from serving import guard
from serving.repository import CLASSIFIER, CLASSIFY, Release, read_release
from serving.spool import replay
from serving.store import Store, absolute_url
from visionloop.errors import ServingError

VENV_VARIABLE = "VISIONLOOP_TRITON_VENV"
EXIT_TIMEOUT_SECONDS = 5  # Triton waits this long for answers under way; its own 30 s outlast a supervisor's patience
START_TIMEOUT_SECONDS = 120.0  # a large model on a slow disk
SECONDS_BETWEEN_REPORTS = 5.0
MAX_LOG_BYTES = 20 << 20
ADMIN_HEADER = "x-visionloop-admin"
# What changes the server or its memory needs the key. Reading (health, metadata, configuration, statistics) does not,
# because standard tools such as perf_analyzer ask for it.
RESTRICTED = "model-repository,shared-memory,trace,logging"
_log = logging.getLogger(__name__)
_LOOPBACK = "127.0.0.1"
_SHM_PREFIX = "visionloop_"


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a server listens on 127.0.0.1."""

    http: int
    grpc: int
    metrics: int


@dataclass(frozen=True, slots=True)
class Precondition:
    """One thing that serving needs; `sentence` says what was found, or what to do."""

    name: str
    ok: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Runtime:
    """The parts of the Triton environment."""

    venv: Path
    site: Path  # its site-packages
    server: Path  # tritonserver
    backend: Path  # folder of libtriton_python.so
    stub: Path  # triton_python_backend_stub for the environment's Python
    libraries: tuple[Path, ...]  # folders for LD_LIBRARY_PATH


class TritonServer:
    """A Triton server for one model repository. A context manager; `start` and `stop` may also be called by hand.

    A port that is taken is replaced by the next free one; `ports` says which. `store_url` None switches logging off.
    `images` is the folder in which the share `keep_images` of all answered images is kept, up to `keep_images_megabytes`.

    >>> with TritonServer(Path("model_repository"), store_url="sqlite:///var/store.db", spool=Path("var/spool"),
    ...                   run_dir=Path("var/run")) as server:
    ...     Client(server.grpc_url, "grpc").predict_images([jpeg])
    """

    def __init__(
        self,
        repository: Path,
        *,
        run_dir: Path,
        http_port: int = 8000,
        grpc_port: int = 8001,
        metrics_port: int = 8002,
        store_url: str | None = None,
        spool: Path | None = None,
        log: Path | None = None,
        max_image_megabytes: float = 10,
        max_image_megapixels: float = 25,
        images: Path | None = None,
        keep_images: float = 1.0,
        keep_images_megabytes: float = 1000,
    ) -> None:
        self._repository = repository.absolute()
        self._run_dir = run_dir.absolute() / "triton"
        self._log = log.absolute() if log else self._run_dir / "triton.log"
        self._preferred = Ports(http_port, grpc_port, metrics_port)
        self._store_url = absolute_url(store_url) if store_url else None
        self._spool = spool.absolute() if spool else None
        self._limits = (max_image_megabytes, max_image_megapixels)
        self._images = images.absolute() if images else None
        self._keep = (keep_images, keep_images_megabytes)
        self._key = secrets.token_hex(16)
        self._lock: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: Ports | None = None
        self._claims: list[socket.socket] = []
        self._prefix = ""
        self.start_seconds = 0.0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def ports(self) -> Ports:
        """The ports in use. Raises ServingError before `start`."""
        if self._ports is None:
            raise ServingError("The Triton server is not started; call start() first.")
        return self._ports

    @property
    def http_url(self) -> str:
        """host:port of the HTTP endpoint, as Triton's clients take it."""
        return f"{_LOOPBACK}:{self.ports.http}"

    @property
    def grpc_url(self) -> str:
        """host:port of the gRPC endpoint."""
        return f"{_LOOPBACK}:{self.ports.grpc}"

    @property
    def python(self) -> Path:
        """The interpreter that the models run in, with what they import; there after `start`."""
        return self._run_dir / "python" / "bin" / "python3"

    @property
    def pid(self) -> int | None:
        """Process id of the guard, whose child the server is; None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> None:
        """Start the server and wait until both models answer.

        Raises:
            ServingError: something that it needs is missing, another living process serves from `run_dir`, or the server
                ends or does not get ready; the message carries the cause that the server's log gives.
            ArtifactError: nothing was published in the repository.
        """
        if self.pid is not None:
            return
        release = read_release(self._repository)
        runtime = find_runtime()
        begin = time.monotonic()
        try:
            self._take_lock()
            self._sweep()
            for attempts_left in (2, 1, 0):
                self._launch(runtime)
                if self._wait(begin, timeout_seconds, release, attempts_left > 0):
                    break
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - begin

    def stop(self) -> None:
        """End the server, its stubs and their shared memory. Does nothing when it does not run."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()
            try:
                self._process.wait(EXIT_TIMEOUT_SECONDS + 10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._prefix:
            _end(self._prefix)
            self._state.unlink(missing_ok=True)
            self._prefix = ""
            self._empty_spool()
        self._ports = None
        self._release_ports()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def ready(self) -> bool:
        """Whether the server and both models answer."""
        if self._ports is None or self.pid is None:
            return False
        paths = ("/v2/health/ready", f"/v2/models/{CLASSIFIER}/ready", f"/v2/models/{CLASSIFY}/ready")
        return all(self._ask(path)[0] == 200 for path in paths)

    def reload_if_released(self) -> bool:
        """Load the champion that `release.json` names where it is not served yet; True when it was loaded.

        The versions that are served go on until the new ones are ready; `classify` follows by itself at the next batch.

        Raises:
            ServingError: the server refuses the new version; the old ones go on.
        """
        champion = read_release(self._repository).champion
        if self._ask(f"/v2/models/{CLASSIFIER}/versions/{champion}/ready")[0] == 200:
            return False
        status, body = self._ask(f"/v2/repository/models/{CLASSIFIER}/load", data=b"{}")
        if status != 200:
            raise ServingError(
                f"Triton refuses version {champion} ({_error_of(body)}); the old one goes on. Publish a model that loads."
            )
        return True

    def _empty_spool(self) -> None:
        """Move what the server could not move before its end; where the store refuses, the next start does it."""
        if self._store_url and self._spool and self._spool.is_dir():
            try:
                with Store(self._store_url) as store:
                    store.create()
                    replay(self._spool, store)
            except (ServingError, OSError) as error:
                _log.warning("Predictions wait in %s: %s", self._spool, error)

    @property
    def _state(self) -> Path:
        return self._run_dir / "server.json"

    def _take_lock(self) -> None:
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._lock = (self._run_dir / "lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServingError(
                f"Another process serves from {self._run_dir.parent} already; stop it first, or use another folder."
            ) from None

    def _sweep(self) -> None:
        """End what a launcher that was killed left here; it is known by its token, which no other process carries."""
        try:
            prefix = str(json.loads(self._state.read_text(encoding="utf-8"))["prefix"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if re.fullmatch(_SHM_PREFIX + "[0-9a-f]{16}", prefix):
            _end(prefix)
        self._state.unlink(missing_ok=True)

    def _launch(self, runtime: Runtime) -> None:
        self._prefix = _SHM_PREFIX + secrets.token_hex(8)
        self._state.write_text(json.dumps({"prefix": self._prefix, "launcher": os.getpid()}), encoding="utf-8")
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if self._log.exists() and self._log.stat().st_size > MAX_LOG_BYTES:
            self._log.replace(self._log.with_suffix(".old.log"))
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        self._ports = self._claim_ports()
        command = [str(runtime.server), *self._flags(self._lay_out(runtime))]
        arguments = [str(os.getpid()), str(EXIT_TIMEOUT_SECONDS + 3), self._prefix, str(self._log), *command]
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(guard.__file__)), *arguments],
            env=self._environment(runtime),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal reaches the launcher, which then stops the server in order
        )

    def _claim_ports(self) -> Ports:
        """Ports that are this server's until `stop`: its gRPC port would be shared without a word by a second one."""
        self._release_ports()
        found: list[int] = []
        for preferred in (self._preferred.http, self._preferred.grpc, self._preferred.metrics):
            port, claim = claim_port(preferred, found)
            self._claims.append(claim)
            found.append(port)
        return Ports(*found)

    def _release_ports(self) -> None:
        for claim in self._claims:
            claim.close()
        self._claims.clear()

    def _lay_out(self, runtime: Runtime) -> Path:
        """Make the private folder anew: the backend with the right stub, and a Python environment for the models.

        The stub ignores PYTHONPATH and the other variables of Python, so what they would say stands in an environment of its
        own, in front of the Triton one. Its path holds the two packages that the models import, not the folders around
        them: a site-packages folder would bring its own numpy, and with numpy 2 this server answers 200 with empty
        outputs.
        """
        backends, python = self._run_dir / "backends", self._run_dir / "python"
        packages, site = python / "packages", python / "lib" / runtime.site.parent.name / "site-packages"
        for folder in (backends, python):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in (backends / "python", python / "bin", packages, site):
            folder.mkdir(parents=True)
        for source in (*runtime.backend.iterdir(), runtime.stub):
            (backends / "python" / source.name).symlink_to(source)
        for package in (visionloop, serving):
            source = Path(str(package.__file__)).parent
            (packages / source.name).symlink_to(source)
        shutil.copyfile(runtime.venv / "pyvenv.cfg", python / "pyvenv.cfg")
        (python / "bin" / "python3").symlink_to((runtime.venv / "bin" / "python").resolve())
        # No bytecode: the repository is a DVC output, and nothing may appear in it.
        bytecode = "import sys; sys.dont_write_bytecode = True"
        (site / "visionloop.pth").write_text(f"{bytecode}\n{runtime.site}\n{packages}\n", encoding="utf-8")
        return backends

    def _flags(self, backends: Path) -> Iterator[str]:
        ports = self.ports
        yield f"--model-repository={self._repository}"
        yield f"--backend-directory={backends}"
        yield f"--backend-config=python,shm-region-prefix-name={self._prefix}"
        yield "--model-control-mode=explicit"
        yield f"--load-model={CLASSIFIER}"
        yield f"--load-model={CLASSIFY}"
        yield "--disable-auto-complete-config"
        yield f"--exit-timeout-secs={EXIT_TIMEOUT_SECONDS}"
        yield f"--http-address={_LOOPBACK}"
        yield f"--http-port={ports.http}"
        yield f"--grpc-address={_LOOPBACK}"
        yield f"--grpc-port={ports.grpc}"
        yield f"--metrics-address={_LOOPBACK}"
        yield f"--metrics-port={ports.metrics}"
        yield "--allow-gpu-metrics=false"
        yield f"--http-restricted-api={RESTRICTED}:{ADMIN_HEADER}={self._key}"
        yield f"--grpc-restricted-protocol={RESTRICTED}:{ADMIN_HEADER}={self._key}"

    def _environment(self, runtime: Runtime) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        libraries = [str(folder) for folder in runtime.libraries]
        if existing := environment.get("LD_LIBRARY_PATH"):
            libraries.append(existing)
        environment.update(
            # The stub's interpreter takes the first python3 on the path for its own.
            PATH=f"{self._run_dir / 'python' / 'bin'}{os.pathsep}{environment.get('PATH', os.defpath)}",
            LD_LIBRARY_PATH=os.pathsep.join(libraries),
            VISIONLOOP_MAX_IMAGE_MEGABYTES=str(self._limits[0]),
            VISIONLOOP_MAX_IMAGE_MEGAPIXELS=str(self._limits[1]),
        )
        for name in ("VISIONLOOP_STORE_URL", "VISIONLOOP_SPOOL", "VISIONLOOP_IMAGES"):
            environment.pop(name, None)
        if self._store_url and self._spool:
            environment.update(VISIONLOOP_STORE_URL=self._store_url, VISIONLOOP_SPOOL=str(self._spool))
        if self._images:
            environment.update(
                VISIONLOOP_IMAGES=str(self._images),
                VISIONLOOP_KEEP_IMAGES=str(self._keep[0]),
                VISIONLOOP_KEEP_IMAGES_MEGABYTES=str(self._keep[1]),
            )
        return environment

    def _wait(self, begin: float, timeout_seconds: float, release: Release, may_retry: bool) -> bool:
        """Wait until the server is ready. False where another process took a port after it was found free."""
        reported = begin
        while not self.ready():
            now = time.monotonic()
            if self._process is not None and self._process.poll() is not None:
                cause = self._cause()
                if "already in use" in cause and may_retry:
                    return False
                raise ServingError(f"Triton ended while it started: {cause} Its log is {self._log}.")
            if now - begin > timeout_seconds:
                raise ServingError(
                    f"Triton is not ready after {timeout_seconds:g} s: {self._cause()} Its log is {self._log}."
                )
            if now - reported >= SECONDS_BETWEEN_REPORTS:
                reported = now
                text = f"Triton loads version {release.champion} of the model, {now - begin:.0f} s so far"
                print(text, file=sys.stderr, flush=True)  # noqa: T201 - the line is the product
            time.sleep(0.05)
        return True

    def _cause(self) -> str:
        with self._log.open("rb") as file:
            file.seek(max(self._log_start, self._log.stat().st_size - (1 << 16)))
            return cause_of(file.read().decode(errors="replace"))

    def _ask(self, path: str, data: bytes | None = None) -> tuple[int, bytes]:
        """HTTP status and body; status 0 where nothing answers. With `data` it is a POST, with the admin key."""
        request = urllib.request.Request(f"http://{self.http_url}{path}", data=data)
        if data is not None:
            request.add_header(ADMIN_HEADER, self._key)
        try:
            with _opener.open(request, timeout=5 if data is None else START_TIMEOUT_SECONDS) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()
        except OSError:
            return 0, b""


# A proxy set for the outside world must not be asked for 127.0.0.1.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port(preferred: int, taken: Collection[int] = ()) -> int:
    """The first free TCP port of 127.0.0.1 from `preferred` on, leaving out `taken`; 0 lets the system choose.

    Raises:
        ServingError: none of the next 200 is free.
    """
    port, claim = claim_port(preferred, taken)
    claim.close()
    return port


def claim_port(preferred: int, taken: Collection[int] = ()) -> tuple[int, socket.socket]:
    """`free_port`, and a claim to it: until that is closed, or its process ends, nobody else is given the port here.

    A server binds its port seconds after it was found free, and two that start together would find the same one. The claim
    is a name among Linux's abstract sockets, which belong to the same network namespace as the port and leave no file.

    Raises:
        ServingError: none of the next 200 is free.
    """
    candidates = range(preferred, min(preferred + 200, 65_536)) if preferred else [0] * 200
    for candidate in candidates:
        if candidate in taken:
            continue
        with socket.socket() as probe:
            # As servers do: a port in TIME_WAIT is free, one that is listened on is not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_LOOPBACK, candidate))
            except OSError:
                continue
            port = int(probe.getsockname()[1])
            claim = socket.socket(socket.AF_UNIX)
            try:
                claim.bind(f"\0visionloop-port-{port}")
            except OSError:
                claim.close()
                continue
        if port not in taken:
            return port, claim
        claim.close()
    raise ServingError(f"No free port from {preferred} on; stop what listens there, or set other ports in params.yaml.")


def find_runtime(environment: Mapping[str, str] = os.environ) -> Runtime:
    """Find the Triton environment and all that its Python stub needs.

    Raises:
        ServingError: a part is missing; the message says how to get it.
    """
    named = environment.get(VENV_VARIABLE)
    venv = Path(named) if named else Path(serving.__file__).parents[1] / ".venv-triton"
    if not named and not venv.is_dir():
        venv = Path(".venv-triton")
    venv = venv.absolute()
    python = venv / "bin" / "python"
    site = next(iter(sorted(venv.glob("lib/python3.*/site-packages"))), None)
    if site is None or not python.exists():
        raise ServingError(
            f"The Triton environment {venv} is not there; run `make setup`, or name another in {VENV_VARIABLE}."
        )
    triton = site / "pytriton" / "tritonserver"
    version = site.parent.name.removeprefix("python")
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    server = triton / "bin" / "tritonserver"
    for part in (server, stub, triton / "backends" / "python"):
        if not part.exists():
            raise ServingError(
                f"{part} is missing, so {venv} is no Triton environment for Python {version}; run `make setup`."
            )
    libpython = _find_libpython(python, version)
    libraries = [site / "nvidia_pytriton.libs", triton / "external_libs"]
    if libpython is not None:
        libraries.insert(0, libpython)
    return Runtime(
        venv, site, server, triton / "backends" / "python", stub, tuple(path for path in libraries if path.is_dir())
    )


def _find_libpython(python: Path, version: str) -> Path | None:
    """The folder of libpython for the stub, or None where the system's loader finds it by itself."""
    name = f"libpython{version}.so.1.0"
    installed = python.resolve()
    places = [installed.parent.parent / "lib"]
    text = "import sysconfig; print(sysconfig.get_config_var('LIBDIR') or '')"
    found = subprocess.run([str(python), "-I", "-c", text], capture_output=True, text=True, check=False).stdout.strip()
    if found:
        places.append(Path(found))
    for place in places:
        if (place / name).exists():
            return place
    if ctypes.util.find_library(f"python{version}"):
        return None
    raise ServingError(
        f"{name} is missing, which Triton's Python stub loads; `apt-get install libpython{version}`, or make "
        f"{python.parents[1]} with a Python that has it (uv's and Debian's have, pyenv's with --enable-shared)."
    )


def preconditions() -> list[Precondition]:
    """What serving needs on this machine, checked one by one; nothing is started."""
    checks = []
    try:
        runtime = find_runtime()
        checks.append(Precondition("triton", True, f"Triton is in {runtime.venv}, with libpython for its stub."))
        text = "import numpy, onnxruntime, PIL, sqlalchemy, pydantic, uuid6, yaml; print(numpy.__version__)"
        command = [str(runtime.venv / "bin" / "python"), "-I", "-c", text]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        numpy_version = result.stdout.strip()
        ok = result.returncode == 0 and numpy_version.startswith("1.")
        if ok:
            sentence = f"The Triton environment has numpy {numpy_version}, which its server needs below 2."
        elif result.returncode:
            missing = (result.stderr.strip().splitlines() or ["it does not run"])[-1]
            sentence = f"The Triton environment is not whole ({missing}); run `make setup`."
        else:
            sentence = (
                f"The Triton environment has numpy {numpy_version}; its server answers empty with 2, run `make setup`."
            )
        checks.append(Precondition("triton packages", ok, sentence))
    except ServingError as error:
        checks.append(Precondition("triton", False, str(error)))
    free = shutil.disk_usage(guard.SHARED_MEMORY).free if guard.SHARED_MEMORY.is_dir() else 0
    enough = free >= 64 << 20  # the Python backend takes 1 MB per model at first, and grows with the images of a batch
    advice = "" if enough else "; Triton's Python backend needs 64 (in Docker: --shm-size=1g)"
    checks.append(Precondition("shared memory", enough, f"{guard.SHARED_MEMORY} has {free >> 20} MiB free{advice}."))
    return checks


# Errors that every log has on a machine without a GPU, or that follow from another one.
_NOISE = ("unable to find", "Failed to finalize", "CudaDriverHelper has not been initialized")


def cause_of(log: str) -> str:
    """The sentence of a server log that says why it failed: the first error of a model, a port or a flag."""
    lines = [line for line in log.splitlines() if line.strip()]
    errors = [re.sub(r"^E\d{4} [\d:.]+ \d+ \S+\] ", "", line) for line in lines if re.match(r"E\d{4} ", line)]
    telling = [line for line in errors if not any(noise in line for noise in _NOISE)]
    for line in telling:
        if match := re.search(r"(?:\w*Error|Exception): .*", line):
            return match.group(0).split("\\n")[0].strip().rstrip('".') + "."
    if any("error while loading shared libraries" in line for line in lines):
        return next(line for line in lines if "error while loading shared libraries" in line)
    chosen = telling or lines[-1:]
    found = chosen[0].strip().strip('"').rstrip(". ") + "." if chosen else "it wrote nothing."
    is_config = found.startswith("Poll failed for model directory")
    return f"{found} Write it again: `dvc repro --force --single-item deploy`." if is_config else found


def _error_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]).split("\n\nAt:")[0].strip().rstrip(".;")
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:200] or "no answer"


def _end(prefix: str) -> None:
    """End every process that carries the token in its command line, and remove its shared memory."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and any(prefix in argument for argument in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    for process in found:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(found, timeout=EXIT_TIMEOUT_SECONDS if found else 0)
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=5)
    for region in guard.SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)  # psutil compares the start time first, so a reused process id is spared
    except psutil.NoSuchProcess:
        return

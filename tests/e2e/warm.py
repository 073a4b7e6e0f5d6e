"""Stages that start with their libraries loaded, which takes longer than what most of them do on the bundled digits.

`folder()` holds a program `python`. Found first on PATH, it hands what DVC starts as `python -m pipeline.stages.NAME` to a
server, which has imported the libraries and nothing of this project, and forks; it ends as the fork ends. Everything else it
leaves to the real Python. A fork has a session of its own, and goes when the program that asked for it goes.

Does not cover how a stage's own process begins: `test_the_same_data_stages_give_the_same_bytes` and others start real ones.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

# Not those that start threads, which no fork has: ONNX Runtime, pandas with pyarrow.
LIBRARIES = (
    "torch", "torchvision", "onnx", "pydantic", "yaml", "PIL.Image", "scipy.stats", "psutil", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "rich.progress",
)  # fmt: skip
CLIENT = """#!{python} -IS
import os, sys
if len(sys.argv) < 3 or sys.argv[1] != "-m" or not sys.argv[2].startswith("pipeline.stages."):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
import json, signal, socket
connection = socket.socket(socket.AF_UNIX)
connection.connect({path!r})
text = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(connection, [len(text).to_bytes(8, "big")], [0, 1, 2])
connection.sendall(text)
answers = connection.makefile()
pid = int(answers.readline())
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, frame: os.kill(pid, number))
code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@functools.cache
def folder() -> Path:
    """The folder with `python`; the server runs until this process ends."""
    made = Path(tempfile.mkdtemp(prefix="visionloop-warm-"))
    path = made / "socket"
    program = made / "python"
    program.write_text(CLIENT.format(python=sys.executable, path=str(path)))
    program.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"GOMP_SPINCOUNT": "1000"}
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    with listener:
        server = subprocess.Popen(
            [sys.executable, "-P", __file__, str(listener.fileno())],
            stdin=subprocess.PIPE,  # its end is the end of this process
            stdout=subprocess.DEVNULL,
            env=environment,
            pass_fds=(listener.fileno(),),
        )

    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()
        shutil.rmtree(made)

    atexit.register(end)
    return made


def serve(number: int) -> None:
    """Fork for whoever asks on a listening socket, until standard input ends."""
    for name in LIBRARIES:
        importlib.import_module(name)
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "a library has started a thread, which a fork would not have"
    path = sys.path.copy()
    waiting = selectors.DefaultSelector()
    listener = socket.socket(fileno=number)
    waiting.register(sys.stdin, selectors.EVENT_READ)
    waiting.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj is sys.stdin:
                return
            if key.fileobj is listener:
                connection, _ = listener.accept()
                try:
                    request, files = _received(connection)
                except (OSError, ValueError):  # the client was killed while it asked
                    connection.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    waiting.close()
                    listener.close()
                    connection.close()
                    _become(request, files, path)
                for file in files:
                    os.close(file)
                with contextlib.suppress(OSError):
                    connection.sendall(b"%d\n" % pid)
                waiting.register(connection, selectors.EVENT_READ, (pid, connection))  # readable: the client has gone
                waiting.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
            elif isinstance(key.fileobj, socket.socket):
                if key.fd in waiting.get_map():  # else its process has ended in this same moment
                    waiting.unregister(key.fileobj)
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(key.data[0], signal.SIGKILL)
            else:
                pid, connection = key.data
                _, status = os.waitpid(pid, 0)
                waiting.unregister(key.fileobj)
                os.close(key.fd)
                with contextlib.suppress(KeyError):
                    waiting.unregister(connection)
                with contextlib.suppress(OSError), connection:
                    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _received(connection: socket.socket) -> tuple[Any, list[int]]:
    head, files, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as stream:
        return json.loads(stream.read(int.from_bytes(head, "big"))), files


def _become(request: Any, files: list[int], path: list[str]) -> NoReturn:
    """Be what `python -m` with these arguments, in that folder, with that environment is."""
    (module, *arguments), folder, environment = request
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115 - for as long as it lives
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.path[:] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)), *path]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    raise SystemExit(0)


if __name__ == "__main__":
    serve(int(sys.argv[1]))

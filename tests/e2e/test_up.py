"""`visionloop up` on a tiny model: all three answer, one at a time, and nothing is left behind however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipeline import process, supervisor
from pipeline.endpoints import Endpoints
from serving.client import Client
from tests.e2e.project import Project, environment
from tests.e2e.tiny import images, tiny_project


class Up:
    """A running `visionloop up`."""

    def __init__(self, project: Project) -> None:
        self.root = project.root
        self.log = project.root / "up.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "up"],
                cwd=self.root,
                env=environment(PYTHONPATH=f"{self.root / 'src'}{os.pathsep}{self.root}"),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, what: str, seconds: float, check: Callable[[], object]) -> None:
        deadline = time.monotonic() + seconds
        while not check():
            logs = "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in self.root.glob("var/logs/*.log"))
            assert time.monotonic() < deadline, f"{what}\n{self.log.read_text()}\n{logs}"
            time.sleep(0.2)

    def endpoints(self) -> Endpoints:
        path = self.root / "var/run/endpoints.json"
        self.wait("everything is started", 120, path.exists)
        return Endpoints.model_validate_json(path.read_bytes())

    def processes(self) -> list[psutil.Process]:
        return process.marked(supervisor.MARK, str(self.root.resolve()))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return tiny_project(tmp_path_factory.mktemp("up") / "project")


@pytest.fixture
def up(project: Project) -> Iterator[Up]:
    up = Up(project)
    try:
        yield up
    finally:
        if up.process.poll() is None:
            up.process.terminate()
        up.process.wait(30)
        process.reap(supervisor.MARK, str(project.root.resolve()))


def status_of(url: str) -> int:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=20) as answer:
        return int(answer.status)


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("visionloop_*")}


def memory_names(up: Up) -> tuple[str, ...]:
    """How the names of this server's memory begin, as its command says; servers of other tests may run meanwhile."""
    commands = " ".join(word for one in up.processes() for word in one.cmdline())
    prefixes = tuple(set(re.findall(r"visionloop_[0-9a-f]{16}", commands)))
    assert prefixes
    return prefixes


def test_everything_answers_restarts_and_ctrl_c_leaves_nothing(project: Project, up: Up) -> None:
    found = up.endpoints()
    prefixes = memory_names(up)
    with Client(found.triton_http) as http, Client(found.triton_grpc, "grpc") as grpc:
        sent = images(3)
        answers = http.predict_images(sent)
        assert [one.label for one in answers] == [one.label for one in grpc.predict_images(sent)]
    assert found.prefect and status_of(f"{found.prefect}/api/health") == 200
    assert found.evidently and status_of(found.evidently) == 200
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for one in up.processes()
        for connection in one.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}

    # The command line finds the endpoint; a bad image is said and does not stop the rest.
    (project.root / "good.png").write_bytes(sent[0])
    (project.root / "bad.png").write_bytes(b"no image")
    done = project.cli("predict", "good.png", "bad.png", "--json", code=1)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["label"] == answers[0].label
    assert lines[0]["prediction_id"]
    assert "error" in lines[1]
    offline = json.loads(project.cli("predict", "good.png", "--offline", "--json").stdout)
    assert offline["probability"] == pytest.approx(lines[0]["probability"], abs=1e-5)
    assert json.loads(project.cli("status", "--json").stdout)["store"]["answered"] >= 7

    refused = project.cli("up", code=1)
    assert f"`visionloop up` runs already in this folder (process {up.process.pid})" in refused.stderr

    # A part that dies is started again.
    [evidently] = [one for one in up.processes() if "evidently.cli" in " ".join(one.cmdline())]
    evidently.kill()
    up.wait("the restart is said", 30, lambda: "Evidently UI is started again." in up.log.read_text())

    begin = time.monotonic()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(20) == 0, up.log.read_text()
    assert time.monotonic() - begin < 15
    assert up.processes() == []
    assert not [name for name in shared_memory() if name.startswith(prefixes)]
    assert not (project.root / "var/run/endpoints.json").exists()


def test_after_kill_9_the_children_go_and_the_next_up_comes(project: Project, up: Up) -> None:
    up.endpoints()
    assert len(up.processes()) > 4
    prefixes = memory_names(up)
    up.process.kill()
    up.process.wait(10)
    up.wait("the children end by themselves", 20, lambda: not up.processes())
    assert not [name for name in shared_memory() if name.startswith(prefixes)]

    (project.root / "var/run/endpoints.json").unlink()
    again = Up(project)
    try:
        again.endpoints()
        again.process.send_signal(signal.SIGTERM)
        assert again.process.wait(20) == 0, again.log.read_text()
        assert again.processes() == []
    finally:
        again.process.kill()
        again.process.wait(10)

"""A real Prefect server and worker: prefect.yaml is taken as it is, and a schedule is seen to fire and complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import orchestrator, process
from serving.server import free_port
from tests.e2e.project import TRITON_VENV, Project
from tests.e2e.tiny import tiny_project

MARK = "VISIONLOOP_TEST_PREFECT"


class Server:
    """Prefect for one project: server and worker, and its API."""

    def __init__(self, project: Project) -> None:
        self.root = project.root
        self.port = free_port(0)
        self.env = {
            **orchestrator.environment(project.root, self.port),
            "PYTHONPATH": f"{project.root / 'src'}{os.pathsep}{project.root}",
            "VISIONLOOP_TRITON_VENV": str(TRITON_VENV),
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            MARK: str(project.root),
        }
        (project.root / "var").mkdir(exist_ok=True)
        self.children: list[subprocess.Popen[bytes]] = []
        self.log = project.root / "var" / "prefect.log"

    def spawn(self, command: list[str]) -> None:
        with self.log.open("ab") as log:
            self.children.append(process.spawn(command, env=self.env, stdout=log, cwd=self.root))

    def api(self, path: str, body: object = None, method: str | None = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", **self._token(body)},
            method=method,
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def _token(self, body: object) -> dict[str, str]:
        # The server takes changes only with a token, so that no other page in a browser can start runs.
        if body is None:
            return {}
        found = self.api("/csrf-token?client=00000000-0000-0000-0000-000000000001")
        return {"Prefect-Csrf-Token": found["token"], "Prefect-Csrf-Client": "00000000-0000-0000-0000-000000000001"}

    def wait(self, what: str, seconds: float, check: Any) -> Any:
        deadline = time.monotonic() + seconds
        while True:
            try:
                if found := check():
                    return found
            except OSError:
                time.sleep(0.1)
            assert time.monotonic() < deadline, f"{what}\n{self.log.read_text()[-6000:]}"
            time.sleep(0.5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tiny_project(tmp_path / "project"))
    try:
        server.spawn(orchestrator.server_command(server.port))
        server.wait("the server answers", 90, lambda: server.api("/health"))
        yield server
    finally:
        process.reap(MARK, str(server.root))
        for child in server.children:
            child.wait(10)


def test_a_schedule_fires_and_the_flow_completes(server: Server) -> None:
    for _ in range(2):  # registering again changes nothing
        done = subprocess.run(
            orchestrator.setup_command(),
            cwd=server.root,
            env=server.env,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    deployments = {f"{found['name']}": found for found in server.api("/deployments/filter", {})}
    assert set(deployments) == {"by-hand", "weekly", "on-drift", "hourly"}
    crons = {name: [one["schedule"].get("cron") for one in found["schedules"]] for name, found in deployments.items()}
    assert crons == {"by-hand": [], "weekly": ["0 3 * * 1"], "on-drift": [], "hourly": ["0 * * * *"]}
    # No path of this machine stands in prefect.yaml; the folder came from the environment.
    step = deployments["hourly"]["pull_steps"][0]["prefect.deployments.steps.set_working_directory"]
    assert step["directory"] == str(server.root)
    automations = server.api("/automations/filter", {})
    assert [found["name"] for found in automations] == [orchestrator.ZOMBIE_AUTOMATION]

    hourly = deployments["hourly"]["id"]
    server.api(f"/deployments/{hourly}/schedules", [{"schedule": {"interval": 15}, "active": True}])
    server.spawn(orchestrator.worker_command())

    def completed() -> list[Any]:
        query = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}}
        found: list[Any] = server.api("/flow_runs/filter", query)
        return found

    run = server.wait("a scheduled run ends", 90, completed)[0]
    assert run["state_type"] == "COMPLETED", server.log.read_text()[-6000:]
    assert run["auto_scheduled"] is True
    assert run["name"].startswith("monitor 20")
    [artifact] = server.api("/artifacts/filter", {"artifacts": {"key": {"any_": ["drift-decision"]}}})[:1]
    assert "wait" in artifact["data"]
    assert "No image was answered yet" in artifact["data"]


def test_importing_the_flows_starts_nothing(tmp_path: Path) -> None:
    code = "import pipeline.flows, threading, os; print(sorted(os.listdir('.')), threading.active_count())"
    env = process.quiet_environment(PREFECT_HOME=str(tmp_path / "home"), PYTHONPATH=str(Path(__file__).parents[2]))
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "empty", env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["[]", "1"]

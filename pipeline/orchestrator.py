"""Prefect on this machine: its environment, its server, its worker, and the deployments of `prefect.yaml`.

Prefect 3.8.8 on SQLite below `var/prefect`, on loopback, without telemetry. `python -m pipeline.orchestrator` registers the
work pool, the deployments and the automation that ends zombie runs at the server that PREFECT_API_URL names; doing it again
changes nothing.

Does not cover: what the flows do (`flows.py`) and keeping the processes alive (`supervisor.py`).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pipeline.process import quiet_environment
from visionloop.errors import PipelineError
from visionloop.paths import PREFECT_HOME

ROOT_VARIABLE = "VISIONLOOP_ROOT"  # prefect.yaml names the folder of the project through it
WORK_POOL = "local"
HEARTBEAT_SECONDS = 30  # the shortest that Prefect allows
ZOMBIE_SECONDS = 90  # three heartbeats missed
ZOMBIE_AUTOMATION = "end runs without a heartbeat"


def environment(root: Path, port: int, home: Path | None = None) -> dict[str, str]:
    """The environment of the server, the worker, the flows and the clients of the project in `root`."""
    home = (home or root / PREFECT_HOME).resolve()
    return quiet_environment(
        PREFECT_HOME=str(home),
        PREFECT_API_DATABASE_CONNECTION_URL=f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY="false",
        PREFECT_FLOWS_HEARTBEAT_FREQUENCY=str(HEARTBEAT_SECONDS),
        # Prefect answers pages of every origin unless told not to: any page in the user's browser could start runs.
        PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS=f"http://127.0.0.1:{port}",
        PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED="true",
        **{ROOT_VARIABLE: str(root.resolve())},
    )


def server_command(port: int) -> list[str]:
    """The command line of the server, in one process."""
    return [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]


def worker_command() -> list[str]:
    """The command line of the worker, which starts each flow run as a process."""
    return [sys.executable, "-m", "prefect", "worker", "start", "--pool", WORK_POOL, "--type", "process"]


def setup_command() -> list[str]:
    """The command line that registers everything at the server."""
    return [sys.executable, "-m", "pipeline.orchestrator"]


def register(root: Path) -> None:
    """Register the work pool, the automation and the deployments of `root` at the server of PREFECT_API_URL.

    Raises:
        PipelineError: Prefect refuses a deployment; its own words stand in the message.
    """
    _make_pool_and_automation()
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        words = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise PipelineError(f"Prefect refuses the deployments of prefect.yaml: {' '.join(words[-5:])}")


def _make_pool_and_automation() -> None:
    from datetime import timedelta

    from prefect.automations import Automation
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import EventTrigger, Posture
    from prefect.events.schemas.events import ResourceSpecification
    from prefect.exceptions import ObjectAlreadyExists

    # A run whose process and worker were both killed stays RUNNING for ever and blocks the next one; Prefect's own lease
    # takes 300 s and does not change its state.
    automation = Automation(
        name=ZOMBIE_AUTOMATION,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=ZOMBIE_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed", state=StateType.CRASHED, message=f"no heartbeat for {ZOMBIE_SECONDS} s", force=False
            )
        ],
    )
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"))
        except ObjectAlreadyExists:
            print(f"work pool {WORK_POOL!r} is there")
        if not client.read_automations_by_name(ZOMBIE_AUTOMATION):
            automation.create()


def main() -> int:
    """Register the project in the current folder."""
    from visionloop.errors import VisionloopError

    try:
        register(Path())
    except VisionloopError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

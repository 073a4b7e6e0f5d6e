"""Where the running parts listen: `var/run/endpoints.json`, written by `visionloop up` and `visionloop serve`.

Does not cover: starting them (`supervisor.py`).
"""

from __future__ import annotations

from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from visionloop import files
from visionloop.errors import PipelineError
from visionloop.paths import ENDPOINTS


class Endpoints(BaseModel):
    """Addresses on this machine; what does not run is None."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    pid: int  # of the process that started them and wrote this
    triton_http: str  # host:port, as Triton's clients take it
    triton_grpc: str
    triton_metrics: str  # URL
    prefect: str | None = None  # URL of the UI; its API is below /api
    evidently: str | None = None  # URL of the project's dashboard

    def write(self) -> None:
        """Publish this, whole or not at all."""
        files.write_json(ENDPOINTS, self.model_dump())


def find(path: Path = ENDPOINTS) -> Endpoints | None:
    """The endpoints that are up; None where nothing was started, or whoever started them is gone."""
    try:
        found = Endpoints.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if psutil.pid_exists(found.pid) else None


def require() -> Endpoints:
    """The endpoints that are up.

    Raises:
        PipelineError: there are none.
    """
    found = find()
    if found is None:
        raise PipelineError(
            "No endpoint runs in this folder; start one with `visionloop up` or `visionloop serve` in another terminal."
        )
    return found

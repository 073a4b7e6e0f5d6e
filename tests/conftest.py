"""The order of the tests: the longest first, so that workers, which take from the end of each other's list, end together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import Postgres, running

# By the seconds that they took; what is not named comes after these. `make test ARGS=--durations=50` shows where time goes.
LONGEST = (
    "tests/e2e/test_road.py",
    "tests/e2e/test_run.py",
    "tests/e2e/test_training.py",
    "tests/e2e/test_robustness.py",
    "tests/e2e/test_gate.py",
    "tests/e2e/test_parity.py",
    "tests/e2e/test_up.py",
    "tests/e2e/test_prefect.py",
    "tests/e2e/test_triton.py",
    "tests/e2e/test_evidently.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of `LONGEST`; within a file nothing changes, so that its fixtures are made once."""
    rank = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.nodeid.partition("::")[0], len(rank)))


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database: a file that is not there yet, and one of a server."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.new_database()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, one for each worker."""
    with running() as server:
        yield server

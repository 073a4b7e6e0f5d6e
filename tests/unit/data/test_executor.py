"""Order is kept, memory is bounded, a worker that dies changes no result, and a cluster that is not there is a sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.unit.data.conftest import draw_picture
from visionloop.config import ComputeParams
from visionloop.data import cluster as cluster_module
from visionloop.data.executor import ProcessPool, contents, in_batches, make_executor, map_batches
from visionloop.data.measures import MeasureBatch
from visionloop.data.packing import pack
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import ConfigError, DataError, PipelineError
from visionloop.preprocess import PreprocessSpec
from visionloop.records import SPLITS, ImageRow, SplitRow

HERE = ComputeParams(workers=2, dask=None)
# Ports that the system chooses; a fixed one would disturb another run.
LOCAL: dict[str, Any] = {"dashboard_address": ":0", "worker_dashboard_address": ":0", "scheduler_port": 0}


def slow_when_even(number: int) -> int:
    time.sleep(0.01 if number % 2 == 0 else 0)
    return number * number


class DieOnce:
    """Kills its process at one number, the first time."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.number = number

    def __call__(self, number: int) -> int:
        mark = self.folder / str(number)
        if number == self.number and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return slow_when_even(number)


def die_at_five(batch: list[tuple[str, int]]) -> int:
    if any(number == 5 for _, number in batch):
        os.kill(os.getpid(), signal.SIGKILL)
    return len(batch)


def refuse_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


def test_results_come_in_the_order_of_the_batches() -> None:
    with ThreadPoolExecutor(4) as executor:
        assert list(map_batches(executor, slow_when_even, range(20), in_flight=4)) == [n * n for n in range(20)]


def test_only_a_few_batches_are_drawn_ahead() -> None:
    drawn = []

    def batches() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    with ThreadPoolExecutor(2) as executor:
        results = map_batches(executor, slow_when_even, batches(), in_flight=5)
        next(results)
        assert len(drawn) <= 5


def test_batches_close_by_count_and_by_size() -> None:
    assert list(in_batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(in_batches([b"aaaa", b"b", b"cc", b"d"], 10, 4, size=len)) == [[b"aaaa"], [b"b", b"cc", b"d"]]
    assert list(in_batches([], 2)) == []


def test_few_images_stay_in_this_process() -> None:
    with make_executor(ComputeParams(workers=8, dask=None), 500) as executor:
        assert executor.submit(os.getpid).result() == os.getpid()


def test_a_batch_says_what_it_holds() -> None:
    assert contents([("cat/1.png", b"x"), ("cat/2.png", b"y")]) == "2 items, from 'cat/1.png' to 'cat/2.png'"
    assert contents([b"x"]) == "1 item"
    assert contents(7) == "int"


def test_a_process_that_dies_costs_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with make_executor(HERE, 10_000) as executor:
        assert list(map_batches(executor, DieOnce(tmp_path, 7), range(40))) == [n * n for n in range(40)]
    assert (tmp_path / "7").exists()
    assert "a worker process died; its work runs again (" in capsys.readouterr().err


def test_a_batch_that_kills_twice_is_named_and_leaves_nothing_running() -> None:
    batches = [[(f"cat/{number}.png", number)] for number in range(8)]
    before = _children()
    with (
        make_executor(HERE, 10_000) as executor,
        pytest.raises(
            DataError, match=r"died at batch 6 \(1 item, from 'cat/5.png' to 'cat/5.png'\), and died again .* memory"
        ),
    ):
        list(map_batches(executor, die_at_five, batches))
    assert _children() <= before


def test_an_error_of_the_work_comes_out_at_its_place(tmp_path: Path) -> None:
    with make_executor(HERE, 10_000) as executor:
        results = map_batches(executor, refuse_three, range(6))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="three"):
            next(results)


# What a real cluster and a real pool do with the work of the stages.


def _children() -> set[int]:
    """This process's own, without the tracker that multiprocessing starts once."""
    return {child.pid for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A scheduler and two worker processes on this machine, each started anew by its nanny when it dies."""
    from distributed import LocalCluster

    local: Any = LocalCluster
    with local(n_workers=2, threads_per_worker=1, **LOCAL) as found:
        yield found.scheduler_address


def _processes(executor: Any) -> list[int]:
    """Of the workers of either kind."""
    if isinstance(executor, ProcessPool):
        return list(executor._pool._processes)
    return list(executor._client.run(os.getpid).values())


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    return {f"cat/{seed}.png": draw_picture(seed, side=96) for seed in range(120)}


def killing(executor: Any, items: Iterable[Any], at: int, killed: list[int]) -> Iterator[Any]:
    """Items that kill one worker while they are drawn, when earlier ones are at work."""
    for number, item in enumerate(items):
        if number == at:
            killed.append(_processes(executor)[0])
            os.kill(killed[0], signal.SIGKILL)
        yield item


def _bits(value: object) -> object:
    """A value whose equality is that of every bit."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if dataclasses.is_dataclass(value):
        return {field.name: _bits(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _bits(one) for key, one in value.items()}
    return [_bits(one) for one in value] if isinstance(value, list | tuple) else value


def _measured(params: ComputeParams, pictures: dict[str, bytes], kill: bool) -> list[object]:
    killed: list[int] = []
    batches = in_batches(list(enumerate(pictures.values())), 6)
    with make_executor(params, 10_000) as executor:
        drawn = killing(executor, batches, 10, killed) if kill else batches
        found = [_bits(batch) for batch in map_batches(executor, MeasureBatch(10**6), drawn)]
        assert len(killed) == kill
        assert not {*killed} & {*_processes(executor)}
    return found


def _packed(params: ComputeParams, pictures: dict[str, bytes], images: list[ImageRow], folder: Path, kill: bool) -> Any:
    rows = [SplitRow(row.id, row.label, SPLITS[index % 3], row.id) for index, row in enumerate(images)]
    killed: list[int] = []

    def read(wanted: Iterable[ImageRow]) -> Iterator[tuple[ImageRow, bytes]]:
        found = [(row, pictures[row.path]) for row in wanted]
        return killing(executor, found, 90, killed) if kill else iter(found)

    with make_executor(params, 10_000) as executor:
        pack(rows, images, read, folder, spec=PreprocessSpec(16, 16), policy=AugmentPolicy(), executor=executor)
        assert len(killed) == kill
        assert not {*killed} & {*_processes(executor)}
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_measures_are_the_same_in_a_pool_and_on_a_cluster_with_a_worker_killed(
    address: str, pictures: dict[str, bytes], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "LOOK_SECONDS", 0.0)
    there = ComputeParams(workers=0, dask=address)
    plain = _measured(HERE, pictures, kill=False)
    assert len(plain) == len(pictures) / 6
    assert _measured(HERE, pictures, kill=True) == plain
    assert "a worker process died" in capsys.readouterr().err
    assert _measured(there, pictures, kill=False) == plain
    assert "has lost" not in capsys.readouterr().err
    assert _measured(there, pictures, kill=True) == plain
    assert "the Dask cluster has lost tcp://" in capsys.readouterr().err


def test_packed_arrays_are_the_same_bytes_in_a_pool_and_on_a_cluster_with_a_worker_killed(
    address: str,
    pictures: dict[str, bytes],
    image_row: Callable[..., ImageRow],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("visionloop.data.packing._BATCH_IMAGES", 6)
    images = [image_row(data, path) for path, data in pictures.items()]
    there = ComputeParams(workers=0, dask=address)
    plain = _packed(HERE, pictures, images, tmp_path / "plain", kill=False)
    assert {"train.images.npy", "test.images.npy"} < plain.keys()
    assert _packed(HERE, pictures, images, tmp_path / "pool", kill=True) == plain
    assert _packed(there, pictures, images, tmp_path / "cluster", kill=True) == plain


def test_a_connection_leaves_no_thread_behind(address: str) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with make_executor(ComputeParams(workers=0, dask=address), 10) as executor:
        assert executor.submit(os.getpid).result() != os.getpid()
    time.sleep(0.1)
    after = [thread.name for thread in threading.enumerate()]
    assert set(after) - before <= {"Dask-Offload_0", "TCP-Executor_0"}  # pools of the module, one for the whole process


def test_an_error_of_the_work_comes_from_the_cluster(address: str) -> None:
    with (
        make_executor(ComputeParams(workers=0, dask=address), 10) as executor,
        pytest.raises(ValueError, match="invalid literal"),
    ):
        list(map_batches(executor, int, ["1", "x"]))


# What is wrong with a cluster is said in a sentence.


@pytest.fixture
def scheduler() -> Iterator[str]:
    """A scheduler without workers."""
    from distributed import LocalCluster

    local: Any = LocalCluster
    with local(n_workers=0, **LOCAL) as found:
        yield found.scheduler_address


@contextlib.contextmanager
def worker(address: str, *folders: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker as a user starts it, with `folders` before this process's modules."""
    command = [sys.executable, "-m", "dask", "worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
    path = os.pathsep.join(map(str, folders))
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def refusal(address: str) -> str:
    with pytest.raises(ConfigError) as error:
        make_executor(ComputeParams(workers=0, dask=address), 10)
    return str(error.value)


@pytest.mark.parametrize("answers", [True, False])
def test_an_address_without_a_scheduler_is_a_sentence(answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        if answers:  # takes the call and says nothing
            listener.listen()
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        assert refusal(address).startswith(f"`compute.dask` is '{address}', and no Dask scheduler answers there (")


def test_a_cluster_without_workers_is_a_sentence(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "WORKERS_SECONDS", 0.2)
    assert refusal(scheduler) == (
        f"The Dask cluster at {scheduler} has no workers; start some with `dask worker {scheduler}`, or set `compute.dask: "
        "null` to work on this machine."
    )


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        ("other code", r"the worker tcp://\S+ has another version of visionloop; install this project there"),
        (
            "no code",
            r"the worker tcp://\S+ lacks visionloop \(.*No module named 'visionloop.data'.*\); install this project",
        ),
        (
            "other Pillow",
            r"the worker tcp://\S+ has pillow 0\.0\.1, and this process has [\d.]+; install the same lock file",
        ),
    ],
)
def test_a_worker_that_would_work_otherwise_is_refused(spoil: str, sentence: str, scheduler: str, tmp_path: Path) -> None:
    if spoil == "other code":
        shutil.copytree(Path(cluster_module.__file__).parents[1], tmp_path / "visionloop")
        (tmp_path / "visionloop" / "more.py").touch()
    elif spoil == "no code":
        (tmp_path / "visionloop").mkdir()
        (tmp_path / "visionloop" / "__init__.py").touch()
    else:
        (tmp_path / "pillow-0.0.1.dist-info").mkdir()
        (tmp_path / "pillow-0.0.1.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: pillow\nVersion: 0.0.1\n"
        )
    with worker(scheduler, tmp_path):
        assert re.search(sentence, refusal(scheduler))


@pytest.fixture(autouse=True)
def _sources_as_they_are_now() -> None:
    """Workers that start now read the sources of now; what was read at the start of the run may be edited since."""
    cluster_module.code_digest.cache_clear()


def test_the_loss_of_the_last_worker_is_a_sentence(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "LOST_SECONDS", 0.5)
    with (
        worker(scheduler) as process,
        make_executor(ComputeParams(workers=0, dask=scheduler), 10) as executor,
        pytest.raises(
            PipelineError, match=r"has lost its last worker; start workers with `dask worker tcp://\S+`, then run"
        ),
    ):
        results = map_batches(executor, abs, [-1, -2, -3], in_flight=1)
        assert next(results) == 1
        process.kill()
        process.wait()
        list(results)


def test_the_loss_of_the_scheduler_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "dask", "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(file)]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
        contextlib.ExitStack() as ending,
    ):
        ending.callback(process.kill)
        while not file.exists() or not file.read_text():
            time.sleep(0.05)
        found = json.loads(file.read_text())["address"]
        with (
            worker(found),
            make_executor(ComputeParams(workers=0, dask=found), 10) as executor,
            pytest.raises(PipelineError, match="has gone or has cancelled the work; look at its log, then run again"),
        ):
            results = map_batches(executor, time.sleep, [0, 60], in_flight=2)
            assert next(results) is None
            process.kill()
            list(results)

"""The launcher's parts that need no server: ports, finding the runtime, reading the cause out of a log."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from serving.server import TritonServer, cause_of, claim_port, find_runtime, free_port
from tests.helpers_serving import DEPLOY, ship
from visionloop.errors import ArtifactError, ServingError


def test_a_taken_port_gives_the_next_free_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = free_port(port)
        assert found > port
        assert free_port(port, {found}) > found


def test_a_port_is_given_to_one_server_though_it_does_not_listen_yet() -> None:
    port, claim = claim_port(free_port(0))
    with claim:
        assert free_port(port) > port
        other, second = claim_port(port)
        second.close()
        assert other > port
    assert free_port(port) == port


def test_port_zero_lets_the_system_choose() -> None:
    assert free_port(0) >= 1024


def test_no_free_port_says_so() -> None:
    with pytest.raises(ServingError, match="No free port from 65535 on"):
        free_port(65_535, {65_535})


def _runtime(venv: Path, python: str = "3.11") -> None:
    triton = venv / f"lib/python{python}/site-packages/pytriton/tritonserver"
    for path in (triton / "bin/tritonserver", triton / f"python_backend_stubs/{python}/triton_python_backend_stub"):
        path.parent.mkdir(parents=True)
        path.touch()
    (triton / "backends/python").mkdir(parents=True)
    (venv / "bin").mkdir()
    (venv / "bin/python").symlink_to(sys.executable)


def test_a_missing_environment_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(
        ServingError, match="nowhere is not there; run `make setup`, or name another in VISIONLOOP_TRITON_VENV"
    ):
        find_runtime({"VISIONLOOP_TRITON_VENV": str(tmp_path / "nowhere")})


def test_an_environment_of_another_python_is_refused(tmp_path: Path) -> None:
    _runtime(tmp_path / "venv")
    stubs = tmp_path / "venv/lib/python3.11/site-packages/pytriton/tritonserver/python_backend_stubs"
    (stubs / "3.11").rename(stubs / "3.10")
    with pytest.raises(
        ServingError, match=r"3\.11/triton_python_backend_stub is missing.*no Triton environment for Python 3\.11"
    ):
        find_runtime({"VISIONLOOP_TRITON_VENV": str(tmp_path / "venv")})


def test_the_libpython_beside_the_interpreter_is_preferred(tmp_path: Path) -> None:
    _runtime(tmp_path / "venv")
    base = tmp_path / "base"
    (base / "bin").mkdir(parents=True)
    (base / "lib").mkdir()
    (base / "lib/libpython3.11.so.1.0").touch()
    (base / "bin/python3.11").write_text("#!/bin/sh\necho\n")
    (base / "bin/python3.11").chmod(0o755)
    (tmp_path / "venv/bin/python").unlink()
    (tmp_path / "venv/bin/python").symlink_to(base / "bin/python3.11")
    assert find_runtime({"VISIONLOOP_TRITON_VENV": str(tmp_path / "venv")}).libraries == (base / "lib",)


def test_a_missing_libpython_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _runtime(tmp_path / "venv")
    (tmp_path / "venv/bin/python").unlink()
    (tmp_path / "venv/bin/python").write_text("#!/bin/sh\necho /nowhere\n")
    (tmp_path / "venv/bin/python").chmod(0o755)
    monkeypatch.setattr("ctypes.util.find_library", lambda _: None)
    with pytest.raises(ServingError, match=r"libpython3\.11\.so\.1\.0 is missing.*`apt-get install libpython3\.11`"):
        find_runtime({"VISIONLOOP_TRITON_VENV": str(tmp_path / "venv")})


def test_the_cause_is_the_first_telling_line_of_the_log() -> None:
    log = (
        "I1123 19:02:24.5 10286 x.cc:1] fine\n"
        "E1123 19:02:24.6 10286 model_lifecycle.cc:642] \"failed to load 'classifier' version 1: Internal: "
        'ArtifactError: model.onnx is damaged\\n\\nAt:\\n  /srv/x.py(3): <module>\\n"\n'
        'E1123 19:02:25.0 10286 main.cc:535] "failed to stop server"\n'
    )
    assert cause_of(log) == "ArtifactError: model.onnx is damaged."
    busy = "failed to start HTTP service: Unavailable - Socket '127.0.0.1:8000' already in use"
    assert cause_of(f'E1123 19:02:25.0 1 main.cc:242] "{busy} "\n') == f"{busy}."
    assert cause_of("") == "it wrote nothing."
    config = "Poll failed for model directory 'classifier': failed to read text proto from /srv/config.pbtxt"
    assert cause_of(
        f'E1123 19:02:24.1 1 server.cc:241] "CudaDriverHelper has not been initialized."\n'
        f'E1123 19:02:24.2 1 model_repository_manager.cc:1460] "{config}"\n'
    ) == (f"{config}. Write it again: `dvc repro --force --single-item deploy`.")
    library = "stub: error while loading shared libraries: libpython3.11.so.1.0: cannot open shared object file"
    assert cause_of(library) == library


def test_a_repository_without_release_is_not_started(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="run `dvc repro deploy` to publish a model"):
        TritonServer(tmp_path / "repo", run_dir=tmp_path / "run").start()


def test_ports_are_known_only_after_the_start(tmp_path: Path) -> None:
    ship(tmp_path / "shipped")
    module_server = TritonServer(tmp_path / "repo", run_dir=tmp_path / "run")
    assert module_server.ready() is False
    module_server.stop()
    with pytest.raises(ServingError, match=r"not started; call start\(\) first"):
        _ = module_server.ports
    assert DEPLOY.max_batch_size == 8
    assert not (tmp_path / "run").exists()

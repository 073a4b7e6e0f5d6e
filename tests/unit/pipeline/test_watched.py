"""What would make DVC fail or hang is said in a sentence before DVC is asked."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import repro, watched
from visionloop.errors import PipelineError

ROOT = Path(__file__).parents[3]


@pytest.fixture
def cat(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    folder = tmp_path / "data/raw/cat"
    folder.mkdir(parents=True)
    (folder / "ø 猫\n.jpg").write_bytes(b"1")
    (folder / "to a file.jpg").symlink_to("ø 猫\n.jpg")
    (folder / "to a folder").symlink_to(".")
    return folder


def test_a_pipe_among_the_foreign_images_is_named_too(cat: Path, tmp_path: Path) -> None:
    (tmp_path / "data/foreign").mkdir()
    os.mkfifo(tmp_path / "data/foreign/pipe.jpg")
    assert watched.obstacles(tmp_path) == [
        "data/foreign/pipe.jpg is a pipe, socket or device, which DVC cannot hash; remove or rename it."
    ]


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        os.chdir(path.parent)  # the address may have 108 bytes
        one.bind(path.name)


def test_links_and_odd_names_that_dvc_can_read_are_no_obstacle(cat: Path, tmp_path: Path) -> None:
    assert watched.obstacles(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "make", "kind"),
    [
        ("x.jpg", os.mkfifo, "a pipe, socket or device"),
        ("x.jpg", _socket, "a pipe, socket or device"),
        ("x.jpg", lambda path: path.symlink_to("nowhere"), "a link that leads nowhere"),
        ("x.jpg", lambda path: path.symlink_to("x.jpg"), "a link that leads nowhere"),
        (".dvcignore", Path.touch, "DVC's own"),
    ],
)
def test_an_obstacle_is_named(
    cat: Path, monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[Path], None], kind: str
) -> None:
    root = cat.parents[2]
    monkeypatch.chdir(root)
    make(cat / name)
    assert watched.obstacles(root) == [f"data/raw/cat/{name} is {kind}, which DVC cannot hash; remove or rename it."]


def test_a_name_that_is_no_utf8_is_named(cat: Path, tmp_path: Path) -> None:
    for byte in (b"\xfe", b"\xff"):
        Path(os.fsdecode(os.fsencode(cat) + b"/" + byte + b".jpg")).touch()
    assert watched.obstacles(tmp_path) == [
        "data/raw/cat/\\xfe.jpg and 1 more are of a name that is no UTF-8, which DVC cannot hash; remove or rename them."
    ]


def test_reproduce_and_status_refuse_instead_of_waiting_for_a_pipe(cat: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
    os.mkfifo(cat / "pipe.jpg")
    for ask in (repro.reproduce, repro.status):
        with pytest.raises(
            PipelineError, match=r"^data/raw/cat/pipe.jpg is a pipe, socket or device, which DVC cannot hash"
        ):
            ask(root=tmp_path)

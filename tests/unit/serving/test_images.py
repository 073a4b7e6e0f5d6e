"""Kept images: whole or absent, once, within the bound, and never at a prediction's cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serving import images as module
from serving.images import BLOCK_BYTES, ImageKeeper, count_images, image_path, prune, read_image
from serving.store import Store
from tests.helpers_serving import answered_row
from visionloop.errors import ServingError
from visionloop.files import sha256_bytes
from visionloop.records import Feedback

ROOT = Path(__file__).parents[3]
MEGABYTE = 1e6


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_ROUNDS", 0.005)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"


def _images(count: int, size: int = BLOCK_BYTES) -> dict[str, bytes]:
    found = [index.to_bytes(4, "big") * (size // 4) for index in range(count)]
    return {sha256_bytes(data): data for data in found}


def _keep(folder: Path, url: str, images: dict[str, bytes], *, share: float = 1, blocks: int = 10_000) -> dict[str, int]:
    keeper = ImageKeeper(folder, url, share=share, max_megabytes=blocks * BLOCK_BYTES / MEGABYTE)
    for sha256, data in images.items():
        keeper.keep(sha256, data)
    keeper.close()
    return keeper.counts()


def _label(url: str, images: list[str]) -> int:
    """Answer and label these images; return the number of the last label."""
    with Store(url) as store:
        store.create()
        store.write_predictions([replace(answered_row(name), image_sha256=name) for name in images])
        store.write_feedback([Feedback(name, "rot", "one", datetime.now(UTC)) for name in images])
        return store.labelled()[-1].sequence


def test_an_image_lies_under_its_hash_with_its_bytes(tmp_path: Path, url: str) -> None:
    images = _images(3)
    assert _keep(tmp_path / "images", url, images) == {"kept": 3, "known": 0, "dropped": 0, "removed": 0}
    for sha256, data in images.items():
        assert (tmp_path / "images" / sha256[:2] / sha256).read_bytes() == data
        assert read_image(tmp_path / "images", sha256) == data
    assert count_images(tmp_path / "images") == 3
    assert read_image(tmp_path / "images", "0" * 64) is None


def test_an_image_that_comes_again_is_written_once_and_counts_as_new(tmp_path: Path, url: str) -> None:
    images = _images(1)
    [sha256] = images
    _keep(tmp_path, url, images)
    path = image_path(tmp_path, sha256)
    os.utime(path, (1, 1))
    inode = path.stat().st_ino
    assert _keep(tmp_path, url, images)["known"] == 1
    assert path.stat().st_ino == inode
    assert path.stat().st_mtime > 1


def test_the_share_is_chosen_by_content(tmp_path: Path, url: str) -> None:
    images = _images(400, size=8)
    counts = [_keep(tmp_path / str(run), url, images, share=0.3)["kept"] for run in range(2)]
    kept = [{path.name for path in (tmp_path / str(run)).rglob("?" * 64)} for run in range(2)]
    assert kept[0] == kept[1] == {name for name in images if int(name[:8], 16) < 0.3 * 2**32}
    assert counts == [len(kept[0])] * 2
    assert 80 < counts[0] < 160
    assert _keep(tmp_path / "none", url, images, share=0)["kept"] == 0


def test_the_folder_stays_below_its_bound_and_the_oldest_go(tmp_path: Path, url: str) -> None:
    images = _images(30)
    names = list(images)
    keeper = ImageKeeper(tmp_path / "images", url, share=1, max_megabytes=10 * BLOCK_BYTES / MEGABYTE)
    for age, (sha256, data) in enumerate(images.items()):
        keeper.keep(sha256, data)
        deadline = time.monotonic() + 10
        while not image_path(tmp_path / "images", sha256).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.utime(image_path(tmp_path / "images", sha256), (1000 + age, 1000 + age))
        assert count_images(tmp_path / "images") <= 10
    keeper.close()
    left = [name for name in names if image_path(tmp_path / "images", name).exists()]
    assert left == names[-len(left) :]
    assert 9 <= len(left) <= 10
    assert keeper.counts() == {"kept": 30, "known": 0, "dropped": 0, "removed": 30 - len(left)}


def test_a_labelled_image_stays_until_it_was_pulled(tmp_path: Path, url: str) -> None:
    images = _images(5)
    names = list(images)
    _keep(tmp_path / "images", url, images)
    for age, name in enumerate(names):
        os.utime(image_path(tmp_path / "images", name), (1000 + age, 1000 + age))
    last = _label(url, names[:2])
    assert prune(tmp_path / "images", url, 3 * BLOCK_BYTES) == (3 * BLOCK_BYTES, 2)
    assert [image_path(tmp_path / "images", name).exists() for name in names] == [True, True, False, False, True]
    # Where only labelled images are left, a new one has no place; once they were pulled, it has.
    more = {sha256: data for sha256, data in _images(7).items() if sha256 not in names}
    first, second = more.items()
    assert prune(tmp_path / "images", url, 0) == (2 * BLOCK_BYTES, 1)
    assert _keep(tmp_path / "images", url, dict([first]), blocks=2)["dropped"] == 1
    with Store(url) as store:
        store.mark_pulled(last)
    assert _keep(tmp_path / "images", url, dict([second]), blocks=2) == {"kept": 1, "known": 0, "dropped": 0, "removed": 2}


def test_nothing_is_removed_while_the_store_does_not_say_what_is_labelled(tmp_path: Path) -> None:
    images = _images(4)
    _keep(tmp_path / "images", f"sqlite:///{tmp_path}/store.db", images)
    (tmp_path / "down.db").mkdir()
    down = f"sqlite:///{tmp_path}/down.db"
    with pytest.raises(ServingError, match="refuses"):
        prune(tmp_path / "images", down, 0)
    new = {sha256: data for sha256, data in _images(5).items() if sha256 not in images}
    assert _keep(tmp_path / "images", down, new, blocks=4)["dropped"] == 1
    assert count_images(tmp_path / "images") == 4


def test_an_image_larger_than_the_bound_removes_no_other(tmp_path: Path, url: str) -> None:
    _keep(tmp_path / "images", url, _images(2))
    assert _keep(tmp_path / "images", url, _images(1, size=3 * BLOCK_BYTES), blocks=2)["dropped"] == 1
    assert count_images(tmp_path / "images") == 2


def test_images_that_wait_for_the_disk_are_bounded(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", BLOCK_BYTES)
    assert _keep(tmp_path / "images", url, _images(1, size=2 * BLOCK_BYTES))["dropped"] == 1
    assert "not kept for labelling (the disk is slower than the images come)" in caplog.text


def test_the_journal_has_the_last_of_the_disk(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FREE_BYTES", 1 << 60)
    assert _keep(tmp_path / "images", url, _images(2)) == {"kept": 0, "known": 0, "dropped": 2, "removed": 0}


def test_a_folder_that_cannot_be_made_costs_the_image_only(tmp_path: Path, url: str) -> None:
    (tmp_path / "images").write_text("a file where the folder should be")
    assert _keep(tmp_path / "images", url, _images(2))["dropped"] == 2


def test_a_file_that_a_power_cut_left_empty_is_not_read_and_is_written_anew(tmp_path: Path, url: str) -> None:
    images = _images(1)
    [(sha256, data)] = images.items()
    path = image_path(tmp_path, sha256)
    path.parent.mkdir()
    path.touch()
    assert read_image(tmp_path, sha256) is None
    assert _keep(tmp_path, url, images)["kept"] == 1
    assert read_image(tmp_path, sha256) == data
    path.write_bytes(data[:-1] + b"x")
    assert read_image(tmp_path, sha256) is None


_WRITER = """
import itertools, sys
from pathlib import Path
from serving.images import ImageKeeper
from visionloop.files import sha256_bytes
keeper = ImageKeeper(Path(sys.argv[1]), sys.argv[2], share=1, max_megabytes=1000)
print("begins", flush=True)
for number in itertools.count(int(sys.argv[3])):
    data = number.to_bytes(4, "big") * 100_000
    keeper.keep(sha256_bytes(data), data)
"""


def test_kill_9_while_images_are_written_leaves_no_half_image_to_be_read(tmp_path: Path, url: str) -> None:
    for run in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path / "images"), url, str(run << 20)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.15 + 0.01 * run)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    found = list((tmp_path / "images").glob("??/" + "[0-9a-f]" * 64))
    assert len(found) > 20
    assert count_images(tmp_path / "images") == len(found)
    for path in found:
        assert sha256_bytes(path.read_bytes()) == path.name
    # What was half written has a name that no reader asks for; it is swept up once it is surely no living process's.
    half = next((tmp_path / "images").glob("??")) / f".{'0' * 64}.1.tmp"
    half.write_bytes(b"half")
    os.utime(half, (1, 1))
    prune(tmp_path / "images", url, 1 << 40)
    assert not half.exists()


_FULL_DISK = """
import resource, sys, time
from pathlib import Path
from serving.images import ImageKeeper
from visionloop.files import sha256_bytes
keeper = ImageKeeper(Path(sys.argv[1]), "sqlite:///" + sys.argv[2], share=1, max_megabytes=1000)
def keep(data):
    keeper.keep(sha256_bytes(data), data)
    while sum(keeper.counts().values()) < wanted:
        time.sleep(0.001)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
wanted = 1
keep(b"a" * 2000)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
wanted = 2
keep(b"b" * 2000)
keeper.close()
print(keeper.counts())
"""


def test_a_disk_that_fills_up_in_an_image_costs_that_image_only(tmp_path: Path) -> None:
    # A file-size limit cuts a write short exactly as a full disk does.
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path / "images"), str(tmp_path / "store.db")],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == "{'kept': 1, 'known': 0, 'dropped': 1, 'removed': 0}\n"
    assert [path.name for path in (tmp_path / "images").rglob("*") if path.is_file()] == [sha256_bytes(b"b" * 2000)]
    assert "An answered image was not kept for labelling (the disk is full)" in done.stderr


def test_two_servers_share_a_folder(tmp_path: Path, url: str) -> None:
    images = _images(50)
    keepers = [ImageKeeper(tmp_path / "images", url, share=1, max_megabytes=100) for _ in range(2)]
    for sha256, data in images.items():
        for keeper in keepers:
            keeper.keep(sha256, data)
    for keeper in keepers:
        keeper.close()
    totals = [keeper.counts() for keeper in keepers]
    assert sum(counts["kept"] + counts["known"] for counts in totals) == 100
    assert count_images(tmp_path / "images") == 50

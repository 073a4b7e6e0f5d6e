"""Shards only grow: what stands is not touched, what is new is added, and a killed run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from visionloop.data.shards import CollectSummary, append, read_bytes, read_images
from visionloop.data.sources import Skipped, SourceImage
from visionloop.errors import ArtifactError, DataError
from visionloop.files import sha256_bytes

TIME = datetime(2026, 1, 1, tzinfo=UTC)


class ListSource:
    """Images from a list; dies after `dies_after` of them."""

    def __init__(self, items: list[tuple[str, bytes]], name: str = "folder", dies_after: int | None = None) -> None:
        self.name, self._items, self._dies_after = name, items, dies_after
        self.skipped: list[Skipped] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[SourceImage]:
        for index, (path, data) in enumerate(self._items):
            if index == self._dies_after:
                raise KeyboardInterrupt
            yield SourceImage(data, path.split("/")[0], path, TIME, None)


def items(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    return [
        (f"{'cat' if index % 2 else 'dog'}/{index:03d}.jpg", b"image %d" % index) for index in range(start, start + count)
    ]


def collect(tmp_path: Path, source: ListSource, per_shard: int = 4) -> CollectSummary:
    return append([source], tmp_path / "shards", tmp_path / "images.parquet", per_shard)


def files(tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "shards"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_bytes_come_back_with_their_rows(tmp_path: Path) -> None:
    summary = collect(tmp_path, ListSource(items(10)))
    rows = read_images(tmp_path / "images.parquet")
    assert (summary.images, summary.classes, summary.new_images, summary.new_shards, summary.shards) == (10, 2, 10, 3, 3)
    assert summary.bytes == sum(len(data) for _, data in items(10))
    assert [row.path for row in rows] == sorted(path for path, _ in items(10))
    assert {row.path: data for row, data in read_bytes(tmp_path / "shards", rows)} == dict(items(10))
    assert all(row.id == sha256_bytes(data) and row.time == TIME for row, data in read_bytes(tmp_path / "shards", rows))


def test_a_choice_of_rows_across_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionloop.data.shards.ROW_GROUP_ROWS", 3)
    collect(tmp_path, ListSource(items(20)), per_shard=12)
    chosen = [row for row in read_images(tmp_path / "images.parquet") if row.path[-5] in "05"]
    got = {row.path: data for row, data in read_bytes(tmp_path / "shards", chosen)}
    assert got == {path: data for path, data in items(20) if path[-5] in "05"}


def test_added_images_make_one_new_shard_and_leave_the_others(tmp_path: Path) -> None:
    collect(tmp_path, ListSource(items(6)))
    before = files(tmp_path)
    summary = collect(tmp_path, ListSource(items(9)))
    after = files(tmp_path)
    assert (summary.images, summary.new_images, summary.new_shards) == (9, 3, 1)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 1


def test_nothing_new_writes_no_shard_and_the_same_list(tmp_path: Path) -> None:
    collect(tmp_path, ListSource(items(6)))
    before, listed = files(tmp_path), (tmp_path / "images.parquet").read_bytes()
    assert collect(tmp_path, ListSource(items(6))).new_images == 0
    assert (files(tmp_path), (tmp_path / "images.parquet").read_bytes()) == (before, listed)


def test_a_removed_image_leaves_the_list_and_stays_in_its_shard(tmp_path: Path) -> None:
    collect(tmp_path, ListSource(items(6)))
    before = files(tmp_path)
    summary = collect(tmp_path, ListSource(items(5)))
    assert (summary.images, summary.gone_images, summary.new_images) == (5, 1, 0)
    assert files(tmp_path) == before
    assert "cat/005.jpg" not in {row.path for row in read_images(tmp_path / "images.parquet")}
    assert collect(tmp_path, ListSource(items(6))).new_images == 0  # and it comes back from there


def test_the_same_bytes_under_two_labels_are_two_images(tmp_path: Path) -> None:
    summary = collect(tmp_path, ListSource([("cat/a.jpg", b"same"), ("dog/a.jpg", b"same"), ("cat/b.jpg", b"same")]))
    assert summary.images == 3


def test_a_moved_image_is_a_new_row(tmp_path: Path) -> None:
    collect(tmp_path, ListSource([("cat/a.jpg", b"x"), ("dog/b.jpg", b"y")]))
    summary = collect(tmp_path, ListSource([("dog/a.jpg", b"x"), ("dog/b.jpg", b"y")]))
    assert (summary.new_images, summary.gone_images) == (1, 1)
    assert [row.label for row in read_images(tmp_path / "images.parquet")] == ["dog", "dog"]


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "killed", ListSource(items(20), dies_after=11))
    assert len(files(tmp_path / "killed")) == 2  # whole shards only
    collect(tmp_path / "killed", ListSource(items(20)))
    collect(tmp_path / "calm", ListSource(items(20)))
    assert files(tmp_path / "killed") == files(tmp_path / "calm")
    killed, calm = (tmp_path / name / "images.parquet" for name in ("killed", "calm"))
    assert killed.read_bytes() == calm.read_bytes()


def test_what_kill_9_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "shards/folder").mkdir(parents=True)
    (tmp_path / "shards/folder/.part-00000.tmp").write_bytes(b"half")
    collect(tmp_path, ListSource(items(3)))
    assert [name.split("-")[0] for name in files(tmp_path)] == ["folder/part"]


def test_shards_of_a_source_no_longer_configured_are_removed(tmp_path: Path) -> None:
    collect(tmp_path, ListSource(items(3), name="digits"))
    collect(tmp_path, ListSource(items(3), name="folder"))
    assert {name.split("/")[0] for name in files(tmp_path)} == {"folder"}
    assert {row.source for row in read_images(tmp_path / "images.parquet")} == {"folder"}


def test_large_images_close_a_shard_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionloop.data.shards.MAX_SHARD_BYTES", 250)
    big = [(f"cat/{index}.jpg", bytes([index]) * 100) for index in range(7)]
    assert collect(tmp_path, ListSource(big), per_shard=1000).new_shards == 3


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="brought no readable image"):
        collect(tmp_path, ListSource([]))


def test_a_flipped_byte_in_a_shard_is_seen(tmp_path: Path) -> None:
    collect(tmp_path, ListSource(items(3)))
    (path,) = (tmp_path / "shards").rglob("*.parquet")
    data = bytearray(path.read_bytes())
    data[data.index(b"image 1")] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"row 1 does not hold the bytes of image .* `dvc checkout`"):
        list(read_bytes(tmp_path / "shards", read_images(tmp_path / "images.parquet")))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    collect(tmp_path, ListSource(items(3)))
    rows = read_images(tmp_path / "images.parquet")
    (path,) = (tmp_path / "shards").rglob("*.parquet")
    path.unlink()
    with pytest.raises(ArtifactError, match=rf"{path.name} is missing or damaged"):
        list(read_bytes(tmp_path / "shards", rows))

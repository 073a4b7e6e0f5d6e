"""Shards only grow: what stands is not touched, what is new is added, and a killed run goes on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from visionloop.data.shards import CollectSummary, append, read_bytes, read_images
from visionloop.data.sources.base import Skipped, SkipReason, SourceImage
from visionloop.errors import ArtifactError, DataError
from visionloop.files import sha256_bytes

TIME = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2026, 5, 4, tzinfo=UTC)


class ListSource:
    """Images from a list; dies of `death` after `dies_after` of them."""

    def __init__(
        self,
        items: list[tuple[str, bytes]],
        name: str = "folder",
        dies_after: int | None = None,
        death: BaseException | None = None,
        skipped: list[Skipped] | None = None,
        **said: Any,
    ) -> None:
        self.name, self._items, self._dies_after, self._said = name, items, dies_after, said
        self._death = death or KeyboardInterrupt()
        self.skipped: list[Skipped] = skipped or []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[SourceImage]:
        for index, (path, data) in enumerate(self._items):
            if index == self._dies_after:
                raise self._death
            yield SourceImage(data, path.split("/")[0], path, **{"time": TIME, "split_hint": None, **self._said})


def items(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    return [
        (f"{'cat' if index % 2 else 'dog'}/{index:03d}.jpg", b"image %d" % index) for index in range(start, start + count)
    ]


def collect(tmp_path: Path, *sources: ListSource, per_shard: int = 4, share: float = 1.0) -> CollectSummary:
    return append(sources, tmp_path / "shards", tmp_path / "images.parquet", per_shard, share)


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


@pytest.mark.parametrize(
    ("death", "why"),
    [
        (OSError(5, "Input/output error"), "Input/output error"),
        (ConnectionResetError("the other side hung up"), "the other side hung up"),
        (DataError("x.tar: the archive is cut off; fetch it again."), "x.tar: the archive is cut off; fetch it again"),
    ],
)
def test_a_failing_source_keeps_what_it_brought_and_goes_on(tmp_path: Path, death: Exception, why: str) -> None:
    sentence = (
        f"The source folder stopped after 11 of 20 images: {why}. 2 whole shards stay, and the next run goes on from there."
    )
    with pytest.raises(DataError) as caught:
        collect(tmp_path / "failed", ListSource(items(20), dies_after=11, death=death))
    assert str(caught.value) == sentence
    assert len(files(tmp_path / "failed")) == 2
    assert not (tmp_path / "failed/images.parquet").exists()
    assert collect(tmp_path / "failed", ListSource(items(20))).new_images == 12  # the 8 of the whole shards stay
    collect(tmp_path / "calm", ListSource(items(20)))
    assert files(tmp_path / "failed") == files(tmp_path / "calm")


def faults(count: int, reason: SkipReason) -> list[Skipped]:
    return [Skipped(f"cat/{reason}{index}.jpg", reason) for index in range(count)]


def test_single_bad_files_never_stop_the_run(tmp_path: Path) -> None:
    source = ListSource(items(19), skipped=faults(1, "unreadable"))
    assert collect(tmp_path, source, share=0.05).images == 19


def test_more_bad_files_than_the_share_stop_it_with_counts_and_names(tmp_path: Path) -> None:
    source = ListSource(items(14), skipped=[*faults(4, "unreadable"), *faults(2, "vanished")])
    with pytest.raises(DataError) as caught:
        collect(tmp_path, source, share=0.05)
    assert str(caught.value) == (
        "The source folder could not read 6 of 20 files (4 unreadable, 2 vanished), more than "
        "collect.max_skipped_share = 0.05 allows: cat/unreadable0.jpg, cat/unreadable1.jpg, "
        "cat/unreadable2.jpg, cat/unreadable3.jpg, cat/vanished0.jpg, …. Look at these files, or raise the share."
    )


def test_what_was_never_meant_as_an_image_is_no_fault(tmp_path: Path) -> None:
    kinds: tuple[SkipReason, ...] = ("hidden", "not_an_image", "no_class", "symlink", "no_label", "outside", "empty_class")
    source = ListSource(items(2), skipped=[one for kind in kinds for one in faults(50, kind)])
    assert collect(tmp_path, source, share=0).images == 2


def test_two_sources_stand_side_by_side_and_each_grows_alone(tmp_path: Path) -> None:
    summary = collect(tmp_path, ListSource(items(6)), ListSource(items(3), name="feedback"))
    assert summary.images_by_source == (("folder", 6), ("feedback", 3))
    before = files(tmp_path)
    summary = collect(tmp_path, ListSource(items(6)), ListSource(items(5), name="feedback"))
    assert (summary.images, summary.new_images, summary.new_shards) == (11, 2, 1)
    assert {name: data for name, data in files(tmp_path).items() if name in before} == before
    assert [row.source for row in read_images(tmp_path / "images.parquet")].count("feedback") == 5


def test_provenance_is_kept_and_follows_the_source_without_a_new_shard(tmp_path: Path) -> None:
    collect(tmp_path, ListSource(items(3), group="patient 1", labelled_by="Éva", split_hint="train"))
    before = files(tmp_path)
    (row, *_) = read_images(tmp_path / "images.parquet")
    assert (row.group, row.labelled_by, row.split_hint, row.source) == ("patient 1", "Éva", "train", "folder")
    changed = ListSource(items(3), group="patient 2", labelled_by="Jan", split_hint="test", time=LATER, time_stated=True)
    assert collect(tmp_path, changed).new_images == 0
    assert files(tmp_path) == before
    (row, *_) = read_images(tmp_path / "images.parquet")
    assert (row.group, row.labelled_by, row.split_hint, row.time) == ("patient 2", "Jan", "test", LATER)


def test_a_file_time_that_copying_changed_is_not_taken_over(tmp_path: Path) -> None:
    collect(tmp_path, ListSource(items(3)))
    collect(tmp_path, ListSource(items(3), time=LATER))
    assert {row.time for row in read_images(tmp_path / "images.parquet")} == {TIME}


def test_100_more_images_are_one_new_shard_of_100(tmp_path: Path) -> None:
    collect(tmp_path, ListSource(items(6_000)), per_shard=4096)
    before = files(tmp_path)
    summary = collect(tmp_path, ListSource(items(6_100)), per_shard=4096)
    assert (summary.new_images, summary.new_shards, summary.shards) == (100, 1, 3)
    assert {name: data for name, data in files(tmp_path).items() if name in before} == before


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

"""Which images a data version had: sides by id, the file, and what a damaged one says."""

from __future__ import annotations

from pathlib import Path

import pytest

from visionloop.data.seen import LEARNT, TEST, UNSEEN, Seen, read_seen
from visionloop.errors import ArtifactError
from visionloop.files import sha256_bytes, write_bytes
from visionloop.records import Split, SplitRow

IDS = [sha256_bytes(str(number).encode()) for number in range(5)]


def rows() -> list[SplitRow]:
    sides: list[Split] = ["train", "test", "val", "test"]
    return [SplitRow(image, "a", side, image) for image, side in zip(IDS, sides, strict=False)]


def test_sides_survive_the_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "images.npz", Seen.of(rows()).to_bytes())
    seen = read_seen(tmp_path / "images.npz")
    assert seen is not None
    assert seen.sides(IDS).tolist() == [LEARNT, TEST, LEARNT, TEST, UNSEEN]
    assert Seen.of(rows()).to_bytes() == Seen.of(rows()[::-1]).to_bytes()
    assert Seen.of([]).sides(IDS[:1]).tolist() == [UNSEEN]


def test_a_missing_list_is_none_and_a_damaged_one_a_sentence(tmp_path: Path) -> None:
    assert read_seen(tmp_path / "none.npz") is None
    for content in (b"", b"not a zip", Seen.of(rows()).to_bytes()[:-30]):
        (tmp_path / "images.npz").write_bytes(content)
        with pytest.raises(ArtifactError, match="restore it with `dvc checkout`, or remove it"):
            read_seen(tmp_path / "images.npz")

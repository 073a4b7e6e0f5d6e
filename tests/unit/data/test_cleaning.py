"""Each kind of bad image gets its reason; good ones are kept; a data set that cannot be learnt from is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from tests.unit.data.conftest import Draw
from visionloop.config import CleanParams
from visionloop.data.cleaning import check, judge, measure_all, read_clean, score, summary
from visionloop.data.executor import make_executor
from visionloop.errors import DataError
from visionloop.preprocess import encode_png
from visionloop.records import CleanRow, ImageRow
from visionloop.tables import write_rows

MakeRow = Callable[..., ImageRow]
MakeClean = Callable[..., CleanRow]


@pytest.fixture
def clean(image_row: MakeRow, clean_params: CleanParams) -> Callable[..., dict[str, CleanRow]]:
    """Files by path -> judged rows by path."""

    def run(files: dict[str, bytes], order: int | None = None, **changes: object) -> dict[str, CleanRow]:
        params = clean_params.model_copy(update=changes)
        rows = [image_row(data, path) for path, data in files.items()]
        if order is not None:
            random.Random(order).shuffle(rows)
        with make_executor(1, len(rows)) as executor:
            encoded = ((row, files[row.path]) for row in reversed(rows))
            measured = measure_all(rows, encoded, executor, int(params.max_megapixels * 1e6))
        return {row.path: row for row in judge(rows, measured, score(rows, measured, params), params)}

    return run


Clean = Callable[..., dict[str, CleanRow]]


def test_every_kind_of_bad_image_has_its_reason(clean: Clean, draw: Draw) -> None:
    jpeg = draw(1, kind="JPEG")
    found = clean(
        {
            "a/good.png": draw(0),
            "a/empty.jpg": b"",
            "a/text.jpg": b"no image",
            "a/page.jpg": b"<html><body>404</body></html>",
            "a/moving.gif": b"GIF89a" + bytes(20),
            "a/cut.jpg": jpeg[: len(jpeg) // 2],
            "a/cut2.jpg": jpeg[:-2],
            "a/huge.png": draw(2, side=1100),
            "a/tiny.png": draw(3, side=7),
            "a/line.png": encode_png(np.arange(600, dtype=np.uint8).reshape(3, 200)),
            "a/grey.png": encode_png(np.full((30, 30), 128, np.uint8)),
        }
    )
    assert {path: row.reason for path, row in found.items()} == {
        "a/good.png": "", "a/empty.jpg": "empty", "a/text.jpg": "unreadable", "a/page.jpg": "unsupported_format",
        "a/moving.gif": "unsupported_format", "a/cut.jpg": "truncated", "a/cut2.jpg": "truncated", "a/huge.png": "too_large",
        "a/tiny.png": "too_small", "a/line.png": "too_small", "a/grey.png": "blank",
    }  # fmt: skip
    assert [path for path, row in found.items() if row.verdict == "keep"] == ["a/good.png"]
    assert found["a/tiny.png"].detail == "It has 7 x 7 pixels; the shorter side must have 8."
    assert found["a/grey.png"].detail == "Its gray levels spread by 0.00 around 128.0; 2 is the least."
    assert found["a/empty.jpg"].perceptual_hash == ""
    assert len(found["a/good.png"].perceptual_hash) == 16


def test_of_equal_bytes_the_first_path_is_kept_whatever_the_order(clean: Clean, draw: Draw) -> None:
    files = {"a/3.png": draw(1), "a/1.png": draw(1), "a/2.png": draw(1), "a/0.png": draw(2)}
    for order in range(5):
        found = clean(files, order)
        assert {path: row.reason for path, row in found.items()} == {
            "a/0.png": "", "a/1.png": "", "a/2.png": "exact_duplicate", "a/3.png": "exact_duplicate",
        }  # fmt: skip
        assert found["a/3.png"].detail == "The same bytes as a/1.png."
        assert len({found[f"a/{n}.png"].cluster for n in (1, 2, 3)}) == 1
        assert found["a/0.png"].cluster == found["a/0.png"].id


def test_equal_bytes_under_two_labels_are_all_rejected(clean: Clean, draw: Draw) -> None:
    found = clean({"cat/1.png": draw(1), "cat/2.png": draw(1), "dog/1.png": draw(1), "dog/2.png": draw(2)})
    assert [row.reason for row in found.values()] == ["conflicting_labels"] * 3 + [""]
    assert found["dog/1.png"].detail == "The same bytes stand under 'cat', 'dog'."
    assert found["dog/1.png"].verdict == "reject"


def test_look_alikes_are_kept_in_one_cluster(clean: Clean, draw: Draw) -> None:
    files = {
        "cat/1.png": draw(1),
        "cat/2.jpg": draw(1, kind="JPEG", quality=50),
        "dog/3.png": draw(1, side=96),
        "dog/4.png": draw(2),
    }
    for order in range(3):
        found = clean(files, order)
        assert {path: row.reason for path, row in found.items()} == {
            "cat/1.png": "", "cat/2.jpg": "near_duplicate", "dog/3.png": "near_duplicate", "dog/4.png": "",
        }  # fmt: skip
        assert {row.verdict for row in found.values()} == {"keep"}
        first = found["cat/1.png"].id
        assert [found[path].cluster for path in files] == [first, first, first, found["dog/4.png"].id]
        assert found["cat/2.jpg"].detail.startswith("Looks like cat/1.png: pixels differ by 0.")
        assert found["dog/3.png"].detail.endswith("that image has the label 'cat'.")


def test_look_alikes_can_be_rejected(clean: Clean, clean_params: CleanParams, draw: Draw) -> None:
    files = {"a/1.png": draw(1), "a/2.jpg": draw(1, kind="JPEG")}
    found = clean(files, reject=(*clean_params.reject, "near_duplicate"))
    assert [row.verdict for row in found.values()] == ["keep", "reject"]


def test_a_reason_that_is_not_listed_is_a_remark(clean: Clean, clean_params: CleanParams) -> None:
    reject = tuple(reason for reason in clean_params.reject if reason != "blank")
    (row,) = clean({"a/grey.png": encode_png(np.full((30, 30), 128, np.uint8))}, reject=reject).values()
    assert (row.verdict, row.reason) == ("keep", "blank")


def test_blank_images_do_not_resemble_each_other(clean: Clean) -> None:
    found = clean({f"a/{value}.png": encode_png(np.full((30, 30), value, np.uint8)) for value in range(0, 250, 50)})
    assert len({row.cluster for row in found.values()}) == 5


def test_two_hundred_different_pictures_are_not_joined(clean: Clean, draw: Draw) -> None:
    found = clean({f"a/{seed}.png": draw(seed) for seed in range(200)})
    assert {row.reason for row in found.values()} == {""}
    assert len({row.cluster for row in found.values()}) == 200


def test_processes_give_the_same_as_one(
    image_row: MakeRow, clean_params: CleanParams, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionloop.data.executor.IMAGES_PER_PROCESS", 1)
    files = {f"a/{seed}.png": draw(seed) if seed else b"" for seed in range(70)}
    rows = [image_row(data, path) for path, data in files.items()]
    results = []
    for workers in (1, 2):
        with make_executor(workers, len(rows)) as executor:
            results.append(measure_all(rows, ((row, files[row.path]) for row in rows), executor, 10**6))
    assert results[0] == results[1]


def test_rows_come_back_from_their_file(tmp_path: Path, clean_row: MakeClean) -> None:
    rows = [clean_row(1, "cat", reason="near_duplicate", detail="ü"), clean_row(2, "dog", split_hint="val")]
    write_rows(tmp_path / "clean.parquet", CleanRow, rows)
    assert read_clean(tmp_path / "clean.parquet") == rows


def test_the_numbers_of_the_report(clean_row: MakeClean) -> None:
    rows = [clean_row(number, "cat") for number in range(5)] + [clean_row(number, "dog") for number in range(10, 14)]
    rows[1] = replace(rows[1], cluster=rows[0].cluster, reason="near_duplicate")
    rows[5] = replace(rows[5], cluster=rows[0].cluster, reason="near_duplicate")
    rows[8] = replace(rows[8], verdict="reject", reason="blank")
    assert summary(rows) == {
        "images": 9, "kept": 8, "rejected": 1, "rejected_share": round(1 / 9, 6), "classes": 2, "smallest_class_images": 3,
        "largest_class_images": 5, "near_duplicate_clusters": 1, "largest_cluster_images": 3, "clusters_across_labels": 1,
        "reason_blank": 1, "reason_near_duplicate": 2,
    }  # fmt: skip


def test_too_many_rejected_stop_the_run(clean_row: MakeClean, clean_params: CleanParams) -> None:
    rows = [clean_row(f"{label}{number}", label) for label in ("cat", "dog") for number in range(5)]
    half = [replace(row, verdict="reject", reason="truncated") for row in rows[:2]] + rows[2:]
    check(half, clean_params.model_copy(update={"max_rejected_share": 0.2}))
    with pytest.raises(DataError, match=r"2 of 10 images are rejected \(truncated 2\), more than .* 0.1 allows"):
        check(half, clean_params.model_copy(update={"max_rejected_share": 0.1}))


def test_one_class_left_stops_the_run(clean_row: MakeClean, clean_params: CleanParams) -> None:
    with pytest.raises(DataError, match=r"Of 1 classes, 1 has images left"):
        check([clean_row(number, "cat") for number in range(5)], clean_params)


def test_a_small_class_is_named(clean_row: MakeClean, clean_params: CleanParams) -> None:
    rows = [
        clean_row(f"{label}{number}", label)
        for label, count in (("cat", 3), ("dog", 2), ("eel", 4))
        for number in range(count)
    ]
    with pytest.raises(DataError, match=r"fewer than 3 images left.*: 'dog' \(2\); add images or remove the class"):
        check(rows, clean_params)


def test_only_images_that_can_be_used_may_be_kept_by_the_parameters(clean_params: CleanParams) -> None:
    with pytest.raises(
        ValidationError, match=r"reject lacks truncated; only too_small, blank, near_duplicate may be left out"
    ):
        CleanParams(**{**clean_params.model_dump(), "reject": [one for one in clean_params.reject if one != "truncated"]})

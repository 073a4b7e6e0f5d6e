"""Each kind of bad image gets its findings; good ones are kept; decisions win; a useless data set is refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter
from pydantic import ValidationError

from tests.unit.data.conftest import Draw
from visionloop.config import CleanParams, ComputeParams
from visionloop.data.cleaning import (
    MIN_CLASS_IMAGES,
    Judged,
    check,
    image_ids,
    judge,
    kept_by_class,
    measure_all,
    read_clean,
    score,
    summary,
)
from visionloop.data.decisions import Decision, Verb, resolve
from visionloop.data.executor import make_executor
from visionloop.data.thumbs import Thumbs
from visionloop.errors import DataError
from visionloop.files import sha256_bytes
from visionloop.preprocess import encode_png
from visionloop.records import CleanRow, ImageRow
from visionloop.tables import write_rows

MakeRow = Callable[..., ImageRow]
HERE = ComputeParams(workers=1, dask=None)


@dataclass(frozen=True)
class Cleaned:
    """The judged images, and their rows by path."""

    judged: Judged
    rows: dict[str, CleanRow]

    def __getitem__(self, path: str) -> CleanRow:
        return self.rows[path]

    def reasons(self) -> dict[str, str]:
        return {path: row.reason for path, row in self.rows.items()}


Clean = Callable[..., Cleaned]


@pytest.fixture
def clean(image_row: MakeRow, clean_params: CleanParams, tmp_path: Path) -> Clean:
    """Files by path -> judged rows by path, in that order."""

    def run(files: dict[str, bytes], decisions: tuple[Decision, ...] = (), **changes: object) -> Cleaned:
        params = clean_params.model_copy(update=changes)
        rows = sorted((image_row(data, path) for path, data in files.items()), key=lambda row: row.path)
        resolved = resolve(
            decisions, np.sort(image_ids(rows)), {row.label for row in rows}, MIN_CLASS_IMAGES, Path("decisions.csv")
        )
        with Thumbs(len(rows), tmp_path) as thumbs, make_executor(HERE, len(rows)) as executor:
            encoded = ((row, files[row.path]) for row in reversed(rows))
            measures = measure_all(rows, encoded, executor, int(params.max_megapixels * 1e6), thumbs)
            judged = judge(rows, measures, score(rows, measures, thumbs, resolved, params), params)
        found = {row.path: row for row in judged}
        return Cleaned(judged, {path: found[path] for path in files})

    return run


def said(verb: Verb, data: bytes, label: str = "", why: str = "") -> Decision:
    return Decision(sha256_bytes(data), verb, label, "ann", why, 2)


def jpeg(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def flat(value: int) -> bytes:
    return encode_png(np.full((30, 30), value, np.uint8))


def test_every_kind_of_bad_image_has_its_reason(clean: Clean, draw: Draw) -> None:
    whole = draw(1, kind="JPEG")
    found = clean(
        {
            "a/good.png": draw(0),
            "a/empty.jpg": b"",
            "a/byte.jpg": b"\xff",
            "a/text.jpg": b"no image",
            "a/page.jpg": b"<html><body>404</body></html>",
            "a/moving.gif": b"GIF89a" + bytes(20),
            "a/header.jpg": whole[:20],
            "a/cut.jpg": whole[: len(whole) // 2],
            "a/cut2.jpg": whole[:-2],
            "a/huge.png": draw(2, side=1100),
            "a/tiny.png": draw(3, side=7),
            "a/dot.png": encode_png(np.zeros((1, 1), np.uint8)),
            "a/line.png": encode_png(np.arange(10_000, dtype=np.uint32).astype(np.uint8)[None]),
            "a/grey.png": flat(128),
        }
    )
    assert found.reasons() == {
        "a/good.png": "", "a/empty.jpg": "empty", "a/byte.jpg": "unreadable", "a/text.jpg": "unreadable",
        "a/page.jpg": "unsupported_format", "a/moving.gif": "unsupported_format", "a/header.jpg": "unreadable",
        "a/cut.jpg": "truncated", "a/cut2.jpg": "truncated", "a/huge.png": "too_large", "a/tiny.png": "too_small",
        "a/dot.png": "too_small", "a/line.png": "too_small", "a/grey.png": "blank",
    }  # fmt: skip
    assert [path for path, row in found.rows.items() if row.verdict == "keep"] == ["a/good.png"]
    assert found["a/tiny.png"].detail.startswith("It has 7 x 7 pixels; the shorter side must have 8.")
    assert found["a/grey.png"].detail == "Its gray levels spread by 0.00 around 128.0; 2 is the least."
    assert (found["a/empty.jpg"].perceptual_hash, found["a/empty.jpg"].width_pixels) == ("", 0)
    assert len(found["a/good.png"].perceptual_hash) == 16


def test_findings_stand_the_gravest_first_with_a_sentence_each(clean: Clean, draw: Draw) -> None:
    found = clean({**{f"a/{seed}.png": draw(seed) for seed in range(5)}, "a/black.png": flat(0)})
    assert found["a/black.png"].findings == ("blank", "dark")
    assert found["a/black.png"].detail == (
        "Its gray levels spread by 0.00 around 0.0; 2 is the least. "
        "99 % of its pixels are at most 0 bright, of 255; 56 is dark."
    )


def test_of_equal_bytes_the_first_path_is_kept(clean: Clean, draw: Draw) -> None:
    found = clean({"a/3.png": draw(1), "a/1.png": draw(1), "a/2.png": draw(1), "a/0.png": draw(2)})
    assert found.reasons() == {
        "a/3.png": "exact_duplicate", "a/1.png": "", "a/2.png": "exact_duplicate", "a/0.png": "",
    }  # fmt: skip
    assert found["a/3.png"].detail == "The same bytes as a/1.png."
    assert len({found[f"a/{n}.png"].cluster for n in (1, 2, 3)}) == 1
    assert found["a/0.png"].cluster == found["a/0.png"].id


def test_equal_bytes_under_two_labels_are_all_rejected(clean: Clean, draw: Draw) -> None:
    found = clean({"cat/1.png": draw(1), "cat/2.png": draw(1), "dog/1.png": draw(1), "dog/2.png": draw(2)})
    assert list(found.reasons().values()) == ["conflicting_labels"] * 3 + [""]
    assert found["dog/1.png"].detail == "The same bytes stand under 'cat', 'dog'."
    assert found["dog/1.png"].verdict == "reject"


def test_look_alikes_are_kept_in_one_cluster(clean: Clean, draw: Draw) -> None:
    found = clean(
        {
            "cat/1.png": draw(1),
            "cat/2.jpg": draw(1, kind="JPEG", quality=85),
            "dog/3.png": draw(1, side=96),
            "dog/4.png": draw(2),
        }
    )
    assert [row.findings[:1] for row in found.rows.values()] == [(), ("near_duplicate",), ("near_duplicate",), ()]
    assert {row.verdict for row in found.rows.values()} == {"keep"}
    first = found["cat/1.png"].id
    assert [row.cluster for row in found.rows.values()] == [first, first, first, found["dog/4.png"].id]
    assert found["cat/2.jpg"].detail.startswith("Looks like cat/1.png: pixels differ by 0.")
    assert "that image has the label 'cat'." in found["dog/3.png"].detail


def test_a_mirror_image_is_called_one(clean: Clean, draw: Draw) -> None:
    mirrored = Image.open(io.BytesIO(draw(1))).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found = clean({"a/1.png": draw(1), "a/2.jpg": jpeg(mirrored, quality=90), "a/3.png": draw(2)})
    assert found["a/2.jpg"].reason == "near_duplicate"
    assert found["a/2.jpg"].detail.startswith("Looks like the mirror image of a/1.png: pixels differ by 0.")


def test_look_alikes_can_be_rejected(clean: Clean, clean_params: CleanParams, draw: Draw) -> None:
    files = {"a/1.png": draw(1), "a/2.jpg": draw(1, kind="JPEG")}
    found = clean(files, reject=(*clean_params.reject, "near_duplicate"))
    assert [row.verdict for row in found.rows.values()] == ["keep", "reject"]


def test_a_reason_that_is_not_listed_is_a_remark(clean: Clean, clean_params: CleanParams) -> None:
    reject = tuple(reason for reason in clean_params.reject if reason != "blank")
    row = clean({"a/grey.png": flat(128)}, reject=reject)["a/grey.png"]
    assert (row.verdict, row.reason) == ("keep", "blank")


def test_blank_images_do_not_resemble_each_other(clean: Clean) -> None:
    found = clean({f"a/{value}.png": flat(value) for value in range(0, 250, 50)})
    assert len({row.cluster for row in found.rows.values()}) == 5


def test_two_hundred_different_pictures_have_no_remark(clean: Clean, draw: Draw) -> None:
    found = clean({f"a/{seed}.png": draw(seed) for seed in range(200)})
    assert set(found.reasons().values()) == {""}
    assert len({row.cluster for row in found.rows.values()}) == 200


def noisy(seed: int, side: int = 64) -> Image.Image:
    """A picture with detail down to the pixel, as a camera makes."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    return Image.fromarray((np.asarray(coarse) + rng.normal(0, 14, (side, side, 3))).clip(0, 255).astype(np.uint8))


def test_faults_planted_among_good_pictures_are_found_and_nothing_else(clean: Clean) -> None:
    """Of each kind five among a hundred: every one is found, and no other image is suspected."""
    files = {f"a/{seed:03}.jpg": jpeg(noisy(seed), quality=92) for seed in range(100)}
    kinds: dict[str, Callable[[Image.Image], Image.Image]] = {
        "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2.5)),
        "dark": lambda image: ImageEnhance.Brightness(image).enhance(0.15),
        "bright": lambda image: image.point(lambda value: 250 + value // 60),
        "odd_size": lambda image: image.resize((400, 400), Image.Resampling.NEAREST),
        "odd_aspect": lambda image: image.crop((0, 0, 64, 16)),
    }
    planted: dict[str, set[str]] = {}
    for number, (kind, change) in enumerate(kinds.items()):
        for seed in range(200 + 10 * number, 205 + 10 * number):
            files[f"b/{kind}{seed}.jpg"] = jpeg(change(noisy(seed)), quality=92)
            planted.setdefault(kind, set()).add(f"b/{kind}{seed}.jpg")
    found = clean(files, blank_contrast=0.5)
    for kind, paths in planted.items():
        flagged = {path for path, row in found.rows.items() if kind in row.findings}
        assert paths <= flagged, kind
        assert not {path for path in flagged if path.startswith("a/")}, kind
    assert found["b/blurred200.jpg"].detail.endswith("deviations less steep than this set's median; 5 is blurred.")
    assert found["b/odd_size230.jpg"].verdict == "keep"
    assert "usual here are 26 to 160 a side" in found["b/odd_size230.jpg"].detail
    assert "Its longer side is 4.0 times its shorter one; up to 2.5 is usual here." in found["b/odd_aspect240.jpg"].detail


def test_enlarged_copies_are_not_called_blurred(clean: Clean) -> None:
    files = {f"a/{seed:03}.png": jpeg(noisy(seed, 32), quality=95) for seed in range(40)}
    files["b/large.jpg"] = jpeg(noisy(50, 32).resize((64, 64), Image.Resampling.LANCZOS), quality=95)
    assert "blurred" not in clean(files)["b/large.jpg"].findings


def test_an_animation_and_few_gray_levels_are_remarks(clean: Clean, draw: Draw) -> None:
    frames = io.BytesIO()
    Image.open(io.BytesIO(draw(1))).save(frames, "WEBP", save_all=True, append_images=[Image.new("RGB", (48, 48))])
    halves = np.full((30, 30), 90, np.uint8)
    halves[:2] = 190
    found = clean({"a/moving.webp": frames.getvalue(), "a/plain.png": encode_png(halves), "a/good.png": draw(2)})
    assert "animated" in found["a/moving.webp"].findings
    assert found["a/moving.webp"].detail.endswith("It has several frames, of which the first is used.")
    assert "low_information" in found["a/plain.png"].findings
    assert "Its gray levels hold 0.35 bits; 1 is the least." in found["a/plain.png"].detail


def test_what_features_doubt_is_a_remark_with_its_numbers(clean: Clean) -> None:
    """Two classes of dark and light stripes, one image of each under the other's label, and one of noise."""
    files: dict[str, bytes] = {}
    rng = np.random.default_rng(0)
    for number in range(60):
        for label, stripes in (("across", np.arange(32)[:, None]), ("down", np.arange(32)[None, :])):
            picture = 128 + 90 * np.sin(stripes * 0.8 + rng.uniform(0, 6)) + rng.normal(0, 40, (32, 32))
            wrong = {"across": "down", "down": "across"}[label] if number == 0 else label
            files[f"{wrong}/{label}{number:02}.png"] = encode_png(picture.clip(0, 255).astype(np.uint8))
    found = clean(files, outliers=True, suspect_labels=True)
    suspects = {path for path, row in found.rows.items() if "suspect_label" in row.findings}
    assert suspects == {"down/across00.png", "across/down00.png"}
    row = found["down/across00.png"]
    assert (row.verdict, row.suggested_label, row.label) == ("keep", "across", "down")
    assert row.label_quality < 0.5
    assert row.detail.startswith("Models that never saw it call it 'across' and give its label a probability of 0.")
    few = clean({"a/1.png": encode_png(np.arange(900, dtype=np.uint16).astype(np.uint8).reshape(30, 30))}, outliers=True)
    assert few.judged.scores.doubts.notes == ("Outliers are not sought: that takes 50 images, here are 1.",)


def test_a_drop_and_a_keep_win_over_the_verdict(clean: Clean, clean_params: CleanParams, draw: Draw) -> None:
    near, grey = draw(1, kind="JPEG"), flat(128)
    found = clean(
        {"a/1.png": draw(1), "a/2.jpg": near, "a/3.png": draw(3), "a/4.png": grey},
        (said("keep", near, why="the better one"), said("drop", draw(3)), said("keep", grey)),
        reject=(*clean_params.reject, "near_duplicate"),
    )
    assert [(row.verdict, row.reason, row.decided_by) for row in found.rows.values()] == [
        ("keep", "", ""),
        ("keep", "decision_keep", "ann"),
        ("reject", "decision_drop", "ann"),
        ("keep", "decision_keep", "ann"),
    ]
    assert found["a/2.jpg"].detail.startswith("ann keeps it (the better one). Looks like a/1.png")
    assert found["a/2.jpg"].findings == ("near_duplicate",)
    assert found["a/3.png"].detail == "ann drops it."
    numbers = summary(found.judged)
    assert (numbers["decisions_applied"], numbers["decisions_without_effect"]) == (3, 0)
    assert (numbers["reason_decision_keep"], numbers["reason_decision_drop"]) == (2, 1)


def test_a_copy_of_a_dropped_image_takes_its_place(clean: Clean, clean_params: CleanParams, draw: Draw) -> None:
    files = {"a/1.png": draw(1), "a/2.jpg": draw(1, kind="JPEG")}
    found = clean(files, (said("drop", draw(1)),), reject=(*clean_params.reject, "near_duplicate"))
    assert [row.verdict for row in found.rows.values()] == ["reject", "keep"]


def test_a_relabel_counts_before_duplicates_are_judged(clean: Clean, draw: Draw) -> None:
    files = {"cat/1.png": draw(1), "dog/1.png": draw(1), "dog/2.png": draw(2), "cat/3.png": draw(3)}
    found = clean(files, (said("relabel", draw(1), "dog"), said("relabel", draw(3), "dog", "it barks")))
    assert [(row.label, row.given_label, row.reason) for row in found.rows.values()] == [
        ("dog", "cat", "decision_relabel"),
        ("dog", "dog", "exact_duplicate"),
        ("dog", "dog", ""),
        ("dog", "cat", "decision_relabel"),
    ]
    assert [row.verdict for row in found.rows.values()] == ["keep", "reject", "keep", "keep"]
    assert found["cat/3.png"].detail == "ann relabels it from 'cat' to 'dog' (it barks)."
    assert kept_by_class(found.judged) == {"dog": 3}


def test_a_decision_that_can_have_no_effect_says_so(clean: Clean, draw: Draw) -> None:
    broken, both, grey = draw(1, kind="JPEG")[:-300], draw(2), flat(7)
    found = clean(
        {"a/1.jpg": broken, "a/2.png": both, "b/2.png": both, "a/3.png": grey, "a/4.png": draw(4), "a/5.png": draw(4)},
        (said("keep", broken), said("keep", both), said("relabel", grey, "b"), said("keep", draw(4))),
    )
    assert found.reasons() == {
        "a/1.jpg": "truncated", "a/2.png": "conflicting_labels", "b/2.png": "conflicting_labels", "a/3.png": "blank",
        "a/4.png": "decision_keep", "a/5.png": "exact_duplicate",
    }  # fmt: skip
    assert [row.verdict for row in found.rows.values()] == ["reject"] * 4 + ["keep", "reject"]
    assert found["a/1.jpg"].detail.startswith("ann keeps it, and it cannot be kept because it cannot be decoded. The image")
    assert found["a/2.png"].detail.startswith("ann keeps it, which cannot choose between its labels; relabel it.")
    assert "and it is still rejected; keep or drop it at its source." in found["a/3.png"].detail
    assert "which is done to the first image of the same bytes." in found["a/5.png"].detail
    numbers = summary(found.judged)
    assert (numbers["decisions_applied"], numbers["decisions_without_effect"]) == (1, 5)


def test_processes_give_the_same_as_one(
    image_row: MakeRow, draw: Draw, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visionloop.data.executor.IMAGES_PER_PROCESS", 1)
    files = {f"a/{seed}.png": draw(seed) if seed else b"" for seed in range(70)}
    rows = [image_row(data, path) for path, data in files.items()]
    results = []
    for workers in (1, 2):
        compute = ComputeParams(workers=workers, dask=None)
        with Thumbs(len(rows), tmp_path) as thumbs, make_executor(compute, len(rows)) as executor:
            measures = measure_all(rows, ((row, files[row.path]) for row in rows), executor, 10**6, thumbs)
            results.append((measures, thumbs.read(np.arange(len(rows)))))
    (one, small), (two, other) = results
    for name, values in vars(one).items():
        np.testing.assert_array_equal(values, getattr(two, name), err_msg=name)
    np.testing.assert_array_equal(small, other)


def test_rows_come_back_from_their_file(tmp_path: Path, clean: Clean, draw: Draw) -> None:
    judged = clean({"a/1.png": draw(1), "a/2.jpg": draw(1, kind="JPEG"), "ü/3.png": b""}).judged
    write_rows(tmp_path / "clean.parquet", CleanRow, judged)
    assert read_clean(tmp_path / "clean.parquet") == list(judged)


def test_the_numbers_of_the_report(clean: Clean, draw: Draw) -> None:
    files = {f"cat/{seed}.png": draw(seed) for seed in range(4)}
    files |= {"cat/4.jpg": draw(0, kind="JPEG"), "dog/0.jpg": draw(0, kind="JPEG", quality=90), "dog/1.png": draw(9)}
    files |= {"dog/2.png": flat(90), "cow/1.png": b""}
    numbers = summary(clean(files).judged)
    assert numbers == {
        "images": 9, "kept": 7, "rejected": 2, "rejected_share": round(2 / 9, 6), "classes": 2, "smallest_class_images": 2,
        "largest_class_images": 5, "near_duplicate_clusters": 1, "largest_cluster_images": 3, "clusters_across_labels": 1,
        "decisions_applied": 0, "decisions_without_effect": 0, "decisions_of_absent_images": 0,
        "reason_blank": 1, "reason_empty": 1, "reason_near_duplicate": 2,
        "finding_blank": 1, "finding_empty": 1, "finding_near_duplicate": 2,
        "class_cat": 5, "class_cow": 0, "class_dog": 2,
    }  # fmt: skip


def test_too_many_rejected_stop_the_run(clean: Clean, clean_params: CleanParams, draw: Draw) -> None:
    files = {f"{label}/{seed}.png": draw(seed + 100 * (label == "dog")) for label in ("cat", "dog") for seed in range(4)}
    judged = clean({**files, "cat/x.jpg": b"", "dog/x.jpg": b"text"}).judged
    check(judged, clean_params.model_copy(update={"max_rejected_share": 0.2}))
    with pytest.raises(DataError, match=r"2 of 10 images are rejected \(empty 1, unreadable 1\), more than .* 0.1 allows"):
        check(judged, clean_params.model_copy(update={"max_rejected_share": 0.1}))


def test_one_class_left_stops_the_run(clean: Clean, clean_params: CleanParams, draw: Draw) -> None:
    with pytest.raises(DataError, match=r"Of 1 classes, 1 has images left"):
        check(clean({f"cat/{seed}.png": draw(seed) for seed in range(5)}).judged, clean_params)


def test_a_small_class_is_named(clean: Clean, clean_params: CleanParams, draw: Draw) -> None:
    counts = {"cat": 3, "dog": 2, "eel": 4}
    files = {f"{label}/{n}.png": draw(n + 10 * ord(label[0])) for label in counts for n in range(counts[label])}
    with pytest.raises(DataError, match=r"fewer than 3 images left.*: 'dog' \(2\); add images or remove the class"):
        check(clean(files).judged, clean_params)


def test_what_cannot_be_learnt_from_must_be_rejected(clean_params: CleanParams) -> None:
    with pytest.raises(ValidationError, match=r"reject lacks truncated; .*conflicting_labels cannot be learnt from"):
        CleanParams(**{**clean_params.model_dump(), "reject": [one for one in clean_params.reject if one != "truncated"]})

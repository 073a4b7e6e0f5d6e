"""A planted weakness is found, chance is not called one, and what cannot be judged is said."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import fisher_exact

from visionloop.errors import ArtifactError
from visionloop.evaluation.predictions import SplitPredictions
from visionloop.evaluation.slices import Attributes, holm, quarters, read_attributes, slices, slices_csv
from visionloop.records import CleanRow
from visionloop.tables import write_rows


def predictions(correct: np.ndarray, classes: int = 2) -> SplitPredictions:
    """Images of class 0 and 1 in turn; a wrong one is called the next class."""
    targets = np.arange(len(correct)) % 2
    called = np.where(correct, targets, (targets + 1) % classes)
    return SplitPredictions(tuple(map(str, range(len(correct)))), targets.astype(np.int64), np.eye(classes)[called])


def attributes(count: int, **changes: Any) -> Attributes:
    same = np.full(count, 100.0)
    plain = Attributes(same, same, same, same, ("folder",) * count, np.zeros(count, dtype=bool))
    return replace(plain, **changes)


def test_a_planted_weakness_is_called_worse_with_fishers_p_value() -> None:
    brightness = np.arange(200.0)
    correct = np.ones(200, dtype=bool)
    correct[[1, 2, 3, 5, 8, 13, 21, 34, 90, 150]] = False
    found, notes = slices(predictions(correct), "ab", attributes(200, brightness=brightness), 0.95)
    dark, *others = [one for one in found if one.kind == "brightness"]
    assert (dark.images, dark.mistakes, dark.accuracy, dark.rest_accuracy) == (50, 8, 0.84, 148 / 150)
    raw = fisher_exact(np.array([[8, 42], [2, 148]]), alternative="greater").pvalue
    assert dark.p_value == pytest.approx(4 * raw)  # four quarters were tested, and this is the smallest
    assert dark.verdict == "worse"
    assert dark.sentence.startswith("brightness 0 to 49: 84.00% of 50 images are right, 98.67% of the rest: worse")
    assert {one.verdict for one in others} == {"not worse"}
    assert [one.name for one in others] == ["50 to 99", "100 to 149", "150 to 199"]
    assert notes[0] == "All test images have the same size (100 pixels), so there are no parts by size."
    assert notes[-2:] == [
        "All test images are of one source (folder), so there are no parts by source.",
        "No test image has near-duplicates, so there are no parts by them.",
    ]
    assert slices_csv(found).splitlines()[1].startswith("brightness: 0 to 49,50,8,0.84,")


def test_tiny_parts_are_shown_and_not_judged() -> None:
    correct = np.ones(100, dtype=bool)
    correct[:5] = False
    sources = ("phone",) * 19 + ("scanner",) * 81
    found, _ = slices(predictions(correct), "ab", attributes(100, sources=sources), 0.95)
    scanner, phone = [one for one in found if one.kind == "source"]  # the largest first
    assert (phone.name, phone.images, phone.p_value, phone.verdict) == ("phone", 19, None, "too small")
    assert phone.sentence.endswith("too few here or outside to judge; 20 are needed.")
    assert scanner.verdict == "too small"  # nor can it be told from so few others


def test_chance_is_called_worse_in_at_most_5_percent_of_test_sets() -> None:
    """With nothing planted, 200 test sets with 18 parts each; Fisher's test is exact and Holm's correction safe: 1.5 %."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(200):
        known = {name: rng.random(300) for name in ("pixels", "brightness", "contrast", "sharpness")}
        given = attributes(300, **known, has_duplicates=rng.random(300) < 0.3)
        found, _ = slices(predictions(rng.random(300) < 0.9, 3), "abc", given, 0.95)
        hits += any(one.verdict == "worse" for one in found if one.kind != "class pair")
    assert hits / 200 <= 0.05


def test_pairs_are_corrected_for_every_pair_that_there_is() -> None:
    """The class that is always mistaken is found; its p-value is multiplied by all 45 pairs of ten classes."""
    targets = np.arange(1000) % 10
    called = targets.copy()
    called[np.flatnonzero(targets == 3)[:30]] = 5
    called[np.flatnonzero(targets == 7)[:5]] = 1
    made = SplitPredictions(tuple(map(str, range(1000))), targets, np.eye(10)[called])
    found, _ = slices(made, "0123456789", attributes(1000), 0.95)
    worst, other = [one for one in found if one.kind == "class pair"]
    assert (worst.name, worst.images, worst.mistakes) == ("3 or 5", 200, 30)
    assert worst.p_value == pytest.approx(45 * fisher_exact(np.array([[30, 170], [5, 795]]), alternative="greater").pvalue)
    assert (worst.verdict, other.name, other.verdict) == ("worse", "1 or 7", "not worse")


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03], 3) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, 0.6], 100) == [1.0, 1.0]
    assert holm([], 4) == []


def test_quarters_keep_equal_values_together() -> None:
    assert [(name, int(mask.sum())) for name, mask in quarters(np.array([5.0, 7, 5, 5]))] == [("5", 3), ("7", 1)]
    values = np.array([0.0] * 90 + list(range(1, 11)))
    assert [(name, int(mask.sum())) for name, mask in quarters(values)] == [("0", 90), ("1 to 10", 10)]
    many = np.arange(4000.0)
    assert [name for name, _ in quarters(many)] == ["0 to 999", "1,000 to 1,999", "2,000 to 2,999", "3,000 to 3,999"]
    assert sum(mask.sum() for _, mask in quarters(many)) == 4000


def row(name: str, **changes: Any) -> CleanRow:
    empty: dict[str, Any] = {"str": "", "int": 0, "float": 0.0, "bool": False, "datetime": datetime(2024, 1, 1, tzinfo=UTC)}
    values: dict[str, Any] = {field.name: empty.get(str(field.type)) for field in fields(CleanRow)}
    values |= {"id": name, "cluster": name, "findings": (), "verdict": "keep", "width_pixels": 3, "height_pixels": 4}
    return CleanRow(**(values | changes))


def test_attributes_are_looked_up_by_id_and_duplicates_counted_among_kept_images(tmp_path: Path) -> None:
    rows = [
        row("a", cluster="a", brightness=1.0, source="x"),
        row("b", cluster="a", brightness=2.0, source="y"),
        row("c", cluster="c", brightness=3.0, source="x"),
        row("d", cluster="c", verdict="reject"),
    ]
    write_rows(tmp_path / "clean.parquet", CleanRow, rows)
    found = read_attributes(tmp_path / "clean.parquet", ("c", "b"))
    assert found.brightness.tolist() == [3.0, 2.0]
    assert found.pixels.tolist() == [12.0, 12.0]
    assert found.sources == ("x", "y")
    assert found.has_duplicates.tolist() == [False, True]
    with pytest.raises(
        ArtifactError, match=r"2 of 3 test images are not among those .* keeps \(first: d\); run `dvc repro`"
    ):
        read_attributes(tmp_path / "clean.parquet", ("a", "d", "e"))
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_attributes(tmp_path / "none.parquet", ("a",))

"""visionloop.evaluation.unknowns: made images, how scores are compared, and that a choice is judged by other kinds."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from visionloop.errors import ArtifactError, ConfigError, DataError
from visionloop.evaluation.unknowns import (
    CHOSEN_BY,
    FOLDER,
    JUDGED_BY,
    KINDS,
    choose,
    folder_images,
    foreign_csv,
    kept_threshold,
    made,
    read_foreign,
    separation,
    unknowns_csv,
)
from visionloop.preprocess import PreprocessSpec, encode_png
from visionloop.unknown import Score


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_drawn_the_same_each_time_and_no_two_images_of_it_are_equal(kind: str) -> None:
    images = made(kind, 12, 16, 24, gray=False)
    assert images.shape == (12, 16, 24, 3)
    assert images.dtype == np.uint8
    assert (images == made(kind, 12, 16, 24, gray=False)).all()
    assert len({image.tobytes() for image in images}) == 12
    assert all(np.ptp(image, axis=(0, 1)).max() >= 20 for image in images)  # none is blank
    gray = made(kind, 4, 16, 24, gray=True)
    assert (gray[..., 0] == gray[..., 2]).all()
    assert not (images[..., 0] == images[..., 2]).all()


def test_no_kind_chooses_and_judges() -> None:
    assert not set(CHOSEN_BY) & set(JUDGED_BY)
    assert FOLDER not in CHOSEN_BY


def test_letters_that_are_classes_or_look_like_one_are_not_drawn() -> None:
    kind = "capital letters"
    alphabet = string.ascii_uppercase
    plain = made(kind, 26, 16, 16, gray=True)
    without = made(kind, 26, 16, 16, gray=True, known=("0", "1"))
    # The stream of chance is the same, so the letters before the first one that is left out are, too.
    assert [bool((a == b).all()) for a, b in zip(plain, without, strict=True)].index(False) == alphabet.index("I")
    only_z = made(kind, 3, 16, 16, gray=True, known=tuple(alphabet[:-1]))
    assert not (only_z[0] == plain[0]).all()
    assert len(made(kind, 3, 16, 16, gray=True, known=tuple(alphabet))) == 3


def test_the_area_is_scikit_learns_and_ties_count_as_half() -> None:
    rng = np.random.default_rng(0)
    known, foreign = rng.integers(0, 6, 80).astype(float), rng.integers(2, 9, 50).astype(float)
    found = separation(known, {"noise": foreign})
    truth, scores = np.repeat([0, 1], [80, 50]), np.concatenate([known, foreign])
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores))
    assert found.low < found.auroc < found.high


def test_fpr95_is_read_off_the_curve() -> None:
    rng = np.random.default_rng(1)
    known, foreign = rng.normal(size=1000), rng.normal(1, 1, 300)
    found = separation(known, {"noise": foreign})
    # Known ones are the positives here, and they have the low scores.
    passed, kept, _ = roc_curve(np.repeat([1, 0], [1000, 300]), -np.concatenate([known, foreign]), drop_intermediate=False)
    assert found.fpr95 == pytest.approx(passed[np.argmax(kept >= 0.95)])


def test_kinds_count_alike_however_many_images_they_have() -> None:
    known = np.arange(100.0)
    found = separation(known, {"few": np.array([1000.0]), "many": np.full(500, -1.0), "none": np.empty(0)})
    assert found.auroc == 0.5
    assert dict(found.auroc_of) == {"few": 1.0, "many": 0.0}
    assert dict(found.fpr95_of) == {"few": 0.0, "many": 1.0}


def test_delongs_interval_is_as_wide_as_the_resampled_area_varies() -> None:
    rng = np.random.default_rng(2)
    known, first, second = rng.normal(size=120), rng.normal(1.5, 1, 60), rng.normal(0.7, 2, 40)
    found = separation(known, {"first": first, "second": second})
    resampled = [
        separation(rng.choice(known, 120), {"first": rng.choice(first, 60), "second": rng.choice(second, 40)}).auroc
        for _ in range(500)
    ]
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(np.std(resampled), rel=0.15)


@pytest.mark.parametrize(("kept", "threshold"), [(0.95, 95.0), (0.951, 96.0), (0.999, 100.0), (0.5, 50.0)])
def test_the_threshold_keeps_at_least_the_stated_share(kept: float, threshold: float) -> None:
    known = np.arange(1.0, 101.0)
    assert kept_threshold(known, kept) == threshold
    assert (known <= threshold).mean() >= kept


@pytest.mark.parametrize("broken", [np.array([np.nan]), np.empty(0)])
def test_nothing_to_compare_is_answered_by_a_sentence(broken: np.ndarray) -> None:
    with pytest.raises(DataError, match="cannot be told apart"):
        separation(broken, {"noise": np.ones(3)})
    with pytest.raises(DataError, match="cannot be told apart"):
        separation(np.ones(3), {"noise": broken})


def world(quality: dict[Score, tuple[float, float]]) -> tuple[dict[Score, np.ndarray], dict[Score, dict[str, np.ndarray]]]:
    """Known scores, and foreign ones that lie so far above on the choosing and on the judging kinds."""
    rng = np.random.default_rng(0)
    known = {score: rng.normal(size=200) for score in quality}
    foreign = {
        score: {kind: rng.normal(shift[kind in JUDGED_BY], 1, 50) for kind in KINDS} for score, shift in quality.items()
    }
    return known, foreign


def test_the_choice_looks_at_the_choosing_kinds_alone() -> None:
    measured = choose(*world({"probability": (1, 0), "energy": (2, 0), "distance": (0, 5)}))
    assert measured.score == "energy"
    assert set(measured.chosen_by["energy"].auroc_of) == set(CHOSEN_BY)
    assert set(measured.judged_by["energy"].auroc_of) == set(JUDGED_BY)
    assert measured.judged_by["energy"].auroc == pytest.approx(0.5, abs=0.05)
    assert "Energy is the score for unknown images: AUROC 0.9" in measured.reason


def test_of_equal_scores_the_one_that_needs_least_is_taken() -> None:
    assert choose(*world({"probability": (50, 0), "energy": (50, 9), "distance": (50, 9)})).score == "probability"


def test_the_tables_hold_what_was_measured_and_evaluate_reads_the_scores_back(tmp_path: Path) -> None:
    known, foreign = world({"probability": (1, 0), "energy": (2, 0), "distance": (0, 5)})
    measured = choose(known, foreign)
    rows = unknowns_csv(measured).splitlines()
    assert len(rows) == 1 + 3 * len(KINDS)
    assert rows[0] == "score,kind,role,auroc,fpr95"
    (tmp_path / "foreign.csv").write_text(foreign_csv(measured, foreign["energy"]))
    back = read_foreign(tmp_path / "foreign.csv")
    assert list(back) == list(JUDGED_BY)
    assert all((back[kind] == foreign["energy"][kind]).all() for kind in JUDGED_BY)
    with pytest.raises(ArtifactError, match="dvc repro calibrate"):
        read_foreign(tmp_path / "none.csv")


def test_the_owners_images_are_read_and_what_is_none_is_counted(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/one.png").write_bytes(encode_png(np.full((9, 9, 3), 7, np.uint8)))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".gitkeep").write_bytes(b"")
    images, refused = folder_images(tmp_path, PreprocessSpec(4, 6))
    assert (images.shape, refused) == ((1, 4, 6, 3), 1)
    assert (images == 7).all()
    empty, _ = folder_images(tmp_path / "deep" / "..", PreprocessSpec(4, 6))
    assert len(empty) == 1
    with pytest.raises(ConfigError, match=r"calibrate\.foreign is .*there is no such folder"):
        folder_images(tmp_path / "nowhere", PreprocessSpec(4, 6))

"""The law is found where it is planted, parts are nested, and the answer follows from the interval."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.unit.training import worlds
from visionloop.crossvalidation import clear
from visionloop.data.packing import PackedSplit
from visionloop.errors import ConfigError, DataError
from visionloop.learning_curve import (
    Trained,
    fit,
    learning_curve,
    numbers,
    part_rows,
    points_csv,
    power_law,
    report,
    stretched,
)
from visionloop.records import Split

SIDES: dict[Split, PackedSplit] = {"train": worlds.split(64, 0), "val": worlds.split(24, 1), "test": worlds.split(48, 2)}


def planted(mistakes: list[int], count: int) -> Trained:
    """Each model errs on the images that the next one errs on too, and more."""
    correct = np.stack([np.arange(count) >= number for number in mistakes])
    return Trained((100, 200, 400, 800), (0.125, 0.25, 0.5, 1.0), correct, ())


def test_a_planted_power_law_is_found() -> None:
    images = np.array([100.0, 200.0, 400.0, 800.0])
    a, b = power_law(images, np.round(1e7 * 2 * images**-0.5)[None].astype(np.int64), 10_000_000)
    assert (a[0], b[0]) == (pytest.approx(2, rel=1e-3), pytest.approx(0.5, rel=1e-3))


def test_the_answer_is_yes_hardly_or_not_known() -> None:
    steep = fit(planted([4000, 2000, 1000, 500], 10_000))
    assert steep.verdict == "yes"
    assert steep.exponent == pytest.approx(1, abs=0.01)
    assert steep.twice == pytest.approx(0.975, abs=0.001)
    assert steep.exponent_interval.low < 1 < steep.exponent_interval.high
    assert steep.answer.startswith("Yes, twice as many labelled images should help: from 800 to 1,600 images the power law")
    assert fit(planted([300, 200, 130, 90], 100_000)).verdict == "hardly"
    flat = fit(planted([50, 50, 51, 50], 500))
    assert flat.verdict == "not known"
    assert flat.answer.endswith("which may be nothing.")
    none = fit(planted([3, 0, 0, 0], 50))  # points without a mistake have a law, and a wide one
    assert none.twice <= 1
    assert numbers(steep)["twice_gain_low"] < numbers(steep)["twice_gain"] < numbers(steep)["twice_gain_high"]
    assert points_csv(steep).splitlines()[1].startswith("100,0.6,")
    assert report(steep, ["a note"])["verdict"] == "yes"


def test_parts_are_nested_balanced_and_take_their_variants_along() -> None:
    train = SIDES["train"]
    data = PackedSplit(
        np.concatenate([train.images, train.images[:8]]),
        np.concatenate([train.labels, train.labels[:8]]),
        [*train.ids, *(f"{name}+1" for name in train.ids[:8])],
        variants=8,
    )
    smaller, larger = part_rows(data, 0.25), part_rows(data, 0.5)
    assert set(smaller) < set(larger)
    for rows, share in ((smaller, 0.25), (larger, 0.5), (part_rows(data, 1.0), 1.0)):
        originals = rows[rows < 64]
        wanted = np.ceil(np.bincount(train.labels) * share)
        assert np.bincount(data.labels[originals]).tolist() == wanted.tolist()
        assert rows[rows >= 64].tolist() == [64 + row for row in range(8) if row in originals]
    assert part_rows(data, 1.0).tolist() == list(range(72))


def test_a_part_is_trained_as_many_steps_as_the_whole() -> None:
    params = worlds.params(epochs=10, warmup_epochs=1.5, early_stopping_epochs=3)
    part = stretched(params, 0.25)
    assert (part.epochs, part.warmup_epochs, part.early_stopping_epochs) == (40, 6.0, 12)
    assert stretched(params, 1) is params


def test_a_run_and_its_continuation(tmp_path: Path) -> None:
    said: list[str] = []
    params = worlds.params(epochs=1, warmup_epochs=0, batch_size=16, keep="last")
    first = learning_curve("cnn", SIDES, worlds.meta(), params, folder=tmp_path, say=said.append)
    # An eighth of 64 images is less than a batch.
    assert first.shares == (0.25, 0.5, 1.0)
    assert first.images[-1] == 64
    assert first.correct.shape == (3, 48)
    assert "fewer than a batch of 16, and is left out." in first.notes[0]
    (tmp_path / "share-1.npz").unlink()
    again = learning_curve("cnn", SIDES, worlds.meta(), params, folder=tmp_path, say=said.append)
    assert (again.correct == first.correct).all()
    assert sum("was finished by an earlier, interrupted run" in sentence for sentence in said) == 2
    clear(tmp_path, "share-*")
    assert list(tmp_path.iterdir()) == []


def test_what_would_mislead_is_refused(tmp_path: Path) -> None:
    params = worlds.params()
    with pytest.raises(ConfigError, match="teacher is 'large', who has learnt from all images"):
        learning_curve("vit", SIDES, worlds.meta(), worlds.params(teacher="large"), folder=tmp_path)
    with pytest.raises(ConfigError, match=r"augment\.store is stream"):
        learning_curve("cnn", SIDES, worlds.meta().model_copy(update={"store": "stream"}), params, folder=tmp_path)
    with pytest.raises(DataError, match="64 training images are too few for a learning curve"):
        learning_curve("cnn", SIDES, worlds.meta(), worlds.params(batch_size=40), folder=tmp_path)
    empty = replace(SIDES["test"], images=SIDES["test"].images[:0], labels=SIDES["test"].labels[:0], ids=[])
    with pytest.raises(DataError, match="no test image to judge by"):
        learning_curve("cnn", {**SIDES, "test": empty}, worlds.meta(), params, folder=tmp_path)

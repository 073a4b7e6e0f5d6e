"""A pruned network or a student learns from the trained one and takes its place, or does not, with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.training import worlds
from visionloop.errors import ConfigError
from visionloop.models.pruning import multiply_adds
from visionloop.training import EpochRecord, TrainResult, train

PRUNING = {"by": "pruning", "share": 0.3}
STUDENT = {"by": "student", "architecture": "small_resnet", "options": {"width": 4, "stages": 2}, "rate": 1.0}


def run(folder: Path, smaller: dict[str, Any], *, stop_at: int = 0, **changes: Any) -> tuple[TrainResult, list[EpochRecord]]:
    told: list[EpochRecord] = []

    def tell(record: EpochRecord) -> None:
        told.append(record)
        if record.epoch == stop_at and not record.restored:
            raise KeyboardInterrupt

    settings = {"epochs": 8, "cnn_options": {"width": 16, "stages": 2}, **changes}
    result = train(
        "cnn", worlds.split(96, 0), worlds.split(48, 1), worlds.meta(),
        worlds.params(smaller={**worlds.SMALLER, **smaller}, **settings), resume=folder, on_epoch=tell,
    )  # fmt: skip
    return result, told


@pytest.mark.parametrize("smaller", [PRUNING, {**STUDENT, "epochs": 8}], ids=["pruning", "student"])
def test_the_smaller_network_learns_and_takes_the_place(smaller: dict[str, Any], tmp_path: Path) -> None:
    result, told = run(tmp_path, smaller)
    about = result.smaller
    assert about is not None and about.by == smaller["by"]
    assert multiply_adds(result.classifier, (8, 8)) == about.multiply_adds_after < 0.71 * about.multiply_adds
    assert about.architecture_options == {"width": 16, "stages": 2}
    last = 8 + {**worlds.SMALLER, **smaller}["epochs"]
    assert [record.epoch for record in told] == [*range(1, last + 1)]
    assert result.best.epoch > 8
    assert result.smaller_epochs == last - 8
    side = worlds.split(48, 1)
    logits, _ = result.classifier(torch.from_numpy(side.images))
    assert float((logits.argmax(1).numpy() == side.labels).mean()) == result.best.val_accuracy >= 0.9
    assert result.notes[-1].endswith("; it takes its place.")
    assert result.settings.options == smaller.get("options", {"width": 16, "stages": 2})


def test_one_that_loses_too_much_is_not_kept(tmp_path: Path) -> None:
    """The student has one epoch at a rate of nothing, so it knows nothing."""
    result, told = run(tmp_path, {**STUDENT, "epochs": 1, "rate": 1e-6, "max_accuracy_drop": 0.01})
    whole, _ = run(tmp_path / "whole", {"by": "none"})
    assert result.smaller is None
    assert len(told) == 9 and result.best.epoch <= 8
    assert result.smaller_epochs == 1
    assert "more than the 1.0% allowed, so the first one is kept" in result.notes[-1]
    for name, value in whole.classifier.state_dict().items():
        assert torch.equal(value, result.classifier.state_dict()[name])


@pytest.mark.parametrize("smaller", [{**PRUNING, "epochs": 3}, {**STUDENT, "epochs": 3}], ids=["pruning", "student"])
@pytest.mark.parametrize("stop_at", [4, 5, 6], ids=["at the last epoch of the first", "at the first of the second", "later"])
def test_an_interrupted_run_ends_with_the_same_bits(smaller: dict[str, Any], stop_at: int, tmp_path: Path) -> None:
    whole, _ = run(tmp_path / "whole", smaller, epochs=4)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", smaller, stop_at=stop_at, epochs=4)
    again, told = run(tmp_path / "cut", smaller, epochs=4)
    assert [record.epoch for record in told] == [*range(1, 8)]
    assert again.smaller == whole.smaller
    for name, value in whole.classifier.state_dict().items():
        assert torch.equal(value, again.classifier.state_dict()[name]), name


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"options": {"width": 32, "stages": 2}}, "is no smaller network of the family of small_resnet"),
        ({"architecture": "small_vit", "options": {"patch": 4}}, r"The student small_vit \(vit, .*\) is no smaller network"),
    ],
    ids=["larger", "another family"],
)
def test_a_student_that_is_none_is_refused(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        run(tmp_path, {**STUDENT, **changes}, epochs=1, warmup_epochs=0)


@pytest.mark.parametrize(
    ("smaller", "changes", "sentence"),
    [
        ({"by": "student"}, {}, "smaller.architecture is null; name the student's architecture"),
        ({"by": "pruning", "options": {"width": 4}}, {}, "are a student's, but smaller.by is pruning"),
        (PRUNING, {"freeze": "norms", "weights": "w.pt"}, "which trains the whole network"),
        (
            STUDENT,
            {"distillation_share": 0.0},
            "learns from the answers of the trained network, but distillation_share is 0",
        ),
        (STUDENT, {"loss": "bce"}, "but loss is bce"),
        ({"by": "pruning", "share": 1.0}, {}, "less than 1"),
    ],
)
def test_what_contradicts_itself_is_refused_at_once(smaller: dict[str, Any], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        worlds.params(smaller={**worlds.SMALLER, **smaller}, **changes)

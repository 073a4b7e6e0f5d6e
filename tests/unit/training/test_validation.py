"""visionloop.training.validation: the scores are scikit-learn's, whatever the batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, log_loss, recall_score

from visionloop.training.batches import Batch
from visionloop.training.validation import scores, tally

RNG = np.random.default_rng(0)
LOGITS = torch.from_numpy(RNG.normal(size=(97, 5)).astype(np.float32))
LABELS = torch.from_numpy(RNG.choice(5, 97, p=(0.5, 0.2, 0.2, 0.1, 0)))  # class 4 is answered and never there


def tallied(places: torch.Tensor) -> torch.Tensor:
    """Of the rows `places`; their numbers stand for the images."""
    batches = [Batch(part, LABELS[part]) for part in torch.split(places, 20)]
    return tally(lambda images: (LOGITS[images], images), batches, 5, torch.device("cpu"))


def test_scores_are_those_of_scikit_learn() -> None:
    found = scores(tallied(torch.arange(97)))
    actual, answered = LABELS.numpy(), LOGITS.argmax(1).numpy()
    assert set(answered) - set(actual) == {4}
    assert found.accuracy == pytest.approx(accuracy_score(actual, answered))
    assert found.balanced_accuracy == pytest.approx(
        recall_score(actual, answered, labels=np.unique(actual), average="macro")
    )
    assert found.macro_f1 == pytest.approx(f1_score(actual, answered, average="macro"))
    assert found.loss == pytest.approx(
        log_loss(actual, torch.softmax(LOGITS.double(), 1).numpy(), labels=range(5)), rel=1e-5
    )
    assert len({found.accuracy, found.balanced_accuracy, found.macro_f1}) == 3


def test_tallies_of_parts_add_up_to_that_of_all() -> None:
    order = torch.from_numpy(RNG.permutation(97))
    together = scores(tallied(order[:40]) + tallied(order[40:]))
    whole = scores(tallied(torch.arange(97)))
    assert (together.accuracy, together.balanced_accuracy, together.macro_f1) == (
        whole.accuracy,
        whole.balanced_accuracy,
        whole.macro_f1,
    )
    assert together.loss == pytest.approx(whole.loss)

"""Each loss against torch, scikit-learn or a calculation by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from tests.unit.training.worlds import params
from visionloop.errors import ConfigError
from visionloop.training.batches import Batch
from visionloop.training.losses import Loss, class_weights, distillation, focal, multi_label

CPU = torch.device("cpu")
COUNTS = torch.tensor([60, 30, 10])
IMAGES = torch.zeros(6, 1, 1, 3, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 0])
PARTNERS = torch.tensor([1, 1, 0, 2, 2, 0])
SHARES = torch.tensor([0.25, 0.5, 0.9, 1.0, 0.0, 0.7])


def logits(seed: int = 0, count: int = 6) -> Tensor:
    return 2 * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def loss_of(batch: Batch, teacher: Tensor | None = None, **changes: Any) -> Tensor:
    return Loss(params(**changes), COUNTS, CPU)(logits(), batch, teacher)


PLAIN = Batch(IMAGES, LABELS)
MIXED = Batch(IMAGES, LABELS, PARTNERS, SHARES)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing: float) -> None:
    got = loss_of(PLAIN, label_smoothing=smoothing)
    torch.testing.assert_close(got, F.cross_entropy(logits(), LABELS, label_smoothing=smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixed_labels_are_soft_targets(smoothing: float) -> None:
    targets = F.one_hot(LABELS, 3) * SHARES[:, None] + F.one_hot(PARTNERS, 3) * (1 - SHARES)[:, None]
    got = loss_of(MIXED, label_smoothing=smoothing)
    torch.testing.assert_close(got, F.cross_entropy(logits(), targets, label_smoothing=smoothing))


def test_balanced_weights_are_scikit_learns_and_the_mean_over_the_images_is_1() -> None:
    labels = np.repeat([0, 1, 2], COUNTS.numpy())
    weights = class_weights("balanced", COUNTS)
    assert weights is not None
    np.testing.assert_allclose(weights, compute_class_weight("balanced", classes=np.arange(3), y=labels), rtol=1e-6)
    assert float((weights * COUNTS).sum() / COUNTS.sum()) == pytest.approx(1)
    # Not divided by the weights of the batch: torch's sum over the images, by their number.
    each = F.cross_entropy(logits(), LABELS, weights, label_smoothing=0.05, reduction="none")
    torch.testing.assert_close(loss_of(PLAIN, class_weights="balanced"), each.sum() / 6)


def test_effective_weights_are_those_of_the_paper() -> None:
    # Class-Balanced Loss, equation 2: E = (1 - b^n) / (1 - b), here with b = 0.999; weights go as 1 / E.
    weights = class_weights("effective", torch.tensor([5000, 500, 50]))
    assert weights is not None
    effective = [(1 - 0.999**n) / 0.001 for n in (5000, 500, 50)]
    assert effective == pytest.approx([993.3, 393.6, 48.8], rel=1e-3)
    assert float(weights[2] / weights[0]) == pytest.approx(effective[0] / effective[2], rel=1e-6)
    assert float(weights[1] / weights[0]) == pytest.approx(effective[0] / effective[1], rel=1e-6)
    # Few images: as balanced. Many: all the same.
    few, many = (class_weights("effective", torch.tensor(counts)) for counts in ([2, 4], [10**6, 10**7]))
    assert few is not None and float(few[0] / few[1]) == pytest.approx(2, rel=2e-3)
    assert many is not None and float(many[0] / many[1]) == pytest.approx(1)


def test_a_class_without_images_has_no_weight() -> None:
    for kind in ("balanced", "effective"):
        weights = class_weights(kind, torch.tensor([4, 0, 4]))
        assert weights is not None
        assert weights.tolist() == [1, 0, 1]
    assert class_weights("none", COUNTS) is None


def test_focal_by_hand_and_gamma_0_is_cross_entropy() -> None:
    # Probabilities 0.5, 0.3, 0.2, the label has 0.3: (1 - 0.3)^2 * -ln 0.3.
    one = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert float(focal(one, torch.tensor([1]), 2.0)) == pytest.approx(0.49 * -math.log(0.3), rel=1e-6)
    got = loss_of(PLAIN, loss="focal", focal_gamma=0.0, class_weights="balanced", label_smoothing=0.1)
    torch.testing.assert_close(got, loss_of(PLAIN, class_weights="balanced", label_smoothing=0.1))


def test_focal_has_a_finite_gradient_where_the_answer_is_certain() -> None:
    sure = torch.tensor([[100.0, 0.0], [0.0, 100.0]], requires_grad=True)
    focal(sure, torch.tensor([0, 0]), 0.5).sum().backward()  # type: ignore[no-untyped-call]
    assert sure.grad is not None
    torch.testing.assert_close(sure.grad, torch.tensor([[0.0, 0.0], [-1.0, 1.0]]))


def test_focal_refuses_mixed_images() -> None:
    with pytest.raises(ConfigError, match=r"^train\.loss is 'focal', but .* mixed .* set|setting both to 0"):
        loss_of(MIXED, loss="focal")


def test_bce_is_a_mean_over_classes_of_multi_hot_targets() -> None:
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    values = torch.tensor([[0.0, math.log(3), -math.log(3)], [0.0, 0.0, math.log(3)]])
    # Sigmoids 1/2, 3/4, 1/4 and 1/2, 1/2, 3/4.
    by_hand = torch.tensor([math.log(2) + 2 * math.log(4 / 3), 2 * math.log(2) + math.log(4)]) / 3
    torch.testing.assert_close(multi_label(values, targets), by_hand)
    smoothed = multi_label(values, targets, 0.3)
    wanted = F.binary_cross_entropy(torch.sigmoid(values), targets * 0.7 + 0.1, reduction="none").mean(1)
    torch.testing.assert_close(smoothed, wanted)


def test_bce_of_labels_and_of_cutmix_images() -> None:
    got = loss_of(PLAIN, loss="bce", label_smoothing=0.0)
    torch.testing.assert_close(got, F.binary_cross_entropy_with_logits(logits(), F.one_hot(LABELS, 3).float()))
    # A class is there from a fifth of the image on; both halves of a pair of one class are one whole.
    there = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 0]]).float()
    got = loss_of(MIXED, loss="bce", label_smoothing=0.0)
    torch.testing.assert_close(got, F.binary_cross_entropy_with_logits(logits(), there))
    weights = class_weights("balanced", COUNTS)
    assert weights is not None
    rows = F.binary_cross_entropy_with_logits(logits(), there, reduction="none").mean(1)
    own = SHARES * weights[LABELS] + (1 - SHARES) * weights[PARTNERS]
    torch.testing.assert_close(
        loss_of(MIXED, loss="bce", label_smoothing=0.0, class_weights="balanced"), (rows * own).mean()
    )


@pytest.mark.parametrize("kind", ["cross_entropy", "bce", "focal"])
def test_parts_of_a_batch_add_up_by_their_sizes(kind: str) -> None:
    loss = Loss(params(loss=kind, class_weights="effective"), COUNTS, CPU)
    whole = loss(logits(), PLAIN)
    first = loss(logits()[:4], Batch(IMAGES[:4], LABELS[:4]))
    rest = loss(logits()[4:], Batch(IMAGES[4:], LABELS[4:]))
    torch.testing.assert_close(whole, (first * 4 + rest * 2) / 6)


def test_distillation_has_hintons_gradient() -> None:
    student, teacher = logits().requires_grad_(), logits(1).requires_grad_()
    temperature, share = 4.0, 0.3
    loss = Loss(params(distillation_share=share, distillation_temperature=temperature), COUNTS, CPU)
    loss(student, MIXED, teacher).backward()  # type: ignore[no-untyped-call]
    targets = F.one_hot(LABELS, 3) * SHARES[:, None] + F.one_hot(PARTNERS, 3) * (1 - SHARES)[:, None]
    targets = 0.95 * targets + 0.05 / 3
    hard = (F.softmax(student, 1) - targets) / 6
    soft = temperature * (F.softmax(student / temperature, 1) - F.softmax(teacher / temperature, 1)) / 6
    assert student.grad is not None
    torch.testing.assert_close(student.grad, ((1 - share) * hard + share * soft).detach())
    assert teacher.grad is None


def test_distillation_is_0_where_both_agree_and_is_off_without_a_teacher() -> None:
    assert float(distillation(logits() + 5, logits(), 3.0)) == pytest.approx(0, abs=1e-6)
    assert float(distillation(logits(), logits(1), 3.0)) > 0.1
    torch.testing.assert_close(loss_of(PLAIN), loss_of(PLAIN, logits(1), distillation_share=0.0))

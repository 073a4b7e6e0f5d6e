"""Attacks in evaluation: the same images and accuracies as Captum's, the ball, and the curves."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from captum.robust import FGSM, PGD
from torch import Tensor

from tests.unit.training.attack_world import data, learn_plainly, net
from tests.unit.training.worlds import meta
from visionloop.attacks import accuracy_under_attack, fgsm, fgsm_accuracies, pgd, pgd_accuracies
from visionloop.models import Classifier, build

FAMILIES = ("cnn", "vit")
IMAGES = 96
# Captum says so of every tensor that it is given.
pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")


@functools.cache
def trained(family: str) -> Classifier:
    """A network that learnt the colours in a second."""
    world = meta()
    torch.manual_seed(0)
    options = {"patch": 2, "width": 32, "depth": 2, "heads": 2}
    vit = build("small_vit", num_classes=3, image_size=(8, 8), mean=world.mean, std=world.std, options=options)
    return learn_plainly(net() if family == "cnn" else vit, *data(192, 0))


@functools.cache
def held_out() -> tuple[Tensor, Tensor]:
    return data(IMAGES, 1)


def raises(labels: Tensor, logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels)


def captums(model: Classifier, epsilon: float, steps: int) -> Tensor:
    """The same images under Captum's attack: FGSM for no step, else PGD of `steps` without a random start."""
    images, labels = held_out()
    settings = {"lower_bound": 0.0, "upper_bound": 255.0}

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, reduction="none")

    if steps == 0:
        single = FGSM(lambda x: model(x)[0], loss, **settings)
        single.zero_thresh = 0  # of its own, a gradient below 1e-6 counts as none
        return torch.as_tensor(single.perturb(images.float(), epsilon, labels))
    several = PGD(lambda x: model(x)[0], loss, **settings)
    several.fgsm.zero_thresh = 0
    size = 2.5 * epsilon / steps
    return torch.as_tensor(several.perturb(images.float(), epsilon, size, steps, labels, random_start=True))


def right(model: Classifier, images: Tensor) -> float:
    with torch.no_grad():
        return int((model(images)[0].argmax(1) == held_out()[1]).sum()) / IMAGES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("epsilon", [2.0, 8.0])
def test_fgsm_makes_captums_images(family: str, epsilon: float) -> None:
    model, (images, labels) = trained(family), held_out()
    ours = fgsm(model, images, functools.partial(raises, labels), epsilon=epsilon)
    theirs = captums(model, epsilon, 0)
    # Both take the sign of a gradient; where it is 0 but for rounding, the signs may differ.
    assert ((ours - theirs).abs() <= 1).float().mean() > 0.9999
    (accuracy,) = fgsm_accuracies(model, images, labels, epsilons=[epsilon], batch_size=50)
    assert accuracy == pytest.approx(right(model, theirs), abs=1 / IMAGES + 1e-6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("epsilon", [5.0, 6.5])
def test_pgd_leaves_as_much_as_captums(family: str, epsilon: float) -> None:
    model, (images, labels) = trained(family), held_out()
    torch.manual_seed(0)
    theirs = right(model, captums(model, epsilon, 10))
    (ours,) = pgd_accuracies(model, images, labels, epsilons=[epsilon], steps=10)
    assert 0.02 < theirs < 0.98  # or the comparison would say nothing
    # The same seed draws the same start, so the two differ by rounding alone: one image at most.
    assert ours == pytest.approx(theirs, abs=1 / IMAGES + 1e-6)


def test_fgsm_steps_from_the_image_itself_by_the_sign() -> None:
    model, (images, labels) = trained("cnn"), held_out()
    start = images.float().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(start)[0], labels), start)
    expected = (images.float() + 3 * gradient.sign()).clamp(0, 255)
    torch.testing.assert_close(fgsm(model, images, functools.partial(raises, labels), epsilon=3.0), expected)


def test_the_curve_of_pgd_falls_and_starts_below_the_clean_accuracy() -> None:
    model, (images, labels) = trained("cnn"), held_out()
    curve = pgd_accuracies(model, images, labels, epsilons=[0.001, 4.0, 8.0, 16.0], steps=5)
    assert curve[0] == right(model, images)
    assert curve == sorted(curve, reverse=True)
    assert curve[1] > curve[3]
    # At a single epsilon the curve is the accuracy that training's measure gives.
    assert pgd_accuracies(model, images, labels, epsilons=[4.0], steps=5)[0] == accuracy_under_attack(
        model, images, labels, epsilon=4.0, steps=5
    )


def test_an_image_that_fell_stays_fallen_and_one_that_is_wrong_counts_as_fallen() -> None:
    model, (images, labels) = trained("cnn"), held_out()
    nobody = (labels + 1) % 3
    assert pgd_accuracies(model, images[:8], nobody[:8], epsilons=[1.0, 2.0], steps=2) == [0.0, 0.0]
    attacked = pgd(model, images, functools.partial(raises, labels), torch.Generator().manual_seed(0), epsilon=6.0, steps=3)
    assert float((attacked - images.float()).abs().max()) <= 6.0
    assert float(attacked.min()) >= 0 and float(attacked.max()) <= 255

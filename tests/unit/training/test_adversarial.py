"""Attacks: where they may go, that more steps find more, that the model stays as it was, and that training on them helps."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unit.training.attack_world import EPSILON, data, generator, net
from tests.unit.training.worlds import params
from visionloop.attacks import accuracy_under_attack, pgd
from visionloop.models import Classifier
from visionloop.training.adversarial import Adversary


def raises(labels: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda logits: F.cross_entropy(logits, labels)


def learn(model: Classifier, images: Tensor, labels: Tensor, adversary: Adversary | None, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    random = generator(1)
    model.train()

    def step(part: Tensor, wanted: Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(part)[0], wanted).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=random).split(32):  # type: ignore[no-untyped-call]
            part, wanted = images[chosen], labels[chosen]
            if adversary is None:
                step(part, wanted)
            elif adversary.replays > 1:
                for attacked in adversary.free_steps(part, random):
                    step(attacked, wanted)
            else:
                step(adversary.attack(model, part, raises(wanted), random), wanted)


@pytest.fixture(scope="module")
def plain() -> Classifier:
    model = net()
    learn(model, *data(192, 0), None, epochs=20)
    return model.eval()


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_the_attacked_images_are_floats_within_epsilon_and_0_to_255(kind: str) -> None:
    images = torch.randint(0, 256, (5, 8, 8, 3), generator=generator(), dtype=torch.uint8)
    images[0], images[1] = 0, 255
    attacked = Adversary(params(adversarial=kind, adversarial_epsilon=EPSILON)).attack(
        net(), images, raises(torch.tensor([0, 1, 2, 0, 1])), generator()
    )
    assert attacked.dtype == torch.float32 and not attacked.requires_grad
    assert bool((attacked.clamp(0, 255) == attacked).all())
    change = (attacked - images.float()).abs()
    assert float(change.max()) <= EPSILON
    # Far from the borders most values are moved as far as they may.
    assert float((change[2:] > EPSILON - 1e-3).float().mean()) > 0.5


def test_a_single_step_is_the_sign_of_the_gradient_times_one_and_a_quarter_epsilon() -> None:
    model, labels = net().eval(), torch.tensor([0, 1])
    images = torch.randint(60, 190, (2, 8, 8, 3), generator=generator(3), dtype=torch.uint8)
    got = Adversary(params(adversarial="fgsm", adversarial_epsilon=4.0)).attack(model, images, raises(labels), generator(5))
    start = (images + 4 * (2 * torch.rand(images.shape, generator=generator(5)) - 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(start)[0], labels), start)
    moved = start.detach() + 5 * gradient.sign()
    torch.testing.assert_close(got, torch.maximum(torch.minimum(moved, images + 4.0), images - 4.0))


def test_pgd_finds_a_larger_loss_than_fgsm_and_fgsm_than_chance(plain: Classifier) -> None:
    images, labels = data(96, 1)
    found: dict[str, float] = {}

    def loss(changed: Tensor) -> float:
        with torch.no_grad():
            return float(F.cross_entropy(plain(changed)[0], labels))

    for kind in ("fgsm", "pgd"):
        adversary = Adversary(params(adversarial=kind, adversarial_epsilon=EPSILON, adversarial_steps=10))
        attacked = adversary.attack(plain, images, raises(labels), generator())
        found[kind] = loss(attacked)
    noise = EPSILON * (2 * torch.rand(images.shape, generator=generator()) - 1)
    found["chance"] = loss((images + noise).clamp(0, 255))
    found["none"] = loss(images)
    assert found["pgd"] > 1.05 * found["fgsm"] > 1.05**2 * found["chance"], found
    assert found["fgsm"] > 10 * found["none"], found


def test_the_model_is_attacked_in_eval_mode_and_left_as_it_was() -> None:
    model = net(dropout=0.5).train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = data(6, 2)
    adversary = Adversary(params(adversarial="pgd", adversarial_epsilon=EPSILON))
    state = torch.get_rng_state()
    attacked = adversary.attack(model, images, raises(labels), generator())
    assert torch.equal(torch.get_rng_state(), state)  # no dropout was drawn
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(bool((parameter.grad == 1).all()) for parameter in model.parameters() if parameter.grad is not None)
    assert model.training and not frozen.training
    assert [module for module in model.modules() if not module.training] == [frozen]
    # In eval mode nothing passes from one image to another, so each image's attack is its own.
    model.eval()
    assert torch.equal(attacked, adversary.attack(model, images, raises(labels), generator()))


def test_the_same_generator_gives_the_same_bits_and_another_does_not() -> None:
    images, labels = data(6, 2)
    adversary = Adversary(params(adversarial="pgd", adversarial_epsilon=EPSILON))
    one, same, other = (adversary.attack(net(), images, raises(labels), generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_frozen_weights_are_attacked_through() -> None:
    images, labels = data(6, 2)
    adversary = Adversary(params(adversarial="pgd", adversarial_epsilon=EPSILON))
    attacked = adversary.attack(net().requires_grad_(False), images, raises(labels), generator())
    assert torch.equal(attacked, adversary.attack(net(), images, raises(labels), generator()))


def test_free_replays_step_along_the_gradients_that_the_training_makes() -> None:
    model, (images, labels) = net().eval(), data(6, 2)
    adversary = Adversary(params(adversarial="free", adversarial_epsilon=EPSILON, adversarial_steps=3))
    assert adversary.replays == 3
    seen: list[tuple[Tensor, Tensor]] = []
    for attacked in adversary.free_steps(images, generator()):
        F.cross_entropy(model(attacked)[0], labels).backward()  # type: ignore[no-untyped-call]
        assert attacked.grad is not None
        seen.append((attacked.detach().clone(), attacked.grad.clone()))
    assert len(seen) == 3
    low, high = (images - EPSILON).clamp(0), (images + EPSILON).clamp(max=255)
    for (before, gradient), (after, _) in itertools.pairwise(seen):
        torch.testing.assert_close(after, (before + EPSILON * gradient.sign()).clamp(low, high))
    assert Adversary(params(adversarial="pgd")).replays == 1


def test_accuracy_under_attack_counts_what_withstands(plain: Classifier) -> None:
    images, labels = data(96, 1)
    got = accuracy_under_attack(plain, images, labels, epsilon=EPSILON, steps=5, batch_size=200)
    attacked = pgd(plain, images, raises(labels), generator(), epsilon=EPSILON, steps=5)
    assert got == int((plain(attacked)[0].argmax(1) == labels).sum()) / 96
    # Without room to move there is no attack.
    clean = int((plain(images)[0].argmax(1) == labels).sum()) / 96
    assert accuracy_under_attack(plain, images, labels, epsilon=1e-6, steps=2) == clean > 0.95
    assert got < clean


@pytest.mark.parametrize("kind", ["fgsm", "pgd", "free"])
def test_training_on_attacked_images_withstands_attacks(plain: Classifier, kind: str) -> None:
    images, labels = data(96, 1)
    model = net()
    steps = {"free": 4}.get(kind, 3)
    adversary = Adversary(params(adversarial=kind, adversarial_epsilon=EPSILON, adversarial_steps=steps))
    learn(model, *data(192, 0), adversary, epochs=20 // adversary.replays)
    before, after = (accuracy_under_attack(one, images, labels, epsilon=EPSILON, steps=20) for one in (plain, model))
    assert after > before + 0.3, (before, after)

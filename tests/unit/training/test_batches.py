"""What a step is given: every image once or each class its share, and labels that say what the pixels show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.unit.training import worlds
from visionloop.data.augmentation import alternate, columns, draw_changes
from visionloop.data.packing import PackedSplit
from visionloop.data.policy import AugmentPolicy
from visionloop.training.batches import Batch, plain_batches, to_device, train_batches


def epoch(data: PackedSplit, seed: int = 0, number: int = 1, **policy: Any) -> list[Batch]:
    return list(train_batches(data, AugmentPolicy(**policy), batch_size=16, seed=seed, epoch=number))


def uneven() -> PackedSplit:
    """90 images of class 0 and 10 of class 1; an image's value is its number."""
    images = np.arange(100, dtype=np.uint8)[:, None, None, None].repeat(6, 1).repeat(6, 2).repeat(3, 3)
    return PackedSplit(images, np.repeat([0, 1], [90, 10]), [str(number) for number in range(100)])


def shown(batches: list[Batch]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return torch.cat([batch.images for batch in batches])[:, 0, 0, 0].numpy()


def test_an_epoch_shows_every_image_once_with_its_label() -> None:
    data = uneven()
    batches = epoch(data, horizontal_flip=True)
    assert sorted(shown(batches)) == list(range(100))
    assert [len(batch.labels) for batch in batches] == [15, 15, 14, 14, 14, 14, 14]
    assert np.array_equal(torch.cat([batch.labels for batch in batches]), data.labels[shown(batches)])
    assert all(batch.partners is None and batch.shares is None for batch in batches)


def test_the_sampler_gives_each_class_its_share_and_the_same_each_time() -> None:
    data = uneven()
    policy: dict[str, Any] = {"horizontal_flip": True, "balance": "sampler", "balance_strength": 1.0}
    first, again, next_epoch = epoch(data, **policy), epoch(data, **policy), epoch(data, number=2, **policy)
    labels = torch.cat([batch.labels for batch in first])
    assert labels.bincount().tolist() == [50, 50]
    assert np.array_equal(labels, data.labels[shown(first)])
    assert np.array_equal(shown(first), shown(again))
    assert not np.array_equal(shown(first), shown(next_epoch))
    assert np.bincount(shown(first), minlength=100)[90:].tolist() == [5] * 10


def mirrored(batches: list[Batch]) -> dict[int, bool]:
    """By an image's number, which its red channel has everywhere, whether its bright column stands on the right."""
    images = torch.cat([batch.images for batch in batches])
    return {int(image[0, 0, 0]): bool(image[0, -1, 1] == 255) for image in images}


def test_an_alternating_flip_mirrors_half_and_in_the_next_epoch_the_other_half() -> None:
    data = uneven()
    data.images[:, :, :, 1] = 0
    data.images[:, :, 0, 1] = 255
    policy: dict[str, Any] = {"horizontal_flip": "alternating"}
    first, second, third = (mirrored(epoch(data, number=number, **policy)) for number in (1, 2, 3))
    assert 35 <= sum(first.values()) <= 65
    assert second == {number: not turned for number, turned in first.items()}
    assert third == first == mirrored(epoch(data, number=1, **policy))
    other = mirrored(epoch(data, seed=1, **policy))
    assert 30 <= sum(other[number] == first[number] for number in range(100)) <= 70


def test_an_alternating_flip_leaves_the_other_draws_as_they_are() -> None:
    plain = AugmentPolicy(horizontal_flip=True, crop_padding_pixels=2)
    drawn = draw_changes(50, plain, np.random.default_rng(0))
    before = drawn.copy()
    alternate(drawn, plain, np.ones(50, dtype=bool))
    assert np.array_equal(drawn, before)
    policy = plain.model_copy(update={"horizontal_flip": "alternating"})
    alternate(drawn, policy, np.arange(50) < 20)
    assert (drawn[:, columns(policy).index("mirrored")] < 0.5).tolist() == [True] * 20 + [False] * 30
    drawn[:, columns(policy).index("mirrored")] = before[:, columns(policy).index("mirrored")]
    assert np.array_equal(drawn, before)


def test_variants_are_already_in_the_arrays() -> None:
    assert sorted(shown(epoch(uneven(), horizontal_flip=True, balance="variants"))) == list(range(100))


@pytest.mark.parametrize(
    "policy", [{"mixup": 1.0}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0, "crop_padding_pixels": 1}]
)
def test_soft_labels_are_the_shares_of_the_pixels(policy: dict[str, Any]) -> None:
    """Class 0 is black and class 1 is 200: the mean of an image is the share of class 1."""
    images = np.zeros((64, 8, 8, 3), dtype=np.uint8)
    images[32:] = 200
    data = PackedSplit(images, np.repeat([0, 1], 32), [str(number) for number in range(64)])
    for batch in epoch(data, **policy):
        targets = batch.soft_targets(2)
        assert targets.sum(dim=1).numpy() == pytest.approx(1)
        assert targets[:, 1].numpy() == pytest.approx(batch.images.float().mean(dim=(1, 2, 3)).numpy() / 200, abs=0.003)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_mixed_labels_is_the_cross_entropy_of_soft_targets(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, generator=generator)
    labels, partners = torch.randint(0, 3, (2, 8), generator=generator)
    batch = Batch(torch.zeros(8, 1, 1, 3, dtype=torch.uint8), labels, partners, torch.rand(8, generator=generator))
    soft = F.cross_entropy(logits, batch.soft_targets(3), label_smoothing=smoothing)
    mixed = batch.loss(lambda wanted: F.cross_entropy(logits, wanted, label_smoothing=smoothing, reduction="none"))
    assert mixed.item() == pytest.approx(soft.item(), abs=1e-6)


def test_soft_targets_of_plain_labels_are_one_hot() -> None:
    labels = torch.arange(16) % 5
    batch = Batch(torch.zeros(16, 1, 1, 3, dtype=torch.uint8), labels)
    assert torch.equal(batch.soft_targets(5), F.one_hot(labels, 5).float())


def test_batches_pass_to_the_cpu_as_they_are_and_plain_ones_keep_the_order() -> None:
    data = worlds.split(20, 0)
    batches = list(to_device(plain_batches(data, 8), torch.device("cpu")))
    assert np.array_equal(torch.cat([batch.images for batch in batches]), data.images)
    assert np.array_equal(torch.cat([batch.labels for batch in batches]), data.labels)

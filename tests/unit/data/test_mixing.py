"""A mixed image's pixels and its label have the same shares."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from visionloop.data.mixing import mix_batch
from visionloop.data.policy import AugmentPolicy


def flat(count: int = 400, side: int = 16) -> torch.Tensor:
    """Images of one value each, all different from their neighbours'."""
    values = torch.arange(count) % 250
    return values.to(torch.uint8)[:, None, None, None].expand(count, side, side, 3).contiguous()


def test_mixup_is_the_weighted_mean_that_the_label_says() -> None:
    images = flat()
    mixed = mix_batch(images, AugmentPolicy(mixup=1.0), np.random.default_rng(0))
    values, others = images[:, 0, 0, 0].double(), images[mixed.partners][:, 0, 0, 0].double()
    shares = mixed.shares.double()
    expected = values * shares + others * (1 - shares)
    assert (mixed.images[:, 0, 0, 0].double() - expected).abs().max() <= 0.5
    assert all(len(torch.unique(image)) == 1 for image in mixed.images)
    assert mixed.shares.mean().item() == pytest.approx(0.5, abs=0.05)  # Beta(1, 1) is uniform
    assert mixed.shares.std().item() == pytest.approx(12**-0.5, abs=0.03)


def test_a_small_alpha_leaves_most_images_almost_alone() -> None:
    shares = mix_batch(flat(), AugmentPolicy(mixup=0.1), np.random.default_rng(0)).shares
    assert ((shares < 0.1) | (shares > 0.9)).float().mean() > 0.7


def test_cutmix_pastes_a_rectangle_of_the_area_that_the_label_says() -> None:
    images = flat()
    mixed = mix_batch(images, AugmentPolicy(cutmix=1.0), np.random.default_rng(0))
    values, others = images[:, 0, 0, 0], images[mixed.partners][:, 0, 0, 0]
    from_other = (mixed.images[..., 0] == others[:, None, None]) & (others != values)[:, None, None]
    differs = others != values
    area = from_other.double().mean(dim=(1, 2))
    assert torch.allclose(1 - area[differs], mixed.shares.double()[differs], atol=1e-6)
    for one in from_other[differs & (area > 0)][:50]:
        rows, columns = one.any(dim=1), one.any(dim=0)
        assert torch.equal(one, rows[:, None] & columns[None, :])
    # Half, less what lies outside: the mean of (s - s^2 / 4)^2 for s^2 uniform is 0.32, and sides are rounded down.
    assert 0.25 < area.mean() < 0.34


def test_with_both_on_each_takes_half_and_the_mixed_share_holds() -> None:
    images = flat(1000)
    policy = AugmentPolicy(mixup=1.0, cutmix=1.0, mixed_share=0.6)
    mixed = mix_batch(images, policy, np.random.default_rng(0))
    touched = mixed.shares < 1
    blended = torch.tensor([len(torch.unique(image)) == 1 for image in mixed.images])
    assert 0.5 < touched.float().mean() < 0.62  # a few shares round to 1, a few rectangles to nothing
    assert 0.4 < blended[touched].float().mean() < 0.62
    assert torch.equal(mixed.images[~touched], images[~touched])


def test_the_same_seed_gives_the_same_bits_in_integers_only() -> None:
    images = torch.randint(0, 256, (64, 9, 7, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    policy = AugmentPolicy(mixup=0.4, cutmix=1.0)
    first, again = (mix_batch(images, policy, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.shares, again.shares)
    assert torch.equal(first.shares * 128 * 63, (first.shares * 128 * 63).round())  # multiples of 1/128 or of a pixel's area

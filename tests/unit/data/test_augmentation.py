"""What the policy says is what happens: exactly where it can be worked out, within bounds where it is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visionloop.config import load_params
from visionloop.data.augmentation import augment_batch
from visionloop.data.policy import AugmentPolicy


def batch(count: int = 64, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def run(images: torch.Tensor, seed: int = 0, **policy: Any) -> torch.Tensor:
    return augment_batch(images, AugmentPolicy(**policy), torch.Generator().manual_seed(seed))


EVERYTHING: dict[str, Any] = {
    "horizontal_flip": True, "crop_padding_pixels": 2, "padding": "reflect", "rotation_degrees": 20, "scale": 0.2,
    "brightness": 0.3, "contrast": 0.3, "saturation": 0.3, "erasing": 0.5,
}  # fmt: skip


def test_identity_returns_the_batch_itself() -> None:
    images = batch()
    assert run(images) is images
    assert run(images, padding="reflect") is images


def test_the_same_seed_gives_the_same_bits_and_another_others() -> None:
    images = batch()
    before = images.clone()
    first, again, other = run(images, **EVERYTHING), run(images, **EVERYTHING), run(images, 1, **EVERYTHING)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert (first.dtype, first.shape) == (torch.uint8, images.shape)
    assert first.is_contiguous()


def test_each_image_is_changed_by_itself() -> None:
    same = batch(1).expand(50, -1, -1, -1)
    changed = run(same, **EVERYTHING)
    assert len(torch.unique(changed.reshape(50, -1), dim=0)) == 50


def test_about_half_are_mirrored_and_the_rest_is_untouched() -> None:
    images = batch(400)
    changed = run(images, horizontal_flip=True)
    mirrored = [torch.equal(a.flip(1), b) for a, b in zip(images, changed, strict=True)]
    untouched = [torch.equal(a, b) for a, b in zip(images, changed, strict=True)]
    assert sum(mirrored) + sum(untouched) == 400
    assert 160 < sum(mirrored) < 240


@pytest.mark.parametrize(("padding", "numpy_mode"), [("edge", "edge"), ("reflect", "reflect")])
def test_a_shift_is_a_crop_of_the_padded_image(padding: str, numpy_mode: str) -> None:
    images = batch(200)
    changed = run(images, crop_padding_pixels=2, padding=padding)
    seen = set()
    for image, result in zip(images.numpy(), changed.numpy(), strict=True):
        padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode=numpy_mode)  # type: ignore[call-overload]
        places = [
            (top, left) for top in range(5) for left in range(5)
            if np.array_equal(padded[top : top + 12, left : left + 10], result)
        ]  # fmt: skip
        assert places
        seen.add(places[0])
    assert len(seen) == 25  # every shift occurs


def test_a_rotation_turns_by_up_to_the_angle_and_keeps_the_centre() -> None:
    """A bright dot right of the centre moves along a circle; its angle is the rotation."""
    images = torch.zeros(300, 65, 65, 3, dtype=torch.uint8)
    images[:, 30:35, 50:55] = 255
    changed = run(images, rotation_degrees=30).float().mean(dim=3)
    total = changed.sum(dim=(1, 2))
    axis = torch.arange(65) - 32.0
    rows = (changed.sum(dim=2) @ axis) / total
    columns = (changed.sum(dim=1) @ axis) / total
    angles = torch.rad2deg(torch.atan2(rows, columns))
    assert torch.hypot(rows, columns).numpy() == pytest.approx(20, abs=0.2)
    assert angles.abs().max() < 30.5
    assert angles.abs().max() > 27
    assert angles.mean().abs() < 3


def test_a_rotation_is_one_of_pixels_on_a_wide_image_too() -> None:
    images = torch.zeros(100, 41, 81, 3, dtype=torch.uint8)
    images[:, 19:22, 54:57] = 255  # 15 pixels right of the centre
    changed = run(images, rotation_degrees=40).float().mean(dim=3)
    total = changed.sum(dim=(1, 2))
    rows = changed.sum(dim=2) @ (torch.arange(41) - 20.0) / total
    columns = changed.sum(dim=1) @ (torch.arange(81) - 40.0) / total
    assert torch.hypot(rows, columns).numpy() == pytest.approx(15, abs=0.3)


def test_zoom_scales_within_its_share() -> None:
    images = torch.zeros(300, 64, 64, 3, dtype=torch.uint8)
    images[:, 22:42, 22:42] = 255
    side = (run(images, scale=0.25).float().mean(dim=3) / 255).sum(dim=(1, 2)).sqrt()
    assert side.min() > 20 * 0.75 - 0.2
    assert side.max() < 20 * 1.25 + 0.2
    assert side.max() - side.min() > 8


def test_brightness_multiplies_by_one_factor_per_image() -> None:
    images = torch.full((200, 4, 4, 3), 100, dtype=torch.uint8)
    changed = run(images, brightness=0.2)
    assert all(len(torch.unique(image)) == 1 for image in changed)
    assert (int(changed.min()), int(changed.max())) == (80, 120)


def test_contrast_keeps_the_mean() -> None:
    images = torch.full((200, 4, 4, 3), 80, dtype=torch.uint8)
    images[:, :2] = 120
    changed = run(images, contrast=0.5).float()
    assert changed.mean(dim=(1, 2, 3)).numpy() == pytest.approx(100, abs=0.6)
    spread = changed.amax(dim=(1, 2, 3)) - changed.amin(dim=(1, 2, 3))
    assert 20 <= spread.min() < 22
    assert 58 < spread.max() <= 60


def test_saturation_leaves_gray_alone_and_keeps_luma() -> None:
    gray = torch.full((20, 4, 4, 3), 90, dtype=torch.uint8)
    assert torch.equal(run(gray, saturation=0.5), gray)
    colour = gray.clone()
    colour[..., 0], colour[..., 2] = 140, 60
    weights = torch.tensor([0.299, 0.587, 0.114])
    luma = run(colour, saturation=0.5).float() @ weights
    assert luma.numpy() == pytest.approx(float(colour[0, 0, 0].float() @ weights), abs=0.6)


def test_erasing_covers_a_rectangle_in_its_share_of_images() -> None:
    images = torch.full((500, 32, 32, 3), 200, dtype=torch.uint8)
    changed = run(images, erasing=0.3)[..., 0]
    erased = changed != 200
    assert set(torch.unique(changed).tolist()) == {114, 200}
    touched = erased.any(dim=2).any(dim=1)
    assert 0.22 < touched.float().mean() < 0.38
    for one in erased[touched]:
        rows, columns = one.any(dim=1), one.any(dim=0)
        assert torch.equal(one, rows[:, None] & columns[None, :])  # a rectangle, and one piece:
        for line in (rows, columns):
            place = line.nonzero()
            assert place.max() - place.min() + 1 == line.sum()


def test_empty_batch_and_policy_of_the_project() -> None:
    policy = AugmentPolicy.from_params(load_params(Path(__file__).parents[3] / "params.yaml").augment)
    assert not policy.is_identity
    assert len(augment_batch(batch(0), policy, torch.Generator())) == 0
    assert augment_batch(batch(3), policy, torch.Generator()).shape == (3, 12, 10, 3)

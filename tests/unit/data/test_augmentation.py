"""What the policy says is what happens: exactly where it can be worked out, within bounds where it is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from visionloop.config import load_params
from visionloop.data import augmentation
from visionloop.data import operations as ops
from visionloop.data.augmentation import augment_batch, columns
from visionloop.data.mixing import mix_batch
from visionloop.data.policy import AugmentPolicy, Padding


def batch(count: int = 64, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


def run(images: torch.Tensor, seed: int = 0, **policy: Any) -> torch.Tensor:
    return augment_batch(images, AugmentPolicy(**policy), np.random.default_rng(seed))


EVERYTHING: dict[str, Any] = {
    "horizontal_flip": True, "vertical_flip": True, "crop_padding_pixels": 2, "resized_crop": 0.5, "padding": "reflect",
    "rotation_degrees": 20, "scale": 0.2, "shear_degrees": 10, "automatic": "randaugment", "brightness": 0.3,
    "contrast": 0.3, "saturation": 0.3, "hue": 0.1, "blur_pixels": 1.5, "erasing": 0.5,
}  # fmt: skip
POLICIES: dict[str, dict[str, Any]] = {
    "everything": EVERYTHING,
    "trivialaugment": {"automatic": "trivialaugment"},
    "augmix": {"automatic": "augmix", "augmix_severity": 10},
    "flips and shifts": {"horizontal_flip": True, "vertical_flip": True, "crop_padding_pixels": 3},
}


def test_identity_returns_the_batch_itself() -> None:
    images = batch()
    assert run(images) is images
    assert run(images, padding="reflect", mixup=0.2) is images
    assert columns(AugmentPolicy()) == ()


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_same_seed_gives_the_same_bits_and_another_others(policy: dict[str, Any]) -> None:
    images = batch()
    before = images.clone()
    first, again, other = run(images, **policy), run(images, **policy), run(images, 1, **policy)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert (first.dtype, first.shape) == (torch.uint8, images.shape)
    assert first.is_contiguous()


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_neither_batch_nor_chunk_nor_threads_nor_layout_have_a_say(
    policy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU would change (order of work, vector width, how many at once) changes nothing here either."""
    images = batch()
    whole = run(images, **policy)
    generator = np.random.default_rng(0)
    pieces = [augment_batch(part, AugmentPolicy(**policy), generator) for part in (images[:1], images[1:21], images[21:])]
    assert torch.equal(torch.cat(pieces), whole)
    for name in ("_CHUNK_PIXELS", "_CHUNK_PIXELS_AUTOMATIC"):
        monkeypatch.setattr(f"visionloop.data.augmentation.{name}", 7 * 120)
    assert torch.equal(run(images, **policy), whole)
    strided = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert torch.equal(run(strided, **policy), whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        assert torch.equal(run(images, **policy), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_no_float_tensor_is_ever_made(policy: dict[str, Any]) -> None:
    """The reason why devices agree: pixels meet integers only."""
    from torch.utils._python_dispatch import TorchDispatchMode

    floats: list[str] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.is_floating_point():
                floats.append(str(func))
            return result

    with Watch():  # type: ignore[no-untyped-call]
        run(batch(), **policy)
    assert floats == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here; the two tests above say why one would agree")
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_gpu_gives_the_same_bits(policy: dict[str, Any]) -> None:
    images = batch(256, 32, 32)
    changed = run(images.cuda(), **policy)
    assert changed.is_cuda
    assert torch.equal(changed.cpu(), run(images, **policy))
    mixing = AugmentPolicy(mixup=0.4, cutmix=1.0)
    mixed, reference = (mix_batch(part, mixing, np.random.default_rng(0)) for part in (images.cuda(), images))
    assert torch.equal(mixed.images.cpu(), reference.images)
    assert torch.equal(mixed.shares, reference.shares)


def test_each_image_is_changed_by_itself() -> None:
    same = batch(1).expand(50, -1, -1, -1)
    changed = run(same, **EVERYTHING)
    assert len(torch.unique(changed.reshape(50, -1), dim=0)) == 50


@pytest.mark.parametrize(("key", "axis"), [("horizontal_flip", 1), ("vertical_flip", 0)])
def test_about_half_are_flipped_and_the_rest_is_untouched(key: str, axis: int) -> None:
    images = batch(400)
    changed = run(images, **{key: True})
    flipped = [torch.equal(a.flip(axis), b) for a, b in zip(images, changed, strict=True)]
    untouched = [torch.equal(a, b) for a, b in zip(images, changed, strict=True)]
    assert sum(flipped) + sum(untouched) == 400
    assert 160 < sum(flipped) < 240


@pytest.mark.parametrize(("padding", "numpy_mode"), [("edge", "edge"), ("reflect", "reflect")])
@pytest.mark.parametrize("zoomed", [False, True])
def test_a_shift_is_a_crop_of_the_padded_image(padding: str, numpy_mode: str, zoomed: bool) -> None:
    """Also where another change makes it go through interpolation, pinned here to do nothing."""
    images = batch(200)
    policy = AugmentPolicy(crop_padding_pixels=2, padding=padding, scale=0.5 if zoomed else 0)  # type: ignore[arg-type]
    changed = augment_batch(images, policy, np.random.default_rng(0), {"zoom": 0.5} if zoomed else {})
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


def test_a_slant_moves_each_row_in_proportion_to_its_distance_from_the_centre() -> None:
    images = torch.zeros(1, 41, 41, 3, dtype=torch.uint8)
    images[:, :, 20] = 255
    changed = augment_batch(images, AugmentPolicy(shear_degrees=45), np.random.default_rng(0), {"shear": 0.75})
    place = changed[0, ..., 0].argmax(dim=1) - 20
    # Three quarters of -45 to 45 degrees is 22.5, whose tangent is 0.414.
    assert place.numpy() == pytest.approx(-0.4142 * (np.arange(41) - 20), abs=0.51)


def test_a_resized_crop_shows_a_part_of_the_asked_area_and_aspect() -> None:
    """On a ramp the gray levels of the first and last pixel say which part is shown."""
    ramp = np.zeros((300, 100, 100, 3), dtype=np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(100), np.arange(100)[:, None]
    changed = run(torch.from_numpy(ramp), resized_crop=0.25).int()
    wide = (changed[:, 0, 99, 0] - changed[:, 0, 0, 0] + 1) / 100
    tall = (changed[:, 99, 0, 1] - changed[:, 0, 0, 1] + 1) / 100
    assert (wide * tall).min() > 0.23
    assert (wide * tall).max() > 0.9
    free = (wide < 0.95) & (tall < 0.95)  # where neither side was cut to the image
    assert (wide / tall)[free].min() > 0.72
    assert (wide / tall)[free].max() < 1.4
    assert (wide / tall)[free].max() > 1.2
    assert changed[:, 0, 0, 0].max() > 35  # anywhere, not only in the middle


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


@pytest.mark.parametrize("policy", [{"saturation": 0.5}, {"hue": 0.5}, {"saturation": 0.9, "hue": 0.3}])
def test_saturation_and_hue_leave_gray_alone_and_keep_luma(policy: dict[str, Any]) -> None:
    gray = torch.full((20, 4, 4, 3), 90, dtype=torch.uint8)
    assert torch.equal(run(gray, **policy), gray)
    colour = gray.clone()
    colour[..., 0], colour[..., 2] = 110, 80
    weights = torch.tensor([0.299, 0.587, 0.114])
    luma = run(colour, **policy).float() @ weights
    assert luma.numpy() == pytest.approx(float(colour[0, 0, 0].float() @ weights), abs=0.9)


def test_half_a_turn_of_hue_swaps_a_colour_for_its_opposite() -> None:
    colour = torch.tensor([140, 100, 100], dtype=torch.uint8).expand(1, 4, 4, 3)
    changed = augment_batch(colour, AugmentPolicy(hue=0.5), np.random.default_rng(0), {"hue": 0.0})[0, 0, 0].tolist()
    luma = 0.299 * 140 + 0.701 * 100
    assert changed == pytest.approx([2 * luma - 140, 2 * luma - 100, 2 * luma - 100], abs=0.6)


def test_blur_is_a_gaussian_in_half_of_the_images() -> None:
    images = torch.zeros(400, 21, 21, 3, dtype=torch.uint8)
    images[:, 10, 10] = 255
    changed = augment_batch(images, AugmentPolicy(blur_pixels=1.5), np.random.default_rng(0), {"sigma": 1 - 1e-9})
    blurred = (changed != images).flatten(1).any(dim=1)
    assert 160 < blurred.sum() < 240
    kernel = np.exp(-0.5 * (np.arange(-10, 11) / 1.5) ** 2)
    kernel /= kernel.sum()
    expected = 255 * kernel[:, None] * kernel
    assert changed[blurred][0, ..., 1].numpy() == pytest.approx(expected, abs=1.5)  # weights have seven bits
    flat = torch.full((10, 9, 9, 3), 201, dtype=torch.uint8)
    assert torch.equal(run(flat, blur_pixels=3), flat)  # weights sum to one


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
    assert len(augment_batch(batch(0), policy, np.random.default_rng(0))) == 0
    assert augment_batch(batch(3), policy, np.random.default_rng(0)).shape == (3, 12, 10, 3)


@pytest.mark.parametrize("padding", ["edge", "reflect"])
@pytest.mark.parametrize(("height", "width", "pad"), [(12, 16, 3), (5, 4, 7), (8, 8, 0)])
def test_slices_on_a_cpu_are_the_pixels_that_a_gpu_picks(padding: Padding, height: int, width: int, pad: int) -> None:
    policy = AugmentPolicy(horizontal_flip=True, vertical_flip=True, crop_padding_pixels=pad, padding=padding)
    images = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (200, height, width, 3), dtype=np.uint8))
    found = augment_batch(images, policy, np.random.default_rng(4))
    names = augmentation.columns(policy)
    drawn = np.random.default_rng(4).random((200, len(names)))
    draws = {name: drawn[:, index] for index, name in enumerate(names)}
    picked = ops.to_bytes(augmentation._flip_and_shift(ops.to_words(images), policy, draws))
    assert torch.equal(found, picked)
    assert not torch.equal(found, images)

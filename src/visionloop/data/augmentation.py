"""Random changes of training images, on whole uint8 batches, each image its own.

The policy is a value (`AugmentPolicy`), the randomness a `torch.Generator`: the same seed gives the same bits. Works on the
device that the batch is on; the random numbers are drawn on that of the generator.

Does not cover: mixing of images (MixUp, CutMix), which also changes labels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from visionloop.data.policy import AugmentPolicy

__all__ = ["AugmentPolicy", "augment_batch"]

_ERASED_GRAY = 114.0  # as `preprocess` pads a letterbox
# Of the erased rectangle, from Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020).
_ERASED_AREA = (0.02, 0.33)
_ERASED_ASPECT = (0.3, 1 / 0.3)


def augment_batch(images: torch.Tensor, policy: AugmentPolicy, generator: torch.Generator) -> torch.Tensor:
    """Change each image of a batch by the policy.

    Args:
        images: uint8 [N, H, W, 3]; is not written to.
        policy: what may happen and how strongly; the identity returns `images` itself.
        generator: draws; it is advanced by an amount that depends on N and the policy alone.

    Returns:
        uint8 [N, H, W, 3] on the device of `images`.

    >>> augment_batch(images, AugmentPolicy(horizontal_flip=True), torch.Generator().manual_seed(0)).shape
    torch.Size([64, 32, 32, 3])
    """
    if policy.is_identity or len(images) == 0:
        return images
    draw = _Draw(generator, len(images), images.device)
    if policy.horizontal_flip or policy.crop_padding_pixels:
        images = _flip_and_shift(images, policy, draw)
    if not (policy.rotation_degrees or policy.scale or policy.brightness or policy.contrast or policy.saturation):
        return _erase(images, policy, draw) if policy.erasing else images
    pixels = images.permute(0, 3, 1, 2).float()
    if policy.rotation_degrees or policy.scale:
        pixels = _rotate_and_zoom(pixels, policy, draw)
    if policy.brightness or policy.contrast or policy.saturation:
        pixels = _colour(pixels, policy, draw)
    changed = pixels.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
    return _erase(changed, policy, draw) if policy.erasing else changed


class _Draw:
    """Random numbers, one per image."""

    def __init__(self, generator: torch.Generator, count: int, device: torch.device) -> None:
        self._generator, self._count, self._device = generator, count, device

    def uniform(self, low: float, high: float) -> torch.Tensor:
        values = torch.rand(self._count, generator=self._generator, device=self._generator.device)
        return values.to(self._device) * (high - low) + low

    def integers(self, low: int, high: int) -> torch.Tensor:
        """From low to high, both included."""
        values = torch.randint(low, high + 1, (self._count,), generator=self._generator, device=self._generator.device)
        return values.to(self._device)


def _flip_and_shift(images: torch.Tensor, policy: AugmentPolicy, draw: _Draw) -> torch.Tensor:
    """Mirror half of the images, move each by whole pixels: rows and columns are picked, pixels stay as they are."""
    _, height, width, _ = images.shape
    pad = policy.crop_padding_pixels
    rows = torch.arange(height, device=images.device)[None] + draw.integers(-pad, pad)[:, None]
    columns = torch.arange(width, device=images.device)[None] + draw.integers(-pad, pad)[:, None]
    if policy.horizontal_flip:
        mirrored = draw.uniform(0, 1)[:, None] < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    rows, columns = _inside(rows, height, policy.padding), _inside(columns, width, policy.padding)
    # One flat index per pixel, so that the three channels are copied together.
    flat = (rows[:, :, None] * width + columns[:, None, :]).reshape(len(images), height * width, 1).expand(-1, -1, 3)
    return images.reshape(len(images), height * width, 3).gather(1, flat).reshape(images.shape)


def _inside(index: torch.Tensor, size: int, padding: str) -> torch.Tensor:
    if padding == "reflect" and size > 1:
        period = 2 * (size - 1)
        index = index.remainder(period)
        return torch.where(index < size, index, period - index)
    return index.clamp(0, size - 1)


def _rotate_and_zoom(pixels: torch.Tensor, policy: AugmentPolicy, draw: _Draw) -> torch.Tensor:
    count, _, height, width = pixels.shape
    angle = draw.uniform(-policy.rotation_degrees, policy.rotation_degrees) * (math.pi / 180)
    zoom = 1 / (1 + draw.uniform(-policy.scale, policy.scale))
    cosine, sine = angle.cos() * zoom, angle.sin() * zoom
    # Coordinates run from -1 to 1 along each side, so a rotation in pixels needs the ratio of the sides.
    matrix = torch.zeros(count, 2, 3, device=pixels.device)
    matrix[:, 0, 0], matrix[:, 0, 1] = cosine, -sine * (height / width)
    matrix[:, 1, 0], matrix[:, 1, 1] = sine * (width / height), cosine
    grid = F.affine_grid(matrix, list(pixels.shape), align_corners=False)
    mode = "reflection" if policy.padding == "reflect" else "border"
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode=mode, align_corners=False)


def _colour(pixels: torch.Tensor, policy: AugmentPolicy, draw: _Draw) -> torch.Tensor:
    """Brightness, contrast around the image's mean gray, saturation towards each pixel's gray; float [N, 3, H, W]."""

    def factor(strength: float) -> torch.Tensor:
        return draw.uniform(1 - strength, 1 + strength)[:, None, None, None]

    if policy.brightness:
        pixels = (pixels * factor(policy.brightness)).clamp_(0, 255)
    if policy.contrast:
        mean = _gray(pixels).mean(dim=(2, 3), keepdim=True)
        pixels = (mean + (pixels - mean) * factor(policy.contrast)).clamp_(0, 255)
    if policy.saturation:
        gray = _gray(pixels)
        pixels = gray + (pixels - gray) * factor(policy.saturation)
    return pixels


def _gray(pixels: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor([0.299, 0.587, 0.114], device=pixels.device)[None, :, None, None]  # ITU-R BT.601
    return (pixels * weights).sum(dim=1, keepdim=True)


def _erase(images: torch.Tensor, policy: AugmentPolicy, draw: _Draw) -> torch.Tensor:
    """Cover a rectangle with gray in the share `policy.erasing` of the images."""
    _, height, width, _ = images.shape
    chosen = draw.uniform(0, 1) < policy.erasing
    area = draw.uniform(*_ERASED_AREA) * (height * width)
    aspect = draw.uniform(math.log(_ERASED_ASPECT[0]), math.log(_ERASED_ASPECT[1])).exp()
    tall = (area * aspect).sqrt().round().clamp(1, height)
    wide = (area / aspect).sqrt().round().clamp(1, width)
    top = (draw.uniform(0, 1) * (height - tall + 1)).floor()
    left = (draw.uniform(0, 1) * (width - wide + 1)).floor()
    rows = torch.arange(height, device=images.device)[None]
    columns = torch.arange(width, device=images.device)[None]
    in_rows = (rows >= top[:, None]) & (rows < (top + tall)[:, None]) & chosen[:, None]
    in_columns = (columns >= left[:, None]) & (columns < (left + wide)[:, None])
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[..., None], int(_ERASED_GRAY))

"""Light, colour, form and storage as in CIFAR-10-C. Images are float64 [N, H, W, 3], 0 to 1."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy import ndimage

from visionloop.corruptions.sampling import FloatArray, mirror, reflect, sample


def brightness(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """More light: the V of HSV is raised."""
    value = images.max(axis=3, keepdims=True)
    raised = np.clip(value + (0.05, 0.10, 0.15, 0.20, 0.30)[index], 0, 1)
    return np.asarray(np.where(value > 0, images * raised / np.maximum(value, 1e-12), raised))


def contrast(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """Each channel nearer to its mean."""
    mean = images.mean(axis=(1, 2), keepdims=True)
    return np.asarray((images - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[index] + mean)


def saturate(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """Paler at the severities 1 and 2, more colourful from 3 on."""
    factor, offset = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[index]
    value = images.max(axis=3, keepdims=True)
    lack = value - images  # 0 in the strongest channel; divided by V it is at most S, the saturation of HSV
    saturation = lack.max(axis=3, keepdims=True) / np.maximum(value, 1e-12)
    wanted = np.clip(saturation * factor + offset, 0, 1)
    # A gray pixel has the hue 0, which is red: so in CIFAR-10-C.
    red = np.array([0.0, 1.0, 1.0]) * value * wanted
    return np.asarray(np.where(saturation > 0, value - lack * wanted / np.maximum(saturation, 1e-12), value - red))


def elastic_transform(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """Three points of the image are pulled aside, and from severity 2 on each place a little on its own.

    Lengths are shares of the shorter side, as in CIFAR-10-C.
    """
    count, height, width = images.shape[:3]
    side = min(height, width)
    reach, softness, pull = (
        side * share
        for share in ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03))[index]
    )
    x, y, third = width // 2, height // 2, side // 3
    corners = np.array([[x + third, y + third], [x + third, y - third], [x - third, y - third]], dtype=np.float64)
    pulled = corners + rng.uniform(-pull, pull, (count, 3, 2))
    # Where a pixel of the result comes from: the affine map that takes the pulled points back to the corners.
    back = np.linalg.solve(np.concatenate([pulled, np.ones((count, 3, 1))], axis=2), np.broadcast_to(corners, (count, 3, 2)))
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    source = np.stack([columns, rows, np.ones_like(rows)], axis=2) @ back[:, None]
    images = sample(images, source[..., 1], source[..., 0], mirror)
    right, down = (
        reach * ndimage.gaussian_filter(draw, (0, softness, softness), mode="reflect", truncate=3)
        for draw in rng.uniform(-1, 1, (2, count, height, width))
    )
    return sample(images, rows + down, columns + right, reflect)


def pixelate(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """Fewer pixels, enlarged again."""
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[index]

    def one(picture: Image.Image) -> Image.Image:
        small = picture.resize((int(picture.width * share), int(picture.height * share)), Image.Resampling.BOX)
        return small.resize(picture.size, Image.Resampling.BOX)

    return np.stack([np.asarray(one(picture)) for picture in _pictures(images)]) / 255.0


def jpeg_compression(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """Stored as a small JPEG."""

    def one(picture: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=(80, 65, 58, 50, 40)[index])
        return Image.open(buffer)

    return np.stack([np.asarray(one(picture)) for picture in _pictures(images)]) / 255.0


def _pictures(images: FloatArray) -> list[Image.Image]:
    return [Image.fromarray(image) for image in np.rint(images * 255).astype(np.uint8)]

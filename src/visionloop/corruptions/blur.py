"""The blurs of CIFAR-10-C. Images are float64 [N, H, W, 3], 0 to 1; lengths are pixels, whatever the images' size."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from visionloop.corruptions.sampling import FloatArray, smear, zoom


def gaussian_blur(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """A soft lens."""
    return _soften(images, (0.4, 0.6, 0.7, 0.8, 1.0)[index])


def defocus_blur(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """A lens out of focus: each point becomes a disk."""
    radius, sigma = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[index]
    offsets = np.arange(-3, 4)
    disk = (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2).astype(np.float64)
    line = np.exp(-((np.arange(-1, 2) / sigma) ** 2) / 2)  # smooths the disk's edge over 3 x 3 pixels
    kernel = ndimage.convolve(disk, np.outer(line, line), mode="constant")
    return np.asarray(ndimage.convolve(images, (kernel / kernel.sum())[None, :, :, None], mode="mirror"))


def glass_blur(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """Ribbed glass: pixels stand a little beside their place.

    The script of CIFAR-10-C means to swap neighbours one after another, but its swap of NumPy rows only copies the second
    into the first. So from the third row and column on each pixel takes the value of itself or of its neighbour above,
    to the left or between the two, and no pixel reads what was written in the same round: one gather gives the same.
    """
    sigma, rounds = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[index]
    images = _soften(images, sigma)
    count, height, width = images.shape[:3]
    number = np.arange(count)[:, None, None]
    rows, columns = np.arange(2, height)[:, None], np.arange(2, width)[None, :]
    for _ in range(rounds):
        up, left = rng.integers(0, 2, (2, count, height - 2, width - 2))
        moved = images.copy()
        moved[:, 2:, 2:] = images[number, rows - up, columns - left]
        images = moved
    return _soften(images, sigma)


def motion_blur(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """Something that moved while the shutter was open."""
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[index]
    return smear(images, radius, sigma, rng.uniform(-math.pi / 4, math.pi / 4, len(images)))


def zoom_blur(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """A camera that came closer: the mean of the image and of the image at each step of the zoom, 1 % apart."""
    # As the script writes them; in floating point two of the ranges hold their own end.
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[index], 0.01)
    total = images.copy()
    for factor in factors:
        total += zoom(images, float(factor))
    return total / (len(factors) + 1)


def _soften(images: FloatArray, sigma: float) -> FloatArray:
    return np.asarray(ndimage.gaussian_filter(images, (0, sigma, sigma, 0), mode="nearest"))

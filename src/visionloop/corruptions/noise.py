"""The noises of CIFAR-10-C: what a sensor adds. Images are float64 [N, H, W, 3], 0 to 1; each channel gets its own noise."""

from __future__ import annotations

import numpy as np

from visionloop.corruptions.sampling import FloatArray


def gaussian_noise(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """The same everywhere, as in the dark."""
    return images + rng.normal(scale=(0.04, 0.06, 0.08, 0.09, 0.10)[index], size=images.shape)


def shot_noise(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """Of the light itself, which comes in photons."""
    photons = (500, 250, 100, 75, 50)[index]
    return np.asarray(rng.poisson(images * photons) / photons)


def impulse_noise(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """Some values 0, as many 1."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[index]
    draw = rng.random(images.shape)
    return np.asarray(np.where(draw < share / 2, 0.0, np.where(draw < share, 1.0, images)))


def speckle_noise(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """In proportion to the value, as in pictures by radar."""
    return images + images * rng.normal(scale=(0.06, 0.10, 0.12, 0.16, 0.20)[index], size=images.shape)

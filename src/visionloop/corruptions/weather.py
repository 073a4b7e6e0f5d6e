"""Snow, frost, fog and spatter as in CIFAR-10-C. Images are float64 [N, H, W, 3], 0 to 1."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from visionloop.corruptions.sampling import FloatArray, smear, zoom

_LUMA = np.array([0.299, 0.587, 0.114])
_WATER = np.array([175, 238, 238]) / 255
_MUD = np.array([63, 42, 20]) / 255
_ICE = np.array([0.86, 0.93, 1.0])


def snow(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """Flakes that fall, and a scene that pales."""
    mean, deviation, size, least, radius, sigma, kept = (
        (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[index]
    flakes = zoom(rng.normal(mean, deviation, (*images.shape[:3], 1)), size)
    flakes = np.where(flakes < least, 0, np.clip(flakes, 0, 1))
    flakes = smear(flakes, radius, sigma, rng.uniform(-3 * math.pi / 4, -math.pi / 4, len(images)))
    pale = np.maximum(images, (images @ _LUMA)[..., None] * 1.5 + 0.5)
    return np.asarray(kept * images + (1 - kept) * pale + flakes + flakes[:, ::-1, ::-1])


def frost(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """Ice on the lens: drawn here, where CIFAR-10-C cuts it out of five photos; the shares of image and ice are its own."""
    kept, added = ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[index]
    count, height, width = images.shape[:3]
    needles = 1 - np.abs(2 * _clouds(count, height, width, 1.6, rng) - 1)
    ice = 0.35 + 0.3 * _clouds(count, height, width, 2.5, rng) + 0.35 * needles**4
    return np.asarray(kept * images + added * ice[..., None] * _ICE)


def fog(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """A cloud between the scene and the camera."""
    strength, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[index]
    count, height, width = images.shape[:3]
    cloud = _clouds(count, height, width, decay, rng)[..., None]
    peak = images.max((1, 2, 3), keepdims=True)
    return np.asarray((images + strength * cloud) * peak / (peak + strength))


def spatter(images: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    """Drops of water on the lens, from severity 4 on splashes of mud.

    The drops' light and shade follow CIFAR-10-C, with their rim in place of Canny's edges.
    """
    mean, deviation, sigma, least, strength, mud = (
        (0.62, 0.1, 0.7, 0.7, 0.5, False),
        (0.65, 0.1, 0.8, 0.7, 0.5, False),
        (0.65, 0.3, 1.0, 0.69, 0.5, False),
        (0.65, 0.1, 0.7, 0.69, 0.6, True),
        (0.65, 0.1, 0.5, 0.68, 0.6, True),
    )[index]
    liquid = rng.normal(mean, deviation, images.shape[:3])
    liquid = ndimage.gaussian_filter(liquid, (0, sigma, sigma), mode="nearest")
    drops = liquid >= least
    if mud:
        cover = ndimage.gaussian_filter(drops.astype(np.float64), (0, strength, strength), mode="nearest")
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        return np.asarray(images * (1 - cover) + _MUD * cover)
    shine = np.stack([_shine(one) for one in drops]) * np.where(drops, liquid, 0)
    peak = shine.max((1, 2), keepdims=True)
    return images + _WATER * (strength * shine / np.where(peak > 0, peak, 1))[..., None]


def _shine(drops: npt.NDArray[np.bool_]) -> FloatArray:
    """How bright each place of the drops of one image [H, W] is: lit from one side, most where they are thick."""
    rim = drops & ~ndimage.binary_erosion(drops)
    depth = ndimage.distance_transform_edt(~rim) if rim.any() else np.full(drops.shape, 20.0)
    # Running sums leave 1e-15 of a rounding error, which must not make 19 of 20.
    depth = np.floor(ndimage.uniform_filter(np.minimum(depth, 20), 3, mode="mirror") + 1e-9)
    # Every depth gets the same share of the levels, as `equalizeHist` of OpenCV does it.
    counts = np.bincount(depth.astype(np.int64).ravel(), minlength=21)
    lowest, below = counts[counts > 0][0], np.cumsum(counts)
    levels = np.rint((below - lowest) * 255 / max(depth.size - lowest, 1))
    kernel = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    lit = np.clip(ndimage.correlate(levels[depth.astype(np.int64)], kernel, mode="mirror"), 0, 255)
    return np.asarray(ndimage.uniform_filter(lit, 3, mode="mirror"))


def _clouds(count: int, height: int, width: int, decay: float, rng: np.random.Generator) -> FloatArray:
    """Clouds [N, H, W], each from 0 to 1, by the diamond-square method on a torus; a larger `decay` makes them softer."""
    size = 1 << (max(height, width) - 1).bit_length()
    grid = np.zeros((count, size, size))
    step, noise = size, 100.0
    while step >= 2:
        half = step // 2

        def jitter(mean: FloatArray, width: float = noise) -> FloatArray:
            return np.asarray(mean + width * rng.uniform(-width, width, mean.shape))

        corners = grid[:, ::step, ::step]
        below = np.roll(corners, -1, axis=1)
        centres = jitter((corners + below + np.roll(corners, -1, axis=2) + np.roll(below, -1, axis=2)) / 4)
        grid[:, half::step, half::step] = centres
        grid[:, ::step, half::step] = jitter(
            (corners + np.roll(corners, -1, axis=2) + centres + np.roll(centres, 1, axis=1)) / 4
        )
        grid[:, half::step, ::step] = jitter((corners + below + centres + np.roll(centres, 1, axis=2)) / 4)
        step, noise = half, noise / decay
    grid -= grid.min((1, 2), keepdims=True)
    return np.asarray((grid / grid.max((1, 2), keepdims=True))[:, :height, :width])

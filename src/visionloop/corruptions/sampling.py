"""Images read at places between their pixels: what blurs along a path, zooms and bends are made of.

All images are float64 [N, H, W, C]; interpolation is bilinear. Does not cover: shrinking, where pixels have to be averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Border = Callable[[IntArray, int], IntArray]


def nearest(index: IntArray, size: int) -> IntArray:
    """Beyond the border the last pixel goes on: `a a | a b c | c c`."""
    return np.clip(index, 0, size - 1)


def mirror(index: IntArray, size: int) -> IntArray:
    """Beyond the border the image comes back, without its last pixel: `c b | a b c | b a`."""
    period = 2 * (size - 1)
    index = np.abs(index) % period
    return np.minimum(index, period - index)


def reflect(index: IntArray, size: int) -> IntArray:
    """Beyond the border the image comes back, with its last pixel: `b a | a b c | c b`."""
    index = index % (2 * size)
    return np.minimum(index, 2 * size - 1 - index)


def sample(images: FloatArray, rows: FloatArray, columns: FloatArray, border: Border) -> FloatArray:
    """Each image at its own places: `rows` and `columns`, in pixels, broadcast to [N, H', W'], which is the new size."""
    rows, columns = np.broadcast_arrays(rows, columns)
    number = np.arange(len(images))[:, None, None]
    top, left = np.floor(rows), np.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    first, second = (border(top.astype(np.int64) + step, images.shape[1]) for step in (0, 1))
    here, next_ = (border(left.astype(np.int64) + step, images.shape[2]) for step in (0, 1))
    upper = (1 - right) * images[number, first, here] + right * images[number, first, next_]
    lower = (1 - right) * images[number, second, here] + right * images[number, second, next_]
    return np.asarray((1 - down) * upper + down * lower)


def zoom(images: FloatArray, factor: float) -> FloatArray:
    """The middle of the images, enlarged by `factor` (at least 1) to the size that they have.

    The same pixels as `scipy.ndimage.zoom` of order 1 gives for the part of `ceil(side / factor)` pixels, cut to size.
    """
    return _along(_along(images, _places(images.shape[1], factor), 1), _places(images.shape[2], factor), 2)


def _places(size: int, factor: float) -> FloatArray:
    part = math.ceil(size / factor)
    total = round(part * factor)
    trim = (total - size) // 2
    return np.asarray((size - part) // 2 + (np.arange(size) + trim) * ((part - 1) / (total - 1)))


def _along(images: FloatArray, places: FloatArray, axis: int) -> FloatArray:
    start = np.floor(places).astype(np.int64)
    shape = [1, 1, 1, 1]
    shape[axis] = len(places)
    share = (places - start).reshape(shape)
    after = nearest(start + 1, images.shape[axis])
    return np.asarray((1 - share) * images.take(start, axis) + share * images.take(after, axis))


def smear(images: FloatArray, radius: int, sigma: float, angles: FloatArray) -> FloatArray:
    """Each image drawn out along its own angle (radians, [N]), as something that moves leaves a trail on one side of it.

    The trail has `2 * radius + 1` steps of one pixel whose weights fall as a Gaussian of `sigma` pixels: ImageMagick's
    motion blur, which CIFAR-10-C takes, but for its rounding of each step to whole pixels.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-((steps / sigma) ** 2) / 2)
    rows, columns = np.arange(images.shape[1])[None, :, None], np.arange(images.shape[2])[None, None, :]
    down, right = np.sin(angles)[:, None, None], np.cos(angles)[:, None, None]
    result = np.zeros_like(images)
    for step, weight in zip(steps, weights / weights.sum(), strict=True):
        if weight > 1e-4 * weights.sum():
            result += weight * sample(images, rows - step * down, columns - step * right, nearest)
    return result

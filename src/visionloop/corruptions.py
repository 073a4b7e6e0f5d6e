"""Images made worse in known ways and degrees, to see whether a change of the world is noticed.

The parameters of each severity are those of CIFAR-10-C (Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to
Common Corruptions and Perturbations", ICLR 2019; `make_cifar_c.py` in hendrycks/robustness), which are meant for 32 x 32
pixels. Unlike there, results are rounded and not cut off, motion blur is computed here and not by ImageMagick, and any size
from 8 x 8 on is taken.

Does not cover: glass and zoom blur, snow, frost, spatter, elastic transform.
"""

from __future__ import annotations

import difflib
import io
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from visionloop.errors import ConfigError
from visionloop.preprocess import PixelArray

FloatArray = npt.NDArray[np.float64]
SEVERITIES = (1, 2, 3, 4, 5)
MIN_SIDE = 8


def corrupt(image: PixelArray, name: str, severity: int, rng: np.random.Generator) -> PixelArray:
    """Corrupt an RGB image, uint8 [H, W, 3] with sides of at least 8; the result has the same shape and type.

    `name` is one of `CORRUPTIONS` or `ALIASES`. Gray images stay gray under all but the noises (which differ by channel) and
    saturate from severity 4 on.

    >>> corrupt(image, "gaussian_blur", 3, np.random.default_rng(0)).shape
    (32, 32, 3)

    Raises:
        ConfigError: an unknown name or severity.
        ValueError: another shape or type.
    """
    name = resolve(name)
    check_severity(severity)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < MIN_SIDE:
        raise ValueError(f"The image is {image.dtype} {image.shape}; it must be uint8 [H, W, 3] with sides of 8 or more.")
    changed = _FUNCTIONS[name](image / 255.0, severity - 1, rng)
    return np.asarray(np.rint(np.clip(changed, 0, 1) * 255), dtype=np.uint8)


def resolve(name: str, extra: Iterable[str] = ()) -> str:
    """The corruption's full name; names of `extra` are allowed too.

    Raises:
        ConfigError: an unknown name; the message gives the nearest known ones.
    """
    full = ALIASES.get(name, name)
    known = (*extra, *CORRUPTIONS, *ALIASES)
    if full in known:
        return full
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(known)}."
    raise ConfigError(f"There is no shift {name!r}; {hint}")


def check_severity(severity: int) -> None:
    """Raise ConfigError unless the severity is 1 to 5."""
    if severity not in SEVERITIES:
        raise ConfigError(f"The severity is {severity}; it must be 1 (slight) to 5 (strong).")


def _gaussian_noise(image: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    return image + rng.normal(scale=(0.04, 0.06, 0.08, 0.09, 0.10)[index], size=image.shape)


def _shot_noise(image: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    photons = (500, 250, 100, 75, 50)[index]
    return np.asarray(rng.poisson(image * photons) / photons)


def _impulse_noise(image: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[index]
    draw = rng.random(image.shape)
    return np.asarray(np.where(draw < share / 2, 0.0, np.where(draw < share, 1.0, image)))


def _gaussian_blur(image: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[index]
    return np.asarray(ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest"))


def _defocus_blur(image: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    radius, sigma = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1))[index]
    offsets = np.arange(-3, 4)
    disk = (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2).astype(np.float64)
    line = np.exp(-((np.arange(-1, 2) / sigma) ** 2) / 2)  # smooths the disk's edge over 3 x 3 pixels
    kernel = ndimage.convolve(disk, np.outer(line, line), mode="constant")
    return np.asarray(ndimage.convolve(image, (kernel / kernel.sum())[:, :, None], mode="mirror"))


def _motion_blur(image: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[index]
    angle = math.radians(rng.uniform(-45, 45))
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-((steps / sigma) ** 2) / 2)  # one-sided: the trail behind a moving object
    moved = (
        weight * ndimage.shift(image, (step * math.sin(angle), step * math.cos(angle), 0), order=1, mode="nearest")
        for step, weight in zip(steps, weights / weights.sum(), strict=True)
        if weight > 1e-4 * weights.sum()
    )
    return np.asarray(sum(moved))


def _brightness(image: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    value = image.max(axis=2, keepdims=True)  # the V of HSV
    raised = np.clip(value + (0.05, 0.10, 0.15, 0.20, 0.30)[index], 0, 1)
    return np.asarray(np.where(value > 0, image * raised / np.maximum(value, 1e-12), raised))


def _contrast(image: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return np.asarray((image - mean) * (0.75, 0.5, 0.4, 0.3, 0.15)[index] + mean)


def _saturate(image: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    factor, offset = ((0.3, 0.0), (0.1, 0.0), (1.5, 0.0), (2.0, 0.1), (2.5, 0.2))[index]
    value = image.max(axis=2, keepdims=True)
    lack = value - image  # 0 in the strongest channel; divided by V it is at most S, the saturation of HSV
    saturation = lack.max(axis=2, keepdims=True) / np.maximum(value, 1e-12)
    wanted = np.clip(saturation * factor + offset, 0, 1)
    # A gray pixel has the hue 0, which is red: so in CIFAR-10-C.
    red = np.array([0.0, 1.0, 1.0]) * value * wanted
    return np.asarray(np.where(saturation > 0, value - lack * wanted / np.maximum(saturation, 1e-12), value - red))


def _jpeg_compression(image: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    buffer = io.BytesIO()
    _picture(image).save(buffer, "JPEG", quality=(80, 65, 58, 50, 40)[index])
    return np.asarray(Image.open(buffer)) / 255.0


def _pixelate(image: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    picture, share = _picture(image), (0.95, 0.9, 0.85, 0.75, 0.65)[index]
    small = picture.resize((int(picture.width * share), int(picture.height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize(picture.size, Image.Resampling.BOX)) / 255.0


def _fog(image: FloatArray, index: int, rng: np.random.Generator) -> FloatArray:
    strength, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[index]
    height, width = image.shape[:2]
    size = 1 << (max(height, width) - 1).bit_length()
    cloud = _plasma(size, decay, rng)[:height, :width, None]
    peak = image.max()
    return np.asarray((image + strength * cloud) * peak / (peak + strength))


def _plasma(size: int, decay: float, rng: np.random.Generator) -> FloatArray:
    """A cloud, float64 [size, size], 0 to 1, by the diamond-square method on a torus; `size` is a power of two."""
    grid = np.zeros((size, size))
    step, noise = size, 100.0
    while step >= 2:
        half = step // 2

        def jitter(mean: FloatArray, width: float = noise) -> FloatArray:
            return np.asarray(mean + width * rng.uniform(-width, width, mean.shape))

        corners = grid[::step, ::step]
        below = np.roll(corners, -1, axis=0)
        centres = jitter((corners + below + np.roll(corners, -1, axis=1) + np.roll(below, -1, axis=1)) / 4)
        grid[half::step, half::step] = centres
        grid[::step, half::step] = jitter(
            (corners + np.roll(corners, -1, axis=1) + centres + np.roll(centres, 1, axis=0)) / 4
        )
        grid[half::step, ::step] = jitter((corners + below + centres + np.roll(centres, 1, axis=1)) / 4)
        step, noise = half, noise / decay
    grid -= grid.min()
    return np.asarray(grid / grid.max())


def _picture(image: FloatArray) -> Image.Image:
    return Image.fromarray(np.rint(image * 255).astype(np.uint8))


_FUNCTIONS: Mapping[str, Callable[[FloatArray, int, np.random.Generator], FloatArray]] = MappingProxyType(
    {
        "gaussian_noise": _gaussian_noise,
        "shot_noise": _shot_noise,
        "impulse_noise": _impulse_noise,
        "gaussian_blur": _gaussian_blur,
        "defocus_blur": _defocus_blur,
        "motion_blur": _motion_blur,
        "brightness": _brightness,
        "contrast": _contrast,
        "saturate": _saturate,
        "jpeg_compression": _jpeg_compression,
        "pixelate": _pixelate,
        "fog": _fog,
    }
)
CORRUPTIONS: tuple[str, ...] = tuple(_FUNCTIONS)
ALIASES: Mapping[str, str] = MappingProxyType(
    {"blur": "gaussian_blur", "noise": "gaussian_noise", "jpeg": "jpeg_compression", "motion": "motion_blur"}
)

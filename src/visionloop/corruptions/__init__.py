"""Images made worse in known ways and degrees: to see what a model withstands, and whether a change of the world is noticed.

The 15 corruptions of CIFAR-10-C and its 4 extra ones, with its parameters (Hendrycks and Dietterich, "Benchmarking Neural
Network Robustness to Common Corruptions and Perturbations", ICLR 2019, arXiv:1903.12261; `make_cifar_c.py` in
hendrycks/robustness), which are meant for 32 x 32 pixels. Any size from 8 x 8 on is taken; lengths stay as many pixels, so
that the same severity is stronger on smaller images and weaker on larger ones. Unlike there, results are rounded and not cut
off, the blur of motion and of falling snow is computed here and not by ImageMagick, frost is drawn and not cut out of
photos, and the drops of spatter are lit from their rim, where OpenCV finds edges there.

Does not cover: equality with the published files pixel by pixel, since they were drawn without a seed.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import numpy as np

from visionloop.corruptions import blur, digital, noise, weather
from visionloop.corruptions.sampling import FloatArray
from visionloop.errors import ConfigError
from visionloop.preprocess import PixelArray

SEVERITIES = (1, 2, 3, 4, 5)
MIN_SIDE = 8
_BLOCK_PIXELS = 1 << 14  # worked on at once: several small images share the cost of a call, a large one stays in the cache

_FUNCTIONS: Mapping[str, Callable[[FloatArray, int, np.random.Generator], FloatArray]] = MappingProxyType(
    {
        "gaussian_noise": noise.gaussian_noise,
        "shot_noise": noise.shot_noise,
        "impulse_noise": noise.impulse_noise,
        "defocus_blur": blur.defocus_blur,
        "glass_blur": blur.glass_blur,
        "motion_blur": blur.motion_blur,
        "zoom_blur": blur.zoom_blur,
        "snow": weather.snow,
        "frost": weather.frost,
        "fog": weather.fog,
        "brightness": digital.brightness,
        "contrast": digital.contrast,
        "elastic_transform": digital.elastic_transform,
        "pixelate": digital.pixelate,
        "jpeg_compression": digital.jpeg_compression,
        "speckle_noise": noise.speckle_noise,
        "gaussian_blur": blur.gaussian_blur,
        "spatter": weather.spatter,
        "saturate": digital.saturate,
    }
)
CORRUPTIONS: tuple[str, ...] = tuple(_FUNCTIONS)
# What is averaged is the 15; the paper keeps the other 4 apart, to choose settings by without touching the benchmark.
BENCHMARK, EXTRA = CORRUPTIONS[:15], CORRUPTIONS[15:]
ALIASES: Mapping[str, str] = MappingProxyType(
    {"blur": "gaussian_blur", "noise": "gaussian_noise", "jpeg": "jpeg_compression", "motion": "motion_blur",
     "elastic": "elastic_transform"}
)  # fmt: skip


def corrupt(image: PixelArray, name: str, severity: int, rng: np.random.Generator) -> PixelArray:
    """Corrupt an RGB image, uint8 [H, W, 3] with sides of at least 8; the result has the same shape and type.

    `name` is one of `CORRUPTIONS` or `ALIASES`. Gray images stay gray under all but the noises (which differ by channel),
    frost, spatter, and saturate from severity 4 on.

    >>> corrupt(image, "gaussian_blur", 3, np.random.default_rng(0)).shape
    (32, 32, 3)

    Raises:
        ConfigError: an unknown name or severity.
        ValueError: another shape or type.
    """
    if image.ndim != 3:
        raise ValueError(f"The image is {image.dtype} {image.shape}; {_WANTED}.")
    changed: PixelArray = corrupt_all(image[None], name, severity, rng)[0]
    return changed


def corrupt_all(images: PixelArray, name: str, severity: int, rng: np.random.Generator) -> PixelArray:
    """As `corrupt`, for images uint8 [N, H, W, 3] together: several times as fast, each with its own draw."""
    function = _FUNCTIONS[resolve(name)]
    check_severity(severity)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < MIN_SIDE:
        raise ValueError(f"The image is {images.dtype} {images.shape[1:]}; {_WANTED}.")
    result = np.empty_like(images)
    block = max(1, _BLOCK_PIXELS // (images.shape[1] * images.shape[2]))
    for start in range(0, len(images), block):
        changed = function(images[start : start + block] / 255.0, severity - 1, rng)
        result[start : start + block] = np.rint(np.clip(changed, 0, 1) * 255)
    return result


_WANTED = "it must be uint8 [H, W, 3] with sides of 8 or more"


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

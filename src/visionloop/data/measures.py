"""What `clean` measures of one image, decoded once: sizes, statistics of gray and colour, what the file says, a fingerprint.

At which size a number is measured, so that numbers of a thumbnail and of a 24-megapixel photo can stand side by side:

- brightness, contrast, entropy, percentiles, sharpness and steepness on the image halved until its longer side has 128 to
  255 pixels; a smaller image is taken as it is. JPEG is halved while it is decoded. Natural pictures look alike at every
  scale (Field, "Relations between the statistics of natural images", 1987), so the sharpness of a picture in focus does not
  hang on the size that it came in; that of one enlarged without detail does.
- colourfulness and the perceptual hash on the copy of 32 x 32 pixels.

Runs in the processes of the pool, so it imports little. Does not cover: verdicts, which `cleaning` gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from PIL import Image

from visionloop.data.fingerprints import fingerprint
from visionloop.data.thumbs import THUMB_SIDE, Thumbs
from visionloop.errors import ImageError
from visionloop.preprocess import PILLOW_ERRORS, load, upright_rgb

FloatArray = npt.NDArray[np.float32]
FloatArray64 = npt.NDArray[np.float64]
_SIDE = 128
_LEVELS = np.arange(256, dtype=np.float64)
_SQUARES = _LEVELS**2
# Red against green, yellow against blue.
_OPPONENTS = np.array([[1, 0.5], [-1, 0.5], [0, -1]])
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height


@dataclass(frozen=True, slots=True)
class Measurement:
    """One image's numbers. Where it cannot be decoded, `fault` is the reason and the rest is 0 or empty."""

    width_pixels: int = 0  # upright
    height_pixels: int = 0
    mode: str = ""
    format: str = ""
    bit_depth: int = 0
    alpha: bool = False
    animated: bool = False
    exif_orientation: int = 1
    brightness: float = 0.0  # mean of gray
    contrast: float = 0.0  # standard deviation of gray
    sharpness: float = 0.0  # variance of the 4-neighbour Laplacian of gray
    entropy: float = 0.0  # of the 64-bin histogram of gray, bits
    colourfulness: float = 0.0  # Hasler and Suesstrunk, "Measuring colourfulness in natural images" (2003)
    darkest: int = 0  # 5th percentile of gray: all but a few pixels are at least so bright
    brightest: int = 0  # 99th percentile of gray
    steepness: float = 0.0  # see `_steepness`
    steepness_half: float = 0.0  # the same at half the size, of images under 128 pixels; of larger ones at the same size
    hash: int = 0  # 64 bits; see `fingerprints`
    mirrored_hash: int = 0
    thumb: bytes = b""
    fault: str = ""
    fault_detail: str = ""


# How the columns of `Measures` lie in memory: 100 bytes an image.
_COLUMNS: dict[str, str] = {
    "width_pixels": "i4", "height_pixels": "i4", "mode": "U6", "format": "U4", "bit_depth": "u1", "alpha": "?",
    "animated": "?", "exif_orientation": "u1", "brightness": "f4", "contrast": "f4", "sharpness": "f4", "entropy": "f4",
    "colourfulness": "f4", "darkest": "u1", "brightest": "u1", "steepness": "f4", "steepness_half": "f4", "hash": "u8",
    "mirrored_hash": "u8",
}  # fmt: skip


@dataclass(frozen=True)
class Measures:
    """The numbers of N images, one array [N] for each of `Measurement`'s; the small copies lie in a `Thumbs`."""

    width_pixels: npt.NDArray[np.int32]
    height_pixels: npt.NDArray[np.int32]
    mode: npt.NDArray[np.str_]
    format: npt.NDArray[np.str_]
    bit_depth: npt.NDArray[np.uint8]
    alpha: npt.NDArray[np.bool_]
    animated: npt.NDArray[np.bool_]
    exif_orientation: npt.NDArray[np.uint8]
    brightness: FloatArray
    contrast: FloatArray
    sharpness: FloatArray
    entropy: FloatArray
    colourfulness: FloatArray
    darkest: npt.NDArray[np.uint8]
    brightest: npt.NDArray[np.uint8]
    steepness: FloatArray
    steepness_half: FloatArray
    hash: npt.NDArray[np.uint64]
    mirrored_hash: npt.NDArray[np.uint64]
    faults: dict[int, tuple[str, str]]  # position -> reason and sentence, of the images that cannot be decoded

    @classmethod
    def empty(cls, count: int) -> Measures:
        """`count` images of which nothing is known yet."""
        return cls(**{name: np.zeros(count, dtype=kind) for name, kind in _COLUMNS.items()}, faults={})

    def __len__(self) -> int:
        return len(self.hash)

    def put(self, batch: MeasuredBatch, thumbs: Thumbs) -> None:
        """Take over what one process measured."""
        for name in _COLUMNS:
            getattr(self, name)[batch.numbers] = batch.columns[name]
        self.faults.update(batch.faults)
        for number, thumb in zip(batch.numbers.tolist(), batch.thumbs, strict=True):
            if thumb:
                thumbs.put(number, thumb)


@dataclass(frozen=True)
class MeasuredBatch:
    """What comes back from a process: numbers of the images and their columns."""

    numbers: npt.NDArray[np.int64]
    columns: dict[str, npt.NDArray[np.generic]]
    thumbs: list[bytes]
    faults: dict[int, tuple[str, str]]


@dataclass(frozen=True)
class MeasureBatch:
    """The work of one process on one batch of numbered, encoded images."""

    max_pixels: int

    def __call__(self, batch: Sequence[tuple[int, bytes]]) -> MeasuredBatch:
        looked = [_look(data, self.max_pixels) for _, data in batch]
        columns: dict[str, npt.NDArray[np.generic]] = {
            name: np.array([getattr(one, name) for one, _ in looked], dtype=kind) for name, kind in _COLUMNS.items()
        }
        # Together for all images of a batch, since one by one numpy's overhead would be ten times the work.
        decoded = [place for place, (one, _) in enumerate(looked) if not one.fault]
        if decoded:
            found = _levels(np.array([looked[place][1] for place in decoded], dtype=np.float64))
            found["colourfulness"] = _colourfulness([looked[place][0].thumb for place in decoded])
            for name, values in found.items():
                columns[name][decoded] = values
        return MeasuredBatch(
            np.array([number for number, _ in batch], dtype=np.int64),
            columns,
            [one.thumb for one, _ in looked],
            {
                number: (one.fault, one.fault_detail)
                for (number, _), (one, _) in zip(batch, looked, strict=True)
                if one.fault
            },
        )


def measure(data: bytes, max_pixels: int) -> Measurement:
    """Decode encoded image bytes once and measure them; a fault is a result, not an error."""
    batch = MeasureBatch(max_pixels)([(0, data)])
    fault, detail = batch.faults.get(0, ("", ""))
    numbers = {name: column[0].item() for name, column in batch.columns.items()}
    return Measurement(**numbers, thumb=batch.thumbs[0], fault=fault, fault_detail=detail)


def _look(data: bytes, max_pixels: int) -> tuple[Measurement, list[int]]:
    """One image without what `MeasureBatch` computes for many, and the histogram of its gray levels for that."""
    try:
        loaded = load(data, max_pixels=max_pixels, least_side=_SIDE)
        stored = loaded.image
        rgb = upright_rgb(stored)
    except ImageError as error:
        return Measurement(fault=error.reason, fault_detail=str(error)), []
    factor = 1 << max(0, (max(rgb.size) // _SIDE).bit_length() - 1)
    if factor > 1:
        rgb = rgb.reduce(factor)
    gray_image = rgb.convert("L")
    gray = np.asarray(gray_image).astype(np.int16)
    sharpness, steepness = _steepness(gray)
    # A copy for the fingerprint of 32 to 63 pixels a side costs a sixth of resizing the larger one.
    print_factor = (max(1, rgb.width // THUMB_SIDE), max(1, rgb.height // THUMB_SIDE))
    printed = fingerprint(rgb.reduce(print_factor) if max(print_factor) > 1 else rgb)
    orientation = _orientation(stored)
    width, height = loaded.width_pixels, loaded.height_pixels
    if orientation in _SIDEWAYS:
        width, height = height, width
    half = _steepness(np.asarray(gray_image.reduce(2)).astype(np.int16))[1] if max(rgb.size) < _SIDE else steepness
    found = Measurement(
        width_pixels=width,
        height_pixels=height,
        mode=stored.mode,
        format=loaded.format,
        bit_depth=_bit_depth(data, stored, loaded.format),
        alpha=_has_alpha(stored),
        # A second JPEG in the file (MPO) is another view of the scene, no second frame.
        animated=loaded.format in ("PNG", "WEBP") and getattr(stored, "n_frames", 1) > 1,
        exif_orientation=orientation,
        sharpness=sharpness,
        steepness=steepness,
        steepness_half=half,
        hash=printed.hash,
        mirrored_hash=printed.mirrored_hash,
        thumb=printed.thumb,
    )
    return found, gray_image.histogram()


def _levels(counts: FloatArray64) -> dict[str, npt.NDArray[np.generic]]:
    """What the histograms [n, 256] of gray say: mean, standard deviation, entropy in bits, 5th and 99th percentile."""
    total = counts.sum(axis=1)
    mean = counts @ _LEVELS / total
    variance = counts @ _SQUARES / total - mean * mean
    shares = counts.reshape(-1, 64, 4).sum(axis=2) / total[:, None]
    reached = counts.cumsum(axis=1)
    return {
        "brightness": mean,
        "contrast": np.sqrt(variance.clip(0)),
        "entropy": -(shares * np.log2(np.where(shares > 0, shares, 1))).sum(axis=1) + 0.0,
        "darkest": (reached < 0.05 * total[:, None]).sum(axis=1),
        "brightest": (reached < 0.99 * total[:, None]).sum(axis=1),
    }


def _steepness(gray: npt.NDArray[np.int16]) -> tuple[float, float]:
    """The variance of the Laplacian of gray [H, W], and the natural logarithm of its ratio to the mean squared gradient.

    The ratio is a mean squared frequency: blur lowers it by the width of the blur alone, whatever the picture's contrast,
    where the variance of the Laplacian calls every calm picture blurred. Sums of whole numbers are exact in float64.
    """
    if min(gray.shape) < 3:
        return 0.0, 0.0
    across, down = gray[:, 1:] - gray[:, :-1], gray[1:] - gray[:-1]
    laplacian = across[1:-1, 1:] - across[1:-1, :-1] + down[1:, 1:-1] - down[:-1, 1:-1]
    mean = int(laplacian.sum()) / laplacian.size
    variance = _sum_of_squares(laplacian) / laplacian.size - mean * mean
    gradient = _sum_of_squares(across) / across.size + _sum_of_squares(down) / down.size
    # Half a gray level of rounding in every pixel: an even picture has no meaning here, and gets a finite number.
    return max(variance, 0.0), math.log((max(variance, 0.0) + 0.25) / (gradient / 2 + 0.25))


def _sum_of_squares(values: npt.NDArray[np.int16]) -> float:
    wide = values.astype(np.float64).ravel()
    return float(np.einsum("i,i->", wide, wide))  # `@` would wake the threads of BLAS for some microseconds of work


def _colourfulness(thumbs: list[bytes]) -> FloatArray64:
    pixels = np.frombuffer(b"".join(thumbs), dtype=np.uint8).reshape(len(thumbs), -1, 3)
    opponents = pixels.astype(np.float64) @ _OPPONENTS
    mean = opponents.mean(axis=1)
    variance = np.einsum("npc,npc->nc", opponents, opponents) / opponents.shape[1] - mean * mean
    return np.asarray(np.sqrt(variance.sum(axis=1).clip(0)) + 0.3 * np.hypot(mean[:, 0], mean[:, 1]))


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1 where the file says nothing, or nonsense, as `preprocess` takes it."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except PILLOW_ERRORS:  # a broken EXIF block says nothing about the pixels
        return 1
    return found if isinstance(found, int) and found in range(1, 9) else 1


def _bit_depth(data: bytes, image: Image.Image, file_format: str) -> int:
    if file_format == "PNG" and image.mode != "P":
        return data[24]  # of the header chunk; Pillow reads 16-bit colour as 8
    return 1 if image.mode == "1" else 8


def _has_alpha(image: Image.Image) -> bool:
    if "transparency" not in image.info and image.mode not in ("RGBA", "LA", "PA", "RGBa", "La"):
        return False
    lowest = image.convert("RGBA").getchannel("A").getextrema()[0]
    return isinstance(lowest, int | float) and lowest < 255


assert set(_COLUMNS) == {field.name for field in fields(Measures)} - {"faults"}

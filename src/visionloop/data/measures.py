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

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
from PIL import Image

from visionloop.data.fingerprints import perceptual_hashes, small_pixels
from visionloop.data.plain_jpeg import read_plain_jpeg
from visionloop.data.thumbs import THUMB_SIDE, Thumbs
from visionloop.errors import ImageError
from visionloop.preprocess import PILLOW_ERRORS, PixelArray, load, upright_rgb

FloatArray = npt.NDArray[np.float32]
FloatArray64 = npt.NDArray[np.float64]
_SIDE = 128
_TOGETHER = 65_536  # pixels that are measured at a time: their differences fit into a core's own cache
_LEVELS = np.arange(256, dtype=np.float64)
_SQUARES = _LEVELS**2
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
        columns: dict[str, npt.NDArray[np.generic]] = {
            name: np.zeros(len(batch), dtype=kind) for name, kind in _COLUMNS.items()
        }
        columns["exif_orientation"][:] = 1
        pictures: list[_Pictures] = []
        decoded: list[int] = []
        thumbs = [b""] * len(batch)
        faults: dict[int, tuple[str, str]] = {}
        for place, (number, data) in enumerate(batch):
            try:
                facts, seen = _look(data, self.max_pixels)
            except ImageError as error:
                faults[number] = error.reason, str(error)
                continue
            for name, value in facts.items():
                columns[name][place] = value
            decoded.append(place)
            pictures.append(seen)
            thumbs[place] = seen.thumb
        # Together for all images of a batch, since one by one numpy's overhead would be several times the work.
        if decoded:
            for name, values in _numbers(pictures).items():
                columns[name][decoded] = values
        return MeasuredBatch(np.array([number for number, _ in batch], dtype=np.int64), columns, thumbs, faults)


def measure(data: bytes, max_pixels: int) -> Measurement:
    """Decode encoded image bytes once and measure them; a fault is a result, not an error."""
    batch = MeasureBatch(max_pixels)([(0, data)])
    fault, detail = batch.faults.get(0, ("", ""))
    numbers = {name: column[0].item() for name, column in batch.columns.items()}
    return Measurement(**numbers, thumb=batch.thumbs[0], fault=fault, fault_detail=detail)


@dataclass(frozen=True, slots=True)
class _Pictures:
    """What the numbers of an image are taken from."""

    gray: Image.Image  # both sides under 256 pixels
    half: Image.Image | None  # half of `gray`, of images under 128 pixels
    thumb: bytes  # uint8 RGB, THUMB_SIDE x THUMB_SIDE


def _look(data: bytes, max_pixels: int) -> tuple[dict[str, int | str], _Pictures]:
    """Decode one image; what its file says, by column, and its pictures. Raises ImageError."""
    plain = read_plain_jpeg(data, max_pixels=max_pixels, least_side=_SIDE)
    if plain is None:
        return _look_closely(data, max_pixels)
    facts: dict[str, int | str] = {
        "width_pixels": plain.width_pixels,
        "height_pixels": plain.height_pixels,
        "mode": plain.mode,
        "format": "JPEG",
        "bit_depth": 8,
    }
    return facts, _pictures(plain.image)


def _look_closely(data: bytes, max_pixels: int) -> tuple[dict[str, int | str], _Pictures]:
    """`_look` at a file of any kind."""
    loaded = load(data, max_pixels=max_pixels, least_side=_SIDE)
    stored = loaded.image
    orientation = _orientation(stored)
    # An upright RGB image is what `upright_rgb` would give a copy of.
    ready = stored.mode == "RGB" and orientation == 1 and "transparency" not in stored.info
    width, height = loaded.width_pixels, loaded.height_pixels
    if orientation in _SIDEWAYS:
        width, height = height, width
    facts: dict[str, int | str] = {
        "width_pixels": width,
        "height_pixels": height,
        "mode": stored.mode,
        "format": loaded.format,
        "bit_depth": _bit_depth(data, stored, loaded.format),
        "alpha": _has_alpha(stored),
        # A second JPEG in the file (MPO) is another view of the scene, no second frame.
        "animated": loaded.format in ("PNG", "WEBP") and getattr(stored, "n_frames", 1) > 1,
        "exif_orientation": orientation,
    }
    return facts, _pictures(stored if ready else upright_rgb(stored))


def _pictures(image: Image.Image) -> _Pictures:
    """What is measured of an upright image in mode "RGB", "RGBX" or "L"."""
    factor = 1 << max(0, (max(image.size) // _SIDE).bit_length() - 1)
    if factor > 1:
        image = image.reduce(factor)
    gray = image.convert("L")
    # A copy of 32 to 63 pixels a side costs a sixth of resizing the larger one.
    rough = (max(1, image.width // THUMB_SIDE), max(1, image.height // THUMB_SIDE))
    thumb = small_pixels(image.reduce(rough) if max(rough) > 1 else image)
    return _Pictures(gray, gray.reduce(2) if max(image.size) < _SIDE else None, thumb)


def _numbers(pictures: list[_Pictures]) -> dict[str, npt.NDArray[np.generic]]:
    """The columns that are computed for many images at once."""
    found: dict[str, npt.NDArray[np.generic]] = dict(_levels(np.array([one.gray.histogram() for one in pictures])))
    thumbs = np.frombuffer(b"".join(one.thumb for one in pictures), dtype=np.uint8).reshape(-1, THUMB_SIDE, THUMB_SIDE, 3)
    found["hash"], found["mirrored_hash"] = perceptual_hashes(thumbs)
    found["colourfulness"] = _colourfulness(thumbs)
    found["sharpness"], found["steepness"] = _steepness([one.gray for one in pictures])
    halves = {place: one.half for place, one in enumerate(pictures) if one.half is not None}
    found["steepness_half"] = found["steepness"].copy()
    found["steepness_half"][list(halves)] = _steepness(list(halves.values()))[1]
    return found


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


def _steepness(images: Sequence[Image.Image]) -> tuple[FloatArray64, FloatArray64]:
    """The variance of the Laplacian of gray images, and the natural logarithm of its ratio to the mean squared gradient.

    The ratio is a mean squared frequency: blur lowers it by the width of the blur alone, whatever the picture's contrast,
    where the variance of the Laplacian calls every calm picture blurred. Both are 0 for a side under 3 pixels.
    """
    variance, steepness = np.zeros(len(images)), np.zeros(len(images))
    alike: dict[tuple[int, int], list[int]] = {}
    for place, image in enumerate(images):
        if min(image.size) >= 3:
            alike.setdefault(image.size, []).append(place)
    for (width, height), places in alike.items():
        step = max(1, _TOGETHER // (width * height))
        # One piece of memory for all: fresh pages would cost as much as the arithmetic.
        room = np.empty((4, min(step, len(places)) * width * height), dtype=np.int16)
        for start in range(0, len(places), step):
            some = places[start : start + step]
            pixels = np.frombuffer(b"".join(images[place].tobytes() for place in some), dtype=np.uint8)
            variance[some], gradient = _sharpness(pixels, width, height, room)
            # Half a gray level of rounding in every pixel: an even picture has no meaning here, and gets a finite number.
            steepness[some] = np.log((variance[some] + 0.25) / (gradient + 0.25))
    return variance, steepness


def _sharpness(
    pixels: npt.NDArray[np.uint8], width: int, height: int, room: npt.NDArray[np.int16]
) -> tuple[FloatArray64, FloatArray64]:
    """Of N gray images in a row: the variance of the Laplacian and the mean squared gradient, each [N]."""
    flat, right, below, laplacian = room[:, : len(pixels)]
    flat[:] = pixels
    # Differences run on over the ends of rows and images, since one long strip is fast; those are left out after.
    np.subtract(flat[1:], flat[:-1], out=right[:-1])
    np.subtract(flat[width:], flat[:-width], out=below[:-width])
    np.subtract(right[width:], right[width - 1 : -1], out=laplacian[width:])
    laplacian[width:] += below[width:]
    laplacian[width:] -= below[:-width]
    across, down, inner = (values.reshape(-1, height, width) for values in (right, below, laplacian))
    across, down, inner = across[:, :, :-1], down[:, :-1], inner[:, 1:-1, 1:-1]
    mean = np.einsum("nhw->n", inner, dtype=np.int32) / inner[0].size
    variance = (_mean_square(inner) - mean * mean).clip(0)
    return variance, (_mean_square(across) + _mean_square(down)) / 2


def _mean_square(values: npt.NDArray[np.int16]) -> FloatArray64:
    """Of each [H, W] of [N, H, W]; exact, since a row's 255 squares of a Laplacian fit into 32 bits."""
    rows = np.einsum("nhw,nhw->nh", values, values, dtype=np.int32)
    return np.asarray(rows.sum(axis=1, dtype=np.int64) / values[0].size)


def _colourfulness(thumbs: PixelArray) -> FloatArray64:
    """Of RGB images [N, H, W, 3]; exact up to the square root, since sums are of whole numbers."""
    red, green, blue = thumbs.reshape(len(thumbs), -1, 3).transpose(2, 0, 1).astype(np.int16)
    means, variance = [], np.zeros(len(thumbs))
    for opponents, scale in ((red - green, 1), (red + green - 2 * blue, 2)):
        count = scale * opponents.shape[1]
        mean = np.einsum("np->n", opponents, dtype=np.int32) / count
        variance += np.einsum("np,np->n", opponents, opponents, dtype=np.int32) / (scale * count) - mean * mean
        means.append(mean)
    return np.asarray(np.sqrt(variance.clip(0)) + 0.3 * np.hypot(*means))


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

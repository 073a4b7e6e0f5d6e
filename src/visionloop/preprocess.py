"""Image bytes to the uint8 array that every model of the project takes. The only preprocessing there is.

Training, evaluation, calibration, Triton and monitoring all call `preprocess`; cast, scale, mean and standard deviation are
inside the network graph. Only numpy and Pillow are used, because the model server imports this module.

Does not cover: augmentation (`data/augmentation.py`) and formats beyond JPEG, PNG, WebP and BMP, which are refused.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import struct
import warnings
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError, features

from visionloop.errors import ImageError

PixelArray = npt.NDArray[np.uint8]
Fit = Literal["stretch", "letterbox", "crop"]
Filter = Literal["nearest", "box", "bilinear", "bicubic", "lanczos"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_RESAMPLING: dict[str, Image.Resampling] = {name.lower(): value for name, value in Image.Resampling.__members__.items()}
# Everything that Pillow 13 was seen to raise on damaged files; anything else is a fault of ours and may surface.
PILLOW_ERRORS = (OSError, ValueError, SyntaxError, EOFError, MemoryError, struct.error, IndexError, OverflowError,
                  Image.DecompressionBombError)  # fmt: skip
DEFAULT_MAX_PIXELS = 50_000_000  # twice a 24-megapixel photo; Pillow itself only warns up to 179 megapixels
# What this module does beside the spec, as other readers need to know it: in the model card and in the ONNX metadata. The
# number changes with every change of what follows from the same bytes and spec. docs/serve-elsewhere.md says it at length.
RULES: dict[str, Any] = {
    "rules": 1,
    "formats": list(FORMATS),
    "frame": "first",
    "orientation": "exif",  # upright before all that follows; a value that is none is ignored
    "colour": "RGB",
    "alpha_over": [255, 255, 255],
    "gray_16_bit": "(value + 128) // 257",
    "other_modes": "Pillow's convert('RGB')",
    # Pillow 13 takes the vertical pass first where that is cheaper; before it, the horizontal one was always the first.
    "resize": "resize of Pillow 13 to uint8, whose filter widens with the reduction",
    "letterbox_fill": [114, 114, 114],
    "input": "uint8 [batch, height, width, 3], 0 to 255",
    "normalisation": "in the graph",  # scale, mean, std and layout
}


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """How an image becomes the model's input. It travels in the model card and in the ONNX metadata.

    `fit` says what happens to another aspect ratio: "stretch" ignores it, "letterbox" pads with gray 114, "crop" cuts the
    centre. Transparent pixels are laid over white.
    """

    height: int
    width: int
    fit: Fit = "stretch"
    filter: Filter = "bilinear"

    @property
    def version(self) -> str:
        """A short hash of the spec and of the rules of this module; logged with each prediction."""
        return _version(self)


@functools.lru_cache
def _version(spec: PreprocessSpec) -> str:
    text = json.dumps({**asdict(spec), "rules": RULES["rules"]}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def decoder_versions() -> dict[str, str]:
    """What decodes and resizes here: Pillow and the libraries that it carries, by name; those that it lacks are "none"."""
    return {
        "pillow": str(features.version("pil")),
        "libjpeg_turbo": str(features.version("libjpeg_turbo") or "none"),
        "webp": str(features.version("webp") or "none"),
        "zlib": str(features.version("zlib") or "none"),
    }


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image as RGB in its upright orientation, with what its file said of itself."""

    image: Image.Image  # mode "RGB"
    format: str
    mode: str  # before conversion
    width_pixels: int  # upright
    height_pixels: int


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image as its file stores it: before EXIF orientation and conversion."""

    image: Image.Image
    format: str
    width_pixels: int  # as stored; `image` may be smaller where `least_side` was given
    height_pixels: int


def decode(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> DecodedImage:
    """Decode JPEG, PNG, WebP (first frame) or BMP bytes to upright RGB.

    EXIF orientation is applied, alpha is laid over white, palettes are resolved, CMYK is converted, and 16-bit gray is
    divided by 257 (65535 becomes 255).

    Raises:
        ImageError: reason "empty", "unsupported_format", "unreadable", "truncated" or "too_large".

    >>> decode(Path("cat.jpg").read_bytes()).width_pixels
    640
    """
    loaded = load(data, max_pixels=max_pixels)
    rgb = upright_rgb(loaded.image)
    return DecodedImage(rgb, loaded.format, loaded.image.mode, rgb.width, rgb.height)


def load(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, least_side: int = 0) -> LoadedImage:
    """Read all pixels of encoded bytes, the first half of `decode`; for looking at an image, not for the model.

    With `least_side`, a JPEG comes out at a half, a quarter or an eighth of its size, as long as its longer side keeps so
    many pixels. The whole file is read all the same, so the faults are those of `decode`.

    Raises:
        ImageError: see `decode`.
    """
    if not data:
        raise ImageError("empty", "The image has no bytes; send the content of a JPEG, PNG, WebP or BMP file.")
    with warnings.catch_warnings():
        # Pillow warns of odd EXIF and ICC blocks that do not change the pixels; the size limit is ours, below.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise _unidentified(data) from None
        except Image.DecompressionBombError:
            raise ImageError(
                "too_large", "The image says that it has over 178 megapixels, which is never decoded; make it smaller first."
            ) from None
        except PILLOW_ERRORS as error:
            if _is_cut_webp(data):
                raise ImageError("truncated", _CUT_WEBP) from error
            raise ImageError("unreadable", f"The image header cannot be read ({_short(error)}).") from error
        width, height, file_format = image.width, image.height, image.format or ""
        if width * height > max_pixels:
            raise ImageError(
                "too_large",
                f"The image has {width} x {height} pixels, more than the limit of "
                f"{max_pixels / 1e6:g} megapixels; make it smaller first.",
            )
        try:
            if file_format == "JPEG":
                factor = max(width, height) // least_side if least_side else 1
                if factor > 1:
                    image.draft(None, (max(1, width // factor), max(1, height // factor)))
                image.load()  # `verify` does nothing for JPEG
            else:
                # PNG: `verify` checks every chunk's CRC, which `load` skips for all but the pixels.
                image.verify()
                image = Image.open(io.BytesIO(data), formats=FORMATS)
                image.load()
        except PILLOW_ERRORS as error:
            raise _damaged(error) from error
    return LoadedImage(image, file_format, width, height)


def upright_rgb(image: Image.Image) -> Image.Image:
    """A loaded image in its upright orientation as RGB, the second half of `decode`.

    Raises:
        ImageError: see `decode`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _to_rgb(_transpose(image))
        except PILLOW_ERRORS as error:
            raise _damaged(error) from error


def resize(image: Image.Image, spec: PreprocessSpec) -> PixelArray:
    """Resize an RGB image to the model's input, uint8 [height, width, 3], 0 to 255.

    Pillow's filters widen with the reduction, so a large photo is averaged rather than sampled.
    """
    size = (spec.width, spec.height)
    resampling = _RESAMPLING[spec.filter]
    if spec.fit == "crop":
        image = ImageOps.fit(image, size, method=resampling)
    elif spec.fit == "letterbox":
        image = ImageOps.pad(image, size, method=resampling, color=(114, 114, 114))
    elif image.size != size:
        image = image.resize(size, resampling)
    return np.array(image, dtype=np.uint8)


def preprocess(data: bytes, spec: PreprocessSpec, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> PixelArray:
    """Turn encoded image bytes into the model's input, uint8 [height, width, 3], RGB, 0 to 255.

    Raises:
        ImageError: see `decode`.

    >>> preprocess(png_bytes, PreprocessSpec(height=32, width=32)).shape
    (32, 32, 3)
    """
    return resize(decode(data, max_pixels=max_pixels).image, spec)


def encode_png(pixels: PixelArray) -> bytes:
    """Encode a uint8 array, gray [H, W] or RGB [H, W, 3], as PNG; the same array gives the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _transpose(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except PILLOW_ERRORS:  # a broken EXIF block says nothing about the pixels
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode == "I":
        wide = np.asarray(image).astype(np.uint32)
        return Image.fromarray(np.clip((wide + 128) // 257, 0, 255).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _damaged(error: BaseException) -> ImageError:
    reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
    return ImageError(reason, f"The image is damaged ({_short(error)}); export or download it again.")


def _is_cut_webp(data: bytes) -> bool:
    """Whether a RIFF container says that it is longer than it is; Pillow's decoder only says that it cannot be made."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and int.from_bytes(data[4:8], "little") + 8 > len(data)


_CUT_WEBP = "The image is damaged (the WebP file is cut short); export or download it again."
_OTHER_FORMATS: dict[bytes, str] = {
    b"gif8": "GIF", b"ii*\x00": "TIFF", b"mm\x00*": "TIFF", b"<svg": "SVG", b"<?xml": "XML or SVG", b"%!ps": "EPS",
    b"\x00\x00\x01\x00": "ICO", b"%pdf": "PDF", b"<!doc": "HTML", b"<html": "HTML", b"pk\x03\x04": "ZIP",
}  # fmt: skip
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIC", b"avif": "AVIF", b"avis": "AVIF"}


def _unidentified(data: bytes) -> ImageError:
    if _is_cut_webp(data):
        return ImageError("truncated", _CUT_WEBP)
    start = data[:64].lstrip().lower() if data[:1] in b"<\n\r\t " else data[:64].lower()
    found = next((name for magic, name in _OTHER_FORMATS.items() if start.startswith(magic)), None)
    if data[4:8] == b"ftyp":
        found = _BRANDS.get(data[8:12], found)
    if found:
        return ImageError("unsupported_format", f"The bytes are {found}; send JPEG, PNG, WebP or BMP.")
    return ImageError("unreadable", "The bytes are not a JPEG, PNG, WebP or BMP image.")


def _short(error: BaseException) -> str:
    return str(error).split("\n")[0][:120] or type(error).__name__

"""Random changes of training images, on whole uint8 batches, each image its own.

The policy is a value (`AugmentPolicy`), the randomness a numpy generator: the same seed gives the same bits on every
device. An image uses one row of uniform numbers whose length depends on the policy alone, so an image's change does not
depend on the size of the batch that it comes in. The numbers become integers on the host; pixels are changed in integers
only (see `operations`).

Does not cover: mixing of images, which also changes labels (see `mixing`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visionloop.data import automatic
from visionloop.data import operations as ops
from visionloop.data.operations import Floats
from visionloop.data.policy import AugmentPolicy
from visionloop.preprocess import PixelArray

__all__ = ["AugmentPolicy", "augment_batch", "change_images", "columns", "draw_changes"]

# Of the erased rectangle, from Zhong et al., "Random Erasing Data Augmentation" (AAAI 2020).
_ERASED_AREA = (0.02, 0.33)
_ERASED_ASPECT = (0.3, 1 / 0.3)
# Of a resized crop, from Szegedy et al., "Going Deeper with Convolutions" (CVPR 2015).
_CROP_ASPECT = (3 / 4, 4 / 3)
# Of a blur, from Chen et al., "A Simple Framework for Contrastive Learning" (ICML 2020): half of the images, from 0.1 on.
_BLURRED = 0.5
_LEAST_SIGMA = 0.1
# On the CPU so many pixels at once: what is worked on stays in the cores' caches. An automatic policy cuts a batch up into
# many small groups, for which larger chunks save more than caches do.
_CHUNK_PIXELS = 1 << 17
_CHUNK_PIXELS_AUTOMATIC = 1 << 18

_COLUMNS: dict[str, tuple[str, ...]] = {
    "horizontal_flip": ("mirrored",),
    "vertical_flip": ("upended",),
    "crop_padding_pixels": ("shift_rows", "shift_columns"),
    "resized_crop": ("crop_area", "crop_aspect", "crop_top", "crop_left"),
    "rotation_degrees": ("angle",),
    "scale": ("zoom",),
    "shear_degrees": ("shear",),
    "brightness": ("brightness",),
    "contrast": ("contrast",),
    "saturation": ("saturation",),
    "hue": ("hue",),
    "blur_pixels": ("blurred", "sigma"),
    "erasing": ("erased", "area", "aspect", "top", "left"),
}


# With these alone a CPU copies slices of padded images, twice as fast as picking pixel by pixel.
_MOVES = {"mirrored", "upended", "shift_rows", "shift_columns"}


def columns(policy: AugmentPolicy) -> tuple[str, ...]:
    """The random numbers that one image needs, in the order in which they are drawn."""
    names = [name for change in policy.changes if change in _COLUMNS for name in _COLUMNS[change]]
    return (*names, *automatic.columns(policy))


def augment_batch(
    images: Tensor, policy: AugmentPolicy, generator: np.random.Generator, pinned: Mapping[str, float] | None = None
) -> Tensor:
    """Change each image of a batch by the policy.

    Args:
        images: uint8 [N, H, W, 3]; is not written to.
        policy: what may happen and how strongly; where no single image is changed, `images` itself comes back.
        generator: draws; it is advanced by N times the number of `columns`.
        pinned: numbers of [0, 1) that columns take for every image instead of the drawn ones; to show one end of a range.

    Returns:
        uint8 [N, H, W, 3] on the device of `images`.

    >>> augment_batch(images, AugmentPolicy(horizontal_flip=True), np.random.default_rng(0)).shape
    torch.Size([64, 32, 32, 3])
    """
    drawn = draw_changes(len(images), policy, generator)
    for name, value in (pinned or {}).items():
        drawn[:, columns(policy).index(name)] = value
    return change_images(images, policy, drawn)


def draw_changes(count: int, policy: AugmentPolicy, generator: np.random.Generator) -> Floats:
    """The numbers [count, columns] of [0, 1) that say how so many images change."""
    return generator.random((count, len(columns(policy))))


def alternate(drawn: Floats, policy: AugmentPolicy, mirrored: npt.NDArray[np.bool_]) -> None:
    """Write who is `mirrored` [count] into the numbers of `draw_changes`, where the policy's flip is alternating.

    Drawn anew in each epoch, half of the images would show the same side twice in two epochs; where the sides take turns,
    all show both (Jordan 2024, arXiv:2404.00498). What knows no epoch, such as a contact sheet, mirrors half of the images.
    """
    if policy.horizontal_flip == "alternating":
        drawn[:, columns(policy).index("mirrored")] = np.where(mirrored, 0.0, 0.75)


def change_images(images: Tensor, policy: AugmentPolicy, drawn: Floats) -> Tensor:
    """`augment_batch` with the numbers of `draw_changes` for these images; a part of a batch takes its rows of them."""
    names = columns(policy)
    if not names or len(images) == 0:
        return images
    count, height, width, _ = images.shape
    pixels = _CHUNK_PIXELS if policy.automatic == "none" else _CHUNK_PIXELS_AUTOMATIC
    chunk = max(1, pixels // (height * width)) if images.device.type == "cpu" else count
    changed = torch.empty_like(images, memory_format=torch.contiguous_format)
    only_moved = images.device.type == "cpu" and set(names) <= _MOVES
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        draws = {name: drawn[part, index] for index, name in enumerate(names)}
        if only_moved:
            _move(images[part].numpy(), changed[part].numpy(), policy, draws)
        else:
            changed[part] = ops.to_bytes(_change(ops.to_words(images[part]), policy, draws))
    return changed


def _change(words: Tensor, policy: AugmentPolicy, draws: Mapping[str, Floats]) -> Tensor:
    if policy.resized_crop or policy.rotation_degrees or policy.scale or policy.shear_degrees:
        words = ops.warp(words, _matrices(words, policy, draws), policy.padding)
    elif policy.horizontal_flip or policy.vertical_flip or policy.crop_padding_pixels:
        words = _flip_and_shift(words, policy, draws)
    if policy.automatic != "none":
        words = automatic.apply(words, policy, draws)
    if policy.brightness or policy.contrast or policy.saturation or policy.hue:
        nothing = np.zeros(len(words))
        brightness, contrast, saturation, hue = (
            _around(draws[name], getattr(policy, name)) if name in draws else nothing
            for name in ("brightness", "contrast", "saturation", "hue")
        )
        words = ops.colour(words, 1 + brightness, 1 + contrast, 1 + saturation, hue)
    if policy.blur_pixels:
        words = _blur(words, policy, draws)
    if policy.erasing:
        words = _erase(words, policy, draws)
    return words


def _around(draw: Floats, strength: float) -> Floats:
    """From -strength to strength."""
    return (2 * draw - 1) * strength


def _shifts(policy: AugmentPolicy, draws: Mapping[str, Floats]) -> tuple[Floats, Floats]:
    """Whole pixels that rows and columns move by."""
    pad = policy.crop_padding_pixels
    rows, columns = (np.floor(draws[name] * (2 * pad + 1)) - pad for name in ("shift_rows", "shift_columns"))
    return rows, columns


def _flip_and_shift(words: Tensor, policy: AugmentPolicy, draws: Mapping[str, Floats]) -> Tensor:
    """Rows and columns are picked; pixels stay as they are."""
    count, height, width = words.shape
    rows, columns = np.tile(np.arange(height), (count, 1)), np.tile(np.arange(width), (count, 1))
    if policy.crop_padding_pixels:
        down, right = _shifts(policy, draws)
        rows, columns = rows + down.astype(np.int64)[:, None], columns + right.astype(np.int64)[:, None]
    if policy.horizontal_flip:
        columns = np.where(draws["mirrored"][:, None] < 0.5, width - 1 - columns, columns)
    if policy.vertical_flip:
        rows = np.where(draws["upended"][:, None] < 0.5, height - 1 - rows, rows)
    return ops.move(words, ops.fold(rows, height, policy.padding), ops.fold(columns, width, policy.padding))


def _move(images: PixelArray, moved: PixelArray, policy: AugmentPolicy, draws: Mapping[str, Floats]) -> None:
    """What `_flip_and_shift` does, from uint8 [N, H, W, 3] to `moved`, a slice an image."""
    count, height, width, _ = images.shape
    pad = policy.crop_padding_pixels
    padded = images
    if pad:
        rows = ops.fold(np.arange(-pad, height + pad), height, policy.padding)
        places = ops.fold(np.arange(-pad, width + pad), width, policy.padding)
        padded = np.empty((count, height + 2 * pad, width + 2 * pad, 3), dtype=np.uint8)
        inner = padded[:, :, pad : pad + width]
        inner[:, pad : pad + height] = images
        inner[:, :pad], inner[:, pad + height :] = images[:, rows[:pad]], images[:, rows[pad + height :]]
        padded[:, :, :pad] = inner[:, :, places[:pad]]
        padded[:, :, pad + width :] = inner[:, :, places[pad + width :]]
    nothing = np.zeros(count)
    down, right = _shifts(policy, draws) if pad else (nothing, nothing)
    upended = draws["upended"] < 0.5 if policy.vertical_flip else nothing > 0
    mirrored = draws["mirrored"] < 0.5 if policy.horizontal_flip else nothing > 0
    # Seen from the other end, a shift goes the other way.
    tops = (pad + np.where(upended, -down, down)).astype(int).tolist()
    lefts = (pad + np.where(mirrored, -right, right)).astype(int).tolist()
    for index, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        shown = padded[index, top : top + height, left : left + width]
        shown = shown[::-1] if upended[index] else shown
        if mirrored[index]:
            for channel in range(3):  # numpy copies pixels of three bytes one by one when their order is reversed
                moved[index, :, :, channel] = shown[:, ::-1, channel]
        else:
            moved[index] = shown


def _matrices(words: Tensor, policy: AugmentPolicy, draws: Mapping[str, Floats]) -> Floats:
    """All of an image's geometry as one matrix [N, 2, 3] from result to input, so that it is interpolated once."""
    count, height, width = words.shape
    # From the result inwards: turn, zoom and slant; then the crop; then the shift; then the flips.
    angle = np.deg2rad(_around(draws["angle"], policy.rotation_degrees)) if policy.rotation_degrees else np.zeros(count)
    zoom = 1 + _around(draws["zoom"], policy.scale) if policy.scale else np.ones(count)
    slant = np.tan(np.deg2rad(_around(draws["shear"], policy.shear_degrees))) if policy.shear_degrees else np.zeros(count)
    cosine, sine = np.cos(angle) / zoom, np.sin(angle) / zoom
    matrix = np.zeros((count, 2, 3))
    matrix[:, 0, 0], matrix[:, 0, 1] = cosine, -sine + slant * cosine
    matrix[:, 1, 0], matrix[:, 1, 1] = sine, cosine + slant * sine
    if policy.resized_crop:
        area = 1 - (1 - policy.resized_crop) * (1 - draws["crop_area"])
        aspect = np.exp(np.log(_CROP_ASPECT[0]) + draws["crop_aspect"] * np.log(_CROP_ASPECT[1] / _CROP_ASPECT[0]))
        wide, tall = np.minimum(1, np.sqrt(area * aspect)), np.minimum(1, np.sqrt(area / aspect))
        matrix[:, 0] *= wide[:, None]
        matrix[:, 1] *= tall[:, None]
        matrix[:, 0, 2] += (draws["crop_left"] - 0.5) * (1 - wide) * width
        matrix[:, 1, 2] += (draws["crop_top"] - 0.5) * (1 - tall) * height
    if policy.crop_padding_pixels:
        down, right = _shifts(policy, draws)
        matrix[:, 0, 2] += right
        matrix[:, 1, 2] += down
    if policy.horizontal_flip:
        matrix[draws["mirrored"] < 0.5, 0] *= -1
    if policy.vertical_flip:
        matrix[draws["upended"] < 0.5, 1] *= -1
    return matrix


def _blur(words: Tensor, policy: AugmentPolicy, draws: Mapping[str, Floats]) -> Tensor:
    chosen = np.flatnonzero(draws["blurred"] < _BLURRED)
    if not len(chosen):
        return words
    least = min(_LEAST_SIGMA, policy.blur_pixels)
    sigma = least + draws["sigma"][chosen] * (policy.blur_pixels - least)
    places = torch.from_numpy(chosen).to(words.device)
    return words.index_copy(0, places, ops.blur(words.index_select(0, places), sigma, policy.padding))


def _erase(words: Tensor, policy: AugmentPolicy, draws: Mapping[str, Floats]) -> Tensor:
    """Cover a rectangle with gray in the share `policy.erasing` of the images."""
    _, height, width = words.shape
    low, high = _ERASED_AREA
    area = (low + draws["area"] * (high - low)) * (height * width)
    low, high = np.log(_ERASED_ASPECT)
    aspect = np.exp(low + draws["aspect"] * (high - low))
    tall = np.clip(np.rint(np.sqrt(area * aspect)), 1, height).astype(np.int64)
    wide = np.clip(np.rint(np.sqrt(area / aspect)), 1, width).astype(np.int64)
    top = np.floor(draws["top"] * (height - tall + 1)).astype(np.int64)
    left = np.floor(draws["left"] * (width - wide + 1)).astype(np.int64)
    tall = np.where(draws["erased"] < policy.erasing, tall, 0)
    return words.masked_fill(ops.inside(words, top, left, tall, wide), ops.ERASED)

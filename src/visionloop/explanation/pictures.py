"""The PNG pictures of explanations. Values in, PNG bytes out; the same values give the same bytes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image

from visionloop.evaluation.pictures import drawing, sentence_png, short
from visionloop.explanation.faithfulness import STEPS, Curves, Test

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating]

_TILE = 96  # pixels of an image in a sheet
_GAP = 6
_LINE = 17  # pixels of a line of text
_DOTS_PER_INCH = 110
_BAD = "firebrick"


@dataclass(frozen=True)
class Item:
    """Pictures side by side that belong together, [H, W, 3] each, and the words above them."""

    tiles: tuple[Pixels, ...]
    caption: str
    bad: bool = False


def sheet_png(items: Sequence[Item], title: str, note: str, *, across: int, tile: int = _TILE) -> bytes:
    """Items in rows with at most `across` tiles each, `note` below."""
    if not items:
        return sentence_png(note, title)
    of_item = max(len(item.tiles) for item in items)
    per_row = max(1, min(across // of_item, len(items)))
    lines = max(item.caption.count("\n") + 1 for item in items)
    step_x, step_y = of_item * (tile + 2) + 3 * _GAP, tile + lines * _LINE + 2 * _GAP
    rows = math.ceil(len(items) / per_row)
    canvas = np.full((rows * step_y, max(per_row * step_x, 560), 3), 255, np.uint8)
    texts = []
    for index, item in enumerate(items):
        row, column = divmod(index, per_row)
        top, left = row * step_y + lines * _LINE + _GAP, column * step_x + _GAP
        for place, picture in enumerate(item.tiles):
            x = left + place * (tile + 2)
            canvas[top : top + tile, x : x + tile] = _resized(picture, tile)
        texts.append((left, top - 3, item))
    written = textwrap.fill(note, max(60, canvas.shape[1] // 8))
    extra = (written.count("\n") + 1) * _LINE + 30
    size = (canvas.shape[1] / _DOTS_PER_INCH + 0.1, (canvas.shape[0] + extra) / _DOTS_PER_INCH + 0.2)
    with drawing(size, title) as (figure, buffer):
        axes = figure.subplots()
        axes.imshow(canvas, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        for left, base, item in texts:
            axes.text(left, base, item.caption, fontsize=8, va="bottom", color=_BAD if item.bad else "black")
        axes.set_xlabel(written, fontsize=9, loc="left")
    return buffer.getvalue()


def map_tile(heat: Floats) -> Pixels:
    """A map [H, W], 0 to 1, in colours."""
    return np.asarray((colormaps["inferno"](heat)[..., :3] * 255).round().astype(np.uint8))


def laid_over(image: Pixels, heat: Floats) -> Pixels:
    """A map [H, W], 0 to 1, over the gray image [H, W, 3]: stronger evidence covers more, where there is none it shows."""
    cover = 0.7 * np.asarray(heat)[..., None]
    gray = image.mean(2, keepdims=True)
    return np.asarray((cover * map_tile(heat) + (1 - cover) * gray).round().astype(np.uint8))


def signed_tile(values: Floats) -> Pixels:
    """What pixels add [H, W] in red and take away in blue, the strongest in full colour."""
    strongest = max(float(np.abs(values).max(initial=0)), 1e-12)
    return np.asarray((colormaps["RdBu_r"](0.5 + values / strongest / 2)[..., :3] * 255).round().astype(np.uint8))


def boxed(picture: Pixels, box: npt.NDArray[np.bool_]) -> Pixels:
    """The picture at the size of a tile with a line around the box [H, W]."""
    large = _resized(picture, _TILE)
    inside = _resized(np.repeat(box[..., None] * np.uint8(255), 3, axis=2), _TILE)[..., 0] > 127
    inner = inside.copy()
    for axis in (0, 1):
        for shift in (-2, 2):
            moved = np.roll(inside, shift, axis)
            edge: tuple[slice, ...] = (slice(shift, None) if shift < 0 else slice(0, shift),)
            moved[(slice(None),) * axis + edge] = False
            inner &= moved
    large[inside & ~inner] = (0, 200, 255)
    return large


def map_item(image: Pixels, heat: Floats, caption: str, *, bad: bool = False) -> Item:
    """The image, the map, and the map over the image."""
    return Item((image, map_tile(heat), laid_over(image, heat)), caption, bad)


def answer_caption(target: str, predicted: str) -> str:
    """Which class it is, and what it was called where that is another one."""
    return short(target) if target == predicted else f"{short(target)}, called {short(predicted)}"


def proof_png(
    shares: Mapping[str, Mapping[Test, float]], curves: Mapping[str, Curves], chosen: str, chance: float, title: str
) -> bytes:
    """The pointing tests and the curves of insertion and deletion.

    `shares` has for each method the share of hits by test, `curves` those of the chosen method and of random maps.
    """
    with drawing((12, 4), title) as (figure, buffer):
        left, *right = figure.subplots(1, 3)
        tests = list(dict.fromkeys(test for by_test in shares.values() for test in by_test))
        width = 0.8 / max(1, len(shares))
        for index, (method, by_test) in enumerate(shares.items()):
            left.bar(
                [tests.index(test) + (index - (len(shares) - 1) / 2) * width for test in by_test],
                list(by_test.values()),
                width * 0.9,
                label=method,
                edgecolor="black" if method == chosen else "none",
                linewidth=1.5,
            )
        left.axhline(chance, color="black", linestyle="--", linewidth=1, label="chance")
        left.set(ylim=(0, 1.02), ylabel="strongest place lies in the quarter", title="pointing")
        left.set_xticks(range(len(tests)), tests)
        left.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3)
        taken = np.arange(STEPS + 1) / STEPS
        for axes, name in zip(right, ("insertion", "deletion"), strict=True):
            for method, of_method in curves.items():
                values, area = (
                    (of_method.insertion, of_method.insertion_auc)
                    if name == "insertion"
                    else (of_method.deletion, of_method.deletion_auc)
                )
                if not len(values):  # no image was answered rightly
                    continue
                style = "--" if method == "random" else "-"
                axes.plot(taken, values.mean(0), style, label=f"{method}, area {area:.3f}")
            axes.set(ylim=(0, 1.02), ylabel="probability of the class", title=name)
            axes.set_xlabel(
                "share of the pixels that " + ("are back in a blurred image" if name == "insertion" else "are gone")
            )
            if axes.lines:
                axes.legend(fontsize=8)
            axes.grid(alpha=0.3)
    return buffer.getvalue()


def _resized(picture: Pixels, side: int) -> Pixels:
    """A picture in a square of `side` pixels, with its own proportions on gray; single pixels stay visible."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    filtering = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    resized = np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, filtering))
    if resized.shape[:2] == (side, side):
        return resized.copy()
    out = np.full((side, side, 3), 235, np.uint8)
    top, left = (side - size[1]) // 2, (side - size[0]) // 2
    out[top : top + size[1], left : left + size[0]] = resized
    return out

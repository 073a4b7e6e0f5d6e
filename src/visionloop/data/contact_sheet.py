"""Pictures of what augmentation does: a row per image with variants of it, and a row per operation at its strongest.

Does not cover: statistics of augmented images (see `range_check`); the sheets are for looking at.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from visionloop.data.augmentation import augment_batch
from visionloop.data.extremes import extremes
from visionloop.data.mixing import mix_batch
from visionloop.data.policy import AugmentPolicy
from visionloop.preprocess import PixelArray

_TILE = 72  # pixels of a tile's longer side, about; small images are enlarged by whole numbers
_GAP = 6
_LABEL_WIDTH = 150
_LINE = 13  # pixels of a line of small letters
_VARIANTS = 7  # beside each original
_SHOWN = 4  # images that show an operation
_INK, _SOFT, _PAPER = (30, 36, 44), (100, 108, 120), (250, 250, 250)


@dataclass(frozen=True)
class Row:
    """A row of a sheet."""

    label: str  # may have several lines
    tiles: Sequence[npt.NDArray[np.uint8]]  # each [H, W, 3], all of one size
    captions: Sequence[str] = field(default=())  # below the tiles; may have several lines
    groups: int = 0  # tiles of a group; a wider gap follows each group


def policy_sheet(
    images: PixelArray, labels: Sequence[str], policy: AugmentPolicy, generator: np.random.Generator
) -> Image.Image:
    """Each of images uint8 [N, H, W, 3] beside variants of it, as training sees them; `labels` are the N names."""
    count = len(images)
    repeated = torch.from_numpy(np.repeat(images, _VARIANTS, axis=0))
    changed = augment_batch(repeated, policy, generator)
    captions = [""] * len(changed)
    if policy.mixes:
        mixed = mix_batch(changed, policy, generator)
        changed = mixed.images
        captions = [
            _shares(labels[place // _VARIANTS], labels[int(mixed.partners[place]) // _VARIANTS], float(mixed.shares[place]))
            for place in range(len(changed))
        ]
    variants = changed.numpy().reshape(count, _VARIANTS, *images.shape[1:])
    rows = [
        Row(labels[row], [images[row], *variants[row]], ["", *captions[row * _VARIANTS : (row + 1) * _VARIANTS]])
        for row in range(count)
    ]
    return draw_sheet(rows, policy.words(), ("original", "variants as training sees them"))


def operations_sheet(
    images: PixelArray, labels: Sequence[str], policy: AugmentPolicy, generator: np.random.Generator
) -> Image.Image:
    """Each change of the policy alone, at both of its ends, on the first of images uint8 [N, H, W, 3]; then the mixes."""
    images, labels = images[:_SHOWN], labels[:_SHOWN]
    rows = []
    for extreme in extremes(policy):
        ends = [augment_batch(torch.from_numpy(images), extreme.policy, generator, end).numpy() for end in extreme.ends]
        ends += [np.full_like(images, 250)] * (2 - len(ends))  # the colour of the paper
        tiles = [tile for triple in zip(images, *ends, strict=True) for tile in triple]
        rows.append(Row("\n".join(filter(None, (*_wrapped(extreme.name), extreme.setting))), tiles, groups=3))
    for name in policy.mixes:
        mixed = mix_batch(torch.from_numpy(images), policy.only(name), generator)
        partners = mixed.partners.tolist()
        tiles, captions = [], []
        for place, partner in enumerate(partners):
            tiles += [images[place], images[partner], mixed.images[place].numpy()]
            captions += [labels[place], labels[partner], _shares(labels[place], labels[partner], float(mixed.shares[place]))]
        rows.append(Row(f"{name}\n{getattr(policy, name):g}", tiles, captions, groups=3))
    heads = ("original", "low end, high end" + ("; of a mix: the other image, the mixture" if policy.mixes else ""))
    return draw_sheet(rows, f"Each operation alone, at its strongest: {policy.words()}", heads)


def draw_sheet(rows: Sequence[Row], title: str, heads: tuple[str, str]) -> Image.Image:
    """Draw rows below a title; `heads` stand over the first tile and over those after it."""
    if not rows:
        rows = [Row("nothing is on", [np.full((_TILE, _TILE, 3), 250, dtype=np.uint8)] * 2)]
    height, width, _ = rows[0].tiles[0].shape
    factor = _TILE / max(height, width)
    if factor > 1:
        factor = round(factor)
    tile_width, tile_height = max(1, round(width * factor)), max(1, round(height * factor))
    most = max(len(row.tiles) for row in rows)
    groups = rows[0].groups or most
    sheet_width = _LABEL_WIDTH + most * (tile_width + _GAP) + (most - 1) // groups * 2 * _GAP + _GAP
    lines = textwrap.wrap(title, max(20, sheet_width // 8))  # letters of the title are under 8 pixels wide
    head = len(lines) * 18 + 34
    captions = [max((text.count("\n") + 1 for text in row.captions if text), default=0) * _LINE for row in rows]
    heights = [
        max(tile_height, (row.label.count("\n") + 1) * _LINE) + below + _GAP
        for row, below in zip(rows, captions, strict=True)
    ]
    sheet = Image.new("RGB", (sheet_width, head + sum(heights) + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 8), "\n".join(lines), fill=_INK, font=ImageFont.load_default(14))
    small = ImageFont.load_default(12)
    draw.text((_LABEL_WIDTH, head - 20), heads[0], fill=_SOFT, font=small)
    draw.text((_LABEL_WIDTH + tile_width + _GAP, head - 20), heads[1], fill=_SOFT, font=small)
    top = head
    for row, row_height in zip(rows, heights, strict=True):
        label = _fitting(row.label, _LABEL_WIDTH - 2 * _GAP, small)
        draw.multiline_text((_GAP, top + tile_height // 2 - 7 * (label.count("\n") + 1)), label, fill=_INK, font=small)
        for column, pixels in enumerate(row.tiles):
            left = _LABEL_WIDTH + column * (tile_width + _GAP) + column // groups * 2 * _GAP
            tile = Image.fromarray(np.ascontiguousarray(pixels)).resize(
                (tile_width, tile_height), Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR
            )
            sheet.paste(tile, (left, top))
            if column < len(row.captions):
                caption = _fitting(row.captions[column], tile_width, small)
                draw.multiline_text((left, top + tile_height), caption, fill=_SOFT, font=small, spacing=1)
        top += row_height
    return sheet


def _shares(own: str, other: str, share: float) -> str:
    """Labels with their shares, a line each; none where the image is not mixed."""
    if share == 1:
        return ""
    if own == other:
        return f"100% {own}"
    return f"{share:.0%} {own}\n{1 - share:.0%} {other}"


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Each line cut to the width in pixels."""
    lines = []
    for line in text.split("\n"):
        kept = line
        while font.getlength(kept) > width:
            kept = kept[:-2] + "…"
        lines.append(kept)
    return "\n".join(lines)


def _wrapped(name: str) -> list[str]:
    policy, _, operation = name.partition("_")
    return [policy, operation] if policy in ("randaugment", "trivialaugment", "augmix") else [name]

"""A picture of what augmentation does: a row per image, the original first, then variants of it.

Does not cover: statistics of augmented images; the sheet is for looking at.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

_TILE = 72  # pixels of a tile's longer side, about; small images are enlarged by whole numbers
_GAP = 6
_LABEL_WIDTH = 110


def contact_sheet(
    originals: npt.NDArray[np.uint8], variants: npt.NDArray[np.uint8], labels: Sequence[str], title: str
) -> Image.Image:
    """Draw originals [N, H, W, 3] and their variants [N, V, H, W, 3], both uint8, with a label before each row."""
    count, height, width, _ = originals.shape
    columns = 1 + variants.shape[1]
    factor = _TILE / max(height, width)
    if factor > 1:
        factor = round(factor)
    tile_width, tile_height = max(1, round(width * factor)), max(1, round(height * factor))
    sheet_width = _LABEL_WIDTH + columns * (tile_width + _GAP) + _GAP
    lines = textwrap.wrap(title, max(20, sheet_width // 8))  # letters of the title are under 8 pixels wide
    head = len(lines) * 18 + 34
    sheet = Image.new("RGB", (sheet_width, head + count * (tile_height + _GAP) + _GAP), (250, 250, 250))
    draw = ImageDraw.Draw(sheet)
    ink, soft = (30, 36, 44), (100, 108, 120)
    draw.text((_GAP, 8), "\n".join(lines), fill=ink, font=ImageFont.load_default(14))
    small = ImageFont.load_default(12)
    draw.text((_LABEL_WIDTH, head - 20), "original", fill=soft, font=small)
    draw.text((_LABEL_WIDTH + tile_width + _GAP, head - 20), "variants as training sees them", fill=soft, font=small)
    for row in range(count):
        top = head + row * (tile_height + _GAP)
        label = labels[row] if len(labels[row]) <= 16 else labels[row][:15] + "…"
        draw.text((_GAP, top + tile_height // 2 - 7), label, fill=ink, font=small)
        for column, pixels in enumerate([originals[row], *variants[row]]):
            tile = Image.fromarray(pixels).resize(
                (tile_width, tile_height), Image.Resampling.NEAREST if factor > 1 else Image.Resampling.BILINEAR
            )
            sheet.paste(tile, (_LABEL_WIDTH + column * (tile_width + _GAP), top))
    return sheet

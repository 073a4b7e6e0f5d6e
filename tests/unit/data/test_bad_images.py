"""Section A of docs/bad-inputs.md at collection: every bad file in one folder, through `folder`, `append` and `clean`."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from visionloop.config import CleanParams, CollectParams, ComputeParams
from visionloop.data.cleaning import MIN_CLASS_IMAGES, image_ids, judge, measure_all, score
from visionloop.data.decisions import resolve
from visionloop.data.executor import make_executor
from visionloop.data.shards import append, read_bytes, read_images
from visionloop.data.sources import open_source
from visionloop.data.thumbs import Thumbs
from visionloop.records import CleanRow

NOISE = np.random.default_rng(5).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def picture(seed: int, side: int = 48) -> Image.Image:
    """Blobs of colour: no two seeds resemble each other, and JPEG keeps them."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def bare_png(width: int, height: int, pixels: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def text_bomb() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "a" * 500_000_000, zip=True)
    return encoded(picture(15), "PNG", pnginfo=info)


def turned(orientation: int, seed: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(seed).crop((0, 0, 48, 32)), "JPEG", exif=exif)


def gray16(seed: int) -> bytes:
    return encoded(Image.fromarray(np.asarray(picture(seed).convert("L")).astype(np.uint16) * 257), "PNG")


def jpeg(seed: int) -> bytes:
    return encoded(picture(seed), "JPEG")


# Row of the list -> file name, its bytes, and the reason that it is rejected for; "" for an image that is kept.
ROWS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "A1": ("zero.jpg", lambda: b"", "empty"),
    "A2": ("one.jpg", lambda: b"\xff", "unreadable"),
    "A3": ("text.jpg", lambda: b"a cat, in words", "unreadable"),
    "A4": ("page.jpg", lambda: b"<!DOCTYPE html><p>404", "unsupported_format"),
    "A5": ("half.jpg", lambda: encoded(Image.fromarray(NOISE), "JPEG")[:2000], "truncated"),
    "A6": ("end.jpg", lambda: jpeg(6)[:-2], "truncated"),
    "A7": ("header.jpg", lambda: jpeg(7)[:20], "unreadable"),
    "A8": ("flipped.png", lambda: flipped(encoded(Image.fromarray(NOISE), "PNG"), 3000), "unreadable"),
    "A9": ("crc.png", lambda: flipped(encoded(picture(9), "PNG"), -6), "unreadable"),
    "A10": ("empty.png", lambda: bare_png(8, 8), "truncated"),
    "A11": ("none.png", lambda: bare_png(0, 0), "unreadable"),
    "A12": ("wide.png", lambda: bare_png(100_000, 100_000), "too_large"),
    "A13": ("sides.png", lambda: bare_png(2**31 - 1, 2**31 - 1), "too_large"),
    "A14": ("bomb.png", lambda: bare_png(12_000, 12_000, bytes(12_000 * 36_001)), "too_large"),
    "A15": ("ztxt.png", text_bomb, "unreadable"),
    "A16": ("one.gif", lambda: encoded(picture(16), "GIF"), "unsupported_format"),
    "A17": ("one.tif", lambda: encoded(picture(17), "TIFF"), "unsupported_format"),
    "A18": ("one.svg", lambda: b"<svg onload='alert(1)'><script/></svg>", "unsupported_format"),
    "A19": ("one.eps", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported_format"),
    "A20": ("one.ico", lambda: encoded(picture(20), "ICO"), "unsupported_format"),
    "A21": ("one.heic", lambda: b"\0\0\0\x18ftypheic" + bytes(40), "unsupported_format"),
    "A22": ("moving.webp", lambda: encoded(picture(22), "WEBP", save_all=True, append_images=[picture(122)]), ""),
    "A23": ("dot.png", lambda: encoded(picture(23, 1), "PNG"), "too_small"),
    "A24": ("line.png", lambda: encoded(picture(24).resize((10_000, 1)), "PNG"), "too_small"),
    "A25": ("black.png", lambda: encoded(Image.new("RGB", (48, 48)), "PNG"), "blank"),
    "A26": ("palette.png", lambda: encoded(picture(26).quantize(64), "PNG"), ""),
    "A27": ("rgba.png", lambda: encoded(picture(27).convert("RGBA"), "PNG"), ""),
    "A28": ("la.png", lambda: encoded(picture(28).convert("LA"), "PNG"), ""),
    "A29": ("deep.png", lambda: gray16(29), ""),
    "A30": ("bit.png", lambda: encoded(picture(30).convert("1"), "PNG"), ""),
    "A31": ("cmyk.jpg", lambda: encoded(picture(31).convert("CMYK"), "JPEG"), ""),
    "A32": ("gray.jpg", lambda: encoded(picture(32).convert("L"), "JPEG"), ""),
    "A33": ("turned.jpg", lambda: turned(6, 33), ""),
    "A33b": ("nonsense.jpg", lambda: turned(99, 133), ""),
    "A34": ("wrong.png", lambda: jpeg(34), ""),
    "A35": ("polyglot.jpg", lambda: jpeg(35) + b"PK\x03\x04and a ZIP", ""),
    "A36": ("same.png", lambda: encoded(picture(1000), "PNG"), "exact_duplicate"),
}


@pytest.fixture(scope="module")
def cleaned(
    tmp_path_factory: pytest.TempPathFactory, clean_params: CleanParams
) -> tuple[dict[str, CleanRow], list[CleanRow]]:
    """All files of ROWS in one class folder among good images, collected and judged; by file name, and whole."""
    folder = tmp_path_factory.mktemp("bad")
    for label in ("bees", "cats"):
        (folder / "raw" / label).mkdir(parents=True)
    for row, (name, make, _) in ROWS.items():
        # The copy stands under its original's label: equal bytes under two labels are another finding.
        (folder / "raw" / ("bees" if row == "A36" else "cats") / name).write_bytes(make())
    for number in range(20):
        (folder / "raw" / "bees" / f"{number:02}.png").write_bytes(encoded(picture(1000 + number), "PNG"))
    params = CollectParams(
        source="folder", path=str(folder / "raw"), options={}, feedback=False, images_per_shard=64, max_skipped_share=0.05
    )
    append([open_source(params)], folder / "shards", folder / "images.parquet", 64, params.max_skipped_share)
    images = read_images(folder / "images.parquet")
    rules = clean_params.model_copy(update={"max_megapixels": 50})
    resolved = resolve((), np.sort(image_ids(images)), {row.label for row in images}, MIN_CLASS_IMAGES, Path("d.csv"))
    with Thumbs(len(images), folder) as thumbs, make_executor(ComputeParams(workers=1, dask=None), len(images)) as executor:
        measures = measure_all(images, partial(read_bytes, folder / "shards")(images), executor, 50_000_000, thumbs)
        rows = list(judge(images, measures, score(images, measures, thumbs, resolved, rules), rules))
    return {row.path.rpartition("/")[2]: row for row in rows}, rows


@pytest.mark.parametrize("row", ROWS)
def test_a_bad_image_is_a_row_with_its_reason_and_a_usable_one_is_kept(
    cleaned: tuple[dict[str, CleanRow], list[CleanRow]], row: str
) -> None:
    name, _, reason = ROWS[row]
    found = cleaned[0][name]
    if reason:
        assert (found.verdict, found.reason) == ("reject", reason)
        assert found.detail
    else:
        assert found.verdict == "keep"


def test_nothing_is_lost(cleaned: tuple[dict[str, CleanRow], list[CleanRow]]) -> None:
    assert len(cleaned[1]) == len(ROWS) + 20
    assert cleaned[0]["moving.webp"].animated
    assert (cleaned[0]["turned.jpg"].width_pixels, cleaned[0]["turned.jpg"].height_pixels) == (32, 48)
    assert (cleaned[0]["nonsense.jpg"].width_pixels, cleaned[0]["nonsense.jpg"].height_pixels) == (48, 32)

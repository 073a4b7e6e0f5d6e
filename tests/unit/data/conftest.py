"""Small pictures that are drawn here, and rows about them."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from visionloop.config import CleanParams
from visionloop.files import sha256_bytes
from visionloop.records import CleanRow, ImageRow

# A deadline on one example would measure the machine's other work.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

Draw = Callable[..., bytes]


def draw_picture(seed: int, *, side: int = 48, kind: str = "PNG", **options: Any) -> bytes:
    """A smooth picture; two seeds give two pictures that look nothing alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def draw() -> Draw:
    return draw_picture


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """Write files below `tmp_path/raw` and return that folder."""

    def write_files(files: dict[str, bytes]) -> Path:
        root = tmp_path / "raw"
        root.mkdir(exist_ok=True)
        for name, data in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(data)
        return root

    return write_files


@pytest.fixture(scope="session")
def image_row() -> Callable[..., ImageRow]:
    def make(data: bytes, path: str, label: str = "", **changes: Any) -> ImageRow:
        values: dict[str, Any] = {
            "id": sha256_bytes(data),
            "label": label or path.partition("/")[0],
            "source": "folder",
            "group": "",
            "labelled_by": "folder",
            "path": path,
            "size_bytes": len(data),
            "time": datetime(2026, 1, 1, tzinfo=UTC),
            "split_hint": None,
            "shard": path,
            "row": 0,
        }
        return ImageRow(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def clean_params() -> CleanParams:
    return CleanParams(
        min_side_pixels=8,
        max_megapixels=1,
        blank_contrast=2,
        near_duplicate_error=0.38,
        reject=(
            "unreadable", "truncated", "empty", "unsupported_format", "too_large", "too_small", "blank", "exact_duplicate",
            "conflicting_labels",
        ),
        outliers=False,
        suspect_labels=False,
        max_rejected_share=0.5,
    )  # fmt: skip


@pytest.fixture(scope="session")
def clean_row() -> Callable[..., CleanRow]:
    def make(name: object, label: str, **changes: Any) -> CleanRow:
        image_id = sha256_bytes(str(name).encode())
        values: dict[str, Any] = {
            "id": image_id,
            "label": label,
            "given_label": label,
            "path": f"{label}/{name}.png",
            "source": "folder",
            "group": "",
            "time": datetime(2026, 1, 1, tzinfo=UTC),
            "width_pixels": 48,
            "height_pixels": 48,
            "mode": "RGB",
            "format": "PNG",
            "bit_depth": 8,
            "alpha": False,
            "animated": False,
            "exif_orientation": 1,
            "brightness": 100.0,
            "contrast": 50.0,
            "sharpness": 10.0,
            "entropy": 5.0,
            "colourfulness": 20.0,
            "perceptual_hash": "0" * 16,
            "cluster": image_id,
            "outlier_score": 0.0,
            "label_quality": 1.0,
            "suggested_label": "",
            "findings": (),
            "verdict": "keep",
            "reason": "",
            "detail": "",
            "decided_by": "",
            "split_hint": None,
        }
        return CleanRow(**{**values, **changes})

    return make

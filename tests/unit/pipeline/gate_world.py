"""A project's folder with a shipped model and packed test images, made without training: what the stage `gate` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from serving.repository import publish
from tests import helpers_serving
from visionloop.data.packing import PackedMeta
from visionloop.data.policy import AugmentPolicy
from visionloop.data.seen import Seen
from visionloop.data.shards import append
from visionloop.data.sources.base import Skipped, SourceImage
from visionloop.data.sources.digits import DIGITS_TIME
from visionloop.files import sha256_bytes
from visionloop.paths import IMAGES, MODEL_REPOSITORY, PACKED, SHARDS, SHIPPED
from visionloop.preprocess import encode_png
from visionloop.promotion import HEADER
from visionloop.records import SplitRow
from visionloop.runtime import load

ROOT = Path(__file__).parents[3]
GOOD, WORSE = 0, 1  # seeds of models; the truth is what GOOD says
IMAGE_COUNT = 300


class _Drawn:
    """A source of the test images."""

    name = "drawn"

    def __init__(self, images: list[bytes], labels: list[str]) -> None:
        self.skipped: list[Skipped] = []
        self._rows = list(zip(images, labels, strict=True))

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Any:
        for index, (data, label) in enumerate(self._rows):
            yield SourceImage(data, label, f"{index}.png", DIGITS_TIME, None)


def make(**gate: Any) -> list[str]:
    """Fill the current folder; `gate` changes params. Returns the ids of the test images."""
    ship(GOOD)
    model, card = load(SHIPPED)
    rng = np.random.default_rng(0)
    pixels = np.clip(rng.integers(0, 256, (IMAGE_COUNT, 1, 1, 3)) + rng.normal(0, 9, (IMAGE_COUNT, 8, 8, 3)), 0, 255)
    images = pixels.astype(np.uint8)
    labels = model.run_all(images)[0].argmax(1)
    data = [encode_png(image) for image in images]
    ids = [sha256_bytes(one) for one in data]
    PACKED.mkdir(parents=True)
    np.save(PACKED / "test.images.npy", images)
    np.save(PACKED / "test.labels.npy", labels.astype(np.int64))
    (PACKED / "test.ids.txt").write_text("".join(f"{name}\n" for name in ids))
    meta = PackedMeta(
        labels=card.labels, preprocess=card.preprocess, mean=(0.5,) * 3, std=(0.2,) * 3,
        counts={"train": 0, "val": 0, "test": IMAGE_COUNT}, policy=AugmentPolicy(), data_id="0" * 64,
    )  # fmt: skip
    (PACKED / "meta.json").write_text(meta.model_dump_json())
    append([_Drawn(data, [card.labels[number] for number in labels])], SHARDS, IMAGES, 1000)
    Path("data/promotions.csv").write_text(",".join(HEADER) + "\n")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["gate"] |= gate
    Path("params.yaml").write_text(yaml.safe_dump(params))
    return ids


def ship(seed: int) -> None:
    """Put a model that `seed` draws into models/shipped."""
    helpers_serving.ship(SHIPPED, seed=seed)


def serve(seed: int, seen: list[SplitRow] | None = None, **model: Any) -> None:
    """Publish a model that `seed` draws, as if an earlier run had."""
    folder = Path("served") / str(seed)
    helpers_serving.ship(folder, seed=seed, **model)
    known = None if seen is None else Seen.of(seen).to_bytes()
    publish(folder, MODEL_REPOSITORY, helpers_serving.DEPLOY, seen=known)


def report() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("reports/gate.json").read_text())
    return found

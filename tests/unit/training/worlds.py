"""Small packed data sets, drawn here, that a tiny network learns in seconds."""

from __future__ import annotations

from typing import Any

import numpy as np

from visionloop.config import FamilyParams, TrainParams
from visionloop.data.packing import PackedMeta, PackedSplit
from visionloop.data.policy import AugmentPolicy
from visionloop.preprocess import PreprocessSpec

LABELS = ("red", "green", "blue")


def split(count: int, seed: int, size: int = 8) -> PackedSplit:
    """Noise with a 3 x 3 square of the class's colour at a random place."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 120, (count, size, size, 3)).astype(np.uint8)
    labels = rng.integers(0, 3, count)
    for image, label, (row, column) in zip(images, labels, rng.integers(0, size - 3, (count, 2)), strict=True):
        image[row : row + 3, column : column + 3] = 60
        image[row : row + 3, column : column + 3, label] = 250
    return PackedSplit(images, labels, [f"{seed}-{index}" for index in range(count)])


def meta(policy: AugmentPolicy | None = None, size: int = 8) -> PackedMeta:
    return PackedMeta(
        labels=LABELS,
        preprocess=PreprocessSpec(size, size),
        mean=(0.36, 0.36, 0.36),
        std=(0.12, 0.12, 0.12),
        counts={"train": 96, "val": 48, "test": 48},
        policy=policy or AugmentPolicy(crop_padding_pixels=1, brightness=0.1),
        data_id="0" * 64,
    )


def params(**changes: Any) -> TrainParams:
    """Parameters for a run of seconds; `learning_rate`, `cnn_options` and `vit_options` go to the families."""
    rate = changes.pop("learning_rate", 0.01)
    cnn = FamilyParams(
        architecture=changes.pop("cnn_architecture", "small_resnet"),
        learning_rate=rate,
        options=changes.pop("cnn_options", {"width": 8, "stages": 2}),
        weights=changes.pop("weights", None),
    )
    vit = FamilyParams(
        architecture="small_vit",
        learning_rate=rate,
        options=changes.pop("vit_options", {"patch": 2, "width": 32, "depth": 2, "dropout": 0.1}),
        weights=None,
    )
    values: dict[str, Any] = {
        "seed": 3, "epochs": 4, "batch_size": 16, "optimizer": "adamw", "weight_decay": 0.05, "warmup_epochs": 1,
        "label_smoothing": 0.05, "gradient_clip_norm": 1.0, "early_stopping_epochs": 0, "precision": "fp32", "device": "cpu",
    }  # fmt: skip
    return TrainParams(**{**values, **changes}, cnn=cnn, vit=vit)

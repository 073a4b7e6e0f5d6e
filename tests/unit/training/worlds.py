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


# What the recipes of params.yaml leave off: nothing is frozen, averaged, attacked or distilled.
SMALLER: dict[str, Any] = {
    "by": "none", "share": 0.5, "architecture": None, "options": {}, "epochs": 2, "rate": 0.5, "max_accuracy_drop": 1.0,
}  # fmt: skip
_FAMILY: dict[str, Any] = {
    "weights_sha256": None, "freeze": "none", "layer_decay": 1.0, "teacher": "none", "smaller": SMALLER, "override": {},
}  # fmt: skip
_SHARED: dict[str, Any] = {
    "seed": 3, "epochs": 4, "batch_size": 16, "accumulate": 1, "optimizer": "adamw", "momentum": 0.9, "weight_decay": 0.05,
    "batch_scaling": "none", "base_batch_size": 16, "schedule": "cosine", "warmup_epochs": 1, "final_rate": 0.0,
    "step_epochs": 10, "step_factor": 0.1, "loss": "cross_entropy", "label_smoothing": 0.05, "focal_gamma": 2.0,
    "class_weights": "none", "distillation_share": 0.5, "distillation_temperature": 4.0, "gradient_clip_norm": 1.0,
    "ema_decay": 0.0, "initial_scale": 1.0, "full_scale_from": 0.5, "metric": "accuracy", "keep": "best",
    "early_stopping_epochs": 0, "adversarial": "none",
    "adversarial_epsilon": 8.0, "adversarial_steps": 3, "precision": "fp32", "layout": "channels_last", "compile": "never",
    "device": "cpu",
}  # fmt: skip


def params(**changes: Any) -> TrainParams:
    """Parameters for a run of seconds; `learning_rate`, `cnn_options`, `vit_options` and `_FAMILY`'s go to the families."""
    rate = changes.pop("learning_rate", 0.01)
    family = {key: changes.pop(key, value) for key, value in _FAMILY.items()}
    cnn = FamilyParams(
        architecture=changes.pop("cnn_architecture", "small_resnet"),
        learning_rate=rate,
        options=changes.pop("cnn_options", {"width": 8, "stages": 2}),
        weights=changes.pop("weights", None),
        **family,
    )
    vit = FamilyParams(
        architecture="small_vit",
        learning_rate=rate,
        options=changes.pop("vit_options", {"patch": 2, "width": 32, "depth": 2, "dropout": 0.1}),
        weights=None,
        **{**family, "freeze": "none"},
    )
    return TrainParams(**{**_SHARED, **changes}, cnn=cnn, vit=vit)

"""RandAugment, TrivialAugment and AugMix: fourteen operations, and how each paper draws from them.

RandAugment: Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space" (NeurIPS 2020).
N operations, each any of the fourteen with equal chance, all at magnitude M of 30.
TrivialAugment: Mueller and Hutter, "TrivialAugment: Tuning-free yet state-of-the-art data augmentation" (ICCV 2021), with
the ranges of its "wide" space. One operation at one of 31 magnitudes, all with equal chance.
AugMix: Hendrycks et al., "AugMix: A simple data processing method to improve robustness and uncertainty" (ICLR 2020). Three
chains of one to three of nine operations, averaged with weights of a Dirichlet distribution, then with the original by a
share of a Beta distribution, both of parameter 1.

Three things differ from the papers' code, the same for all: what a shift opens is filled by `padding` and not with gray or
black, since a constant border is none of the data's colours; places between pixels are interpolated; a slant keeps the
image's centre. Does not cover: AugMix's consistency loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visionloop.data import operations as ops
from visionloop.data.operations import Floats, Integers
from visionloop.data.policy import AugmentPolicy, Padding

OPERATIONS = (
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "colour", "contrast",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
)  # fmt: skip
# AugMix leaves out what resembles the corruptions of ImageNet-C, on which it is judged.
_AUGMIX_KINDS = tuple(
    OPERATIONS.index(name)
    for name in (
        "autocontrast", "equalize", "posterize", "rotate", "solarize", "shear_x", "shear_y", "translate_x", "translate_y",
    )
)  # fmt: skip
_GEOMETRY = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_FACTORS = ("brightness", "colour", "contrast", "sharpness")
SIGNED = (*_GEOMETRY, *_FACTORS)
_CHAINS, _DEPTH = 3, 3
_BINS = 30  # the steps between the 31 magnitudes


@dataclass(frozen=True)
class Ranges:
    """What an operation does at magnitude 1; at 0 it does nothing."""

    shear: float  # tangent of the angle
    translate_share: float  # of the side
    translate_pixels: float  # where not 0, instead of the share; at most the side
    degrees: float
    factor: float  # brightness, colour, contrast and sharpness are multiplied by 1 +- this
    bits: tuple[int, int]  # that posterize keeps at magnitude 0 and at 1


_RANGES = {
    # 150 of 331 pixels is how AutoAugment's policies for ImageNet are written.
    "randaugment": Ranges(0.3, 150 / 331, 0, 30, 0.9, (8, 4)),
    "trivialaugment": Ranges(0.99, 0, 32, 135, 0.99, (8, 2)),
    "augmix": Ranges(0.3, 1 / 3, 0, 30, 0.9, (4, 0)),
}


def kinds(policy: AugmentPolicy) -> tuple[str, ...]:
    """The operations that the automatic policy draws from."""
    if policy.automatic == "augmix":
        return tuple(OPERATIONS[kind] for kind in _AUGMIX_KINDS)
    return () if policy.automatic == "none" else OPERATIONS


def columns(policy: AugmentPolicy) -> list[str]:
    """The random numbers that one image needs."""
    if policy.automatic == "randaugment":
        return [f"{name}_{step}" for step in range(policy.randaugment_operations) for name in ("kind", "sign")]
    if policy.automatic == "trivialaugment":
        return ["kind_0", "magnitude_0", "sign_0"]
    if policy.automatic == "augmix":
        chain = [f"{name}_{step}" for step in range(_CHAINS * _DEPTH) for name in ("kind", "magnitude", "sign")]
        return [*chain, *(f"{name}_{index}" for index in range(_CHAINS) for name in ("depth", "share")), "mixed"]
    return []


def apply(words: Tensor, policy: AugmentPolicy, draws: Mapping[str, Floats]) -> Tensor:
    """Change words [N, H, W] by the automatic policy; `draws` holds numbers of [0, 1) for each of `columns`."""
    if policy.automatic == "augmix":
        return _augmix(words, policy, draws)
    ranges = _RANGES[policy.automatic]
    steps = policy.randaugment_operations if policy.automatic == "randaugment" else 1
    for step in range(steps):
        if policy.automatic == "randaugment":
            magnitude = np.full(len(words), policy.randaugment_magnitude / _BINS)
        else:
            magnitude = np.floor(draws[f"magnitude_{step}"] * (_BINS + 1)) / _BINS
        kind = np.floor(draws[f"kind_{step}"] * len(OPERATIONS)).astype(np.int64)
        words = apply_kinds(words, kind, magnitude, _sign(draws[f"sign_{step}"]), ranges=ranges, padding=policy.padding)
    return words


def apply_kinds(
    words: Tensor, kind: Integers, magnitude: Floats, sign: Floats, *, ranges: Ranges, padding: Padding
) -> Tensor:
    """Change each image by `OPERATIONS[kind]` at `magnitude` of [0, 1]; `sign` is -1 or 1 and matters to the `SIGNED`."""
    words = words.clone()

    def chosen(*names: str) -> Integers:
        return np.flatnonzero(np.isin(kind, [OPERATIONS.index(name) for name in names]))

    def put(places: Integers, changed: Tensor) -> None:
        words.index_copy_(0, torch.from_numpy(places).to(words.device), changed)

    def take(places: Integers) -> Tensor:
        return words.index_select(0, torch.from_numpy(places).to(words.device))

    signed = magnitude * sign
    if len(places := chosen(*_GEOMETRY)):
        height, width = words.shape[1:]
        matrices = _matrices(kind[places], signed[places], ranges, height, width)
        put(places, ops.warp(take(places), matrices, padding))
    if len(places := chosen("brightness", "colour", "contrast")):
        factor = 1 + ranges.factor * signed[places]
        brightness, saturation, contrast = (
            np.where(kind[places] == OPERATIONS.index(name), factor, 1.0) for name in ("brightness", "colour", "contrast")
        )
        put(places, ops.colour(take(places), brightness, contrast, saturation, np.zeros(len(places))))
    if len(places := chosen("sharpness")):
        put(places, ops.sharpen(take(places), 1 + ranges.factor * signed[places]))
    if len(places := chosen("posterize")):
        most, least = ranges.bits
        image = take(places)
        bits = np.rint(most - magnitude[places] * (most - least)).astype(np.int64)
        put(places, ops.look_up(image, ops.posterize_tables(image, bits)))
    if len(places := chosen("solarize")):
        image = take(places)
        threshold = np.rint(256 * (1 - magnitude[places])).astype(np.int64)
        put(places, ops.look_up(image, ops.solarize_tables(image, threshold)))
    if len(places := chosen("autocontrast")):
        image = take(places)
        put(places, ops.look_up(image, ops.autocontrast_tables(image)))
    if len(places := chosen("equalize")):
        image = take(places)
        put(places, ops.look_up(image, ops.equalize_tables(image)))
    return words


def _matrices(kind: Integers, signed: Floats, ranges: Ranges, height: int, width: int) -> Floats:
    matrices = np.zeros((len(kind), 2, 3))
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1

    def only(name: str) -> npt.NDArray[np.bool_]:
        return np.asarray(kind == OPERATIONS.index(name))

    def reach(side: int) -> float:
        return min(ranges.translate_pixels, side) if ranges.translate_pixels else ranges.translate_share * side

    matrices[only("shear_x"), 0, 1] = signed[only("shear_x")] * ranges.shear
    matrices[only("shear_y"), 1, 0] = signed[only("shear_y")] * ranges.shear
    # By whole pixels, as in the papers' code.
    matrices[only("translate_x"), 0, 2] = np.rint(signed[only("translate_x")] * reach(width))
    matrices[only("translate_y"), 1, 2] = np.rint(signed[only("translate_y")] * reach(height))
    turned = only("rotate")
    angle = np.deg2rad(signed[turned] * ranges.degrees)
    matrices[turned, 0, 0] = matrices[turned, 1, 1] = np.cos(angle)
    matrices[turned, 0, 1], matrices[turned, 1, 0] = -np.sin(angle), np.sin(angle)
    return matrices


def _augmix(words: Tensor, policy: AugmentPolicy, draws: Mapping[str, Floats]) -> Tensor:
    ranges = _RANGES["augmix"]
    chains = []
    for chain in range(_CHAINS):
        depth = np.floor(draws[f"depth_{chain}"] * _DEPTH).astype(np.int64) + 1
        image = words
        for step in range(_DEPTH):
            column = chain * _DEPTH + step
            kind = np.array(_AUGMIX_KINDS)[np.floor(draws[f"kind_{column}"] * len(_AUGMIX_KINDS)).astype(np.int64)]
            kind = np.where(step < depth, kind, OPERATIONS.index("identity"))
            # The paper draws the level from 0.1 to the severity, of 10.
            magnitude = (0.1 + draws[f"magnitude_{column}"] * (policy.augmix_severity - 0.1)) / 10
            sign = _sign(draws[f"sign_{column}"])
            image = apply_kinds(image, kind, magnitude, sign, ranges=ranges, padding=policy.padding)
        chains.append(image)
    # Exponential numbers over their sum are Dirichlet(1, 1, 1); Beta(1, 1) is uniform.
    parts = -np.log1p(-np.stack([draws[f"share_{chain}"] for chain in range(_CHAINS)], axis=1))
    mixed = draws["mixed"][:, None]
    shares = np.concatenate([1 - mixed, mixed * parts / np.maximum(parts.sum(axis=1, keepdims=True), 1e-300)], axis=1)
    weights = torch.from_numpy(ops.whole_weights(shares)).to(torch.int32).to(words.device)
    return ops.weigh([words, *chains], [weights[:, index, None, None] for index in range(1 + _CHAINS)])


def _sign(draw: Floats) -> Floats:
    return np.where(draw < 0.5, -1.0, 1.0)

"""MixUp and CutMix: two training images become one, and its label is two labels with shares.

MixUp: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (ICLR 2018): a weighted mean of two images.
CutMix: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers" (ICCV 2019): a rectangle of the other.
Both draw the share from Beta(alpha, alpha); here each image has its own, where the papers' code takes one for a batch.

Does not cover: mixing more than two images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from visionloop.data import operations as ops
from visionloop.data.policy import AugmentPolicy


@dataclass(frozen=True)
class Mixed:
    """A mixed batch."""

    images: Tensor  # uint8 [N, H, W, 3]
    partners: Tensor  # int64 [N], the place in the batch of the other image; on the CPU
    shares: Tensor  # float32 [N], of the image's own label; the partner's has the rest; on the CPU


def mix_batch(images: Tensor, policy: AugmentPolicy, generator: np.random.Generator) -> Mixed:
    """Mix uint8 images [N, H, W, 3] with partners of the same batch, in integers, so that every device gives the same bits.

    With both on, each image takes one of the two with equal chance. MixUp's share is a multiple of 1/128 and CutMix's the
    rectangle's true area, so a label's share is exactly that of the pixels.
    """
    count, height, width, _ = images.shape
    partners = generator.permutation(count)
    alphas = {name: getattr(policy, name) for name in ("mixup", "cutmix")}
    shares = {name: generator.beta(alpha, alpha, count) if alpha else np.ones(count) for name, alpha in alphas.items()}
    mixed = generator.random(count) < policy.mixed_share
    blended = generator.random(count) < 0.5 if all(alphas.values()) else np.full(count, bool(policy.mixup))
    middle_y, middle_x = generator.random((2, count))

    weight = np.where(mixed & blended, np.rint(shares["mixup"] * ops.WHOLE), ops.WHOLE).astype(np.int64)
    # The rectangle has the share 1 - lambda of the area around a middle anywhere; what lies outside is cut off.
    side = np.where(mixed & ~blended, np.sqrt(1 - shares["cutmix"]), 0)
    bounds = []
    for middle, size in ((middle_y, height), (middle_x, width)):
        half = np.floor(side * size).astype(np.int64) // 2
        centre = np.floor(middle * size).astype(np.int64)
        bounds.append((np.clip(centre - half, 0, size), np.clip(centre + half, 0, size)))
    (top, bottom), (left, right) = bounds
    tall, wide = bottom - top, right - left

    words = ops.to_words(images)
    others = words.index_select(0, torch.from_numpy(partners).to(words.device))
    if policy.mixup:
        own = torch.from_numpy(weight).to(torch.int32).to(words.device)[:, None, None]
        words = ops.weigh([words, others], [own, ops.WHOLE - own])
    if policy.cutmix:
        words = torch.where(ops.inside(words, top, left, tall, wide), others, words)
    share = np.where(blended, weight / ops.WHOLE, 1 - tall * wide / (height * width))
    return Mixed(ops.to_bytes(words), torch.from_numpy(partners), torch.from_numpy(share.astype(np.float32)))

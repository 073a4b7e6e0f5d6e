"""MixUp and CutMix: two training images become one, and its label is two labels with shares.

MixUp: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (ICLR 2018): a weighted mean of two images.
CutMix: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers" (ICCV 2019): a rectangle of the other.
Both draw the share from Beta(alpha, alpha); here each image has its own, where the papers' code takes one for a batch.

Does not cover: mixing more than two images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visionloop.data import operations as ops
from visionloop.data.operations import Integers
from visionloop.data.policy import AugmentPolicy


@dataclass(frozen=True)
class Mixed:
    """A mixed batch."""

    images: Tensor  # uint8 [N, H, W, 3]
    partners: Tensor  # int64 [N], the place in the batch of the other image; on the CPU
    shares: Tensor  # float32 [N], of the image's own label; the partner's has the rest; on the CPU


@dataclass(frozen=True)
class MixPlan:
    """How the images of a batch are mixed, drawn before a pixel is touched."""

    partners: Integers  # int64 [N], the place in the batch of the other image
    weight: Integers  # int64 [N] of 128: how much of each pixel is the image's own
    bounds: tuple[Integers, Integers, Integers, Integers]  # int64 [N] each, of the partner's: top, left, height, width
    shares: npt.NDArray[np.float32]  # [N], of the image's own label; the partner's has the rest

    def of(self, rows: Integers) -> MixPlan:
        """The plan of some images of the batch; their partners keep their places in the whole batch."""
        top, left, tall, wide = (bound[rows] for bound in self.bounds)
        return MixPlan(self.partners[rows], self.weight[rows], (top, left, tall, wide), self.shares[rows])


def mix_batch(images: Tensor, policy: AugmentPolicy, generator: np.random.Generator) -> Mixed:
    """Mix uint8 images [N, H, W, 3] with partners of the same batch, in integers, so that every device gives the same bits.

    With both on, each image takes one of the two with equal chance. MixUp's share is a multiple of 1/128 and CutMix's the
    rectangle's true area, so a label's share is exactly that of the pixels.
    """
    count, height, width, _ = images.shape
    plan = plan_mix(count, height, width, policy, generator)
    mixed = mix_images(images, images[torch.from_numpy(plan.partners).to(images.device)], policy, plan)
    return Mixed(mixed, torch.from_numpy(plan.partners), torch.from_numpy(plan.shares))


def plan_mix(count: int, height: int, width: int, policy: AugmentPolicy, generator: np.random.Generator) -> MixPlan:
    """Draw how so many images of this size are mixed."""
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
    share = np.where(blended, weight / ops.WHOLE, 1 - tall * wide / (height * width))
    return MixPlan(partners, weight, (top, left, tall, wide), share.astype(np.float32))


def mix_images(images: Tensor, partners: Tensor, policy: AugmentPolicy, plan: MixPlan) -> Tensor:
    """Uint8 images [N, H, W, 3] mixed with their partners, the same shape, as the plan for just these images says."""
    words, others = ops.to_words(images), ops.to_words(partners)
    if policy.mixup:
        own = torch.from_numpy(plan.weight).to(torch.int32).to(words.device)[:, None, None]
        words = ops.weigh([words, others], [own, ops.WHOLE - own])
    if policy.cutmix:
        words = torch.where(ops.inside(words, *plan.bounds), others, words)
    return ops.to_bytes(words)

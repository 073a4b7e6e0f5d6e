"""Whether augmented images still look like the data: their statistics against those of the originals.

An image is out of range where its brightness, contrast, saturation or sharpness lies outside what all but the outermost 1 %
of the originals have. Of the originals themselves up to 4 % are, since there are four statistics; that share is reported
beside the others. The statistics are those that monitoring watches (`features.image_features`), so what leaves the
range here would count as drift there.

Does not cover: what an image shows. A digit turned upside down is within the range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visionloop.data.extremes import extremes
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import DataError
from visionloop.features import IMAGE_SIGNALS, image_features
from visionloop.paths import OPERATIONS_SHEET
from visionloop.preprocess import PixelArray

_QUANTILES = (0.005, 0.995)
_ORIGINALS = 2000  # that set the range: the outermost 1 % are 20 of them
_AUGMENTED = 1000  # a share of 50 % is known to 3 points
_PER_OPERATION = 300
# What rounding to whole gray levels can do to a mean; sharpness is a square and has no such unit.
_ROUNDING = {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "sharpness": 0.0}

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outside:
    """What share of images is out of range."""

    share: float  # by any statistic
    below: Mapping[str, float]  # by each of `features.IMAGE_SIGNALS`
    above: Mapping[str, float]

    def worst(self) -> str:
        """In words, as "sharpness too low"."""
        sides = {f"{name} too low": self.below[name] for name in self.below}
        sides |= {f"{name} too high": self.above[name] for name in self.above}
        return max(sides, key=lambda side: sides[side])


@dataclass(frozen=True)
class RangeCheck:
    """The result for a policy."""

    originals: Outside
    policy: Outside
    operations: Mapping[str, Outside]  # each alone, at its strongest

    def metrics(self) -> dict[str, float | dict[str, float]]:
        """The shares as flat numbers, for `reports/augmentation.json`."""
        return {
            "out_of_range": self.policy.share,
            "originals_out_of_range": self.originals.share,
            **{f"{name}_out_of_range": self.policy.below[name] + self.policy.above[name] for name in IMAGE_SIGNALS},
            "operations_out_of_range": {name: outside.share for name, outside in self.operations.items()},
        }

    def sentences(self) -> list[str]:
        """One for each of the three worst operations, where they leave the range twice as often as the originals."""
        ordered = sorted(self.operations.items(), key=lambda item: -item[1].share)
        return [
            f"{name} alone, at its strongest, takes {outside.share:.0%} of the images out of the originals' range, most "
            f"often by {outside.worst()}."
            for name, outside in ordered[:3]
            if outside.share > 2 * max(self.originals.share, 2 * (1 - _QUANTILES[1] + _QUANTILES[0]))
        ]

    def require(self, limit: float) -> None:
        """Refuse a policy that takes more than this share of the images out of range.

        Raises:
            DataError: it does; the three operations that do most are named.
        """
        if self.policy.share <= limit:
            return
        ordered = sorted(self.operations, key=lambda name: -self.operations[name].share)
        most = ", ".join(f"{name} ({self.operations[name].share:.0%})" for name in ordered[:3])
        raise DataError(
            f"{self.policy.share:.0%} of the augmented images lie outside the range of the originals' statistics, most "
            f"often by {self.policy.worst()}, and augment.max_out_of_range is {limit:g}; weaken what does most alone, "
            f"{most}, or raise the limit, after a look at {OPERATIONS_SHEET}."
        )


def check_range(images: PixelArray, policy: AugmentPolicy, seed: int) -> RangeCheck:
    """Compare augmented with original images, uint8 [N, H, W, 3]; samples of them are drawn from `seed`."""
    import torch

    from visionloop.data.augmentation import augment_batch
    from visionloop.data.mixing import mix_batch

    generator = np.random.default_rng([seed, 2])

    def sample(count: int) -> PixelArray:
        chosen = generator.choice(len(images), min(count, len(images)), replace=False)
        return np.asarray(images[np.sort(chosen)])

    originals = statistics(sample(_ORIGINALS))
    low, high = np.quantile(originals, _QUANTILES, axis=0)
    margin = np.array([_ROUNDING[name] for name in IMAGE_SIGNALS])

    def outside(values: Floats) -> Outside:
        below, above = values < low - margin, values > high + margin
        return Outside(
            float((below | above).any(axis=1).mean()),
            dict(zip(IMAGE_SIGNALS, below.mean(axis=0).tolist(), strict=True)),
            dict(zip(IMAGE_SIGNALS, above.mean(axis=0).tolist(), strict=True)),
        )

    augmented = augment_batch(torch.from_numpy(sample(_AUGMENTED)), policy, generator)
    if policy.mixes:
        augmented = mix_batch(augmented, policy, generator).images
    operations = {}
    for extreme in extremes(policy):
        few = torch.from_numpy(sample(_PER_OPERATION))
        parts = np.array_split(np.arange(len(few)), len(extreme.ends))
        ends = [
            augment_batch(few[part], extreme.policy, generator, end).numpy()
            for part, end in zip(parts, extreme.ends, strict=True)
        ]
        operations[extreme.name] = outside(statistics(np.concatenate(ends)))
    for name in policy.mixes:
        few = torch.from_numpy(sample(_PER_OPERATION))
        alone = policy.only(name)
        operations[name] = outside(statistics(mix_batch(few, alone, generator).images.numpy()))
    return RangeCheck(outside(originals), outside(statistics(augmented.numpy())), operations)


def statistics(images: PixelArray) -> Floats:
    """The numbers [N, 4] of `features.IMAGE_SIGNALS`."""
    features = [image_features(image) for image in images]
    return np.array([[getattr(one, name) for name in IMAGE_SIGNALS] for one in features]).reshape(-1, len(IMAGE_SIGNALS))

"""Augmented images a second: whole uint8 batches in integers, against torchvision's transforms on tensors and on PIL images.

What:    the same changes with the same strengths on the same batch of 256 photo-like images of 32 and 64 pixels, three ways:
         `augment_batch`; torchvision.transforms.v2 on the whole uint8 batch, where all images of a batch get the same random
         change; and v2 on one PIL image after another, as an ImageFolder pipeline does it, ending in a stacked uint8 batch.
         The three alternate; a figure is the median of the rounds, with one thread each.
Command: python -m benchmarks.augmentation                (about 3 minutes)
         python -m benchmarks.augmentation --rounds 3     (a look)
Result:  per kind of change in the file below. The whole-batch transforms do less: one random change for all images.
Writes:  benchmarks/results/augmentation.json
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms import v2

from benchmarks.digits_accuracy import machine
from visionloop.data.augmentation import augment_batch
from visionloop.data.mixing import mix_batch
from visionloop.data.policy import AugmentPolicy
from visionloop.files import write_json

OUTPUT = Path("benchmarks/results/augmentation.json")
BATCH = 256
SIDES = (32, 64)


def policies(side: int) -> dict[str, tuple[AugmentPolicy, list[Any]]]:
    """Each kind of change as our policy and as torchvision's transforms."""
    pad = side // 8
    kernel = 2 * int(np.ceil(3 * side / 64)) + 1
    return {
        "crop and flip": (
            AugmentPolicy(horizontal_flip=True, crop_padding_pixels=pad, padding="reflect"),
            [v2.RandomCrop(side, padding=pad, padding_mode="reflect"), v2.RandomHorizontalFlip()],
        ),
        "resized crop and flip": (
            AugmentPolicy(horizontal_flip=True, resized_crop=0.35),
            [v2.RandomResizedCrop(side, scale=(0.35, 1.0)), v2.RandomHorizontalFlip()],
        ),
        "rotation and zoom": (
            AugmentPolicy(rotation_degrees=15, scale=0.15),
            [v2.RandomAffine(15, scale=(0.85, 1.15), interpolation=v2.InterpolationMode.BILINEAR)],
        ),
        "colour": (
            AugmentPolicy(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1),
            [v2.ColorJitter(0.3, 0.3, 0.3, 0.1)],
        ),
        "blur": (
            AugmentPolicy(blur_pixels=side / 64),
            [v2.RandomApply([v2.GaussianBlur(kernel, (0.1, side / 64))])],
        ),
        "erasing": (AugmentPolicy(erasing=1.0), [v2.RandomErasing(1.0)]),
        "randaugment": (AugmentPolicy(automatic="randaugment"), [v2.RandAugment()]),
        "trivialaugment": (AugmentPolicy(automatic="trivialaugment"), [v2.TrivialAugmentWide()]),
        "augmix": (AugmentPolicy(automatic="augmix"), [v2.AugMix(all_ops=False)]),
        "mixup": (AugmentPolicy(mixup=0.2), [v2.MixUp(alpha=0.2, num_classes=10)]),
        "cutmix": (AugmentPolicy(cutmix=1.0), [v2.CutMix(num_classes=10)]),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rows = []
    print(
        f"{machine()}, torchvision {torchvision.__version__}\n"
        "side  change                  ours  v2 batch    v2 PIL   to v2    to PIL"
    )
    for side in SIDES:
        batch = photos(BATCH, side)
        pictures = [Image.fromarray(image) for image in batch.numpy()]
        for name, (policy, transforms) in policies(side).items():
            rates = measure(ways(policy, transforms, batch, pictures), rounds)
            row = {"side": side, "change": name, **rates}
            row |= {f"ratio_{way}": rates["ours"] / rate for way, rate in rates.items() if way != "ours"}
            rows.append(row)
            print(
                f"{side:4}  {name:21} {rates['ours']:8,.0f}  {rates['v2_batch']:8,.0f}  {rates.get('v2_pil', np.nan):8,.0f}"
                f"  {row['ratio_v2_batch']:6.1f}  {row.get('ratio_v2_pil', np.nan):8.1f}",
                flush=True,
            )
    write_json(
        OUTPUT,
        {"machine": machine(), "torchvision": torchvision.__version__, "batch": BATCH, "rounds": rounds, "rows": rows},
    )
    print(f"written to {OUTPUT}; load at the end {os.getloadavg()[0]:.1f}")


def ways(
    policy: AugmentPolicy, transforms: list[Any], batch: torch.Tensor, pictures: list[Image.Image]
) -> dict[str, Callable[[], object]]:
    """What is timed, by name; each gives a whole batch."""
    generator = np.random.default_rng(0)
    if policy.mixes:
        # torchvision's mix floats of one batch with labels, and has nothing for single images.
        floats, labels = batch.permute(0, 3, 1, 2).float().contiguous(), torch.arange(len(batch)) % 10
        mix = transforms[0]
        return {"ours": lambda: mix_batch(batch, policy, generator), "v2_batch": lambda: mix(floats, labels)}
    planes = batch.permute(0, 3, 1, 2).contiguous()
    # A blur happens to half of the images; a batch that is blurred or not as a whole is timed as one of half the size.
    half = len(planes) // 2 if policy.blur_pixels else len(planes)
    always = transforms[0].transforms if policy.blur_pixels else transforms
    whole, single = v2.Compose(always), v2.Compose([*transforms, v2.PILToTensor()])
    if isinstance(transforms[0], v2.RandomErasing):  # knows tensors only
        single = v2.Compose([v2.PILToTensor(), *transforms])
    return {
        "ours": lambda: augment_batch(batch, policy, generator),
        "v2_batch": lambda: whole(planes[:half]),
        "v2_pil": lambda: torch.stack([single(picture) for picture in pictures]),
    }


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Images a second of each way, the median of alternating rounds; a first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: BATCH / statistics.median(times[1:]) for name, times in seconds.items()}


def photos(count: int, side: int) -> torch.Tensor:
    """Soft coloured shapes with a little noise, uint8 [N, H, W, 3], from a seed."""
    rng = np.random.default_rng(0)
    images = np.empty((count, side, side, 3), dtype=np.uint8)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        soft = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        images[index] = np.clip(soft + rng.integers(-8, 9, soft.shape), 0, 255)
    return torch.from_numpy(images)


if __name__ == "__main__":
    main()

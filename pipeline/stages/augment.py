"""Decode once into packed uint8 arrays, note the augmentation policy beside them, and draw what it does."""

from __future__ import annotations

import functools

import numpy as np

from pipeline.stages import run_stage
from visionloop.config import AugmentParams, ComputeParams, PreprocessParams, load_section
from visionloop.data.contact_sheet import contact_sheet
from visionloop.data.executor import make_executor
from visionloop.data.packing import load_split, pack
from visionloop.data.policy import AugmentPolicy
from visionloop.data.shards import read_bytes, read_images
from visionloop.data.splitting import read_split
from visionloop.files import atomic_path
from visionloop.paths import CONTACT_SHEET, IMAGES, PACKED, SHARDS, SPLIT

VARIANTS = 7  # on the contact sheet, beside each original


def main() -> None:
    spec = load_section(PreprocessParams).spec
    params = load_section(AugmentParams)
    policy = AugmentPolicy.from_params(params)
    rows = read_split(SPLIT)
    with make_executor(load_section(ComputeParams), len(rows)) as executor:
        meta = pack(
            rows,
            read_images(IMAGES),
            functools.partial(read_bytes, SHARDS),
            PACKED,
            spec=spec,
            policy=policy,
            executor=executor,
        )
    print(
        f"train {meta.counts['train']:,}, val {meta.counts['val']:,}, test {meta.counts['test']:,} images of "
        f"{spec.height} x {spec.width} pixels, {len(meta.labels)} classes, data {meta.data_id[:12]} -> {PACKED}"
    )

    # Imported here, since the processes of the pool import this script and have no use for torch.
    import torch

    from visionloop.data.augmentation import augment_batch

    train = load_split(PACKED, "train")
    generator = torch.Generator().manual_seed(params.seed)
    count = min(params.contact_sheet_images, len(train.ids))
    chosen = np.sort(np.random.default_rng(params.seed).choice(len(train.ids), count, replace=False))
    originals = train.images[chosen]
    repeated = torch.from_numpy(np.repeat(originals, VARIANTS, axis=0))
    variants = augment_batch(repeated, policy, generator).numpy().reshape(count, VARIANTS, *originals.shape[1:])
    title = ", ".join(f"{name} {value}" for name, value in policy.model_dump().items() if value) or "no augmentation"
    sheet = contact_sheet(originals, variants, [meta.labels[label] for label in train.labels[chosen]], title)
    with atomic_path(CONTACT_SHEET) as tmp:
        sheet.save(tmp, "PNG")
    print(f"{count} training images, {VARIANTS} variants each -> {CONTACT_SHEET}")


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

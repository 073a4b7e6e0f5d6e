"""Decode once into packed uint8 arrays, note the augmentation policy beside them, check and draw what it does."""

from __future__ import annotations

import functools

import numpy as np

from pipeline.stages import run_stage
from visionloop.config import AugmentParams, ComputeParams, PreprocessParams, load_section
from visionloop.data.executor import make_executor
from visionloop.data.packing import PackedMeta, load_sample, pack
from visionloop.data.policy import AugmentPolicy
from visionloop.data.shards import read_bytes, read_images
from visionloop.data.splitting import read_split
from visionloop.files import atomic_path, write_json
from visionloop.paths import AUGMENT_REPORT, CONTACT_SHEET, IMAGES, OPERATIONS_SHEET, PACKED, SHARDS, SPLIT
from visionloop.preprocess import PixelArray


def main() -> None:
    params = load_section(AugmentParams)
    policy = AugmentPolicy.from_params(params)
    meta = pack_images(policy, params)

    # Imported here, since the processes of the pool import this script and have no use for torch.
    from visionloop.data.contact_sheet import operations_sheet, policy_sheet
    from visionloop.data.range_check import check_range

    train = load_sample(PACKED)
    generator = np.random.default_rng(params.seed)
    count = min(params.contact_sheet_images, len(train.ids))
    chosen = np.sort(generator.choice(len(train.ids), count, replace=False))
    images, labels = np.asarray(train.images[chosen]), [meta.labels[label] for label in train.labels[chosen]]
    for draw, path in ((policy_sheet, CONTACT_SHEET), (operations_sheet, OPERATIONS_SHEET)):
        with atomic_path(path) as tmp:
            draw(images, labels, policy, generator).save(tmp, "PNG")
    print(f"{count} training images with variants -> {CONTACT_SHEET}, each operation alone -> {OPERATIONS_SHEET}")

    check = check_range(train.images, policy, params.seed)
    counts = {"train_images": meta.counts["train"] - meta.variants, "train_variants": meta.variants}
    write_json(AUGMENT_REPORT, {**counts, **check.metrics()})
    for sentence in check.sentences():
        print(sentence)
    print(
        f"{check.policy.share:.1%} of augmented images lie outside the range of the originals' statistics "
        f"({check.originals.share:.1%} of the originals do) -> {AUGMENT_REPORT}"
    )
    check.require(params.max_out_of_range)


def augment(images: PixelArray, policy: AugmentPolicy, generator: np.random.Generator) -> PixelArray:
    """Variants for `pack`."""
    import torch

    from visionloop.data.augmentation import augment_batch

    return augment_batch(torch.from_numpy(images), policy, generator).numpy()


def pack_images(policy: AugmentPolicy, params: AugmentParams) -> PackedMeta:
    """Write data/packed; the lists of rows are gone from memory afterwards."""
    spec = load_section(PreprocessParams).spec
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
            seed=params.seed,
            augment=augment,
            store=params.store,
        )
    variants = f" (of them {meta.variants:,} variants of small classes)" if meta.variants else ""
    print(
        f"train {meta.counts['train']:,}{variants}, val {meta.counts['val']:,}, test {meta.counts['test']:,} images of "
        f"{spec.height} x {spec.width} pixels, {len(meta.labels)} classes, data {meta.data_id[:12]} -> {PACKED}"
    )
    if meta.store == "stream":
        print(
            f"The training images stay in {SHARDS}; {meta.sample:,} of them are in {PACKED} as a sample, of which mean "
            "and deviation are taken."
        )
    return meta


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

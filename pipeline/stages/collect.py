"""Read the sources, append what is new to the Parquet shards, list the images of this data version."""

from __future__ import annotations

from collections import Counter

from pipeline.stages import run_stage
from visionloop.config import CollectParams, load_section
from visionloop.data.shards import append
from visionloop.data.sources import open_sources
from visionloop.files import write_json
from visionloop.paths import COLLECT_REPORT, IMAGES, SHARDS

MAX_NAMES = 200  # of skipped files in the report


def main() -> None:
    params = load_section(CollectParams)
    summary = append(open_sources(params), SHARDS, IMAGES, params.images_per_shard, params.max_skipped_share)
    skipped = [item for item in summary.skipped if item.reason != "hidden"]
    reasons = Counter(item.reason for item in skipped)
    write_json(
        COLLECT_REPORT,
        {
            "images": summary.images,
            "classes": summary.classes,
            "bytes": summary.bytes,
            "new_images": summary.new_images,
            "gone_images": summary.gone_images,
            "shards": summary.shards,
            "new_shards": summary.new_shards,
            "images_by_source": dict(summary.images_by_source),
            "skipped": len(skipped),
            # DVC shows numbers and leaves lists aside.
            "skipped_by_reason": [{"reason": reason, "count": count} for reason, count in sorted(reasons.items())],
            "skipped_files": [{"path": item.path, "reason": item.reason} for item in skipped[:MAX_NAMES]],
        },
    )
    print(f"{summary.images:,} images in {summary.classes} classes, {summary.bytes / 1e6:.1f} MB -> {IMAGES}")
    print(f"{summary.new_images:,} new in {summary.new_shards} shards, {summary.gone_images:,} gone -> {SHARDS}")
    for reason, count in sorted(reasons.items()):
        examples = ", ".join(item.path for item in skipped if item.reason == reason)
        print(f"skipped, {reason}: {count} ({examples[:150]}{'…' if len(examples) > 150 else ''}); see {COLLECT_REPORT}")


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

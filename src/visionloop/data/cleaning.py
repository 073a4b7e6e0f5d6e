"""Which images are kept, and why the others are not: measure, score, judge.

`measure_all` looks at each image by itself, `score` at the images among each other, and `judge` gives each a verdict. A
rejected image is a row with a reason; nothing is deleted.

Does not cover: wrong labels of pictures that differ, which need a trained model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visionloop.config import CleanParams, CleanReason
from visionloop.data.duplicates import connected, hamming, near_pairs
from visionloop.data.executor import in_batches, map_batches
from visionloop.data.measures import MeasureBatch, Measurement, thumbs_of
from visionloop.errors import DataError
from visionloop.progress import track
from visionloop.records import CleanRow, ImageRow
from visionloop.tables import read_rows

# One image for each of train, val and test.
MIN_CLASS_IMAGES = 3
_BATCH_IMAGES = 64
_BATCH_BYTES = 8 << 20


@dataclass(frozen=True)
class NearDuplicate:
    """The image that another one resembles."""

    of: int  # its position
    hash_bits: int  # that differ
    pixel_error: float  # see `duplicates.pixel_error`


@dataclass(frozen=True)
class Scores:
    """What the images are to each other, a value per image in the order of the rows."""

    original: list[int]  # position of the first image of the same bytes; its own when it is that
    labels: list[tuple[str, ...]]  # all labels that its bytes carry, sorted
    near: dict[int, NearDuplicate]  # for a near duplicate of an earlier image
    cluster: list[int]  # position of the first image among its exact and near duplicates


def measure_all(
    rows: Sequence[ImageRow], encoded: Iterable[tuple[ImageRow, bytes]], executor: Executor, max_pixels: int
) -> list[Measurement]:
    """Measure every image in the processes of `executor`; results stand in the order of `rows`.

    `encoded` brings the bytes of the rows in any order (see `shards.read_bytes`).
    """
    place = {(row.shard, row.row): index for index, row in enumerate(rows)}
    batches = in_batches(encoded, _BATCH_IMAGES, _BATCH_BYTES, size=lambda item: len(item[1]))
    jobs = ([(place[row.shard, row.row], data) for row, data in batch] for batch in batches)
    measured = (one for batch in map_batches(executor, MeasureBatch(max_pixels), jobs) for one in batch)
    found = dict(track(measured, "measure", len(rows)))
    return [found[index] for index in range(len(rows))]


def score(rows: Sequence[ImageRow], measurements: Sequence[Measurement], params: CleanParams) -> Scores:
    """Find exact duplicates, labels that contradict each other, and near duplicates. "First" is by path."""
    by_path = sorted(range(len(rows)), key=lambda index: (rows[index].path, rows[index].label))
    original = [0] * len(rows)
    first_of: dict[str, int] = {}
    labels: dict[str, set[str]] = {}
    for index in by_path:
        original[index] = first_of.setdefault(rows[index].id, index)
        labels.setdefault(rows[index].id, set()).add(rows[index].label)

    # One image of each content, in the order of paths, and none that is blank: its hash says nothing.
    seen = [
        index
        for index in by_path
        if original[index] == index
        and not measurements[index].fault
        and measurements[index].contrast >= params.blank_contrast
    ]
    hashes = np.array([measurements[index].perceptual_hash for index in seen], dtype=np.uint64)
    first, second, errors = near_pairs(
        hashes,
        thumbs_of([measurements[index] for index in seen]),
        params.near_duplicate_hash_bits,
        params.near_duplicate_error,
    )
    near: dict[int, NearDuplicate] = {}
    bits = hamming(hashes[first], hashes[second])
    for of, index, bit, error in zip(first, second, bits, errors, strict=True):
        found = NearDuplicate(seen[of], int(bit), float(error))
        known = near.get(seen[index])
        if known is None or found.pixel_error < known.pixel_error:
            near[seen[index]] = found
    cluster = list(original)
    for position, lowest in enumerate(connected(len(seen), first, second)):  # `seen` is in the order of paths
        cluster[seen[position]] = seen[lowest]
    cluster = [cluster[original[index]] for index in range(len(rows))]
    return Scores(original, [tuple(sorted(labels[row.id])) for row in rows], near, cluster)


def judge(
    rows: Sequence[ImageRow], measurements: Sequence[Measurement], scores: Scores, params: CleanParams
) -> list[CleanRow]:
    """Give each image its verdict, one reason at most: the first that applies in the order of `_reason`."""
    result = []
    for index, (row, measured) in enumerate(zip(rows, measurements, strict=True)):
        reason, detail = _reason(index, rows, measured, scores, params)
        decoded = not measured.fault
        result.append(
            CleanRow(
                id=row.id,
                label=row.label,
                path=row.path,
                width_pixels=measured.width_pixels,
                height_pixels=measured.height_pixels,
                mode=measured.mode,
                format=measured.format,
                brightness=measured.brightness,
                contrast=measured.contrast,
                sharpness=measured.sharpness,
                perceptual_hash=f"{measured.perceptual_hash:016x}" if decoded else "",
                cluster=rows[scores.cluster[index]].id,
                verdict="reject" if reason in params.reject else "keep",
                reason=reason or "",
                detail=detail,
                split_hint=row.split_hint,
            )
        )
    return result


def check(rows: Sequence[CleanRow], params: CleanParams) -> None:
    """Refuse a data set that cannot be learnt from.

    Raises:
        DataError: too many images are rejected, fewer than two classes are left, or a class is too small.
    """
    kept = Counter(row.label for row in rows if row.verdict == "keep")
    rejected = len(rows) - kept.total()
    if rejected > params.max_rejected_share * len(rows):
        common = Counter(row.reason for row in rows if row.verdict == "reject").most_common(3)
        reasons = ", ".join(f"{reason} {count}" for reason, count in common)
        raise DataError(
            f"{rejected} of {len(rows)} images are rejected ({reasons}), more than clean.max_rejected_share "
            f"{params.max_rejected_share:g} allows; see reports/cleaning.html, then mend the source or raise the share."
        )
    labels = sorted({row.label for row in rows})
    if len(kept) < 2:
        raise DataError(
            f"Of {len(labels)} classes, {len(kept)} has images left after cleaning; a classifier needs two or more. "
            "See reports/cleaning.html."
        )
    small = [label for label in labels if kept[label] < MIN_CLASS_IMAGES]
    if small:
        named = ", ".join(f"{label!r} ({kept[label]})" for label in small[:10])
        raise DataError(
            f"These classes have fewer than {MIN_CLASS_IMAGES} images left, so they cannot stand in train, val and test: "
            f"{named}{' and more' if len(small) > 10 else ''}; add images or remove the class."
        )


def summary(rows: Sequence[CleanRow]) -> dict[str, float]:
    """The flat numbers of `reports/cleaning.json`."""
    kept = Counter(row.label for row in rows if row.verdict == "keep")
    reasons = Counter(row.reason for row in rows if row.reason)
    clusters: dict[str, list[str]] = {}
    for row in rows:
        if row.verdict == "keep":
            clusters.setdefault(row.cluster, []).append(row.label)
    shared = [labels for labels in clusters.values() if len(labels) > 1]
    return {
        "images": len(rows),
        "kept": kept.total(),
        "rejected": len(rows) - kept.total(),
        "rejected_share": round((len(rows) - kept.total()) / len(rows), 6),
        "classes": len(kept),
        "smallest_class_images": min(kept.values(), default=0),
        "largest_class_images": max(kept.values(), default=0),
        "near_duplicate_clusters": len(shared),
        "largest_cluster_images": max(map(len, shared), default=1),
        "clusters_across_labels": sum(len(set(labels)) > 1 for labels in shared),
        **{f"reason_{reason}": reasons[reason] for reason in sorted(reasons)},
    }


def read_clean(path: Path) -> list[CleanRow]:
    """The judged images, sorted by path.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return read_rows(path, CleanRow)


def _reason(  # noqa: PLR0911 - one return per reason, in order of precedence
    index: int, rows: Sequence[ImageRow], measured: Measurement, scores: Scores, params: CleanParams
) -> tuple[CleanReason | None, str]:
    """The first reason that applies, from "is no image" over "contradicts another" to "looks like another"."""
    if measured.fault:
        return _fault(measured.fault), measured.fault_detail
    size = f"{measured.width_pixels} x {measured.height_pixels} pixels"
    if min(measured.width_pixels, measured.height_pixels) < params.min_side_pixels:
        return "too_small", f"It has {size}; the shorter side must have {params.min_side_pixels}."
    if len(scores.labels[index]) > 1:
        return "conflicting_labels", f"The same bytes stand under {', '.join(map(repr, scores.labels[index]))}."
    if scores.original[index] != index:
        return "exact_duplicate", f"The same bytes as {rows[scores.original[index]].path}."
    if measured.contrast < params.blank_contrast:
        return (
            "blank",
            f"Its gray levels spread by {measured.contrast:.2f} around {measured.brightness:.1f}; "
            f"{params.blank_contrast:g} is the least.",
        )
    if near := scores.near.get(index):
        other = rows[near.of]
        label = "" if other.label == rows[index].label else f"; that image has the label {other.label!r}"
        return (
            "near_duplicate",
            f"Looks like {other.path}: pixels differ by {near.pixel_error:.3f}, {near.hash_bits} of 64 hash bits{label}.",
        )
    return None, ""


def _fault(code: str) -> CleanReason:
    faults: dict[str, CleanReason] = {
        "empty": "empty",
        "truncated": "truncated",
        "unsupported_format": "unsupported_format",
        "too_large": "too_large",
    }
    return faults.get(code, "unreadable")

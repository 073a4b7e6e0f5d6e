"""Which images are kept, and why the others are not: measure, score, judge.

`measure_all` looks at each image by itself, `score` at the images among each other, and `judge` gives each a verdict, which
a person's decision overrules (see `decisions`). A rejected image is a row with a reason; nothing is deleted.

What is dark, bright or without information is judged by fixed thresholds, what is blurred or of an odd size by the set's own
distribution, since thumbnails and photos differ there. The thresholds come from faults planted into CIFAR-10 and photos of
clothing; `benchmarks/planted_faults.py` shows what they find. Does not cover: seams of single regions (a thumb before the
lens, a watermark), and faces or other content that must not be there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from visionloop.config import CleanParams, CleanReason
from visionloop.data.decisions import Decision, Resolved
from visionloop.data.duplicates import connected, near_pairs
from visionloop.data.embedding import embed
from visionloop.data.executor import in_batches, map_batches
from visionloop.data.label_issues import find_label_issues
from visionloop.data.measures import MeasureBatch, Measures
from visionloop.data.out_of_fold import Answers, OutOfFold, match
from visionloop.data.outliers import find_outliers
from visionloop.data.thumbs import Thumbs
from visionloop.errors import DataError
from visionloop.paths import OUT_OF_FOLD_ANSWERS
from visionloop.progress import track
from visionloop.records import CleanRow, ImageRow
from visionloop.tables import read_rows

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Findings = npt.NDArray[np.uint32]

# One image for each of train, val and test.
MIN_CLASS_IMAGES = 3
FINDINGS: tuple[CleanReason, ...] = get_args(CleanReason)
# What `CleanRow.reason` says where a person decided.
DECIDED: dict[str, str] = {"keep": "decision_keep", "drop": "decision_drop", "relabel": "decision_relabel"}
MAX_CLASSES_IN_REPORT = 200  # metrics files are read by people

_BATCH_IMAGES = 64
_BATCH_BYTES = 8 << 20
_SEED = 0  # of features, folds and samples: the same images give the same verdicts

_DARK = 56  # 99 % of the pixels at most so bright
_BRIGHT = 248  # 95 % of the pixels at least so bright
_LOW_ENTROPY_BITS = 1.0
_BLUR_DEVIATIONS = 5.0  # robust standard deviations below the set's median; by chance one image in 3 million
_ODD_FACTOR = 2.5  # beyond the quartiles; enlarged and halved copies of a set's images stay within
_ODD_QUARTILE_RANGES = 3.0
_LARGER = 4 / 3  # an image so much larger than most is judged for blur at half its size, since enlarging adds no detail
_MEASURED_SIDE = 128  # see `measures`


@dataclass(frozen=True)
class Typical:
    """What is usual in this set: medians, and the bounds beyond which an image is odd."""

    steepness: float
    steepness_spread: float
    size_bounds: tuple[float, float]  # square root of width times height, pixels
    most_elongated: float  # longer by shorter side


@dataclass(frozen=True)
class Near:
    """Which images resemble an earlier one, an array per number, a value per image."""

    of: IntArray  # position of the closest earlier image that it resembles, else -1
    error: FloatArray  # see `duplicates.picture_error`
    bits: IntArray  # of the hashes that differ
    mirrored: BoolArray
    cluster: IntArray  # position of the first image among its exact and near duplicates


@dataclass(frozen=True)
class Doubts:
    """What features learnt from the set say of each image, an array per number, a value per image."""

    outlier_score: FloatArray
    outlier: BoolArray
    label_quality: FloatArray
    suggested: IntArray  # the class that disputes the label, else -1
    suspect: BoolArray
    notes: tuple[str, ...]  # what could not be judged, and why


@dataclass(frozen=True)
class Scores:
    """What the images are to each other; every array has one value per image, in the order of the rows."""

    classes: tuple[str, ...]  # sorted; `label` and `Doubts.doubts.suggested` are positions in it
    label: IntArray  # after decisions
    decided: dict[int, Decision]  # by position
    unknown_decisions: int
    original: IntArray  # position of the first image of the same bytes; its own when it is that
    conflicts: dict[int, tuple[str, ...]]  # labels that the bytes of this original stand under, where there are several
    findings: Findings  # bit n: FINDINGS[n] applies
    near: Near
    doubts: Doubts
    blur: FloatArray  # robust deviations of the steepness from the set's median
    typical: Typical


def measure_all(
    rows: Sequence[ImageRow],
    encoded: Iterable[tuple[ImageRow, bytes]],
    executor: Executor,
    max_pixels: int,
    thumbs: Thumbs,
) -> Measures:
    """Measure every image in the processes of `executor`; numbers and `thumbs` stand in the order of `rows`.

    `encoded` brings the bytes of the rows in any order (see `shards.read_bytes`).
    """
    place = {(row.shard, row.row): index for index, row in enumerate(rows)}
    batches = in_batches(encoded, _BATCH_IMAGES, _BATCH_BYTES, size=lambda item: len(item[1]))
    jobs = ([(place[row.shard, row.row], data) for row, data in batch] for batch in batches)
    measures = Measures.empty(len(rows))

    def measured() -> Iterator[int]:
        for batch in map_batches(executor, MeasureBatch(max_pixels), jobs):
            measures.put(batch, thumbs)
            yield from range(len(batch.numbers))

    done = sum(1 for _ in track(measured(), "measure", len(rows)))
    assert done == len(rows), (done, len(rows))
    return measures


def score(
    rows: Sequence[ImageRow],
    measures: Measures,
    thumbs: Thumbs,
    decisions: Resolved,
    params: CleanParams,
    *,
    answers: OutOfFold | None = None,
) -> Scores:
    """Find what only shows among the images: duplicates, contradictions, what is odd for this set, what may be mislabelled.

    "First" is by position; `shards.read_images` gives rows sorted by path. `answers` are of cross-validated networks, which
    judge the labels of the images that they are about.
    """
    count = len(rows)
    decided = {index: found for index, row in enumerate(rows) if (found := decisions.by_id.get(row.id)) is not None}
    classes, label = _labels(rows, decided)
    original = _originals(rows)
    conflicting, conflicts = _conflicts(original, label, classes)

    findings = np.zeros(count, dtype=np.uint32)
    for index, (fault, _) in measures.faults.items():
        findings[index] |= _bit(_fault(fault))
    decoded = measures.width_pixels > 0
    unique = original == np.arange(count)
    blank = decoded & (measures.contrast < params.blank_contrast)
    _mark(findings, "conflicting_labels", conflicting & decoded)
    _mark(findings, "exact_duplicate", ~unique & ~conflicting & decoded)
    _mark(findings, "blank", blank)
    typical, blur = _typical(measures, decoded & unique & ~blank)
    _mark_odd(findings, measures, typical, blur)
    _mark_plain(findings, measures, params)

    # Only what may stay is compared: a copy of a dropped image is no longer a copy. The hash of a blank image says nothing.
    usable = np.flatnonzero(decoded & unique & ~blank & _kept(findings, decided, params))
    near = _resemblance(measures, thumbs, usable, original, params)
    _mark(findings, "near_duplicate", near.of >= 0)
    looks = np.column_stack([
        measures.brightness, measures.contrast, np.log1p(measures.sharpness), measures.entropy, measures.colourfulness
    ])  # fmt: skip
    matched, note = None, ""
    if answers is not None and params.suspect_labels:
        ids = [rows[index].id for index in usable.tolist()]
        matched, note = match(answers, ids, label[usable], classes, OUT_OF_FOLD_ANSWERS)
    doubts = _doubts(thumbs, usable, label, near.cluster, len(classes), looks=looks, params=params, answers=matched)
    if note:
        doubts = replace(doubts, notes=(*doubts.notes, note))
    _mark(findings, "outlier", doubts.outlier)
    _mark(findings, "suspect_label", doubts.suspect)
    return Scores(classes, label, decided, decisions.unknown, original, conflicts, findings, near, doubts, blur, typical)


class Judged(Sequence[CleanRow]):
    """The images with their verdicts. A row is made when it is asked for, so that a million of them need no memory."""

    def __init__(self, images: Sequence[ImageRow], measures: Measures, scores: Scores, params: CleanParams) -> None:
        self.images, self.measures, self.scores, self.params = images, measures, scores, params
        self.kept = _kept(scores.findings, scores.decided, params)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> CleanRow:  # type: ignore[override] # no slices
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        image, m, s = self.images[index], self.measures, self.scores
        decision = s.decided.get(index)
        return CleanRow(
            id=image.id,
            label=s.classes[s.label[index]],
            given_label=image.label,
            path=image.path,
            source=image.source,
            group=image.group,
            time=image.time,
            width_pixels=int(m.width_pixels[index]),
            height_pixels=int(m.height_pixels[index]),
            mode=str(m.mode[index]),
            format=str(m.format[index]),
            bit_depth=int(m.bit_depth[index]),
            alpha=bool(m.alpha[index]),
            animated=bool(m.animated[index]),
            exif_orientation=int(m.exif_orientation[index]) or 1,
            brightness=float(m.brightness[index]),
            contrast=float(m.contrast[index]),
            sharpness=float(m.sharpness[index]),
            entropy=float(m.entropy[index]),
            colourfulness=float(m.colourfulness[index]),
            perceptual_hash=f"{int(m.hash[index]):016x}" if m.width_pixels[index] else "",
            cluster=self.images[int(s.near.cluster[index])].id,
            outlier_score=float(s.doubts.outlier_score[index]),
            label_quality=float(s.doubts.label_quality[index]),
            suggested_label=s.classes[s.doubts.suggested[index]] if s.doubts.suggested[index] >= 0 else "",
            findings=self.findings(index),
            verdict="keep" if self.kept[index] else "reject",
            reason=self.reason(index),
            detail=" ".join(self.details(index)),
            decided_by=decision.who if decision else "",
            split_hint=image.split_hint,
        )

    def findings(self, index: int) -> tuple[CleanReason, ...]:
        """Every reason that applies to an image, the gravest first."""
        bits = int(self.scores.findings[index])
        return tuple(name for place, name in enumerate(FINDINGS) if bits >> place & 1)

    def reason(self, index: int) -> str:
        """The gravest finding, or what a person decided where that has an effect; "" for an image without remark."""
        decision = self.scores.decided.get(index)
        findings = self.findings(index)
        if decision and _effective(decision, findings, bool(self.kept[index])):
            return DECIDED[decision.verb]
        return findings[0] if findings else ""

    def details(self, index: int) -> list[str]:
        """A sentence for each finding and for the decision, with the numbers behind it."""
        found = [self._detail(index, finding) for finding in self.findings(index)]
        decision = self.scores.decided.get(index)
        return [self._decided(index, decision), *found] if decision else found

    def _decided(self, index: int, decision: Decision) -> str:
        findings = self.findings(index)
        why = f" ({decision.why})" if decision.why else ""
        had = self.images[index].label
        relabels = f"relabels it from {had!r} to" if decision.label != had else "confirms its label"
        done = {"keep": "keeps it", "drop": "drops it", "relabel": f"{relabels} {decision.label!r}"}[decision.verb]
        if _effective(decision, findings, bool(self.kept[index])):
            return f"{decision.who} {done}{why}."
        if "exact_duplicate" in findings:
            return f"{decision.who} {done}{why}, which is done to the first image of the same bytes."
        if "conflicting_labels" in findings:
            return f"{decision.who} {done}{why}, which cannot choose between its labels; relabel it."
        if decision.verb == "relabel":
            return f"{decision.who} {done}{why}, and it is still rejected; keep or drop it at its source."
        return f"{decision.who} {done}{why}, and it cannot be kept because it cannot be decoded."

    def _detail(self, index: int, finding: CleanReason) -> str:  # noqa: PLR0911, PLR0912 - one sentence a finding
        m, s, params, typical = self.measures, self.scores, self.params, self.scores.typical
        wide, high = int(m.width_pixels[index]), int(m.height_pixels[index])
        match finding:
            case "unreadable" | "truncated" | "empty" | "unsupported_format" | "too_large":
                return m.faults[index][1]
            case "too_small":
                return f"It has {wide} x {high} pixels; the shorter side must have {params.min_side_pixels}."
            case "conflicting_labels":
                return f"The same bytes stand under {', '.join(map(repr, s.conflicts[int(s.original[index])]))}."
            case "exact_duplicate":
                return f"The same bytes as {self.images[int(s.original[index])].path}."
            case "blank":
                return (
                    f"Its gray levels spread by {m.contrast[index]:.2f} around {m.brightness[index]:.1f}; "
                    f"{params.blank_contrast:g} is the least."
                )
            case "suspect_label":
                return (
                    f"Models that never saw it call it {s.classes[s.doubts.suggested[index]]!r} and give its label a "
                    f"probability of {s.doubts.label_quality[index]:.3f}."
                )
            case "outlier":
                return f"It lies far from all other images: {s.doubts.outlier_score[index]:.2f} of 1."
            case "near_duplicate":
                other = int(s.near.of[index])
                like = "Looks like the mirror image of" if s.near.mirrored[index] else "Looks like"
                differs = s.label[other] != s.label[index]
                label = f"; that image has the label {s.classes[s.label[other]]!r}" if differs else ""
                return (
                    f"{like} {self.images[other].path}: pixels differ by {s.near.error[index]:.3f}, "
                    f"{s.near.bits[index]} of 64 hash bits{label}."
                )
            case "dark":
                return f"99 % of its pixels are at most {m.brightest[index]} bright, of 255; {_DARK} is dark."
            case "bright":
                return f"95 % of its pixels are at least {m.darkest[index]} bright, of 255; {_BRIGHT} is bright."
            case "blurred":
                return (
                    f"Its edges are {-s.blur[index]:.1f} deviations less steep than this set's median; "
                    f"{_BLUR_DEVIATIONS:g} is blurred."
                )
            case "low_information":
                return f"Its gray levels hold {m.entropy[index]:.2f} bits; {_LOW_ENTROPY_BITS:g} is the least."
            case "odd_size":
                low, most = typical.size_bounds
                return f"It has {wide} x {high} pixels; usual here are {low:,.0f} to {most:,.0f} a side."
            case "odd_aspect":
                return (
                    f"Its longer side is {max(wide, high) / min(wide, high):.1f} times its shorter one; up to "
                    f"{typical.most_elongated:.1f} is usual here."
                )
            case "animated":
                return "It has several frames, of which the first is used."


def judge(images: Sequence[ImageRow], measures: Measures, scores: Scores, params: CleanParams) -> Judged:
    """Give each image its verdict: rejected for a finding that `params.reject` lists, unless a person decided."""
    return Judged(images, measures, scores, params)


def check(judged: Judged, params: CleanParams) -> None:
    """Refuse a data set that cannot be learnt from.

    Raises:
        DataError: too many images are rejected, fewer than two classes are left, or a class is too small.
    """
    kept = kept_by_class(judged)
    rejected = len(judged) - kept.total()
    if rejected > params.max_rejected_share * len(judged):
        common = Counter(judged.reason(index) for index in np.flatnonzero(~judged.kept).tolist()).most_common(3)
        reasons = ", ".join(f"{reason} {count}" for reason, count in common)
        raise DataError(
            f"{rejected} of {len(judged)} images are rejected ({reasons}), more than clean.max_rejected_share "
            f"{params.max_rejected_share:g} allows; see reports/cleaning.html, then mend the source or raise the share."
        )
    labels = sorted(set(judged.scores.classes))
    if sum(count > 0 for count in kept.values()) < 2:
        raise DataError(
            f"Of {len(labels)} classes, {sum(count > 0 for count in kept.values())} has images left after cleaning; a "
            "classifier needs two or more. See reports/cleaning.html."
        )
    small = [label for label in labels if kept[label] < MIN_CLASS_IMAGES]
    if small:
        named = ", ".join(f"{label!r} ({kept[label]})" for label in small[:10])
        raise DataError(
            f"These classes have fewer than {MIN_CLASS_IMAGES} images left, so they cannot stand in train, val and test: "
            f"{named}{' and more' if len(small) > 10 else ''}; add images or remove the class."
        )


def kept_by_class(judged: Judged) -> Counter[str]:
    """How many images of each class are kept, classes without any included."""
    classes = judged.scores.classes
    counts = np.bincount(judged.scores.label[judged.kept], minlength=len(classes))
    return Counter(dict(zip(classes, counts.tolist(), strict=True)))


def summary(judged: Judged) -> dict[str, float]:
    """The flat numbers of `reports/cleaning.json`: the set, its reasons and findings, the decisions, the classes."""
    kept = kept_by_class(judged)
    scores = judged.scores
    remarked = np.flatnonzero((scores.findings != 0) | np.isin(np.arange(len(judged)), list(scores.decided))).tolist()
    reasons = Counter(reason for index in remarked if (reason := judged.reason(index)))
    found = {name: int(np.count_nonzero(scores.findings & _bit(name))) for name in FINDINGS}
    clusters, sizes = np.unique(scores.near.cluster[judged.kept], return_counts=True)
    codes = np.unique(np.stack([scores.near.cluster[judged.kept], scores.label[judged.kept]]), axis=1)
    _, labels_of = np.unique(codes[0], return_counts=True)
    with_effect = sum(
        _effective(decision, judged.findings(index), bool(judged.kept[index])) for index, decision in scores.decided.items()
    )
    assert len(clusters) == len(labels_of)
    sizes_of_classes = [count for count in kept.values() if count]
    return {
        "images": len(judged),
        "kept": kept.total(),
        "rejected": len(judged) - kept.total(),
        "rejected_share": round((len(judged) - kept.total()) / len(judged), 6),
        "classes": len(sizes_of_classes),
        "smallest_class_images": min(sizes_of_classes, default=0),
        "largest_class_images": max(sizes_of_classes, default=0),
        "near_duplicate_clusters": int((sizes > 1).sum()),
        "largest_cluster_images": int(sizes.max(initial=1)),
        "clusters_across_labels": int((labels_of > 1).sum()),
        "decisions_applied": with_effect,
        "decisions_without_effect": len(scores.decided) - with_effect,
        "decisions_of_absent_images": scores.unknown_decisions,
        **{f"reason_{reason}": reasons[reason] for reason in sorted(reasons)},
        **{f"finding_{name}": count for name, count in sorted(found.items()) if count},
        **({f"class_{label}": kept[label] for label in sorted(kept)} if len(kept) <= MAX_CLASSES_IN_REPORT else {}),
    }


def read_clean(path: Path) -> list[CleanRow]:
    """The judged images, sorted by path.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return read_rows(path, CleanRow)


def _labels(rows: Sequence[ImageRow], decided: dict[int, Decision]) -> tuple[tuple[str, ...], IntArray]:
    """The classes after decisions, sorted, and each image's position among them."""
    names = [row.label for row in rows]
    for index, decision in decided.items():
        if decision.verb == "relabel":
            names[index] = decision.label
    classes = tuple(sorted(set(names)))
    code_of = {name: code for code, name in enumerate(classes)}
    return classes, np.array([code_of[name] for name in names], dtype=np.int64)


def _conflicts(
    original: IntArray, label: IntArray, classes: tuple[str, ...]
) -> tuple[BoolArray, dict[int, tuple[str, ...]]]:
    """Which images' bytes stand under several labels, and under which, by the original's position."""
    lowest, highest = label.copy(), label.copy()
    np.minimum.at(lowest, original, label)
    np.maximum.at(highest, original, label)
    conflicting = np.asarray((lowest != highest)[original])
    found: dict[int, set[str]] = {}
    for index in np.flatnonzero(conflicting).tolist():
        found.setdefault(int(original[index]), set()).add(classes[label[index]])
    return conflicting, {index: tuple(sorted(names)) for index, names in found.items()}


def _resemblance(measures: Measures, thumbs: Thumbs, usable: IntArray, original: IntArray, params: CleanParams) -> Near:
    """Near duplicates among `usable`, and the clusters of all images."""
    count = len(measures)
    sides = np.minimum(measures.width_pixels, measures.height_pixels).astype(np.int64)
    pairs = near_pairs(measures.hash, measures.mirrored_hash, thumbs, usable, sides=sides, params=params)
    near = Near(
        of=np.full(count, -1, dtype=np.int64),
        error=np.zeros(count, dtype=np.float32),
        bits=np.zeros(count, dtype=np.int64),
        mirrored=np.zeros(count, dtype=bool),
        cluster=original.copy(),
    )
    closest = np.lexsort((pairs.first, pairs.error, pairs.second))
    chosen = closest[np.flatnonzero(np.diff(pairs.second[closest], prepend=-1))]
    later = pairs.second[chosen]
    near.of[later], near.error[later] = pairs.first[chosen], pairs.error[chosen]
    near.bits[later], near.mirrored[later] = pairs.bits[chosen], pairs.mirrored[chosen]
    joined = np.union1d(pairs.first, pairs.second)
    roots = connected(len(joined), np.searchsorted(joined, pairs.first), np.searchsorted(joined, pairs.second))
    near.cluster[joined] = joined[roots]
    near.cluster[:] = near.cluster[original]
    return near


def _doubts(
    thumbs: Thumbs,
    usable: IntArray,
    label: IntArray,
    cluster: IntArray,
    classes: int,
    *,
    looks: npt.NDArray[np.float64],
    params: CleanParams,
    answers: Answers | None,
) -> Doubts:
    """Outliers and suspected labels among `usable`, as far as `params` asks for them.

    `looks` are the measures [N, M]; `answers` are about places among `usable`.
    """
    count = len(label)
    notes: list[str] = []
    score, quality = np.zeros(count, dtype=np.float32), np.ones(count, dtype=np.float32)
    outlier, suspect = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
    suggested = np.full(count, -1, dtype=np.int64)
    if params.outliers or params.suspect_labels:
        features = embed(thumbs, usable, _SEED)
        if params.outliers:
            found = find_outliers(features, label[usable], _SEED, looks[usable])
            score[usable], outlier[usable] = found.score, found.outlier
            notes.append(found.note)
        if params.suspect_labels:
            issues = find_label_issues(features, label[usable], cluster[usable], classes, _SEED, answers=answers)
            quality[usable], suggested[usable], suspect[usable] = issues.quality, issues.suggested, issues.suspect
            notes.append(issues.note)
    return Doubts(score, outlier, quality, suggested, suspect, tuple(note for note in notes if note))


def _originals(rows: Sequence[ImageRow]) -> IntArray:
    _, first, place = np.unique(image_ids(rows), return_index=True, return_inverse=True)
    return np.asarray(first[place], dtype=np.int64)


def image_ids(rows: Sequence[ImageRow]) -> npt.NDArray[np.bytes_]:
    """The ids of the images, S64 [N]."""
    return np.array([row.id for row in rows], dtype="S64")


def _bit(finding: CleanReason) -> np.uint32:
    return np.uint32(1 << FINDINGS.index(finding))


def _mark(findings: Findings, finding: CleanReason, where: BoolArray) -> None:
    findings[where] |= _bit(finding)


def _fault(code: str) -> CleanReason:
    faults: dict[str, CleanReason] = {
        "empty": "empty",
        "truncated": "truncated",
        "unsupported_format": "unsupported_format",
        "too_large": "too_large",
    }
    return faults.get(code, "unreadable")


def _undecided(findings: Findings, params: CleanParams) -> BoolArray:
    mask = np.uint32(sum(1 << FINDINGS.index(name) for name in params.reject))
    return np.asarray((findings & mask) == 0)


_NEVER_KEPT: tuple[CleanReason, ...] = (
    "unreadable", "truncated", "empty", "unsupported_format", "too_large", "exact_duplicate", "conflicting_labels",
)  # fmt: skip


def _kept(findings: Findings, decided: dict[int, Decision], params: CleanParams) -> BoolArray:
    kept = _undecided(findings, params)
    never = sum(1 << FINDINGS.index(name) for name in _NEVER_KEPT)
    for index, decision in decided.items():
        if decision.verb == "drop":
            kept[index] = False
        elif decision.verb == "keep":
            kept[index] = not int(findings[index]) & never
        else:  # a person who gave the label has answered the doubt about it
            kept[index] = bool(_undecided(findings[index : index + 1] & ~_bit("suspect_label"), params)[0])
    return kept


def _effective(decision: Decision, findings: Sequence[str], kept: bool) -> bool:
    """Whether the decision is why the image is where it is."""
    if decision.verb == "drop":
        return "exact_duplicate" not in findings
    return kept


def _mark_plain(findings: Findings, measures: Measures, params: CleanParams) -> None:
    """What an image shows by itself."""
    decoded = measures.width_pixels > 0
    smallest = np.minimum(measures.width_pixels, measures.height_pixels)
    _mark(findings, "too_small", decoded & (smallest < params.min_side_pixels))
    _mark(findings, "dark", decoded & (measures.brightest <= _DARK))
    _mark(findings, "bright", decoded & (measures.darkest >= _BRIGHT))
    low = (measures.entropy < _LOW_ENTROPY_BITS) & (measures.contrast >= params.blank_contrast)
    _mark(findings, "low_information", decoded & low)
    _mark(findings, "animated", decoded & measures.animated)


def _mark_odd(findings: Findings, measures: Measures, typical: Typical, blur: FloatArray) -> None:
    """What an image shows against what is usual in the set; a blank one is not blurred."""
    decoded = measures.width_pixels > 0
    _mark(findings, "blurred", decoded & (blur < -_BLUR_DEVIATIONS) & ((findings & _bit("blank")) == 0))
    side, elongation = _side_and_elongation(measures)
    least, most = typical.size_bounds
    _mark(findings, "odd_size", decoded & ((side < least) | (side > most)))
    _mark(findings, "odd_aspect", decoded & (elongation > typical.most_elongated))


def _side_and_elongation(measures: Measures) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The side of a square of the image's area, and its longer side by its shorter: landscape and portrait are alike."""
    wide = np.maximum(measures.width_pixels, 1).astype(np.float64)
    high = np.maximum(measures.height_pixels, 1).astype(np.float64)
    return np.sqrt(wide * high), np.maximum(wide, high) / np.minimum(wide, high)


def _typical(measures: Measures, shown: BoolArray) -> tuple[Typical, FloatArray]:
    """What is usual among the images `shown`, and every image's deviation in steepness."""
    if not shown.any():
        return Typical(0.0, 1.0, (0.0, float("inf")), float("inf")), np.zeros(len(measures), dtype=np.float32)
    side, elongation = _side_and_elongation(measures)
    longest = np.maximum(np.maximum(measures.width_pixels, measures.height_pixels), 1).astype(np.float64)
    measured_side = longest / 2 ** np.maximum(np.floor(np.log2(longest / _MEASURED_SIDE)), 0)
    larger = measured_side > _LARGER * np.median(measured_side[shown])
    steepness = np.where(larger, measures.steepness_half, measures.steepness)
    median = float(np.median(steepness[shown]))
    # A set of one kind of picture varies by less than a picture does under another encoder.
    spread = max(1.4826 * float(np.median(np.abs(steepness[shown] - median))), _LEAST_BLUR_SPREAD)
    typical = Typical(median, spread, _bounds(side[shown]), _bounds(elongation[shown])[1])
    return typical, ((steepness - median) / spread).astype(np.float32)


_LEAST_BLUR_SPREAD = 0.1


def _bounds(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(np.log(values), (0.25, 0.75))
    margin = max(_ODD_QUARTILE_RANGES * (high - low), np.log(_ODD_FACTOR))
    return float(np.exp(low - margin)), float(np.exp(high + margin))

"""Which side every kept image stands on: by content or time, stratified, in whole groups, and for good once it is test.

A group is what duplicates, a source's own group (a patient, a camera) and closeness in time join. Within a class, free
groups are ranked by a hash of the seed and of their content and fill the exact quotas, so neither the order of files nor
the clock has a say; with `newest_in_test` the newest ones fill test, the next newest val. Train and val also get folds.

Does not cover: images with several labels at once, and whose turn a fold is; training reads the sides.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visionloop.config import SplitParams
from visionloop.errors import ArtifactError, DataError
from visionloop.records import SPLITS, CleanRow, Split, SplitRow
from visionloop.tables import read_metadata, read_rows, read_table, schema_of, write_rows

_KEY = "visionloop.split"
TRAIN, VAL, TEST = 0, 1, 2  # positions in SPLITS
# The order in which a side wins when duplicates pull to several, and in which deficits are filled.
_STRICT_FIRST = (TEST, VAL, TRAIN)
MEASURES = ("brightness", "contrast", "sharpness", "entropy", "colourfulness")
# Two-sample Kolmogorov-Smirnov at one false alarm in a thousand: sqrt(-ln(0.001 / 2) / 2).
_KS_AT_ONE_IN_A_THOUSAND = math.sqrt(-math.log(0.001 / 2) / 2)

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Columns:
    """What this stage reads of a `CleanRow`."""

    id: str
    label: str
    source: str
    group: str
    time: datetime
    brightness: float
    contrast: float
    sharpness: float
    entropy: float
    colourfulness: float
    cluster: str
    verdict: str
    split_hint: Split | None


@dataclass(frozen=True, eq=False)
class Kept:
    """The kept images in columns, sorted by id and label; names are numbered, so that a million of them stay small."""

    ids: list[str]  # [N]
    labels: list[str]  # the classes, sorted
    label: IntArray  # [N] positions in `labels`
    clusters: list[str]
    cluster: IntArray  # [N] positions in `clusters`
    group: IntArray  # [N] numbers of (source, group); -1 where the source names none
    source: IntArray  # [N]
    time: IntArray  # [N] microseconds since 1970, UTC
    hint: IntArray  # [N] positions in SPLITS, -1 for none
    measures: dict[str, npt.NDArray[np.float64]]  # [N] each of MEASURES

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, rows: Sequence[CleanRow]) -> Kept:
        """The kept ones of `rows`, in any order."""
        schema = schema_of(_Columns)
        return cls._from(pa.table([[getattr(row, name) for row in rows] for name in schema.names], schema=schema))

    @classmethod
    def _from(cls, table: pa.Table) -> Kept:
        table = table.filter(pc.equal(table["verdict"], "keep"))
        table = table.take(pc.sort_indices(table, sort_keys=[("id", "ascending"), ("label", "ascending")]))
        labels, label = _numbered(table["label"])
        clusters, cluster = _numbered(table["cluster"])
        _, source = _numbered(table["source"])
        groups, group = _numbered(table["group"])
        joint = np.where(np.array([name != "" for name in groups], dtype=bool)[group], source * len(groups) + group, -1)
        hint = np.full(len(table), -1, dtype=np.int64)
        for number, split in enumerate(SPLITS):
            hint[pc.fill_null(pc.equal(table["split_hint"], split), False).to_numpy()] = number
        return cls(
            table["id"].to_pylist(),
            labels,
            label,
            clusters,
            cluster,
            joint,
            source,
            table["time"].cast(pa.int64()).to_numpy(),
            hint,
            {name: table[name].to_numpy() for name in MEASURES},
        )


def _numbered(column: pa.ChunkedArray) -> tuple[list[str], IntArray]:
    """The different values, sorted, and for each row the position of its own."""
    encoded = column.combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    place = np.empty(len(names), dtype=np.int64)
    place[order] = np.arange(len(names))
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    return [names[index] for index in order], place[codes] if len(codes) else np.zeros(0, dtype=np.int64)


def read_kept(path: Path) -> Kept:
    """The kept images of `data/clean.parquet`.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return Kept._from(read_table(path, schema_of(_Columns)))


@dataclass(frozen=True)
class Ledger:
    """What an earlier run decided: the file that this stage writes, read before it is replaced."""

    splits: Mapping[str, Split] = field(default_factory=dict)  # by image id; gone images are kept where they were test
    seed: int | None = None
    shares: tuple[float, float, float] | None = None
    newest_in_test: bool = False
    folds: Mapping[str, int] = field(default_factory=dict)  # by image id
    fold_count: int | None = None

    def redraws(self, params: SplitParams) -> bool:
        """Whether seed, shares or order have changed since, so that train and val are drawn anew."""
        drawn = (params.seed, _shares(params), params.newest_in_test)
        return bool(self.splits) and (self.seed, self.shares, self.newest_in_test) != drawn


@dataclass(frozen=True, eq=False)
class _Groups:
    """Images that must stand on one side, numbered by their first image."""

    of: IntArray  # [N] the group of each image
    count: int
    pairs: IntArray  # [P, 3] group, label, images of both, sorted
    rank: npt.NDArray[np.uint64]  # [G] by content
    newest: IntArray  # [G] time of the newest image


def assign(kept: Kept, params: SplitParams, previous: Ledger) -> list[SplitRow]:
    """Assign the kept images; sorted by id.

    In this order: an explicit `split_hint`; the side of an earlier run (test always, train and val unless seed, shares or
    order have changed); the quotas of the class. A group stands where its strictest member does: test before val before
    train. Where the hints leave a side out, that side is drawn from the images hinted at train.

    Folds are assigned to whole groups of train and val, each to the fold that has the fewest of its class. An image keeps
    its fold while `params.folds` and the seed stay, unless a new image joins its group to one of another fold.

    Raises:
        DataError: a class has fewer than three independent groups.
    """
    groups = _join(kept, params)
    _refuse_small_classes(kept, groups)
    side, allowed = _settled(kept, groups, params, previous)
    order = np.lexsort((groups.rank, -groups.newest)) if params.newest_in_test else np.argsort(groups.rank, kind="stable")
    work = _Assignment(kept, groups, params, side=side, allowed=allowed, order=order)
    work.run()
    sides = np.array(work.side, dtype=np.int64)[groups.of]
    folds = _folds(kept, groups, sides, params, previous)
    return [
        SplitRow(image, kept.labels[label], SPLITS[split], kept.clusters[cluster], fold)
        for image, label, split, cluster, fold in zip(
            kept.ids, kept.label.tolist(), sides.tolist(), kept.cluster.tolist(), folds.tolist(), strict=True
        )
    ]


def check(rows: Sequence[SplitRow], kept: Kept, params: SplitParams, frozen_test: Iterable[str] = ()) -> None:
    """Prove that nothing leaks, from the images' own columns and not from the groups that `assign` has made.

    `rows` are those of `kept`, in its order.

    Raises:
        DataError: an image, a cluster, a group or a burst stands on two sides, an image of `frozen_test` is not in test, or
            a class is missing on a side.
    """
    if [row.id for row in rows] != kept.ids:
        raise DataError(
            "The split does not hold the kept images, each once; remove data/split.parquet and run `dvc repro split`."
        )
    number = {split: index for index, split in enumerate(SPLITS)}
    sides = np.array([number[row.split] for row in rows], dtype=np.int64)
    pairs = [("the image", _same_image(kept)), ("the group of duplicates", _same(kept.cluster))]
    if params.by_group:
        pairs.append(("the group", _same(kept.group)))
    if params.time_gap_seconds:
        pairs.append(("the burst", _close_in_time(kept, params.time_gap_seconds)))
    for name, (first, second) in pairs:
        leaks = np.flatnonzero(sides[first] != sides[second])
        if len(leaks):
            one, other = int(first[leaks[0]]), int(second[leaks[0]])
            raise DataError(
                f"Leak: {name} of image {kept.ids[one][:12]}… stands in {SPLITS[sides[one]]} and, with image "
                f"{kept.ids[other][:12]}…, in {SPLITS[sides[other]]}; remove data/split.parquet and run `dvc repro split`."
            )
    split_of = {row.id: row.split for row in rows}
    moved = sorted(image for image in frozen_test if split_of.get(image, "test") != "test")
    if moved:
        raise DataError(
            f"Leak: {len(moved)} images were test in an earlier run and are no longer (first: {moved[0][:12]}…, now "
            f"{split_of[moved[0]]}); bring data/split.parquet back with `dvc checkout` and run `dvc repro split`."
        )
    present = np.zeros((len(kept.labels), len(SPLITS)), dtype=bool)
    present[kept.label, sides] = True
    for label, there in zip(kept.labels, present, strict=True):
        missing = [split for split, found in zip(SPLITS, there, strict=True) if not found]
        if missing:
            raise DataError(
                f"Class {label!r} has no image in {' and '.join(missing)}: a pre-split folder, large groups or an earlier "
                "run put all of them elsewhere; add images of it, or remove data/split.parquet to draw a new split."
            )


def frozen_test(kept: Kept, previous: Ledger) -> set[str]:
    """Ids of earlier test images that must still be test: all but those that the user's folders now put elsewhere."""
    away = [VAL] if TEST in _sides_of_train(kept) else [TRAIN, VAL]
    hinted_away = {kept.ids[index] for index in np.flatnonzero(np.isin(kept.hint, away)).tolist()}
    return {image for image, split in previous.splits.items() if split == "test"} - hinted_away


def summary(rows: Sequence[SplitRow], kept: Kept, params: SplitParams, previous: Ledger) -> dict[str, Any]:
    """The numbers of `reports/split.json`; DVC shows the flat ones and leaves the lists aside.

    Per class: images and shares on each side. Between train and the other sides: total variation of the class shares, and
    the Kolmogorov-Smirnov distance of each measure with the distance that chance reaches once in a thousand times.
    `warnings` are sentences about what is beyond `params.max_difference` and, for a measure, beyond chance.
    """
    number = {split: index for index, split in enumerate(SPLITS)}
    sides = np.array([number[row.split] for row in rows], dtype=np.int64)
    counts = np.zeros((len(kept.labels), len(SPLITS)), dtype=np.int64)
    np.add.at(counts, (kept.label, sides), 1)
    of_class = counts / counts.sum(axis=1, keepdims=True)
    deviation = np.abs(of_class - np.array(_shares(params))).max(axis=1)
    shares = counts / counts.sum(axis=0)
    distance = {SPLITS[one]: float(np.abs(shares[:, TRAIN] - shares[:, one]).sum() / 2) for one in (VAL, TEST)}
    measured = [_difference(kept, sides, name, one) for name in MEASURES for one in (VAL, TEST)]
    folds = np.bincount([row.fold for row in rows if row.fold >= 0], minlength=params.folds).tolist() if params.folds else []
    return {
        "images": len(rows),
        **{split: int(count) for split, count in zip(SPLITS, counts.sum(axis=0), strict=True)},
        "classes": len(kept.labels),
        "groups": _join(kept, params).count,
        "max_class_share_deviation": round(float(deviation.max()), 6),
        "max_class_distance": round(max(distance.values()), 6),
        "max_measure_distance": round(max(one["distance"] for one in measured), 6),
        "kept_in_test": sum(previous.splits.get(row.id) == "test" and row.split == "test" for row in rows),
        "leaks": 0,  # `check` has refused anything else
        "images_per_fold": folds,
        "by_class": [
            {"label": label, "share_deviation": round(float(off), 6), **dict(zip(SPLITS, count, strict=True)),
             **{f"{split}_share": round(float(share), 6) for split, share in zip(SPLITS, part, strict=True)}}
            for label, off, count, part in zip(kept.labels, deviation, counts.tolist(), shares, strict=True)
        ],
        "by_measure": measured,
        "warnings": _warnings(_drawn_shares(kept, counts), distance, measured, params),
    }  # fmt: skip


def _difference(kept: Kept, sides: IntArray, name: str, one: int) -> dict[str, Any]:
    train, other = np.sort(kept.measures[name][sides == TRAIN]), np.sort(kept.measures[name][sides == one])
    both = np.concatenate([train, other])
    gaps = np.searchsorted(train, both, "right") / len(train) - np.searchsorted(other, both, "right") / len(other)
    return {
        "measure": name,
        "side": SPLITS[one],
        "distance": round(float(np.abs(gaps).max()), 6),
        "by_chance": round(_KS_AT_ONE_IN_A_THOUSAND * math.sqrt(1 / len(train) + 1 / len(other)), 6),
        "train_mean": round(float(train.mean()), 4),
        "mean": round(float(other.mean()), 4),
    }


def _drawn_shares(kept: Kept, counts: IntArray) -> list[float]:
    """The share of each side; none where a pre-split folder has said who stands where."""
    return [] if (kept.hint >= 0).any() else (counts.sum(axis=0) / counts.sum()).tolist()


def _warnings(
    drawn: Sequence[float],
    distance: Mapping[Split, float],
    measured: Sequence[Mapping[str, Any]],
    params: SplitParams,
) -> list[str]:
    """Warnings and not a refusal: with a pre-split folder, a group or time the user may well want sides that differ."""
    said = [
        f"{SPLITS[one]} has {actual:.0%} of the images where params say {wanted:.0%}, since groups or what was test in an "
        "earlier run put them there; remove data/split.parquet to draw all sides anew."
        for one, (actual, wanted) in enumerate(zip(drawn, _shares(params), strict=False))
        if abs(actual - wanted) > params.max_difference
    ]
    said += [
        f"{value:.0%} of {side}'s images would have to change class for it to have train's class shares; look at by_class "
        "in reports/split.json for the class whose images hints or large groups put on one side."
        for side, value in distance.items()
        if value > params.max_difference
    ]
    return said + [
        f"{one['measure']} differs between train (mean {one['train_mean']:g}) and {one['side']} (mean {one['mean']:g}) by a "
        f"Kolmogorov-Smirnov distance of {one['distance']:.2f}; by chance it would be under {one['by_chance']:.2f}, so a "
        f"score on {one['side']} is one on other pictures than those learnt from."
        for one in measured
        if one["distance"] > max(params.max_difference, one["by_chance"])
    ]


def read_split(path: Path) -> list[SplitRow]:
    """The assigned images, sorted by id.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return read_rows(path, SplitRow)


def read_ledger(path: Path, kept: Kept) -> Ledger:
    """What an earlier run decided; empty where there was none, or where it knows none of the kept images.

    Raises:
        DataError: the file stands but cannot be read; to go on without it could move test images.
    """
    if not path.exists():
        return Ledger()
    try:
        noted = json.loads(read_metadata(path)[_KEY])
        train, val, test = noted["shares"]
        gone, seed = noted["gone_test"], noted["seed"]
        fold_count = noted.get("folds")  # a split of before there were folds still holds the test set
        columns = schema_of(SplitRow)
        names = ["id", "split"] if fold_count is None else ["id", "split", "fold"]
        table = read_table(path, pa.schema([columns.field(name) for name in names]))
    except (ArtifactError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} holds which images are test for good, and cannot be read; bring it back with `dvc checkout {path}`, or "
            "remove it to draw a new split (and then do not compare with earlier models)."
        ) from error
    ids = table["id"].to_pylist()
    if not {*ids, *gone} & {*kept.ids}:
        return Ledger()
    sides: dict[str, Split] = {side: side for side in SPLITS}  # one text of each, not one per row
    splits = {image: sides[side] for image, side in zip(ids, table["split"].to_pylist(), strict=True)}
    splits.update(dict.fromkeys(gone, "test"))
    folds = (
        {}
        if fold_count is None
        else {image: fold for image, fold in zip(ids, table["fold"].to_pylist(), strict=True) if fold >= 0}
    )
    return Ledger(splits, seed, (train, val, test), noted.get("newest_in_test", False), folds, fold_count)


def write_split(path: Path, rows: Sequence[SplitRow], params: SplitParams, previous: Ledger) -> None:
    """Write the assignment, which is also the ledger for the next run; test images that have gone are noted in it."""
    present = {row.id for row in rows}
    gone = sorted(image for image, split in previous.splits.items() if split == "test" and image not in present)
    noted = {
        "seed": params.seed,
        "shares": _shares(params),
        "newest_in_test": params.newest_in_test,
        "folds": params.folds,
        "gone_test": gone,
    }
    write_rows(path, SplitRow, rows, {_KEY: json.dumps(noted)})


def quotas(count: int, params: SplitParams) -> dict[Split, int]:
    """How many of `count` images each side gets: shares rounded by largest remainder, at least one each from three on.

    >>> quotas(10, load_section(SplitParams))
    {'train': 7, 'val': 2, 'test': 1}
    """
    exact = [share * count for share in _shares(params)]
    # 0.7 * 10 is 7.000000000000001 - or 6.999999999999999: a millionth of an image is a rounding error.
    whole = [int(value + 1e-6) for value in exact]
    by_remainder = sorted((TRAIN, VAL, TEST), key=lambda side: (whole[side] - exact[side], _STRICT_FIRST.index(side)))
    for side in by_remainder[: count - sum(whole)]:
        whole[side] += 1
    if count >= len(SPLITS):
        for side in (TRAIN, VAL, TEST):
            if whole[side] == 0:
                whole[max((TRAIN, VAL, TEST), key=lambda one: whole[one])] -= 1
                whole[side] = 1
    return dict(zip(SPLITS, whole, strict=True))


def _shares(params: SplitParams) -> tuple[float, float, float]:
    return params.train, params.val, params.test


def _same(codes: IntArray) -> tuple[IntArray, IntArray]:
    """Pairs that chain all images of one code; -1 is no code."""
    order = np.argsort(codes, kind="stable")
    together = (codes[order][:-1] == codes[order][1:]) & (codes[order][:-1] >= 0)
    return order[:-1][together], order[1:][together]


def _same_image(kept: Kept) -> tuple[IntArray, IntArray]:
    places = np.array([index for index in range(1, len(kept)) if kept.ids[index] == kept.ids[index - 1]], dtype=np.int64)
    return places - 1, places


def _close_in_time(kept: Kept, gap_seconds: float) -> tuple[IntArray, IntArray]:
    """Pairs of images of one source, one taken next after the other and within the gap."""
    order = np.lexsort((kept.time, kept.source))
    first, second = order[:-1], order[1:]
    close = (kept.source[first] == kept.source[second]) & (kept.time[second] - kept.time[first] <= gap_seconds * 1e6)
    return first[close], second[close]


def _join(kept: Kept, params: SplitParams) -> _Groups:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [_same_image(kept), _same(kept.cluster)]
    if params.by_group:
        pairs.append(_same(kept.group))
    if params.time_gap_seconds:
        pairs.append(_close_in_time(kept, params.time_gap_seconds))
    first = np.concatenate([one for one, _ in pairs])
    second = np.concatenate([two for _, two in pairs])
    size = len(kept)
    graph = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(size, size))
    count, found = connected_components(graph, directed=False)
    # Numbered by their first image, whose id - the smallest - names the content of the group.
    _, heads, inverse = np.unique(found, return_index=True, return_inverse=True)
    order = np.argsort(heads)
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)
    of = place[inverse]
    codes, sizes = np.unique(of * len(kept.labels) + kept.label, return_counts=True)
    newest = np.full(count, np.iinfo(np.int64).min)
    np.maximum.at(newest, of, kept.time)
    names = [kept.ids[index] for index in heads[order].tolist()]
    return _Groups(
        of,
        int(count),
        np.stack([codes // max(1, len(kept.labels)), codes % max(1, len(kept.labels)), sizes], axis=1),
        _ranks(names, str(params.seed)),
        newest,
    )


def _ranks(names: Sequence[str], salt: str) -> npt.NDArray[np.uint64]:
    digests = b"".join(hashlib.sha256(f"{salt}/{name}".encode()).digest()[:8] for name in names)
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def _sides_of_train(kept: Kept) -> set[int]:
    """Where images hinted at train may go: to train, and to the sides that no hint names."""
    hints = set(np.unique(kept.hint).tolist())
    return {side for side in (TRAIN, VAL, TEST) if side == TRAIN or side not in hints}


def _refuse_small_classes(kept: Kept, groups: _Groups) -> None:
    counts = np.bincount(groups.pairs[:, 1], minlength=len(kept.labels)).tolist()
    small = [(label, count) for label, count in zip(kept.labels, counts, strict=True) if count < len(SPLITS)]
    if small:
        named = ", ".join(f"{label!r} ({count})" for label, count in small[:10])
        raise DataError(
            "These classes have fewer than three independent images (duplicates, look-alikes, images of one group under "
            "split.by_group and of one burst under split.time_gap_seconds count as one), so they cannot stand in train, val "
            f"and test: {named}{' and more' if len(small) > 10 else ''}; add images or remove the class."
        )


def _settled(
    kept: Kept, groups: _Groups, params: SplitParams, previous: Ledger
) -> tuple[list[int], dict[int, frozenset[int]]]:
    """The side of each group that hints or an earlier run have settled, else -1; and where others are not free to go."""
    from_train = _sides_of_train(kept)
    redraws = previous.redraws(params)
    number = {split: index for index, split in enumerate(SPLITS)}
    side = [-1] * groups.count  # the larger, the stricter
    allowed: dict[int, frozenset[int]] = {}
    some_hints = bool((kept.hint >= 0).any())
    if not some_hints and not previous.splits:
        return side, allowed
    for image, group, hint in zip(kept.ids, groups.of.tolist(), kept.hint.tolist(), strict=True):
        earlier_split = previous.splits.get(image)
        earlier = -1 if earlier_split is None or (redraws and earlier_split != "test") else number[earlier_split]
        if hint == TRAIN and len(from_train) > 1:
            allowed[group] = frozenset(from_train)
            wanted = earlier if earlier in from_train else -1
        else:
            wanted = hint if hint >= 0 else earlier
        side[group] = max(side[group], wanted)
    return side, allowed


_ALL = frozenset((TRAIN, VAL, TEST))


class _Assignment:
    """The groups on their way to the quotas of every class."""

    def __init__(
        self,
        kept: Kept,
        groups: _Groups,
        params: SplitParams,
        *,
        side: list[int],
        allowed: Mapping[int, frozenset[int]],
        order: npt.NDArray[np.intp],
    ) -> None:
        self.side = side
        self._allowed = allowed
        self._newest = params.newest_in_test
        place = np.empty(groups.count, dtype=np.int64)
        place[order] = np.arange(groups.count)
        pairs = groups.pairs[np.lexsort((place[groups.pairs[:, 0]], groups.pairs[:, 1]))]
        ends = np.searchsorted(pairs[:, 1], np.arange(len(kept.labels) + 1))
        self._pairs = pairs
        self._spans = list(itertools.pairwise(ends.tolist()))
        self._quota = [list(quotas(int(pairs[start:end, 2].sum()), params).values()) for start, end in self._spans]
        self._lack = [list(quota) for quota in self._quota]
        self._empty = [set(_ALL) for _ in self._quota]
        # Groups of several labels count in the quotas of each.
        labels_of = np.bincount(groups.pairs[:, 0], minlength=groups.count)
        mixed = groups.pairs[labels_of[groups.pairs[:, 0]] > 1]
        self._mixed: dict[int, dict[int, int]] = {}
        for group, label, size in mixed.tolist():
            self._mixed.setdefault(group, {})[label] = size
        self._mixed_order = sorted(self._mixed, key=place.__getitem__)
        for group, label, size in pairs.tolist():
            if side[group] >= 0:
                self._count(label, size, side[group])

    def run(self) -> None:
        """Settle every group that is still free; those of several labels first."""
        for group in self._mixed_order:
            if self.side[group] < 0:
                label = min(self._mixed[group])
                self._settle(group, label, self._mixed[group][label], self._by_lack(group, label, self._mixed[group][label]))
        for label, (start, end) in enumerate(self._spans):
            found = self._pairs[start:end, [0, 2]].tolist()
            free = [(group, size) for group, size in found if self.side[group] < 0]
            self._fill_by_time(label, free) if self._newest else self._fill(label, free)

    def _fill(self, label: int, free: list[tuple[int, int]]) -> None:
        # One for each side that has none, the smallest first, so that large groups cannot starve a side.
        for side in _STRICT_FIRST:
            able = [(size, place) for place, (group, size) in enumerate(free) if side in self._sides(group)]
            if side in self._empty[label] and able:
                group, size = free.pop(min(able)[1])
                self._settle(group, label, size, side)
        for group, size in free:
            if size > 1:
                self._settle(group, label, size, self._by_lack(group, label, size))
        # Single images come to the quotas exactly. Train takes what no quota asks for.
        lack = self._lack[label]
        for group, size in free:
            if size == 1:
                sides = self._sides(group)
                self._settle(group, label, 1, next((one for one in _STRICT_FIRST if one in sides and lack[one] > 0), TRAIN))

    def _fill_by_time(self, label: int, free: list[tuple[int, int]]) -> None:
        """Newest first: test until its quota is full, then val, then train; the last ones go to empty sides."""
        for place, (group, size) in enumerate(free):
            sides = self._sides(group)
            left = len(free) - place
            empty = [one for one in _STRICT_FIRST if one in self._empty[label] and one in sides]
            if empty and left <= len(self._empty[label]):
                side = empty[0]
            else:
                side = next((one for one in _STRICT_FIRST if one in sides and self._lack[label][one] > 0), TRAIN)
            self._settle(group, label, size, side)

    def _by_lack(self, group: int, label: int, size: int) -> int:
        """The side that lacks the largest part of its quota and, where one has, has room for the group."""
        sides = [side for side in (TRAIN, VAL, TEST) if side in self._sides(group)]
        lack, quota = self._lack[label], self._quota[label]
        roomy = [side for side in sides if lack[side] >= size]
        return max(roomy or sides, key=lambda side: lack[side] / quota[side] if quota[side] else 0.0)

    def _sides(self, group: int) -> frozenset[int]:
        return self._allowed.get(group, _ALL)

    def _settle(self, group: int, label: int, size: int, side: int) -> None:
        self.side[group] = side
        for one, count in self._mixed.get(group, {label: size}).items():
            self._count(one, count, side)

    def _count(self, label: int, size: int, side: int) -> None:
        self._lack[label][side] -= size
        self._empty[label].discard(side)


def _folds(kept: Kept, groups: _Groups, sides: IntArray, params: SplitParams, previous: Ledger) -> IntArray:
    """The fold of each image of train and val; -1 elsewhere."""
    if not params.folds:
        return np.full(len(kept), -1, dtype=np.int64)
    fold = [-1] * groups.count
    held = (sides != TEST).tolist()
    if previous.fold_count == params.folds and previous.seed == params.seed:
        # Where groups have joined, the fold of the first image counts: the smallest id, whatever came later.
        for image, group in zip(kept.ids, groups.of.tolist(), strict=True):
            if fold[group] < 0:
                fold[group] = previous.folds.get(image, -1)
    inside = np.zeros(groups.count, dtype=bool)
    inside[groups.of[held]] = True
    pairs = groups.pairs[inside[groups.pairs[:, 0]]].tolist()
    counts = [[0] * params.folds for _ in kept.labels]
    totals = [0] * params.folds
    labels_of: dict[int, list[tuple[int, int]]] = {}
    for group, label, size in pairs:
        if fold[group] >= 0:
            counts[label][fold[group]] += size
            totals[fold[group]] += size
        else:
            labels_of.setdefault(group, []).append((label, size))
    # The largest first, since small ones even out what large ones leave; then class by class, which evens out the totals.
    ranks = groups.rank.tolist()
    for group in sorted(
        labels_of, key=lambda one: (-sum(size for _, size in labels_of[one]), labels_of[one][0][0], ranks[one])
    ):
        parts = labels_of[group]
        if len(parts) == 1:
            row = counts[parts[0][0]]
            least = min(row)
            best = min((one for one in range(params.folds) if row[one] == least), key=totals.__getitem__)
        else:
            best = min(range(params.folds), key=lambda one: (sum(counts[label][one] for label, _ in parts), totals[one]))
        fold[group] = best
        for label, size in parts:
            counts[label][best] += size
            totals[best] += size
    return np.where(held, np.array(fold, dtype=np.int64)[groups.of], -1)

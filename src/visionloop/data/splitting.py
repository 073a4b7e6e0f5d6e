"""Which side every kept image stands on: by content, stratified, and for good once it is test.

Groups of duplicates and look-alikes are assigned whole. Within a class, free groups are ranked by a hash of the seed and of
their content and fill the exact quotas, so neither the order of files nor the clock has a say.

Does not cover: k-fold, and splits by time or by a group that only the user knows; a pre-split folder says those.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from visionloop.config import SplitParams
from visionloop.errors import ArtifactError, DataError
from visionloop.records import SPLITS, CleanRow, Split, SplitRow
from visionloop.tables import read_metadata, read_rows, write_rows

_KEY = "visionloop.split"
# The order in which a side wins when duplicates pull to several, and in which deficits are filled.
_STRICT_FIRST: tuple[Split, ...] = ("test", "val", "train")


@dataclass(frozen=True)
class Ledger:
    """What an earlier run decided: the file that this stage writes, read before it is replaced."""

    splits: Mapping[str, Split] = field(default_factory=dict)  # by image id; gone images are kept where they were test
    seed: int | None = None
    shares: tuple[float, float, float] | None = None

    def redraws(self, params: SplitParams) -> bool:
        """Whether seed or shares have changed since, so that train and val are drawn anew."""
        return bool(self.splits) and (self.seed != params.seed or self.shares != _shares(params))


@dataclass(eq=False)
class _Group:
    """Images that must stand on one side."""

    rank: str
    members: list[CleanRow]
    allowed: frozenset[Split]
    split: Split | None = None

    def size(self, label: str) -> int:
        return sum(row.label == label for row in self.members)

    @property
    def labels(self) -> frozenset[str]:
        return frozenset(row.label for row in self.members)


def assign(rows: Sequence[CleanRow], params: SplitParams, previous: Ledger) -> list[SplitRow]:
    """Assign the kept rows; sorted by id.

    In this order: an explicit `split_hint`; the side of an earlier run (test always, train and val unless seed or shares
    have changed); the quotas of the class. A group stands where its strictest member does: test before val before train.
    Where the hints leave a side out, that side is drawn from the images hinted at train.

    Raises:
        DataError: a class has fewer than three independent groups.
    """
    kept = sorted((row for row in rows if row.verdict == "keep"), key=lambda row: (row.id, row.label, row.path))
    groups = _groups(kept, params, previous)
    _refuse_small_classes(groups)
    by_label: dict[str, list[_Group]] = {}
    for group in groups:
        for label in group.labels:
            by_label.setdefault(label, []).append(group)
    classes = {label: _Class(label, by_label[label], params) for label in sorted(by_label)}
    # Look-alikes under several labels count in the quotas of each, so they go before the groups of one label.
    for group in groups:
        if group.split is None and len(group.labels) > 1:
            classes[min(group.labels)].settle_by_lack(group)
    for label in classes:
        # Made anew: what stands in other classes' groups counts by now.
        _Class(label, by_label[label], params).fill()
    found: list[SplitRow] = []
    for group in groups:
        assert group.split is not None
        found.extend(SplitRow(row.id, row.label, group.split, row.cluster) for row in group.members)
    return sorted(found, key=lambda row: (row.id, row.label))


def check(rows: Sequence[SplitRow], frozen_test: Iterable[str] = ()) -> None:
    """Prove that nothing leaks.

    Raises:
        DataError: an image or a cluster stands on two sides, an image of `frozen_test` is not in test, or a class is missing
            on a side.
    """
    for name, key in (("image", "id"), ("group of duplicates", "cluster")):
        sides: dict[str, Split] = {}
        for row in rows:
            value = getattr(row, key)
            if sides.setdefault(value, row.split) != row.split:
                raise DataError(
                    f"Leak: the {name} {value[:12]}… stands in {sides[value]} and in {row.split}; remove data/split.parquet "
                    "and run `dvc repro split`."
                )
    split_of = {row.id: row.split for row in rows}
    moved = sorted(image for image in frozen_test if split_of.get(image, "test") != "test")
    if moved:
        raise DataError(
            f"Leak: {len(moved)} images were test in an earlier run and are no longer (first: {moved[0][:12]}…, now "
            f"{split_of[moved[0]]}); bring data/split.parquet back with `dvc checkout` and run `dvc repro split`."
        )
    present = {(row.label, row.split) for row in rows}
    for label in sorted({row.label for row in rows}):
        missing = [split for split in SPLITS if (label, split) not in present]
        if missing:
            raise DataError(
                f"Class {label!r} has no image in {' and '.join(missing)}: a pre-split folder or an earlier run put all of "
                "them elsewhere; add images of it, or remove data/split.parquet to draw a new split."
            )


def frozen_test(rows: Sequence[CleanRow], previous: Ledger) -> set[str]:
    """Ids of earlier test images that must still be test: all but those that the user's folders now put elsewhere."""
    from_train = _sides_of_train(rows)
    away = ("val",) if "test" in from_train else ("train", "val")
    hinted_away = {row.id for row in rows if row.split_hint in away}
    return {image for image, split in previous.splits.items() if split == "test"} - hinted_away


def summary(rows: Sequence[SplitRow], params: SplitParams, previous: Ledger) -> dict[str, object]:
    """The numbers of `reports/split.json`; DVC shows the flat ones and leaves the list of classes aside."""
    shares = dict(zip(SPLITS, _shares(params), strict=True))
    totals = Counter(row.split for row in rows)
    by_class = Counter((row.label, row.split) for row in rows)
    classes: list[dict[str, object]] = []
    deviations = []
    for label in sorted({row.label for row in rows}):
        count = sum(by_class[label, split] for split in SPLITS)
        deviations.append(max(abs(by_class[label, split] / count - shares[split]) for split in SPLITS))
        classes.append({"label": label, "share_deviation": round(deviations[-1], 6)})
        classes[-1].update((split, by_class[label, split]) for split in SPLITS)
    return {
        "images": len(rows),
        **{split: totals[split] for split in SPLITS},
        "classes": len(classes),
        "max_class_share_deviation": round(max(deviations), 6),
        "kept_in_test": sum(previous.splits.get(row.id) == "test" and row.split == "test" for row in rows),
        "leaks": 0,  # `check` has refused anything else
        "by_class": classes,
    }


def read_split(path: Path) -> list[SplitRow]:
    """The assigned images, sorted by id.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    return read_rows(path, SplitRow)


def read_ledger(path: Path, rows: Sequence[CleanRow]) -> Ledger:
    """What an earlier run decided; empty where there was none, or where it knows none of the images of `rows`.

    Raises:
        DataError: the file stands but cannot be read; to go on without it could move test images.
    """
    if not path.exists():
        return Ledger()
    try:
        splits: dict[str, Split] = {row.id: row.split for row in read_split(path)}
        noted = json.loads(read_metadata(path)[_KEY])
        train, val, test = noted["shares"]
    except (ArtifactError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} holds which images are test for good, and cannot be read; bring it back with `dvc checkout {path}`, or "
            "remove it to draw a new split (and then do not compare with earlier models)."
        ) from error
    for image in noted["gone_test"]:
        splits[image] = "test"
    if splits.keys().isdisjoint(row.id for row in rows):
        return Ledger()
    return Ledger(splits, noted["seed"], (train, val, test))


def write_split(path: Path, rows: Sequence[SplitRow], params: SplitParams, previous: Ledger) -> None:
    """Write the assignment, which is also the ledger for the next run; test images that have gone are noted in it."""
    present = {row.id for row in rows}
    gone = sorted(image for image, split in previous.splits.items() if split == "test" and image not in present)
    noted = {"seed": params.seed, "shares": _shares(params), "gone_test": gone}
    write_rows(path, SplitRow, rows, {_KEY: json.dumps(noted)})


def quotas(count: int, params: SplitParams) -> dict[Split, int]:
    """How many of `count` images each side gets: shares rounded by largest remainder, at least one each from three on.

    >>> quotas(10, SplitParams(train=0.7, val=0.2, test=0.1, seed=0))
    {'train': 7, 'val': 2, 'test': 1}
    """
    exact: dict[Split, float] = {"train": params.train * count, "val": params.val * count, "test": params.test * count}
    # 0.7 * 10 is 7.000000000000001 - or 6.999999999999999: a millionth of an image is a rounding error.
    whole: dict[Split, int] = {}
    for split in SPLITS:
        whole[split] = int(exact[split] + 1e-6)
    by_remainder = sorted(SPLITS, key=lambda split: (whole[split] - exact[split], _STRICT_FIRST.index(split)))
    for split in by_remainder[: count - sum(whole.values())]:
        whole[split] += 1
    if count >= len(SPLITS):
        for split in SPLITS:
            if whole[split] == 0:
                whole[max(SPLITS, key=lambda one: whole[one])] -= 1
                whole[split] = 1
    return whole


def _shares(params: SplitParams) -> tuple[float, float, float]:
    return params.train, params.val, params.test


def _groups(kept: Sequence[CleanRow], params: SplitParams, previous: Ledger) -> list[_Group]:
    """The clusters with the sides that are settled, in the order of their rank."""
    from_train = _sides_of_train(kept)
    clusters: dict[str, list[CleanRow]] = {}
    for row in kept:
        clusters.setdefault(row.cluster, []).append(row)
    groups = []
    for members in clusters.values():
        # The smallest id names the content of the group, whichever path came first.
        rank = hashlib.sha256(f"{params.seed}/{min(row.id for row in members)}".encode()).hexdigest()
        group = _Group(rank, members, frozenset(SPLITS))
        wanted: set[Split | None] = set()
        for row in members:
            earlier = previous.splits.get(row.id)
            if earlier != "test" and previous.redraws(params):
                earlier = None
            if row.split_hint == "train" and len(from_train) > 1:
                group.allowed &= from_train
                wanted |= {earlier} & from_train
            elif row.split_hint or earlier:
                wanted.add(row.split_hint or earlier)
        group.split = next((split for split in _STRICT_FIRST if split in wanted), None)
        groups.append(group)
    return sorted(groups, key=lambda group: group.rank)


def _sides_of_train(rows: Sequence[CleanRow]) -> frozenset[Split]:
    """Where images hinted at train may go: to train, and to the sides that no hint names."""
    hints = {row.split_hint for row in rows}
    return frozenset(split for split in SPLITS if split == "train" or split not in hints)


def _refuse_small_classes(groups: Sequence[_Group]) -> None:
    counts = Counter(label for group in groups for label in group.labels)
    small = [label for label in sorted(counts) if counts[label] < len(SPLITS)]
    if small:
        named = ", ".join(f"{label!r} ({counts[label]})" for label in small[:10])
        raise DataError(
            "These classes have fewer than three independent images (duplicates and look-alikes count as one), so they "
            f"cannot stand in train, val and test: {named}{' and more' if len(small) > 10 else ''}; add images or remove "
            "the class."
        )


class _Class:
    """The images of one label, on their way to its quotas."""

    def __init__(self, label: str, groups: Sequence[_Group], params: SplitParams) -> None:
        self._label = label
        self._groups = groups  # in the order of their rank
        self._lack = quotas(sum(group.size(label) for group in groups), params)
        self._quota = dict(self._lack)
        self._empty = set(SPLITS)
        for group in groups:
            if group.split is not None:
                self._count(group, group.split)

    def fill(self) -> None:
        """Settle every group that is still free."""
        # One for each side that has none, the smallest first, so that large groups cannot starve a side.
        for split in _STRICT_FIRST:
            able = [group for group in self._free() if split in group.allowed]
            if split in self._empty and able:
                self._settle(min(able, key=lambda group: (group.size(self._label), group.rank)), split)
        for group in self._free():
            if group.size(self._label) > 1:
                self.settle_by_lack(group)
        # Single images come to the quotas exactly. Train takes what no quota asks for.
        for group in self._free():
            self._settle(group, next((s for s in _STRICT_FIRST if s in group.allowed and self._lack[s] > 0), "train"))

    def settle_by_lack(self, group: _Group) -> None:
        """Settle a group on the side that lacks the largest part of its quota and, where one has, has room for the group."""
        sides = [split for split in SPLITS if split in group.allowed]
        roomy = [split for split in sides if self._lack[split] >= group.size(self._label)]
        self._settle(group, max(roomy or sides, key=lambda split: self._lack[split] / self._quota[split]))

    def _free(self) -> list[_Group]:
        return [group for group in self._groups if group.split is None]

    def _settle(self, group: _Group, split: Split) -> None:
        group.split = split
        self._count(group, split)

    def _count(self, group: _Group, split: Split) -> None:
        self._lack[split] -= group.size(self._label)
        self._empty.discard(split)

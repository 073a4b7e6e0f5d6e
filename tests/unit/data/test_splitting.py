"""The split depends on content alone, keeps its quotas, keeps groups whole, and never lets a test image go."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.config import SplitParams
from visionloop.data import splitting
from visionloop.data.splitting import MEASURES, Kept, Ledger, quotas, read_kept, read_split, write_split
from visionloop.errors import DataError
from visionloop.files import sha256_bytes
from visionloop.records import SPLITS, CleanRow, Split, SplitRow
from visionloop.tables import write_rows

PARAMS = SplitParams(
    train=0.7,
    val=0.2,
    test=0.1,
    seed=0,
    by_group=True,
    time_gap_seconds=0,
    newest_in_test=False,
    folds=5,
    max_difference=0.1,
)
NONE = Ledger()
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def make(name: object, label: str, **changes: Any) -> CleanRow:
    return replace(plain_row(sha256_bytes(str(name).encode()), label, f"{label}/{name}.png"), **changes)


def plain_row(image_id: str, label: str, path: str) -> CleanRow:
    return CleanRow(
        id=image_id, label=label, given_label=label, path=path, source="folder", group="", time=NOON, width_pixels=48,
        height_pixels=48, mode="RGB", format="PNG", bit_depth=8, alpha=False, animated=False, exif_orientation=1,
        brightness=100.0, contrast=50.0, sharpness=10.0, entropy=5.0, colourfulness=20.0, perceptual_hash="0" * 16,
        cluster=image_id, outlier_score=0.0, label_quality=1.0, suggested_label="", findings=(), verdict="keep", reason="",
        detail="", decided_by="", split_hint=None,
    )  # fmt: skip


def assign(rows: list[CleanRow], params: SplitParams, previous: Ledger) -> list[SplitRow]:
    return splitting.assign(Kept.of(rows), params, previous)


def check(rows: list[SplitRow], frozen: Iterable[str] = (), params: SplitParams = PARAMS, **columns: Any) -> None:
    """Check rows whose images are as they say; `columns` are of the images, a list each."""
    images = [
        make(row.id, row.label, id=row.id, cluster=row.cluster, **{name: values[index] for name, values in columns.items()})
        for index, row in enumerate(rows)
    ]
    splitting.check(sorted(rows, key=lambda row: (row.id, row.label)), Kept.of(images), params, frozen)


def images(counts: dict[str, int], start: int = 0) -> list[CleanRow]:
    return [make(f"{label}{number}", label) for label, count in counts.items() for number in range(start, start + count)]


def hinted(**counts: int) -> list[CleanRow]:
    """Cats of a pre-split folder, so many on each side."""
    hints = [split for split in SPLITS for _ in range(counts.get(split, 0))]
    return [replace(row, split_hint=hint) for row, hint in zip(images({"cat": len(hints)}), hints, strict=True)]


def ledger(rows: list[SplitRow], params: SplitParams = PARAMS) -> Ledger:
    return Ledger(
        {row.id: row.split for row in rows},
        params.seed,
        (params.train, params.val, params.test),
        params.newest_in_test,
        {row.id: row.fold for row in rows if row.fold >= 0},
        params.folds,
    )


def sides(rows: list[SplitRow]) -> dict[str, Split]:
    return {row.id: row.split for row in rows}


def counts(rows: list[SplitRow], label: str) -> tuple[int, ...]:
    found = Counter(row.split for row in rows if row.label == label)
    return tuple(found[split] for split in SPLITS)


labels = st.sampled_from(["cat", "dog", "eel"])
class_sizes = st.dictionaries(labels, st.integers(3, 40), min_size=1)


@st.composite
def grouped(draw: st.DrawFn) -> list[CleanRow]:
    """Images in groups of one to five, at least three groups a class; some groups have two labels."""
    rows = []
    for label in ("cat", "dog"):
        for group in range(draw(st.integers(3, 12))):
            size = draw(st.integers(1, 5)) if group >= 3 else 1
            names = [f"{label}{group}-{member}" for member in range(size)]
            cluster = make(names[0], label).id
            other = draw(st.booleans()) and group >= 3
            rows += [make(name, "dog" if other and index else label, cluster=cluster) for index, name in enumerate(names)]
    return rows


shares = st.sampled_from([(0.7, 0.2, 0.1), (0.8, 0.1, 0.1), (0.34, 0.33, 0.33), (0.98, 0.01, 0.01)]).map(
    lambda three: PARAMS.model_copy(update={"train": three[0], "val": three[1], "test": three[2], "seed": 3})
)


@given(class_sizes, shares, st.randoms(use_true_random=False))
def test_order_of_rows_has_no_say(sizes: dict[str, int], params: SplitParams, rng: random.Random) -> None:
    rows = images(sizes)
    shuffled = rng.sample(rows, len(rows))
    renamed = [replace(row, path=f"elsewhere/{index}") for index, row in enumerate(shuffled)]
    assert assign(rows, params, NONE) == assign(shuffled, params, NONE) == assign(renamed, params, NONE)


@given(class_sizes, shares)
def test_single_images_meet_the_quotas_exactly(sizes: dict[str, int], params: SplitParams) -> None:
    found = assign(images(sizes), params, NONE)
    for label, size in sizes.items():
        assert counts(found, label) == tuple(quotas(size, params)[split] for split in SPLITS)


@given(st.integers(3, 100_000), shares)
def test_quotas_are_whole_near_the_shares_and_never_zero(count: int, params: SplitParams) -> None:
    found = quotas(count, params)
    assert sum(found.values()) == count
    assert min(found.values()) >= 1
    # Rounding moves a side by less than one image; giving each side its one can take two more from the largest.
    for split in SPLITS:
        assert abs(found[split] - getattr(params, split) * count) < 3


def test_quotas_of_round_numbers() -> None:
    assert [tuple(quotas(count, PARAMS).values()) for count in (3, 4, 5, 10, 13, 100, 1797)] == [
        (1, 1, 1), (2, 1, 1), (3, 1, 1), (7, 2, 1), (9, 3, 1), (70, 20, 10), (1258, 359, 180),
    ]  # fmt: skip


@given(grouped(), shares)
def test_groups_are_whole_and_every_class_is_everywhere(rows: list[CleanRow], params: SplitParams) -> None:
    found = assign(rows, params, NONE)
    check(found)
    assert {row.id for row in found} == {row.id for row in rows}
    by_cluster: dict[str, set[str]] = {}
    for row in found:
        by_cluster.setdefault(row.cluster, set()).add(row.split)
    assert all(len(split) == 1 for split in by_cluster.values())


@given(grouped(), class_sizes, shares, st.data())
def test_growth_moves_nothing_but_what_new_look_alikes_pull(
    rows: list[CleanRow], more: dict[str, int], params: SplitParams, data: st.DataObject
) -> None:
    """Images are added, some of them look like old ones, some old ones go: what was test stays test, groups stay whole."""
    first = assign(rows, params, NONE)
    new = images(more, start=1000)
    joined = data.draw(st.lists(st.sampled_from(rows), max_size=3))
    new += [make(f"like-{index}", row.label, cluster=row.cluster) for index, row in enumerate(joined)]
    kept = [row for row in rows if data.draw(st.booleans(), label=f"keep {row.path}")] or rows
    try:
        second = assign(kept + new, params, ledger(first, params))
    except DataError:  # a class of which too little is left
        return
    before, after = sides(first), sides(second)
    for row in kept:
        assert after[row.id] == before[row.id]
    by_cluster: dict[str, set[str]] = {}
    for one in second:
        by_cluster.setdefault(one.cluster, set()).add(one.split)
    assert all(len(split) == 1 for split in by_cluster.values())


def test_new_images_fill_the_deficits() -> None:
    first = assign(images({"cat": 10}), PARAMS, NONE)
    second = assign(images({"cat": 30}), PARAMS, ledger(first))
    assert (counts(first, "cat"), counts(second, "cat")) == ((7, 2, 1), (21, 6, 3))
    assert sides(first).items() <= sides(second).items()


def test_a_look_alike_of_a_test_image_goes_to_test_and_pulls_its_group() -> None:
    rows = images({"cat": 10})
    first = sides(assign(rows, PARAMS, NONE))
    test_row = next(row for row in rows if first[row.id] == "test")
    train_row = next(row for row in rows if first[row.id] == "train")
    joined = [replace(row, cluster=test_row.id) if row in (test_row, train_row) else row for row in rows]
    second = sides(assign([*joined, make("new", "cat", cluster=test_row.id)], PARAMS, Ledger(first, 0, (0.7, 0.2, 0.1))))
    assert second[test_row.id] == second[train_row.id] == second[make("new", "cat").id] == "test"


@pytest.mark.parametrize("changes", [{"seed": 1}, {"train": 0.5, "val": 0.3, "test": 0.2}])
def test_another_seed_or_shares_draw_train_and_val_anew_and_keep_test(changes: dict[str, Any]) -> None:
    rows = images({"cat": 50, "dog": 50})
    first = assign(rows, PARAMS, NONE)
    params = PARAMS.model_copy(update=changes)
    previous = ledger(first)
    second = assign(rows, params, previous)
    assert previous.redraws(params)
    assert {image for image, split in sides(first).items() if split == "test"} <= {
        image for image, split in sides(second).items() if split == "test"
    }
    assert counts(second, "cat") == tuple(quotas(50, params).values())
    assert sides(first) != sides(second)


def test_another_seed_gives_another_split() -> None:
    rows = images({"cat": 50})
    assert sides(assign(rows, PARAMS, NONE)) != sides(assign(rows, PARAMS.model_copy(update={"seed": 1}), NONE))


def test_rejected_images_stand_on_no_side() -> None:
    rows = images({"cat": 10})
    rows[0] = replace(rows[0], verdict="reject", reason="blank")
    assert rows[0].id not in sides(assign(rows, PARAMS, NONE))


def test_hints_win_over_quotas() -> None:
    rows = hinted(train=4, val=4, test=4)
    assert counts(assign(rows, PARAMS, NONE), "cat") == (4, 4, 4)


def test_a_side_without_hints_is_drawn_from_train() -> None:
    rows = hinted(train=40, test=10)
    found = assign(rows, PARAMS, NONE)
    assert counts(found, "cat") == (30, 10, 10)  # val is 20 % of all
    assert all(sides(found)[row.id] == "test" for row in rows[40:])
    again = assign(rows, PARAMS, ledger(found))
    assert again == found


def test_duplicates_across_hinted_sides_end_on_the_stricter_one() -> None:
    rows = hinted(train=4, val=4, test=4)
    rows[0] = replace(rows[0], cluster=rows[8].id)
    found = assign(rows, PARAMS, NONE)
    check(found)
    assert counts(found, "cat") == (3, 4, 5)


def test_an_explicit_hint_takes_an_image_out_of_test() -> None:
    """Who moves a file from test/ to train/ means it; only silent moves are leaks."""
    rows = hinted(train=4, val=4, test=4)
    previous = ledger(assign(rows, PARAMS, NONE))
    rows[11] = replace(rows[11], split_hint="train")
    found = assign(rows, PARAMS, previous)
    assert sides(found)[rows[11].id] == "train"
    frozen = splitting.frozen_test(Kept.of(rows), previous)
    assert rows[11].id not in frozen
    assert rows[10].id in frozen
    check(found, frozen)


def test_two_independent_images_are_too_few() -> None:
    rows = images({"cat": 10, "dog": 3})
    rows[-1] = replace(rows[-1], cluster=rows[-2].cluster)
    with pytest.raises(DataError, match=r"fewer than three independent images .*: 'dog' \(2\); add images"):
        assign(rows, PARAMS, NONE)


def test_large_groups_do_not_starve_a_side() -> None:
    rows = [
        make(f"{group}-{member}", "cat", cluster=f"g{group}")
        for group, size in enumerate((10, 10, 1))
        for member in range(size)
    ]
    found = assign(rows, PARAMS, NONE)
    assert sorted(counts(found, "cat")) == [1, 10, 10]


def planted(*rows: tuple[str, str, Split, str]) -> list[SplitRow]:
    full = [SplitRow(f"{label}-{split}", label, split, f"{label}-{split}") for label in ("cat", "dog") for split in SPLITS]
    return full + [SplitRow(*row) for row in rows]


def test_check_passes_what_is_right() -> None:
    check(planted(), ["cat-test", "gone"])


@pytest.mark.parametrize(
    ("rows", "frozen", "message"),
    [
        (
            planted(("x", "cat", "train", "x"), ("x", "cat", "val", "x")),
            [],
            r"Leak: the image of image x… stands in train and, with image x…, in val",
        ),
        (
            planted(("x", "cat", "train", "g"), ("y", "cat", "test", "g")),
            [],
            r"the group of duplicates of image x… stands in train and, with image y…, in test",
        ),
        (planted(("x", "cat", "train", "x")), ["x"], r"1 images were test in an earlier run .*now train\)"),
        (planted(("x", "eel", "train", "x")), [], r"Class 'eel' has no image in val and test"),
    ],
)
def test_check_fails_on_a_planted_leak(rows: list[SplitRow], frozen: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        check(rows, frozen)


def test_the_ledger_outlives_images_that_go_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "split.parquet"
    rows = images({"cat": 30})
    first = assign(rows, PARAMS, NONE)
    write_split(path, first, PARAMS, NONE)
    assert read_split(path) == first
    gone = next(row for row in rows if sides(first)[row.id] == "test")

    without = [row for row in rows if row is not gone]
    previous = splitting.read_ledger(path, Kept.of(without))
    write_split(path, assign(without, PARAMS, previous), PARAMS, previous)
    back = assign(rows, PARAMS, splitting.read_ledger(path, Kept.of(rows)))
    assert sides(back)[gone.id] == "test"


def test_a_second_run_writes_the_same_bytes(tmp_path: Path) -> None:
    rows = images({"cat": 30})
    write_split(tmp_path / "split.parquet", assign(rows, PARAMS, NONE), PARAMS, NONE)
    before = (tmp_path / "split.parquet").read_bytes()
    previous = splitting.read_ledger(tmp_path / "split.parquet", Kept.of(rows))
    write_split(tmp_path / "split.parquet", assign(rows, PARAMS, previous), PARAMS, previous)
    assert (tmp_path / "split.parquet").read_bytes() == before


def test_a_ledger_of_another_data_set_has_no_effect(tmp_path: Path) -> None:
    path = tmp_path / "split.parquet"
    write_split(path, assign(images({"cat": 30}), PARAMS, NONE), PARAMS, NONE)
    assert splitting.read_ledger(path, Kept.of(images({"dog": 30}))) == NONE
    assert splitting.read_ledger(tmp_path / "absent.parquet", Kept.of(images({"dog": 30}))) == NONE


def test_a_split_of_before_there_were_folds_still_holds_the_test_set(tmp_path: Path) -> None:
    rows = images({"cat": 30})
    found = assign(rows, PARAMS, NONE)
    old = pa.table({"id": [row.id for row in found], "split": [row.split for row in found]})
    noted = {"seed": 0, "shares": [0.7, 0.2, 0.1], "gone_test": []}
    pq.write_table(old.replace_schema_metadata({"visionloop.split": json.dumps(noted)}), tmp_path / "split.parquet")
    previous = splitting.read_ledger(tmp_path / "split.parquet", Kept.of(rows))
    assert (previous.splits, previous.folds) == (sides(found), {})
    assert not previous.redraws(PARAMS)
    assert assign(rows, PARAMS, previous) == found


@pytest.mark.parametrize("spoil", ["cut", "foreign"])
def test_a_ledger_that_cannot_be_read_stops_the_run(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "split.parquet"
    rows = images({"cat": 30})
    split = assign(rows, PARAMS, NONE)
    if spoil == "cut":
        write_split(path, split, PARAMS, NONE)
        path.write_bytes(path.read_bytes()[:-20])
    else:
        write_rows(path, SplitRow, split)
    with pytest.raises(DataError, match=r"holds which images are test for good, and cannot be read; .* `dvc checkout"):
        splitting.read_ledger(path, Kept.of(rows))


def shifted(rows: list[CleanRow], seconds: Iterable[float]) -> list[CleanRow]:
    return [replace(row, time=NOON + timedelta(seconds=after)) for row, after in zip(rows, seconds, strict=True)]


# Groups that are more than duplicates: a source's own, and time.


@st.composite
def tangled(draw: st.DrawFn) -> tuple[list[CleanRow], SplitParams]:
    """Images with groups, clusters and times that overlap as they like, and three single images a class."""
    rows = []
    for number in range(draw(st.integers(0, 30))):
        rows.append(
            make(
                f"tangled{number}",
                draw(labels),
                group=draw(st.sampled_from(["", "", "ann", "bob", "eve"])),
                source=draw(st.sampled_from(["folder", "csv"])),
                time=NOON + timedelta(seconds=draw(st.integers(0, 200))),
                cluster=draw(st.sampled_from([f"c{one}" for one in range(20)])),
            )
        )
    for index, label in enumerate(["cat", "dog", "eel"]):
        rows += shifted(images({label: 3}), (10_000 * (index + 1) + 1000 * one for one in range(3)))
    by_group, gap = draw(st.booleans()), draw(st.sampled_from([0, 1, 20]))
    changes = {"by_group": by_group, "time_gap_seconds": gap, "newest_in_test": draw(st.booleans())}
    return rows, PARAMS.model_copy(update=changes)


@given(tangled(), st.randoms(use_true_random=False))
def test_no_group_stands_on_two_sides_or_in_two_folds(world: tuple[list[CleanRow], SplitParams], rng: random.Random) -> None:
    rows, params = world
    found = assign(rng.sample(rows, len(rows)), params, NONE)
    assert found == assign(rows, params, NONE)
    splitting.check(found, Kept.of(rows), params)  # every class is on every side, too
    place = {row.id: (row.split, row.fold) for row in found}
    for one in rows:
        for two in rows:
            close = one.source == two.source and abs((one.time - two.time).total_seconds()) <= params.time_gap_seconds > 0
            same = params.by_group and one.group and (one.source, one.group) == (two.source, two.group)
            if one.cluster == two.cluster or same or close:
                assert place[one.id] == place[two.id]


def test_a_group_is_the_source_s_own() -> None:
    rows = [
        replace(row, group="ann", source="csv" if index < 4 else "folder") for index, row in enumerate(images({"cat": 20}))
    ]
    rows[8:] = [replace(row, group="") for row in rows[8:]]
    found = sides(assign(rows, PARAMS, NONE))
    assert len({found[row.id] for row in rows[:4]}) == len({found[row.id] for row in rows[4:8]}) == 1
    apart = assign(rows, PARAMS.model_copy(update={"by_group": False}), NONE)
    assert counts(apart, "cat") == (14, 4, 2)
    assert len({sides(apart)[row.id] for row in rows[:8]}) > 1


def test_a_burst_is_a_chain_of_images_within_the_gap() -> None:
    """Ten images a second apart are one group though the first and the last are nine seconds apart; the next is another."""
    rows = shifted(images({"cat": 40}), [*range(10), *(100 * number for number in range(1, 31))])
    params = PARAMS.model_copy(update={"time_gap_seconds": 1})
    found = sides(assign(rows, params, NONE))
    assert len({found[row.id] for row in rows[:10]}) == 1
    assert splitting.summary(assign(rows, params, NONE), Kept.of(rows), params, NONE)["groups"] == 31
    other_source = [replace(row, source="csv") if index == 5 else row for index, row in enumerate(rows)]
    assert splitting.summary(assign(other_source, params, NONE), Kept.of(other_source), params, NONE)["groups"] == 33


def test_the_newest_images_of_each_class_are_test_and_the_next_newest_val() -> None:
    rows = shifted(images({"cat": 20}) + images({"dog": 10}), range(30))
    params = PARAMS.model_copy(update={"newest_in_test": True})
    found = sides(assign(rows, params, NONE))
    assert [found[row.id] for row in rows] == ["train"] * 14 + ["val"] * 4 + ["test"] * 2 + ["train"] * 7 + ["val"] * 2 + [
        "test"
    ]
    # Newer ones fill the deficits; what was test stays test.
    more = shifted(images({"cat": 10}, start=100), range(100, 110))
    again = assign(rows + more, params, ledger(assign(rows, params, NONE), params))
    assert counts(again, "cat") == (21, 6, 3)
    assert found.items() <= sides(again).items()
    assert sides(again)[more[-1].id] == "test"


def test_a_group_that_takes_a_whole_class_is_refused() -> None:
    rows = images({"cat": 20, "dog": 20})
    rows[20:] = [replace(row, group="ann") for row in rows[20:]]
    with pytest.raises(
        DataError, match=r"images of one group under split.by_group and of one burst .* count as one.*: 'dog' \(1\)"
    ):
        assign(rows, PARAMS, NONE)


@pytest.mark.parametrize(
    ("changes", "columns", "message"),
    [
        ({}, {"group": ["ann", "ann"]}, "Leak: the group of image x… stands in train and, with image y…, in test"),
        ({"time_gap_seconds": 5}, {"time": [NOON, NOON]}, "Leak: the burst of image x… stands in train and, with"),
    ],
)
def test_check_fails_on_a_planted_leak_of_a_group_or_a_burst(
    changes: dict[str, Any], columns: dict[str, list[Any]], message: str
) -> None:
    rows = planted(("x", "cat", "train", "x"), ("y", "cat", "test", "y"))
    far = [NOON + timedelta(days=index) for index in range(6)]
    full = {
        "group": [*"abcdef", *columns.get("group", "xy")],
        "time": [*far, *columns.get("time", [NOON + timedelta(days=7), NOON + timedelta(days=8)])],
    }
    params = PARAMS.model_copy(update=changes)
    with pytest.raises(DataError, match=message):
        check(rows, params=params, **full)
    check(rows, params=params.model_copy(update={"by_group": False, "time_gap_seconds": 0}), **full)


def test_check_wants_each_kept_image_once() -> None:
    rows = assign(images({"cat": 10}), PARAMS, NONE)
    with pytest.raises(DataError, match="does not hold the kept images, each once"):
        splitting.check(rows[1:], Kept.of(images({"cat": 10})), PARAMS)


# Folds.


@given(class_sizes, st.integers(2, 6))
def test_folds_of_single_images_are_even_in_every_class(sizes: dict[str, int], folds: int) -> None:
    found = assign(images(sizes), PARAMS.model_copy(update={"folds": folds}), NONE)
    assert all((row.fold == -1) == (row.split == "test") for row in found)
    for label in sizes:
        share = Counter(row.fold for row in found if row.label == label and row.split != "test")
        assert max(share.values()) - min(share[fold] for fold in range(folds)) <= 1
    every = Counter(row.fold for row in found if row.split != "test")
    assert max(every.values()) - min(every[fold] for fold in range(folds)) <= 1


@given(class_sizes, class_sizes)
def test_an_image_keeps_its_fold_as_the_data_grow(sizes: dict[str, int], more: dict[str, int]) -> None:
    rows = images(sizes)
    first = assign(rows, PARAMS, NONE)
    try:
        second = assign(rows + images(more, start=1000), PARAMS, ledger(first))
    except DataError:  # a new class of fewer than three
        return
    now = {row.id: row.fold for row in second}
    assert all(now[row.id] == row.fold for row in first)


def test_folds_are_drawn_anew_with_another_count_or_seed_and_off_at_zero(tmp_path: Path) -> None:
    rows = images({"cat": 60})
    first = assign(rows, PARAMS, NONE)
    path = tmp_path / "split.parquet"
    write_split(path, first, PARAMS, NONE)
    previous = splitting.read_ledger(path, Kept.of(rows))
    assert assign(rows, PARAMS, previous) == first
    assert {row.fold for row in assign(rows, PARAMS.model_copy(update={"folds": 3}), previous)} == {-1, 0, 1, 2}
    assert {row.fold for row in assign(rows, PARAMS.model_copy(update={"folds": 0}), previous)} == {-1}
    reseeded = assign(rows, PARAMS.model_copy(update={"seed": 1}), previous)
    assert [row.fold for row in reseeded] != [row.fold for row in first]


# The report.


def test_the_numbers_of_the_report() -> None:
    rows = images({"cat": 10, "dog": 13})
    split = assign(rows, PARAMS, NONE)
    numbers = splitting.summary(split, Kept.of(rows), PARAMS, ledger(split))
    flat = {key: value for key, value in numbers.items() if not isinstance(value, list)}
    # Classes: cat has 7/16, 2/5 and 1/2 of the sides. Every measure is the same everywhere.
    assert flat == {
        "images": 23, "train": 16, "val": 5, "test": 2, "classes": 2, "groups": 23,
        "max_class_share_deviation": round(3 / 13 - 0.2, 6), "max_class_distance": round(1 / 2 - 7 / 16, 6),
        "max_measure_distance": 0.0, "kept_in_test": 2, "leaks": 0,
    }  # fmt: skip
    assert numbers["by_class"] == [
        {"label": "cat", "share_deviation": 0.0, "train": 7, "val": 2, "test": 1,
         "train_share": 0.4375, "val_share": 0.4, "test_share": 0.5},
        {"label": "dog", "share_deviation": round(3 / 13 - 0.2, 6), "train": 9, "val": 3, "test": 1,
         "train_share": 0.5625, "val_share": 0.6, "test_share": 0.5},
    ]  # fmt: skip
    assert sorted(numbers["images_per_fold"]) == [4, 4, 4, 4, 5]
    assert numbers["warnings"] == []


def test_a_measure_that_differs_between_the_sides_is_a_warning_only_beyond_chance() -> None:
    """All test images are dark and all train images bright, a distance of 1; with a handful of images that may be chance."""
    rows = hinted(train=100, val=30, test=40)
    rows = [
        replace(row, brightness=(40.0 if row.split_hint == "test" else 180.0) + index % 7) for index, row in enumerate(rows)
    ]
    numbers = splitting.summary(assign(rows, PARAMS, NONE), Kept.of(rows), PARAMS, NONE)
    assert numbers["max_measure_distance"] == 1.0
    (warning,) = numbers["warnings"]
    assert re.match(
        r"brightness differs between train \(mean 18\d[.\d]*\) and test \(mean 4\d[.\d]*\) by a Kolmogorov-Smirnov "
        r"distance of 1\.00; by chance it would be under 0\.36, so a score on test is one on "
        r"other pictures than those learnt from\.$",
        warning,
    )
    few = hinted(train=5, val=3, test=3)
    few = [replace(row, brightness=float(index)) for index, row in enumerate(few)]
    assert splitting.summary(assign(few, PARAMS, NONE), Kept.of(few), PARAMS, NONE)["warnings"] == []


@given(st.lists(st.floats(0, 255, width=32), min_size=12, max_size=60))
def test_the_distance_of_a_measure_is_that_of_scipy(values: list[float]) -> None:
    from scipy.stats import ks_2samp

    rows = [replace(row, brightness=value) for row, value in zip(images({"cat": len(values)}), values, strict=True)]
    split = assign(rows, PARAMS, NONE)
    numbers = splitting.summary(split, Kept.of(rows), PARAMS, NONE)
    of = {row.id: row.brightness for row in rows}
    by_side = {side: [of[row.id] for row in split if row.split == side] for side in SPLITS}
    for one in numbers["by_measure"]:
        if one["measure"] == "brightness":
            assert one["distance"] == pytest.approx(ks_2samp(by_side["train"], by_side[one["side"]]).statistic, abs=1e-6)
    assert [one["measure"] for one in numbers["by_measure"]] == [name for name in MEASURES for _ in range(2)]


def test_classes_that_hints_spread_unevenly_are_a_warning() -> None:
    rows = hinted(train=10, val=10, test=90)
    dogs = [replace(row, split_hint="train") for row in images({"dog": 90})]
    dogs += [replace(row, split_hint="val") for row in images({"dog": 10}, start=100)]
    dogs += [replace(row, split_hint="test") for row in images({"dog": 10}, start=200)]
    numbers = splitting.summary(assign(rows + dogs, PARAMS, NONE), Kept.of(rows + dogs), PARAMS, NONE)
    assert numbers["max_class_distance"] == 0.8  # 10 % cats in train, 90 % in test
    assert [warning[:36] for warning in numbers["warnings"]] == [
        "40% of val's images would have to ch",
        "80% of test's images would have to c",
    ]


def test_a_side_far_from_its_share_is_a_warning() -> None:
    """What was test in an earlier run stays, also when most other images have gone."""
    rows = images({"cat": 100, "dog": 100})
    earlier = Ledger({row.id: "test" for row in rows[:60] + rows[100:160]}, PARAMS.seed, (0.7, 0.2, 0.1))
    numbers = splitting.summary(assign(rows, PARAMS, earlier), Kept.of(rows), PARAMS, earlier)
    assert numbers["test"] == 120
    assert numbers["warnings"][-1].startswith(
        "test has 60% of the images where params say 10%, since groups or what was test"
    )


def test_the_file_of_clean_gives_the_same_columns_as_its_rows(tmp_path: Path) -> None:
    rows = images({"cat": 5, "dog": 4})
    rows[2] = replace(rows[2], verdict="reject", group="ann", split_hint="val")
    rows[3] = replace(rows[3], group="ann", split_hint="val")
    write_rows(tmp_path / "clean.parquet", CleanRow, rows)
    from_file, from_rows = read_kept(tmp_path / "clean.parquet"), Kept.of(rows[::-1])
    assert from_file.ids == from_rows.ids == sorted(row.id for row in rows if row.verdict == "keep")
    assert from_file.labels == ["cat", "dog"]
    for name in ("label", "cluster", "group", "source", "time", "hint"):
        assert getattr(from_file, name).tolist() == getattr(from_rows, name).tolist()
    assert sorted(from_file.hint.tolist()) == [-1] * 7 + [1]
    assert sorted(from_file.group.tolist())[:-1] == [-1] * 7

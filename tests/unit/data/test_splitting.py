"""The split depends on content alone, keeps its quotas, keeps groups whole, and never lets a test image go."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionloop.config import SplitParams
from visionloop.data.splitting import (
    Ledger,
    assign,
    check,
    frozen_test,
    quotas,
    read_ledger,
    read_split,
    summary,
    write_split,
)
from visionloop.errors import DataError
from visionloop.files import sha256_bytes
from visionloop.records import SPLITS, CleanRow, Split, SplitRow
from visionloop.tables import write_rows

PARAMS = SplitParams(train=0.7, val=0.2, test=0.1, seed=0)
NONE = Ledger()


def make(name: object, label: str, **changes: Any) -> CleanRow:
    image_id = sha256_bytes(str(name).encode())
    row = CleanRow(
        image_id,
        label,
        f"{label}/{name}.png",
        48,
        48,
        "RGB",
        "PNG",
        100.0,
        50.0,
        10.0,
        "0" * 16,
        image_id,
        "keep",
        "",
        "",
        None,
    )
    return replace(row, **changes)


def images(counts: dict[str, int], start: int = 0) -> list[CleanRow]:
    return [make(f"{label}{number}", label) for label, count in counts.items() for number in range(start, start + count)]


def hinted(**counts: int) -> list[CleanRow]:
    """Cats of a pre-split folder, so many on each side."""
    hints = [split for split in SPLITS for _ in range(counts.get(split, 0))]
    return [replace(row, split_hint=hint) for row, hint in zip(images({"cat": len(hints)}), hints, strict=True)]


def ledger(rows: list[SplitRow], params: SplitParams = PARAMS) -> Ledger:
    return Ledger({row.id: row.split for row in rows}, params.seed, (params.train, params.val, params.test))


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
    lambda three: SplitParams(train=three[0], val=three[1], test=three[2], seed=3)
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
    frozen = frozen_test(rows, previous)
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
            r"Leak: the image x… stands in train and in val",
        ),
        (planted(("x", "cat", "train", "g"), ("y", "cat", "test", "g")), [], r"the group of duplicates g… stands in train"),
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
    previous = read_ledger(path, without)
    write_split(path, assign(without, PARAMS, previous), PARAMS, previous)
    back = assign(rows, PARAMS, read_ledger(path, rows))
    assert sides(back)[gone.id] == "test"


def test_a_second_run_writes_the_same_bytes(tmp_path: Path) -> None:
    rows = images({"cat": 30})
    write_split(tmp_path / "split.parquet", assign(rows, PARAMS, NONE), PARAMS, NONE)
    before = (tmp_path / "split.parquet").read_bytes()
    previous = read_ledger(tmp_path / "split.parquet", rows)
    write_split(tmp_path / "split.parquet", assign(rows, PARAMS, previous), PARAMS, previous)
    assert (tmp_path / "split.parquet").read_bytes() == before


def test_a_ledger_of_another_data_set_has_no_effect(tmp_path: Path) -> None:
    path = tmp_path / "split.parquet"
    write_split(path, assign(images({"cat": 30}), PARAMS, NONE), PARAMS, NONE)
    assert read_ledger(path, images({"dog": 30})) == NONE
    assert read_ledger(tmp_path / "absent.parquet", images({"dog": 30})) == NONE


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
        read_ledger(path, rows)


def test_the_numbers_of_the_report() -> None:
    rows = images({"cat": 10, "dog": 13})
    split = assign(rows, PARAMS, NONE)
    numbers = summary(split, PARAMS, ledger(split))
    assert {key: value for key, value in numbers.items() if key != "by_class"} == {
        "images": 23, "train": 16, "val": 5, "test": 2, "classes": 2, "max_class_share_deviation": round(3 / 13 - 0.2, 6),
        "kept_in_test": 2, "leaks": 0,
    }  # fmt: skip
    assert numbers["by_class"] == [
        {"label": "cat", "share_deviation": 0.0, "train": 7, "val": 2, "test": 1},
        {"label": "dog", "share_deviation": round(3 / 13 - 0.2, 6), "train": 9, "val": 3, "test": 1},
    ]

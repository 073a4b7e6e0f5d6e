"""Parquet files as the hub holds them: struct or bytes, numbers with names or text, sides by their names."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from visionloop.data.sources.huggingface import HuggingfaceSource, Options
from visionloop.errors import DataError

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}}}


def save(path: Path, images: pa.Array, labels: pa.Array, *, names: object = None, columns: tuple[str, ...] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(zip(columns or ("image", "label"), (images, labels), strict=True)))
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)} if names else None), path)


def structs(*data: bytes | None) -> pa.Array:
    return pa.array([{"bytes": one, "path": f"{index}.jpg"} for index, one in enumerate(data)], STRUCT)


def test_numbers_get_the_names_of_the_schema_and_sides_come_from_file_names(tmp_path: Path) -> None:
    save(tmp_path / "data/train-00000-of-00001.parquet", structs(b"1", b"2"), pa.array([1, 0]), names=NAMES)
    save(tmp_path / "data/validation-00000-of-00001.parquet", structs(b"3"), pa.array([1]), names=NAMES)
    save(tmp_path / "data/test/0000.parquet", structs(b"4"), pa.array([0]), names=NAMES)
    source = HuggingfaceSource(tmp_path, Options())
    assert len(source) == 4
    assert [(image.data, image.label, image.split_hint, image.path) for image in source] == [
        (b"4", "cat", "test", "data/test/0000.parquet/0/0.jpg"),
        (b"1", "dog", "train", "data/train-00000-of-00001.parquet/0/0.jpg"),
        (b"2", "cat", "train", "data/train-00000-of-00001.parquet/1/1.jpg"),
        (b"3", "dog", "val", "data/validation-00000-of-00001.parquet/0/0.jpg"),
    ]


def test_bytes_and_text_and_other_column_names(tmp_path: Path) -> None:
    images, labels = pa.array([b"1", b"2"], pa.large_binary()), pa.array(["cat", " dog "])
    save(tmp_path / "part.parquet", images, labels, columns=("img", "fine_label"))
    source = HuggingfaceSource(tmp_path, Options(image="img", label="fine_label"))
    assert [(image.data, image.label, image.split_hint, image.path) for image in source] == [
        (b"1", "cat", None, "part.parquet/0"),
        (b"2", "dog", None, "part.parquet/1"),
    ]


def test_numbers_without_names_are_their_own(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", structs(b"1"), pa.array([7]))
    assert [image.label for image in HuggingfaceSource(tmp_path, Options())] == ["7"]


def test_rows_without_label_or_bytes_are_skipped(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", structs(b"1", b"2", b"3", None), pa.array([0, None, -1, 0]), names=NAMES)
    source = HuggingfaceSource(tmp_path, Options())
    assert [image.data for image in source] == [b"1"]
    assert [(item.path[-7:], item.reason) for item in source.skipped] == [
        ("1/1.jpg", "no_label"), ("2/2.jpg", "no_label"), ("3/3.jpg", "missing"),
    ]  # fmt: skip


def test_a_file_of_many_row_groups_is_read_to_its_end(tmp_path: Path) -> None:
    data = [b"%d" % index for index in range(300)]
    pq.write_table(pa.table({"image": data, "label": ["cat"] * 300}), tmp_path / "a.parquet", row_group_size=70)
    assert [image.data for image in HuggingfaceSource(tmp_path, Options())] == data


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label": "lable"}, r"no column 'lable'; did you mean 'label'\?"),
        ({"image": "label"}, r"'label' is int64, not bytes or struct<bytes, path>"),
        ({"label": "image"}, r"'image' is struct<.*>, not whole numbers or text"),
    ],
)
def test_a_wrong_column_is_named(tmp_path: Path, options: dict[str, str], sentence: str) -> None:
    save(tmp_path / "a.parquet", structs(b"1"), pa.array([0]))
    with pytest.raises(DataError, match=sentence):
        HuggingfaceSource(tmp_path, Options(**options))


def test_no_file_a_damaged_one_and_a_foreign_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no Parquet file"):
        HuggingfaceSource(tmp_path, Options())
    save(tmp_path / "a.parquet", structs(b"1"), pa.array([2]), names=NAMES)
    with pytest.raises(DataError, match=r"label 2 is none of the 2 classes"):
        list(HuggingfaceSource(tmp_path, Options()))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"b.parquet cannot be read .*; fetch the file again"):
        HuggingfaceSource(tmp_path, Options())


def test_classes_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.parquet", structs(b"1", b"2"), pa.array(["cat", "Cat"]))
    with pytest.raises(DataError, match="differ only in case"):
        list(HuggingfaceSource(tmp_path, Options()))

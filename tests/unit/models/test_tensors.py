"""visionloop.models.tensors: an evil or damaged checkpoint is a sentence, and no code of it runs."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from visionloop.errors import ArtifactError
from visionloop.models.tensors import read_tensors

STATE = {"head.weight": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(3)}


def saved(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def repacked(data: bytes, change: Callable[[str, bytes], bytes] = lambda _, content: content, method: int = 0) -> bytes:
    """The same archive with other contents, or compressed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return buffer.getvalue()


class Danger:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("was_run"),))


def evil_pickle(name: str, content: bytes) -> bytes:
    return pickle.dumps(Danger(), protocol=2) if name.endswith("data.pkl") else content


def test_what_torch_saves_comes_back_in_both_of_its_formats() -> None:
    for data in (saved(STATE), saved(STATE, _use_new_zipfile_serialization=False)):
        found = read_tensors(data, "model.pt")
        assert isinstance(found, dict)
        assert torch.equal(found["head.weight"], STATE["head.weight"])
    assert read_tensors(saved({"epoch": 3, "mask": torch.tensor([float("-inf")])}), "model.pt")


GOOD = saved(STATE)
NAN = {"model": {"body.bias": torch.tensor([0.0, float("nan")])}}


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", r"cannot be read as tensors"),
        (pickle.dumps(Danger(), protocol=2), r"cannot be read as tensors"),
        (repacked(GOOD, evil_pickle), r"cannot be read as tensors"),
        (saved(torch.nn.Linear(2, 2)), r"cannot be read as tensors"),
        (GOOD[:-1], r"cannot be read as tensors \(it is cut short or damaged"),
        (GOOD[: len(GOOD) // 2], r"cannot be read as tensors \(it is cut short or damaged"),
        (GOOD[:20], r"cannot be read as tensors \(it is cut short or damaged"),
        (repacked(saved({"w": torch.zeros(5_000_000)}), method=zipfile.ZIP_DEFLATED),
         r"is compressed: its 0\.0 MB would become 20\.0 MB"),
        (repacked(GOOD, lambda name, content: content[:4] if "/data/" in name else content), r"cannot be read as tensors"),
        (saved(NAN), r"has NaN in 'body\.bias'"),
        (saved([torch.tensor([float("nan")]).half()]), r"has NaN in"),
        (b"<!DOCTYPE html>", r"cannot be read as tensors"),
    ],
    ids=["empty", "evil pickle", "evil pickle in the archive", "whole module", "last byte gone", "cut in half",
         "header alone", "bomb", "a tensor that declares more than it holds", "nan", "nan in a list", "html"],
)  # fmt: skip
def test_evil_and_damage_are_one_sentence(
    data: bytes, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=rf"^model\.pt {sentence}") as error:
        read_tensors(data, "model.pt")
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)
    assert not Path("was_run").exists()

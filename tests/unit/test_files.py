"""visionloop.files and visionloop.card: whole or absent, and never other bytes than those that were hashed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.onnx_models import linear_card, write_linear
from visionloop.card import ModelCard, load_card
from visionloop.errors import ArtifactError
from visionloop.files import (
    atomic_open,
    atomic_path,
    read_verified,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)
from visionloop.paths import CARD
from visionloop.preprocess import RULES

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1


def test_the_hash_is_sha256(tmp_path: Path) -> None:
    write_text(tmp_path / "abc", "abc")
    assert sha256_bytes(b"abc") == sha256_file(tmp_path / "abc") == ABC


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    write_json(target, {"accuracy": 0.9})
    with pytest.raises(RuntimeError, match="half way"), atomic_open(target) as file:
        file.write('{"accura')
        raise RuntimeError("half way")
    assert json.loads(target.read_text()) == {"accuracy": 0.9}
    assert [item.name for item in tmp_path.iterdir()] == ["report.json"]


def test_a_file_appears_only_when_it_is_whole_and_is_readable_for_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model.onnx"
    with atomic_path(target) as tmp:
        tmp.write_bytes(b"half")
        assert not target.exists()
        assert (tmp.parent, tmp.suffix) == (target.parent, ".onnx")
    assert target.read_bytes() == b"half"
    assert target.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_that_other_readers_refuse_is_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "metrics.json", {"loss": value})
    assert not list(tmp_path.iterdir())


def test_json_is_utf8_with_a_final_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"Äpfel": 1})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "Äpfel": 1\n}\n'.encode()


def test_verified_bytes_are_given_and_others_are_refused_with_both_hashes(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    write_bytes(path, b"abc")
    assert read_verified(path, ABC) == b"abc"
    write_bytes(path, b"abd")
    with pytest.raises(ArtifactError) as error:
        read_verified(path, ABC)
    assert str(error.value) == (
        f"{path} is damaged or was exchanged: its card says sha256 ba7816bf8f01…, the file has a52d159f262b…; "
        f"restore it with `dvc checkout --force {path}` or rebuild it with `dvc repro`."
    )
    path.unlink()
    with pytest.raises(ArtifactError, match=r"model\.pt cannot be read \(No such file or directory\); run `dvc repro` or"):
        read_verified(path, ABC)


def test_a_card_survives_the_file_and_hashes_what_it_names(tmp_path: Path) -> None:
    write_bytes(tmp_path / "model.onnx", b"abc")
    write_bytes(tmp_path / "other.txt", b"not named")
    card = linear_card(labels=("Äpfel", "a/b", "no"), notes=("INT8 is shipped: …",)).with_files(tmp_path, ("model.onnx",))
    card.write(tmp_path)
    assert load_card(tmp_path) == card
    assert card.files == {"model.onnx": ABC}
    assert card.read_file(tmp_path, "model.onnx") == b"abc"
    with pytest.raises(ArtifactError, match=r"names no file 'other\.txt'; it has \['model\.onnx'\]"):
        card.read_file(tmp_path, "other.txt")
    write_bytes(tmp_path / "model.onnx", b"abd")
    with pytest.raises(ArtifactError, match="is damaged or was exchanged"):
        card.verify(tmp_path)


def test_equal_cards_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        linear_card().write(tmp_path / name)
    assert (tmp_path / "one" / "card.json").read_bytes() == (tmp_path / "two" / "card.json").read_bytes()


def test_no_card_and_no_valid_card_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"card\.json cannot be read \(No such file or directory\); run `dvc repro` to build"
    ):
        load_card(tmp_path)
    for text in ("", "{", '{"family": "cnn"}', "[]", json.dumps({**linear_card().model_dump(mode="json"), "colour": "red"})):
        write_text(tmp_path / "card.json", text)
        with pytest.raises(
            ArtifactError, match=r"card\.json is no model card of this visionloop; rebuild it with `dvc repro`"
        ):
            load_card(tmp_path)
    (tmp_path / "card.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="is no model card"):
        load_card(tmp_path)


def test_a_card_of_other_rules_of_preprocessing_is_refused(tmp_path: Path) -> None:
    """The spec is the same; what this version makes of it is not what the model learnt from."""
    write_linear(tmp_path)
    path = tmp_path / CARD
    tree = json.loads(path.read_text())
    assert tree["preprocess_rules"] == RULES
    path.write_text(json.dumps({**tree, "preprocess_rules": {**RULES, "rules": 2}}))
    with pytest.raises(ArtifactError, match="is no model card of this visionloop"):
        load_card(tmp_path)
    del tree["preprocess_rules"]  # as before there were rules in cards
    path.write_text(json.dumps(tree))
    assert load_card(tmp_path).preprocess_rules == RULES


def test_a_card_cannot_be_changed() -> None:
    card: ModelCard = linear_card()
    with pytest.raises(ValueError, match="frozen"):
        card.precision = "int8"

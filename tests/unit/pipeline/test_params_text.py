"""Values change in the text of params.yaml, and nothing else does."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from pipeline.params_text import read_tree, with_missing, with_values
from visionloop.config import Params, parse_params
from visionloop.errors import ConfigError

TEXT = (Path(__file__).parents[3] / "params.yaml").read_text(encoding="utf-8")


def changed_lines(new: str, old: str = TEXT) -> list[str]:
    """The lines that are new."""
    found = difflib.unified_diff(old.splitlines(), new.splitlines(), lineterm="", n=0)
    return [line[1:] for line in found if line[0] == "+"][1:]


def test_without_a_change_the_text_stays_to_the_letter() -> None:
    assert with_values(TEXT, {}) == TEXT
    assert with_values(TEXT, {"split": {"folds": 5}}, "not said") == TEXT


def test_a_value_changes_on_its_line_and_its_reason_with_it() -> None:
    new = with_values(TEXT, {"train": {"epochs": 3, "cnn": {"learning_rate": 0.00001}}}, "small variant; in full {old}")
    assert changed_lines(new) == [
        "  epochs: 3                   # small variant; in full 30",
        "    learning_rate: 1e-05      # small variant; in full 0.003",
    ]
    assert parse_params(new).train.cnn.learning_rate == 1e-5


def test_mappings_are_laid_over_mappings_and_lists_replaced_whole() -> None:
    changes = {
        "train": {"cnn": {"options": {"width": 8}, "override": {"batch_size": 32}}},
        "reference": {"splits": ["test"]},
    }
    new = with_values(TEXT, changes)
    assert changed_lines(new) == [
        "    options: {width: 8, blocks: 1, stages: 3}",
        "    override: {batch_size: 32}",
        "  splits: [test]",
    ]


def test_an_empty_mapping_empties() -> None:
    assert changed_lines(with_values(TEXT, {"train": {"cnn": {"options": {}}}})) == ["    options: {}"]


def test_missing_keys_come_back_where_they_stood_with_their_comments() -> None:
    lines = TEXT.splitlines(keepends=True)
    gone = ("  epochs: ", "  seed: 0\n", "    layer_decay: ", "    architecture: small_vit", "  keep_days: ", "  workers: ")
    text = "".join(line for line in lines if not line.startswith(gone))
    assert with_missing(text, TEXT, Params) == TEXT
    without_section = TEXT[: TEXT.index("monitor:")]
    assert parse_params(with_missing(without_section, TEXT, Params)) == parse_params(TEXT)
    own = with_values(text, {"train": {"cnn": {"options": {"width": 8}}}})
    assert parse_params(with_missing(own, TEXT, Params)).train.cnn.options["width"] == 8


def test_free_options_are_nobody_elses_business() -> None:
    own = with_values(TEXT, {"train": {"cnn": {"options": {"new": 1}}}})
    text = own.replace("width: 16, ", "")
    assert with_missing(text, TEXT, Params) == text


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "", "a: &x 1\nb: *y"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"small\.yaml is no"):
        read_tree(text, "small.yaml")

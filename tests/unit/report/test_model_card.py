"""The model card: the field's sections, figures of the run, the owner's words, and nothing that was not said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.unit.report.runs import OWNER, origin, write_run
from visionloop.report.files import RunFiles
from visionloop.report.model_card import markdown

SECTIONS = [
    "Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data", "Quantitative analyses",
    "Ethical considerations", "Caveats and limits",
]  # fmt: skip


def card_of(root: Path) -> str:
    files = RunFiles(root)
    return markdown(files, origin(files), OWNER)


@pytest.fixture
def card(tmp_path: Path) -> str:
    write_run(tmp_path)
    return card_of(tmp_path)


def test_the_sections_are_those_of_the_paper_in_its_order(card: str) -> None:
    assert re.findall(r"^## (.*)$", card, re.M) == SECTIONS


def test_the_header_is_what_a_hub_reads(card: str) -> None:
    _, header, _ = card.split("---\n", 2)
    found = yaml.safe_load(header)
    assert (found["license"], found["pipeline_tag"]) == ("apache-2.0", "image-classification")
    assert found["tags"] == ["visionloop", "cnn", "small_resnet", "int8"]
    result = found["model-index"][0]["results"][0]
    assert {one["type"]: one["value"] for one in result["metrics"]} == {"accuracy": 0.94, "f1": 0.9}
    assert found["model-index"][0]["name"] == OWNER.model_name


def test_figures_come_with_intervals_and_limits_are_measured(card: str) -> None:
    assert "| accuracy | 94.00 % (84.00 to 98.00) |" in card
    assert "With 50 test images the accuracy is known to 14.0 points only." in card
    assert re.search(r"2 of 3 classes have fewer than 30 test images", card)
    assert "| ONNX INT8 | 0.10 | 15.2 | 80.3 |" in card
    assert "ViT" not in card.split("## Quantitative analyses")[1]


def test_what_the_owner_did_not_say_is_not_invented(card: str) -> None:
    assert "**For:** Counting bees \\& \\<b\\>ants\\</b\\>." in card
    assert "**Not for:** Not stated. The owner can say it in `params.yaml`, `report.out_of_scope`." in card
    assert "| contact | not stated |" in card


def test_names_break_no_table_and_no_page(card: str) -> None:
    assert not re.search(r"(?<!\\)<(?:script|td|b)\b", card.split("---\n", 2)[2])
    for line in card.splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", _head(card, line))), line


def _head(card: str, line: str) -> str:
    """The first row of the table that a row belongs to."""
    lines = card.splitlines()
    place = lines.index(line)
    while lines[place - 1].startswith("|"):
        place -= 1
    return lines[place]


def test_an_empty_run_and_files_of_another_form_still_make_a_card(tmp_path: Path) -> None:
    empty = card_of(tmp_path)
    assert re.findall(r"^## (.*)$", empty, re.M) == SECTIONS
    assert "no model is shipped yet" in empty
    write_run(tmp_path)
    for path in tmp_path.rglob("*.json"):
        path.write_text('{"selected": "cnn", "per_class": [{}], "slices": [1], "images_by_source": 3, "accuracy_low": "x"}')
    assert re.findall(r"^## (.*)$", card_of(tmp_path), re.M) == SECTIONS

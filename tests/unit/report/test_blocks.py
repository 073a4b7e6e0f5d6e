"""Values as people read them: units by their names, intervals beside their metric, Markdown that shows text as it stands."""

from __future__ import annotations

import pytest

from visionloop.report.blocks import Shares, Table, escaped, figure, interval, named, words


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.98765, "98.77 %"),
        ("accuracy", 1, "1"),
        ("macro_f1", 1.0, "1.000"),
        ("relative_corruption_error", 0.824, "0.824"),
        ("unknown_threshold", 0.5, "0.500"),
        ("images", 12345, "12,345"),
        ("p50_ms", 0.04567, "0.0457"),
        ("sharpness", 67273.8, "67,274"),
        ("temperature", 12.345, "12.35"),
        ("passed", True, "yes"),
        ("x", None, "unknown"),
        ("x", "", "unknown"),
        ("x", "frost", "frost"),
    ],
)
def test_a_value_is_written_by_what_its_name_says(name: str, value: object, text: str) -> None:
    assert figure(name, value) == text


def test_an_interval_joins_its_metric_and_lists_are_left_out() -> None:
    numbers = {"accuracy": 0.98, "accuracy_low": 0.96, "accuracy_high": 0.99, "clip_low": 3, "notes": ["x"]}
    assert named(numbers) == {"accuracy": "98.00 % (96.00 to 99.00)", "clip low": "3"}
    assert interval("loss", {"loss": 0.5}) == "0.500"


def test_words_know_abbreviations() -> None:
    assert words("unknown_fpr95") == "unknown FPR95"
    assert words("http_p50_ms") == "HTTP median ms"


def test_markdown_shows_marks_as_they_are() -> None:
    assert escaped("a|b<c>\n*d* [e](f)") == "a\\|b\\<c\\> \\*d\\* \\[e\\](f)"
    table = Table("T", ("a", "b"), [("x|y", "1")], ("note",))
    assert table.markdown() == "**T**\n\n| a | b |\n| :--- | ---: |\n| x\\|y | 1 |\n\nnote\n"


def test_the_longest_bar_is_the_largest_total() -> None:
    assert Shares("", (), [("a", (1, 2)), ("b", (4, 0))]).most == 4
    assert Shares("", (), []).most == 1

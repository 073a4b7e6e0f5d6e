"""What a report is made of: sections of paragraphs, tables, pictures and charts, as values that a page or Markdown shows.

Does not cover: how they look (`page`, `model_card`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from visionloop.charts import Picture
from visionloop.report.files import Image

_SPECIAL = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]<>#|~$&"} | {"\n": " ", "\r": " "})


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True, slots=True)
class Missing:
    """Why something is not there."""

    kind: ClassVar[str] = "missing"
    text: str


@dataclass(frozen=True, slots=True)
class Tiles:
    """Single figures, each with its words."""

    kind: ClassVar[str] = "tiles"
    tiles: Sequence[tuple[str, str]]  # (figure, words)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text; the first cell of each names the row."""

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    wordy: bool = False  # its cells are words, written from the left

    def markdown(self) -> str:
        """The table as GitHub's Markdown, its title above, its notes below."""
        rule = [":---", *([":---" if self.wordy else "---:"] * (len(self.columns) - 1))]
        lines = [f"**{escaped(self.title)}**", ""] if self.title else []
        lines += [_row(self.columns), _row(rule, plain=True), *(_row(row) for row in self.rows)]
        return "\n".join([*lines, *(f"\n{escaped(note)}" for note in self.notes)]) + "\n"


@dataclass(frozen=True, slots=True)
class Shares:
    """A bar per row: how its total is divided, and how long it is beside the others."""

    kind: ClassVar[str] = "shares"
    title: str
    columns: Sequence[str]  # the name of the row, of each part, and of the total
    rows: Sequence[tuple[str, Sequence[int]]]
    notes: Sequence[str] = ()

    @property
    def most(self) -> int:
        """The largest total."""
        return max((sum(parts) for _, parts in self.rows), default=0) or 1


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture that a stage drew."""

    kind: ClassVar[str] = "drawing"
    image: Image
    title: str
    path: str


@dataclass(frozen=True, slots=True)
class Charts:
    """Charts side by side, and the names of their lines."""

    kind: ClassVar[str] = "charts"
    charts: Sequence[Picture]
    legend: Sequence[tuple[str, str]]  # (class of the line, words)


@dataclass(frozen=True, slots=True)
class Details:
    """Text as a machine writes it, folded away."""

    kind: ClassVar[str] = "details"
    title: str
    text: str


Block = Text | Missing | Tiles | Table | Shares | Drawing | Charts | Details


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    name: str
    title: str
    blocks: Sequence[Block]

    @property
    def is_missing(self) -> bool:
        """Whether it only says why it is not there."""
        return all(isinstance(block, Missing) for block in self.blocks)

    @property
    def runs(self) -> list[tuple[str, list[Block]]]:
        """The blocks, those of one kind that follow each other together."""
        return [(kind, list(found)) for kind, found in itertools.groupby(self.blocks, key=lambda block: block.kind)]


@dataclass(frozen=True)
class Report:
    """All that a page shows."""

    title: str
    sentences: Sequence[str]  # the result in words
    tiles: Tiles
    warnings: Sequence[str]
    sections: Sequence[Section]


def escaped(text: str) -> str:
    """Text that Markdown shows as it stands."""
    return text.translate(_SPECIAL)


def named(numbers: Mapping[str, object]) -> dict[str, str]:
    """Names and values as people read them: an interval `x_low`, `x_high` joins its `x`; lists and objects are left out.

    >>> named({"accuracy": 0.98, "accuracy_low": 0.96, "accuracy_high": 0.99})
    {'accuracy': '98.00 % (96.00 to 99.00)'}
    """
    found = {}
    for name, value in numbers.items():
        base = name.removesuffix("_low").removesuffix("_high")
        if isinstance(value, list | dict) or (base != name and base in numbers):
            continue
        found[words(name)] = interval(name, numbers) if f"{name}_low" in numbers else figure(name, value)
    return found


def interval(name: str, numbers: Mapping[str, object]) -> str:
    """A metric with its interval, if it has one."""
    text = figure(name, numbers.get(name))
    low, high = (numbers.get(f"{name}_{end}") for end in ("low", "high"))
    if low is None or high is None:
        return text
    ends = " to ".join(figure(name, end).removesuffix(" %") for end in (low, high))
    return f"{text} ({ends})"


_SHARES = (
    "accuracy", "share", "agreement", "error", "drop", "kept", "found", "fpr95", "reviewed", "sure", "coverage",
    "out_of_range",
)  # fmt: skip
_NO_SHARES = ("relative", "squared", "threshold", "temperature")


def figure(name: str, value: object) -> str:
    """A value as people read it; which unit it has stands in its name."""
    if value is None or value == "":
        return "unknown"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) <= 1 and any(part in name for part in _SHARES) and not any(part in name for part in _NO_SHARES):
        return f"{100 * value:.2f} %"
    digits = ".3f" if 0.1 <= abs(value) < 10 else ".3g" if abs(value) < 0.1 else ".4g"
    return format(value, digits)


_WORDS = {
    "p": "p", "ms": "ms", "mb": "MB", "f1": "F1", "ece": "ECE", "auc": "AUC", "roc": "ROC", "pr": "PR", "fp32": "FP32",
    "int8": "INT8", "cnn": "CNN", "vit": "ViT", "http": "HTTP", "grpc": "gRPC", "auroc": "AUROC", "fpr95": "FPR95",
    "fgsm": "FGSM", "pgd": "PGD", "mce": "mCE", "nll": "NLL", "megabytes": "MB", "p50": "median",
}  # fmt: skip


def words(name: str) -> str:
    """A name with underscores as words."""
    return " ".join(_WORDS.get(part, part) for part in name.replace("@", " at ").split("_") if part)


def _row(cells: Sequence[str], *, plain: bool = False) -> str:
    return f"| {' | '.join(cell if plain else escaped(cell) for cell in cells)} |"

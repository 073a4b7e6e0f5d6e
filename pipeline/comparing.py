"""`visionloop compare`: two runs side by side, each a git revision or what lies here, in the terminal and as one page.

Reports that are small lie in git; predictions lie in DVC's cache or remote, and both are read through DVC's Python API,
without a checkout. Differences are of the second run to the first, so "better" is said of the newer one.

Does not cover: comparing a new model with the served one, which the stage `gate` does.
"""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from pipeline.summary import FAMILIES
from visionloop.errors import ArtifactError, PipelineError
from visionloop.evaluation.comparison import (
    ClassChange,
    Difference,
    PairedAnswers,
    class_changes,
    compare_answers,
    counted,
    differences,
    verdict,
)
from visionloop.files import write_text
from visionloop.paths import (
    COMPARE_PAGE,
    PARAMS,
    QUANTIZE_REPORT,
    ROBUSTNESS_REPORT,
    SELECT_REPORT,
    SPLIT_REPORT,
    evaluate_report,
)

HERE = "here"
LEVEL = 0.95
_SHOWN_CLASSES = 6  # in the terminal; the page has them all
_SHOWN_METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss", "calibration_error")
_REPORTS = (SPLIT_REPORT, SELECT_REPORT, QUANTIZE_REPORT, ROBUSTNESS_REPORT)


@dataclass(frozen=True)
class Answers:
    """What one model says of the test images."""

    labels: Mapping[str, str]  # id -> true class
    predicted: Mapping[str, str]  # id -> answer


@dataclass(frozen=True)
class Run:
    """One run, as far as it can be read."""

    name: str  # a commit's first digits, or `HERE`
    title: str  # its subject and day, or words
    params: dict[str, Any]  # flat: "train.epochs" -> 30
    selected: str  # family
    metrics: dict[str, dict[str, float]]  # family -> flat numbers
    figures: dict[str, float]  # numbers of the other reports: "quantize: test_accuracy"
    answers: dict[str, Answers]  # family -> answers, where they are to be had
    lacks: tuple[str, ...] = ()  # sentences about what is not


@dataclass(frozen=True)
class Pair:
    """One model of each run on the images that both have."""

    title: str  # "CNN", "selected: ViT against CNN"
    sentence: str
    differences: list[Difference] = field(default_factory=list)
    classes: list[ClassChange] = field(default_factory=list)


@dataclass(frozen=True)
class SideBySide:
    """All that the terminal and the page show. Runs are the first, older one and the second, newer one."""

    old: Run
    new: Run
    params: list[tuple[str, str, str]]  # key, old, new; those that differ
    metrics: list[tuple[str, str, str, str]]  # family and metric, old, new, difference
    figures: list[tuple[str, str, str, str]]
    pairs: list[Pair]


def compare(revision: str, other: str | None, console: Console | None = None) -> None:
    """Print the two runs side by side and write the page.

    Raises:
        PipelineError: git has no such revision, or nothing of a run lies there.
    """
    from pipeline.comparing_page import render

    found = side_by_side(read_run(revision), read_run(other))
    write_text(COMPARE_PAGE, render(found))
    show(found, console or Console())


def read_run(revision: str | None) -> Run:
    """A run as a git revision holds it, or, for None, as it lies here.

    Raises:
        PipelineError: git has no such revision, or nothing of a run lies there.
    """
    files = _Files(revision)
    params = files.read(PARAMS)
    if params is None:
        raise PipelineError(f"{files.title} has no {PARAMS}, so it is no state of this project.")
    metrics: dict[str, dict[str, float]] = {}
    answers: dict[str, Answers] = {}
    lacks = []
    for family in FAMILIES:
        path = evaluate_report(family) / "metrics.json"
        data = files.read(path)
        if data is None:
            continue
        metrics[family] = _numbers(data, path)
        table = files.read(evaluate_report(family) / "predictions.parquet")
        if table is None:
            lacks.append(
                f"The answers of the {FAMILIES[family]} of {files.name} are not in DVC's cache, nor in a remote, so there "
                f"is no paired verdict on it; {files.cure}"
            )
        else:
            answers[family] = _answers(table, files.name)
    if not metrics:
        raise PipelineError(
            f"{files.title} holds no results: there is no {evaluate_report('cnn') / 'metrics.json'}; {files.cure}"
        )
    figures = {
        f"{path.stem}: {name}": value
        for path in _REPORTS
        if (data := files.read(path)) is not None
        for name, value in _numbers(data, path).items()
    }
    chosen = files.read(SELECT_REPORT)
    selected = str(json.loads(chosen).get("selected", "")) if chosen else ""
    return Run(files.name, files.title, _flat(params), selected, metrics, figures, answers, tuple(lacks))


class _Files:
    """The files of one state; what is not there, or not to be had, is None."""

    def __init__(self, revision: str | None) -> None:
        self._system: Any = None
        self.name, self.title = HERE, "What lies here"
        self.cure = "run `visionloop run` or `dvc repro` first."
        if revision is None:
            return
        from dvc.api import DVCFileSystem

        sha = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        if not sha:
            raise PipelineError(f"git has no revision {revision!r}; `git log --oneline` and `git branch --all` list them.")
        self.name = sha[:7]
        self.title = f"{self.name} ({_git('log', '-1', '--format=%cs, %s', sha)})"
        self.cure = f"`dvc fetch` in a checkout of it, or `git checkout {self.name}` and `dvc repro`, brings it."
        self._system = DVCFileSystem(str(Path.cwd()), rev=sha)

    def read(self, path: Path) -> bytes | None:
        """The bytes of a file, from the disk, from git or from DVC's cache or remote."""
        if self._system is None:
            return path.read_bytes() if path.is_file() else None
        from dvc.exceptions import DvcException

        try:
            with self._system.open(path.as_posix(), mode="rb") as file:
                data: bytes = file.read()
        except (OSError, DvcException):
            return None
        return data


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _numbers(data: bytes, path: Path) -> dict[str, float]:
    """The flat numbers of a report."""
    try:
        found = json.loads(data)
        return {name: value for name, value in found.items() if isinstance(value, int | float)}
    except (ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} is no report of a stage ({error}); run `dvc repro`.") from error


def _answers(data: bytes, name: str) -> Answers:
    try:
        table = pq.read_table(io.BytesIO(data), columns=["id", "split", "label", "predicted"])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ArtifactError(f"The answers of {name} cannot be read ({str(error).splitlines()[0][:100]}).") from error
    rows = [row for row in table.to_pylist() if row["split"] == "test"]
    return Answers({row["id"]: row["label"] for row in rows}, {row["id"]: row["predicted"] for row in rows})


def _flat(params: bytes) -> dict[str, Any]:
    def walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                yield from walk(inner, f"{key}.{name}" if key else str(name))
        else:
            yield key, value

    try:
        return dict(walk(yaml.safe_load(params), ""))
    except yaml.YAMLError as error:
        raise ArtifactError(f"{PARAMS} cannot be read ({str(error).splitlines()[0]}).") from error


def side_by_side(old: Run, new: Run) -> SideBySide:
    """What differs between two runs, and how sure that is."""
    keys = [*old.params, *(key for key in new.params if key not in old.params)]
    params = [
        (key, _word(old.params, key), _word(new.params, key))
        for key in keys
        if _word(old.params, key) != _word(new.params, key)
    ]
    pairs = [_pair(FAMILIES[family], old, family, new, family) for family in FAMILIES]
    if old.selected and new.selected and old.selected != new.selected:
        names = FAMILIES.get(new.selected, new.selected), FAMILIES.get(old.selected, old.selected)
        pairs.append(_pair(f"selected, {names[0]} against {names[1]}", old, old.selected, new, new.selected))
    found = [pair for pair in pairs if pair is not None]
    metrics = []
    for family, words in FAMILIES.items():
        before, after = old.metrics.get(family, {}), new.metrics.get(family, {})
        paired = {one.metric: one for pair in found if pair.title == words for one in pair.differences}
        for name in dict.fromkeys([*before, *after]):
            if not name.endswith(("_low", "_high")):
                metrics.append((f"{words} {name}", _value(before, name), _value(after, name), _change(before, after, name,
                                paired.get(name))))  # type: ignore[call-overload]  # fmt: skip
    figures = [
        (name, _value(old.figures, name), _value(new.figures, name), _change(old.figures, new.figures, name, None))
        for name in dict.fromkeys([*old.figures, *new.figures])
        if old.figures.get(name) != new.figures.get(name)
    ]
    return SideBySide(old, new, params, metrics, figures, found)


def _pair(title: str, old: Run, old_family: str, new: Run, new_family: str) -> Pair | None:
    """One model of each; None where a run has no such model, or no answers of it, which the run says itself."""
    before, after = old.answers.get(old_family), new.answers.get(new_family)
    if before is None or after is None:
        return None
    shared = sorted(name for name, label in after.labels.items() if before.labels.get(name) == label)
    if not shared:
        return Pair(title, "The two were not evaluated on one common image with the same label, so they cannot be compared.")
    labels = sorted({after.labels[name] for name in shared})
    place = {label: number for number, label in enumerate(labels)}

    def numbers(words: Mapping[str, str]) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.array([place.get(words[name], -1) for name in shared], dtype=np.int64)

    answers = PairedAnswers(numbers(after.labels), numbers(after.predicted), numbers(before.predicted))
    sizes = ""
    if not len(shared) == len(after.labels) == len(before.labels):
        sizes = (
            f" They were evaluated on {counted(len(before.labels), 'test image')} and {len(after.labels):,}; this is said "
            "of those that both have with the same label."
        )
    sentence = f"{new.name} against {old.name}: {verdict(compare_answers(answers, LEVEL))}.{sizes}"
    return Pair(title, sentence, differences(answers, len(labels), LEVEL), class_changes(answers, labels))


def _word(params: Mapping[str, Any], key: str) -> str:
    return json.dumps(params[key], ensure_ascii=False, default=str) if key in params else "-"


def _value(numbers: Mapping[str, float], name: str) -> str:
    if name not in numbers:
        return "-"
    interval = ""
    if f"{name}_low" in numbers and f"{name}_high" in numbers:
        interval = f" ({numbers[f'{name}_low']:.4g} to {numbers[f'{name}_high']:.4g})"
    return f"{numbers[name]:.5g}{interval}"


def _change(old: Mapping[str, float], new: Mapping[str, float], name: str, paired: Difference | None) -> str:
    if name not in old or name not in new:
        return ""
    if paired:
        return f"{paired.difference:+.4f} ({paired.low:+.4f} to {paired.high:+.4f})"
    return f"{new[name] - old[name]:+.4g}" if new[name] != old[name] else "0"


def show(found: SideBySide, console: Console) -> None:
    """Print the comparison: params, the main metrics, the verdicts, the classes that moved most."""
    old, new = found.old, found.new
    console.print(f"first   {old.title}\nsecond  {new.title}\n", markup=False, highlight=False)
    if found.params:
        _table(console, "Params that differ", ("key", old.name, new.name), found.params)
    else:
        console.print("The params are the same.\n")
    main = [row for row in found.metrics if row[0].split(" ")[1] in _SHOWN_METRICS]
    _table(console, "Test images, with 95 % intervals", ("metric", old.name, new.name, "difference"), main)
    for pair in found.pairs:
        console.print(f"{pair.title}: {pair.sentence}", markup=False, highlight=False)
        moved = sorted((one for one in pair.classes if one.gained or one.lost), key=lambda one: -abs(one.difference))
        for one in moved[:_SHOWN_CLASSES]:
            console.print(
                f"    {one.label}: {one.second:.1%} to {one.first:.1%} of {counted(one.images, 'image')}, {one.gained} "
                f"gained, {one.lost} lost",
                markup=False,
                highlight=False,
            )
    for sentence in (*old.lacks, *new.lacks):
        console.print(sentence, markup=False, highlight=False)
    console.print(f"\nThe page is {COMPARE_PAGE}", markup=False, highlight=False)


def _table(console: Console, title: str, columns: tuple[str, ...], rows: list[Any]) -> None:
    drawn = RichTable(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(str(cell).replace("[", "\\[") for cell in row))
    console.print(drawn)

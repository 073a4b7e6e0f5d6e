"""The sections of a report about the models: how they learnt, how right they are, where they are wrong, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from visionloop.charts import Axis, Picture, counted, picture
from visionloop.paths import (
    CALIBRATE_REPORTS,
    SELECT_REPORT,
    calibrate_report,
    evaluate_report,
    train_report,
)
from visionloop.report.blocks import (
    Block,
    Charts,
    Missing,
    Table,
    Text,
    figure,
    interval,
    named,
    words,
)
from visionloop.report.data_sections import drawing, missing
from visionloop.report.files import RunFiles

FAMILIES = {"cnn": "CNN", "vit": "ViT"}
CURVES = {
    "val_accuracy": "accuracy on val",
    "train_loss": "loss on train",
    "val_loss": "loss on val",
    "learning_rate": "learning rate",
}
_CHART = (420, 250)
_LEAST = 30  # classes with the least recall that are shown, where there are more than twice as many
# Metrics that belong to calibration and unknown answers, by how their names begin.
_TRUST = (
    "temperature", "log_loss", "brier", "calibration", "adaptive", "aurc", "reviewed", "rest", "sure", "known", "unknown",
)  # fmt: skip


def training(files: RunFiles) -> list[Block]:
    """The learning curves of both families, and what they ended with."""
    legend = [(f"line-{family}", name) for family, name in FAMILIES.items()]
    charts = [chart for metric, title in CURVES.items() if (chart := _curve(files, metric, title))]
    finals = {name: files.json(train_report(family) / "metrics.json") for family, name in FAMILIES.items()}
    blocks: list[Block] = [Charts(charts, legend)] if charts else [missing(train_report("cnn"), "train")]
    blocks += _side_by_side("What training ended with", finals, skip={"step"})
    for family, name in FAMILIES.items():
        if not finals[name]:
            blocks.append(missing(train_report(family) / "metrics.json", f"train@{family}"))
    return blocks


def metrics(files: RunFiles) -> list[Block]:
    """Both models on the test images, and which was selected."""
    every = {name: _metrics(files, family) for family, name in FAMILIES.items()}
    found = {name: {key: one[key] for key in one if not key.startswith(_TRUST)} for name, one in every.items()}
    select = files.json(SELECT_REPORT)
    blocks: list[Block] = [Text(sentence) for sentence in _sentences(select)] or [missing(SELECT_REPORT, "select")]
    blocks += _side_by_side("On the test images, with intervals", found, skip={"step"})
    notes: dict[str, list[str]] = {}
    for family, name in FAMILIES.items():
        folder = evaluate_report(family)
        if not found[name]:
            blocks.append(missing(folder / "metrics.json", f"evaluate@{family}"))
            continue
        details = files.json(folder / "detail.json")
        notes[name] = _sentences(details, "notes")
        blocks += _classes(files, family, name, details)
    blocks += _together(notes)
    blocks += _drawings(files, "classes.png", "class by class")
    blocks += _drawings(files, "pr_curves.png", "precision against recall", "roc_curves.png", "ROC curves")
    return blocks


def confusion(files: RunFiles) -> list[Block]:
    """Which classes are taken for which."""
    blocks = _drawings(files, "confusion.png", "confusion on the test images")
    for family, name in FAMILIES.items():
        pairs = files.json(evaluate_report(family) / "detail.json").get("pairs")
        if pairs:
            rows = [
                [f"{one['actual']} called {one['predicted']}", figure("", one["images"]), figure("", one["of"]),
                 interval("share", {"share": one["share"], "share_low": one["low"], "share_high": one["high"]})]
                for one in pairs
            ]  # fmt: skip
            blocks.append(Table(f"{name}, the most confused classes", ("what", "images", "of", "share"), rows))
        elif pairs == []:
            blocks.append(Text(f"The {name} confuses no two classes on the test images."))
    return [*blocks, *_drawings(files, "pairs.png", "the most confused classes")]


def calibration(files: RunFiles) -> list[Block]:
    """Whether a confidence means what it says, which answers are unknown, and which go to a person."""
    blocks: list[Block] = []
    found = {name: files.json(CALIBRATE_REPORTS / f"{family}.json") for family, name in FAMILIES.items()}
    for family, name in FAMILIES.items():
        if not found[name]:
            blocks.append(missing(CALIBRATE_REPORTS / f"{family}.json", f"calibrate@{family}"))
        blocks += [Text(f"{name}: {note}") for note in _sentences(found[name], "notes")]
    tested = {name: _metrics(files, family) for family, name in FAMILIES.items()}
    tested = {name: {key: one[key] for key in one if key.startswith(_TRUST)} for name, one in tested.items()}
    blocks += _side_by_side("On the test images", tested)
    blocks += _drawings(files, "reliability.png", "reliability on test, before and after the temperature")
    blocks += _drawings(files, "risk_coverage.png", "mistakes left where the least certain answers go to a person")
    blocks += _side_by_side("On the validation images, which it was fitted to", found)
    for family, name in FAMILIES.items():
        folder, stage = calibrate_report(family), f"calibrate@{family}"
        blocks.append(drawing(files, folder / "reliability.png", f"{name}, reliability on val, before and after", stage))
        blocks.append(drawing(files, folder / "unknowns.png", f"{name}, how foreign images are told", stage))
    for family, name in FAMILIES.items():
        folder = calibrate_report(family)
        blocks += csv_table(files, folder / "thresholds.csv", f"{name}, least probability for the stated precision")
        blocks += csv_table(files, folder / "unknowns.csv", f"{name}, scores that tell foreign images")
    return blocks


def mistakes(files: RunFiles) -> list[Block]:
    """The wrong answers that the models were surest of."""
    return _drawings(files, "mistakes.png", "the wrong answers it was surest of")


def explanation(files: RunFiles) -> list[Block]:
    """Where in an image the evidence lies, and whether these maps are right."""
    blocks: list[Block] = []
    found = {name: files.json(evaluate_report(family) / "explanation.json") for family, name in FAMILIES.items()}
    for family, name in FAMILIES.items():
        if not found[name]:
            blocks.append(missing(evaluate_report(family) / "explanation.json", f"evaluate@{family}"))
    blocks += _side_by_side("Are the maps right?", found)
    details = {family: files.json(evaluate_report(family) / "explanation_detail.json") for family in FAMILIES}
    notes = [Text(f"{name}: {details[family][key]}") for family, name in FAMILIES.items() for key in ("reason", "proof")
             if details[family].get(key)]  # fmt: skip
    for file, title in (
        ("explanation.png", "Where the evidence lies."),
        ("explanation_mistakes.png", "Where the evidence of wrong answers lies."),
        ("explanation_pixels.png", "Pixel by pixel."),
        ("explanation_pointing.png", "Images whose evidence was placed."),
        ("explanation_proof.png", "Whether the maps are right."),
    ):
        for family, name in FAMILIES.items():
            said = str((details[family].get("pictures") or {}).get(file, title))
            blocks.append(drawing(files, evaluate_report(family) / file, f"{name}: {said}", f"evaluate@{family}"))
    return [*notes, *blocks]


def slices(files: RunFiles) -> list[Block]:
    """Where a model is worse: its accuracy on parts of the test images."""
    blocks: list[Block] = []
    for family, name in FAMILIES.items():
        found = files.json(evaluate_report(family) / "detail.json")
        parts = found.get("slices")
        if not parts:
            where = evaluate_report(family) / "detail.json"
            blocks.append(Text(f"The {name} has no slices.") if found else missing(where, f"evaluate@{family}"))
            continue
        worse = [str(one["sentence"]) for one in parts if one.get("verdict") == "worse"]
        blocks += [Text(f"{name}: {sentence}") for sentence in worse]
        if not worse:
            blocks.append(Text(f"The {name} is proved worse on none of {len(parts)} parts of the test images."))
        rows = [
            [f"{words(str(one['kind']))} {one['name']}", figure("", one["images"]), figure("", one["mistakes"]),
             interval("accuracy", {"accuracy": one["accuracy"], "accuracy_low": one["low"], "accuracy_high": one["high"]}),
             figure("accuracy", one["rest_accuracy"]), str(one["verdict"])]
            for one in parts
        ]  # fmt: skip
        columns = ("part", "images", "mistakes", "accuracy", "of the rest", "verdict")
        blocks.append(Table(f"{name}, parts of the test images", columns, rows))
    return [*blocks, *_drawings(files, "slices.png", "parts of the test images")]


def generic(report: Mapping[str, Any], title: str, skip: Iterable[str] = ()) -> list[Block]:
    """A report whose form is not known here: its numbers as one table, each list of rows as one of its own."""
    plain = {name: value for name, value in report.items() if name not in set(skip)}
    flat = named({name: value for name, value in plain.items() if not isinstance(value, str) or len(value) < 40})
    blocks: list[Block] = [Table(title, ("what", "value"), list(flat.items()))] if flat else []
    for name, value in plain.items():
        rows = value if isinstance(value, list) else []
        if isinstance(value, dict) and value and all(isinstance(one, dict) for one in value.values()):
            rows = [{"": key, **one} for key, one in value.items()]
        elif isinstance(value, dict):
            blocks += [Table(words(name), ("what", "value"), list(named(value).items()))] if named(value) else []
        if rows and all(isinstance(row, dict) for row in rows):
            columns = [column for column in rows[0] if not isinstance(rows[0][column], list | dict)]
            cells = [[figure(column, row.get(column)) for column in columns] for row in rows]
            blocks.append(Table(f"{title}, {words(name)}", [words(column) for column in columns], cells))
    return blocks


def _metrics(files: RunFiles, family: str) -> dict[str, Any]:
    """The flat metrics of a family, with the intervals that stand in its details alone."""
    folder = evaluate_report(family)
    found = files.json(folder / "metrics.json")
    for one in files.json(folder / "detail.json").get("metrics") or []:
        if one["name"] in found:
            found.setdefault(f"{one['name']}_low", one["low"])
            found.setdefault(f"{one['name']}_high", one["high"])
    return found


def _classes(files: RunFiles, family: str, name: str, details: Mapping[str, Any]) -> list[Block]:
    columns = ("precision", "recall", "f1", "roc_auc", "average_precision")
    rows: list[tuple[float, list[str]]] = []
    for one in details.get("per_class") or []:
        cells = [_value(one.get(column)) for column in columns]
        recall = one.get("recall")
        rows.append((recall["value"] if recall else 2.0, [str(one["label"]), figure("", one["support"]), *cells]))
    if not rows:
        for row in files.rows(evaluate_report(family) / "classes.csv"):
            cells = [f"{float(row[column]):.3f}" if row.get(column) else "undefined" for column in columns]
            rows.append((float(row.get("recall") or 2), [row.get("label", ""), row.get("support", ""), *cells]))
    if not rows:
        return []
    title = f"{name}, class by class"
    if len(rows) > 2 * _LEAST:
        title = f"{name}, the {_LEAST} of {len(rows)} classes with the least recall"
        rows = sorted(rows, key=lambda row: row[0])[:_LEAST]
    heads = ("class", "test images", "precision", "recall", "F1", "ROC AUC", "average precision")
    return [Table(title, heads, [cells for _, cells in rows])]


def _value(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "undefined"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _side_by_side(title: str, found: Mapping[str, Mapping[str, Any]], skip: Iterable[str] = ()) -> list[Block]:
    there = {name: named({key: value for key, value in one.items() if key not in set(skip)}) for name, one in found.items()}
    there = {name: one for name, one in there.items() if one}
    names = list(dict.fromkeys(key for one in there.values() for key in one))
    if not names:
        return []
    rows = [[key, *(one.get(key, "") for one in there.values())] for key in names]
    return [Table(title, ("", *there), rows)]


def _curve(files: RunFiles, metric: str, title: str) -> Picture | None:
    lines: dict[str, list[tuple[int, float]]] = {}
    for family in FAMILIES:
        rows = files.rows(train_report(family) / "plots" / "metrics" / f"{metric}.tsv")
        points = [(int(row["step"]), float(row[metric])) for row in rows if _is_number(row.get(metric)) and row.get("step")]
        if points:
            lines[family] = points
    if not lines:
        return None
    values = sorted(value for points in lines.values() for _, value in points)
    # From the tenth part upwards for accuracies, up to the tenth part for losses: the first epochs would press all others.
    low, high = values[0], values[-1]
    if metric.endswith("accuracy"):
        low = values[len(values) // 10]
    elif metric.endswith("loss"):
        high = values[-1 - len(values) // 10]
    room = max((high - low) * 0.08, abs(high) * 1e-3, 1e-9)
    y_axis = Axis(max(0.0, low - room), min(high + room, 1.0) if metric.endswith("accuracy") else high + room)
    steps = [step for points in lines.values() for step, _ in points]
    drawn = [(points, f"line-{family}") for family, points in lines.items()]
    ends = [(*points[-1], f"{FAMILIES[family]}: {points[-1][1]:g}", f"dot-{family}") for family, points in lines.items()]
    text = ".1%" if metric.endswith("accuracy") else ".2g"
    x_axis = counted(min(steps), max(*steps, min(steps) + 1))
    return picture(title, x_axis, y_axis, ends, drawn, size=_CHART, x_label="epoch", y_text=text)


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and abs(float(text)) < float("inf")
    except ValueError:
        return False


def _drawings(files: RunFiles, *names: str) -> list[Block]:
    """Pictures of both families: file name, words, file name, words, ..."""
    blocks: list[Block] = []
    for family, name in FAMILIES.items():
        for file, title in zip(names[::2], names[1::2], strict=True):
            path = evaluate_report(family) / file
            blocks.append(drawing(files, path, f"{name}, {title}", f"evaluate@{family}"))
    return blocks


def csv_table(files: RunFiles, path: Path, title: str, most: int = 60, *, wordy: bool = False) -> list[Block]:
    """A table that a stage wrote, its first `most` rows; nothing where there is none."""
    rows = files.rows(path)
    if not rows:
        return []
    columns = list(rows[0])
    notes = (f"The first {most} of {len(rows)} rows of {path}.",) if len(rows) > most else ()
    cells = [[figure(column, _parsed(row[column])) if row.get(column) else "" for column in columns] for row in rows[:most]]
    return [Table(title, [words(column) for column in columns], cells, notes, wordy)]


def _parsed(text: str) -> object:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _together(notes: Mapping[str, Sequence[str]]) -> list[Block]:
    """Sentences of both families; what both have stands once, what one has under its name."""
    every = list(dict.fromkeys(note for one in notes.values() for note in one))
    owners = {note: [name for name, one in notes.items() if note in one] for note in every}
    return [Text(note if len(owners[note]) > 1 else f"{owners[note][0]}: {note}") for note in every]


def _sentences(report: Mapping[str, Any], key: str = "reason") -> list[str]:
    found = report.get(key)
    return [found] if isinstance(found, str) else [str(one) for one in found or []]


def shown(blocks: Sequence[Block]) -> list[Block]:
    """Blocks without repeated reasons for what is missing."""
    seen: set[str] = set()
    kept: list[Block] = []
    for block in blocks:
        if isinstance(block, Missing):
            if block.text in seen:
                continue
            seen.add(block.text)
        kept.append(block)
    return kept

"""`reports/compression.{json,csv,html}`: every form with what it gains and loses, every trial, the layers' sensitivity.

Does not cover: how a report's page looks (`visionloop.report.page`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from visionloop.charts import Axis, picture
from visionloop.compression.choice import THREADS, Choice, Measured, Verdict
from visionloop.compression.search import Found
from visionloop.report import page
from visionloop.report.blocks import Block, Charts, Report, Section, Table, Text, Tiles

COLUMNS = (
    "form", "shipped", "passes", "precision", "runtime", "megabytes", "val_accuracy", "val_accuracy_low",
    "val_accuracy_high", "worst_class", "worst_class_recall", "most_dropped_class", "class_drop", "test_accuracy",
    "agreement", "training_error", "speedup_batch_1", "speedup_batch_32",
    *(f"{figure}_{threads}_threads" for threads in THREADS for figure in (
        "p50_ms_batch_1", "p95_ms_batch_1", "images_per_second_batch_32")),
    "reason", "recipe",
)  # fmt: skip


def rows(choice: Choice) -> list[dict[str, Any]]:
    """A row per form, with the columns `COLUMNS`; times in milliseconds, sizes in 10^6 bytes, shares from 0 to 1."""
    return [_row(one, verdict, one is choice.shipped) for one, verdict in choice.forms]


@dataclass(frozen=True, slots=True)
class About:
    """What is told beside the figures."""

    target: str
    machine: str
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()  # further sentences


def as_json(choice: Choice, found: Found, about: About) -> dict[str, Any]:
    """All that the page shows, as data."""
    return {
        "shipped": choice.shipped.form.name,
        "reason": choice.reason,
        "target": about.target,
        "notes": list(about.notes),
        "warnings": list(about.warnings),
        "machine": about.machine,
        "search_seconds": round(found.seconds, 1),
        "search_ended_early": found.timed_out,
        "forms": rows(choice),
        "failed": dict(choice.failed),
        "trials": [
            {"network": one.network, "name": one.name, "error": one.error, "taken": one.taken, "reason": one.reason}
            for one in found.trials
        ],
        "layers": [{"name": one.name, "operator": one.operator, "error": one.error} for one in found.layers],
    }


def as_csv(choice: Choice) -> str:
    """`rows` as a table."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(choice))
    return text.getvalue()


def as_page(choice: Choice, found: Found, about: About) -> str:
    """The page, one file without a network and without a script."""
    one = choice.shipped
    tiles = Tiles(
        [
            (one.form.name, "is shipped"),
            (f"{one.speedup_batch_32:.2f} x", "images/s of FP32 in batches of 32"),
            (f"{one.speedup_batch_1:.2f} x", "the speed of FP32 for one image"),
            (f"{100 * one.val_accuracy:.2f} %", f"val accuracy ({100 * choice.reference.val_accuracy:.2f} % as FP32)"),
            (f"{one.megabytes:.2f} MB", f"({choice.reference.megabytes:.2f} MB as FP32)"),
        ]
    )
    sections = [
        Section("trade-off", "Accuracy against speed and size", _trade_off(choice)),
        Section("forms", "Every form", _forms(choice, about.machine)),
        Section("search", "What was tried", _trials(found)),
    ]
    if found.layers:
        sections.append(Section("layers", "Sensitivity of layers", _layers(found)))
    sentences = [choice.reason, *about.notes, f"Made for the target {about.target}."]
    return page.render(Report("Compression", sentences, tiles, about.warnings, sections))


def _row(one: Measured, verdict: Verdict, is_shipped: bool) -> dict[str, Any]:
    form = one.form
    row: dict[str, Any] = {
        "form": form.name,
        "shipped": int(is_shipped),
        "passes": int(verdict.passes),
        "precision": form.precision,
        "runtime": form.runtime if form.compute == "fp32" else f"{form.runtime} {form.compute}",
        "megabytes": round(one.megabytes, 4),
        "val_accuracy": one.val_accuracy,
        "val_accuracy_low": one.val_accuracy_low,
        "val_accuracy_high": one.val_accuracy_high,
        "worst_class": one.worst_class,
        "worst_class_recall": one.worst_class_recall,
        "most_dropped_class": one.most_dropped_class,
        "class_drop": one.class_drop,
        "test_accuracy": one.test_accuracy,
        "agreement": one.agreement,
        "training_error": form.error,
        "speedup_batch_1": one.speedup_batch_1,
        "speedup_batch_32": one.speedup_batch_32,
        "reason": verdict.reason,
        "recipe": form.says,
    }
    for threads in THREADS:
        first, full = one.latency(1, threads), one.latency(32, threads)
        row[f"p50_ms_batch_1_{threads}_threads"] = round(first.p50_ms, 4)
        row[f"p95_ms_batch_1_{threads}_threads"] = round(first.p95_ms, 4)
        row[f"images_per_second_batch_32_{threads}_threads"] = round(full.images_per_second, 1)
    return row


def _trade_off(choice: Choice) -> list[Block]:
    measured = [one for one, _ in choice.forms]
    passing = {one.form.name for one, verdict in choice.forms if verdict.passes}
    accuracies = [end for one in measured for end in (one.val_accuracy_low, one.val_accuracy_high)]
    y = Axis(min(accuracies), max(accuracies) if max(accuracies) > min(accuracies) else min(accuracies) + 0.01)
    charts = []
    sides: Sequence[tuple[str, str, Callable[[Measured], float]]] = (
        ("val accuracy against speed", "times the images/s of FP32 in batches of 32", lambda one: one.speedup_batch_32),
        ("val accuracy against size", "megabytes", lambda one: one.megabytes),
    )
    for title, x_label, value in sides:
        most = max(value(one) for one in measured) * 1.08
        points = [
            (
                value(one),
                one.val_accuracy,
                f"{one.form.name}: {value(one):.2f}, {100 * one.val_accuracy:.2f} %",
                "front" if one is choice.shipped else "dot-cnn" if one.form.name in passing else "dot-vit",
            )
            for one in measured
        ]
        bars = [
            ([(value(one), one.val_accuracy_low), (value(one), one.val_accuracy_high)],
             "line-cnn" if one.form.name in passing else "line-vit")
            for one in measured
        ]  # fmt: skip
        charts.append(picture(title, Axis(0, most), y, points, bars, x_label=x_label))
    legend = [("line-cnn", "keeps the budgets, with its 95 % interval"), ("line-vit", "is refused")]
    words = "A point names its form under the mouse; the large one is shipped. To the right and above is better."
    return [Text(words), Charts(charts, legend)]


def _forms(choice: Choice, machine: str) -> list[Block]:
    verdicts = [
        [one.form.name, "shipped" if one is choice.shipped else "may be shipped" if verdict.passes else "refused",
         f"{verdict.reason[0].upper()}{verdict.reason[1:].removesuffix('.')}.", f"{one.form.says}.",
         f"{one.speedup_batch_1:.2f} / {one.speedup_batch_32:.2f}"]
        for one, verdict in choice.forms
    ]  # fmt: skip
    verdicts += [[name, "could not be run", reason, "", ""] for name, reason in choice.failed.items()]
    accuracies = [
        [one.form.name, f"{one.megabytes:.2f}",
         f"{100 * one.val_accuracy:.2f} % ({100 * one.val_accuracy_low:.2f} to {100 * one.val_accuracy_high:.2f})",
         f"{one.worst_class}: {100 * one.worst_class_recall:.1f} %",
         f"{one.most_dropped_class}: {100 * one.class_drop:.1f}" if one.class_drop > 0 else "none",
         f"{100 * one.test_accuracy:.2f} %", f"{100 * one.agreement:.2f} %", f"{one.form.error:.4f}"]
        for one, _ in choice.forms
    ]  # fmt: skip
    speeds = [
        [f"{one.form.name}, {threads} thread{'s' if threads > 1 else ''}",
         f"{one.latency(1, threads).p50_ms:.3f}", f"{one.latency(1, threads).p95_ms:.3f}",
         f"{one.latency(32, threads).images_per_second:,.0f}",
         f"{choice.reference.latency(1, threads).p50_ms / one.latency(1, threads).p50_ms:.2f}",
         f"{choice.reference.latency(32, threads).p50_ms / one.latency(32, threads).p50_ms:.2f}"]
        for threads in THREADS
        for one, _ in choice.forms
    ]  # fmt: skip
    return [
        Table(
            "Why each was taken or refused",
            ("form", "verdict", "reason", "how it is made", "speed-up: 1 / 32"),
            verdicts,
            wordy=True,
        ),
        Table(
            "Size and accuracy",
            ("form", "MB", "val accuracy", "worst class", "largest drop of a class, points", "test accuracy",
             "same answers as FP32", "error on training images"),
            accuracies,
            ("Intervals are Wilson's, 95 %. Test images decide nothing. The error is the distance of the logits from those "
             "of FP32 as a share of their spread, on training images that set no ranges.",),
        ),
        Table(
            "Speed",
            ("form", "one image, median ms", "95th percentile", "images/s in batches of 32", "speed-up, one image",
             "speed-up, 32"),
            speeds,
            (f"Call by call in turn on {machine}. One thread decides.",),
        ),
    ]  # fmt: skip


def _trials(found: Found) -> list[Block]:
    table = [
        [f"{one.network} {one.name}".strip(), "none" if one.error is None else f"{one.error:.4f}",
         "taken" if one.taken else "", f"{one.reason}"]
        for one in found.trials
    ]  # fmt: skip
    early = " It ended before all was tried." if found.timed_out else ""
    words = (
        f"One thing at a time, in this order, in {found.seconds:.1f} s.{early} What lowers the error on training images is "
        "kept."
    )
    return [Text(words), Table("Trials", ("what", "error", "", "why"), table, wordy=True)]


def _layers(found: Found) -> list[Block]:
    most = max(one.error for one in found.layers) * 1.05 or 1.0
    bars = [([(at, 0.0), (at, one.error)], "line-cnn") for at, one in enumerate(found.layers, 1)]
    points = [(at, one.error, f"{one.name}: {one.error:.4f}", "dot-cnn") for at, one in enumerate(found.layers, 1)]
    count = len(found.layers)
    chart = picture(
        "error of each layer alone", Axis(0, count + 1, marks=(1, count)), Axis(0, most), points, bars,
        x_label="layers, the most sensitive first", y_text=".3f",
    )  # fmt: skip
    table = [[one.name, one.operator, f"{one.error:.4f}"] for one in found.layers]
    words = "Only one layer is in integers, all others stay float: how far the logits of training images move."
    return [Text(words), Charts([chart], []), Table("Layers", ("node", "operator", "error"), table)]

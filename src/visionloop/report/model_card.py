"""`reports/MODEL_CARD.md`: the model card of a run, with the sections of Mitchell et al. 2019 (arXiv:1810.03993).

The header is the YAML that model hubs read. Figures come from the stages' files, what no measurement gives from the owner's
words in the section `report` of the params; what neither has is said to be not stated.

Does not cover: `card.json`, which the code reads (`visionloop.card`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

from visionloop.config import ReportParams
from visionloop.paths import (
    CLEANING_REPORT,
    COLLECT_REPORT,
    GATE_REPORT,
    PARITY_REPORT,
    ROBUSTNESS_REPORT,
    SELECT_REPORT,
    SHIPPED,
    SPLIT_REPORT,
    evaluate_report,
)
from visionloop.records import SPLITS
from visionloop.report import model_sections, release_sections
from visionloop.report.blocks import Block, Missing, Table, Text, Tiles, escaped, figure, interval, words
from visionloop.report.data_sections import missing
from visionloop.report.files import RunFiles, earlier_words, of_earlier_run
from visionloop.report.model_sections import FAMILIES
from visionloop.report.release_sections import Origin
from visionloop.report.story import guarded, sentences

_MOST_LABELS = 100
_FEW = 30  # images of a class, below which its figures say little
_HUB_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "macro_precision": "precision", "macro_recall": "recall"}


def markdown(files: RunFiles, origin: Origin, owner: ReportParams) -> str:
    """The card as Markdown; names of classes and the owner's words are escaped."""
    card = files.json(SHIPPED / "card.json")
    family = str(files.json(SELECT_REPORT).get("selected", card.get("family", "")))
    metrics = files.json(evaluate_report(family) / "metrics.json") if family in FAMILIES else {}
    parts: list[tuple[str, Callable[[], str]]] = [
        ("", lambda: _header(owner, card, metrics)),
        (f"# {escaped(owner.model_name)}", lambda: _paragraphs(sentences(files, origin.lock))),
        ("## Model details", lambda: _details(files, card, origin, owner)),
        ("## Intended use", lambda: f"**For:** {_said(owner.intended_use, 'intended_use')}"),
        ("", lambda: f"**Not for:** {_said(owner.out_of_scope, 'out_of_scope')}"),
        ("## Factors", lambda: _factors(files, family)),
        ("## Metrics", lambda: _metrics(files, family)),
        ("## Evaluation data", lambda: _evaluation_data(files)),
        ("## Training data", lambda: _training_data(files)),
        ("## Quantitative analyses", lambda: _analyses(files, family, metrics)),
        ("## Ethical considerations", lambda: _said(owner.ethical_considerations, "ethical_considerations")),
        ("## Caveats and limits", lambda: _said(owner.limits, "limits")),
        ("", lambda: _list([*_earlier(files, origin), *_measured_limits(files, metrics, family)])),
    ]
    texts = [text for heading, build in parts for text in (heading, guarded(build, as_text).strip("\n"))]
    return "\n\n".join(text for text in texts if text) + "\n"


def as_text(sentence: str) -> str:
    """What stands in the place of a part that cannot be made."""
    return escaped(sentence)


def _header(owner: ReportParams, card: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    results = [
        {"type": hub, "name": words(name), "value": metrics[name]} for name, hub in _HUB_METRICS.items() if name in metrics
    ]
    tags = [str(card[key]) for key in ("family", "architecture", "precision") if card.get(key)]
    tree: dict[str, Any] = {
        "license": owner.licence or "unknown",
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["visionloop", *tags],
        "metrics": sorted({hub for name, hub in _HUB_METRICS.items() if name in metrics}),
    }
    if results:
        data = {"name": "held-out test images", "type": "own", "split": "test"}
        task = {"type": "image-classification"}
        found = {"task": task, "dataset": data, "metrics": results}
        tree["model-index"] = [{"name": owner.model_name, "results": [found]}]
    return f"---\n{yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)}---"


def _details(files: RunFiles, card: Mapping[str, Any], origin: Origin, owner: ReportParams) -> str:
    if not card:
        return _text(Missing(f"{SHIPPED / 'card.json'} is not there: no model is shipped yet."))
    spec, lineage = card.get("preprocess") or {}, dict(card.get("lineage") or {})
    labels = [str(label) for label in card.get("labels") or []]
    names = ", ".join(labels[:_MOST_LABELS]) + (
        f" and {len(labels) - _MOST_LABELS} more" if len(labels) > _MOST_LABELS else ""
    )
    data = str(lineage.pop("data", "unknown"))
    changed = ", with changes that the commit does not have" if origin.changed else ""
    rows = [
        ["architecture", f"{card.get('architecture')}, {FAMILIES.get(str(card.get('family')), 'unknown')}"],
        ["weights", figure("", card.get("parameters"))],
        ["input", f"uint8 RGB, {spec.get('height')} x {spec.get('width')} pixels; any image is brought to it"],
        ["answer", f"a logit for each of {len(labels)} classes: {names}"],
        ["precision", str(card.get("precision", "unknown")).upper()],
        ["files, sha256", ", ".join(f"{name} {sha256}" for name, sha256 in (card.get("files") or {}).items())],
        ["data version", data],
        ["made with", ", ".join(f"{name} {value}" for name, value in lineage.items())],
        ["images decoded with", _decoders(files)],
        ["code", f"commit {origin.commit}{changed}" if origin.commit else "unknown: no git repository was found"],
        ["licence", owner.licence or "not stated"],
        ["contact", owner.contact or "not stated"],
    ]
    return Table("", ("", ""), rows, wordy=True).markdown()


def _decoders(files: RunFiles) -> str:
    """Which libraries decode where the model is made and where it is served, and whether that changes a pixel."""
    found = files.json(PARITY_REPORT)
    if not found:
        return "unknown: the stage parity did not run"
    sides = (
        ", ".join(f"{name} {version}" for name, version in ((found.get(key) or [{}])[0]).items())
        for key in ("decoder", "served_decoder")
    )
    return f"{'; served: '.join(sides)}. {' '.join(str(one) for one in found.get('decoder_sentence') or [])}"


def _factors(files: RunFiles, family: str) -> str:
    parts = files.json(evaluate_report(family) / "detail.json").get("slices") or []
    kinds = list(dict.fromkeys(str(one["kind"]) for one in parts))
    if not kinds:
        return "No parts of the test images were judged apart. Factors beyond the images' own are not known to the pipeline."
    return (
        f"The accuracy is told apart by class and by {escaped(', '.join(words(kind) for kind in kinds))}. Other factors are "
        "not recorded, such as whom the images show, where and by which device they were taken: nothing is known of them."
    )


def _metrics(files: RunFiles, family: str) -> str:
    level = files.json(evaluate_report(family) / "detail.json").get("confidence_level")
    sure = f"{100 * level:g} %" if level else "an unknown level"
    said = [
        "Accuracy, and precision, recall and F1 as means over classes (macro) and over images (weighted), on test images "
        "that neither training nor the choice of an epoch has seen. The choice between the two families, the gate and the "
        f"robustness budgets use them. Intervals are of {sure} and speak of the choice of test images, not of another "
        "training."
    ]
    calibration = files.json(evaluate_report(family) / "metrics.json")
    if "reviewed" in calibration:
        said.append(
            f"Of the test answers {figure('reviewed', calibration['reviewed'])} are marked for a person; the accuracy of "
            f"the others is {interval('rest_accuracy', calibration)}."
        )
    return _paragraphs(said)


def _evaluation_data(files: RunFiles) -> str:
    split = files.json(SPLIT_REPORT)
    if not split:
        return _text(missing(SPLIT_REPORT, "split"))
    return _paragraphs(
        [
            f"{figure('', split.get('test'))} of {figure('', split.get('images'))} images, drawn by content and class, with "
            "look-alikes on one side. Once in test, always in test. They come from the same sources as the training images, "
            "so they say nothing of other sources.",
            f"Images on two sides: {figure('', split.get('leaks'))}.",
        ]
    )


def _training_data(files: RunFiles) -> str:
    split, collected, cleaned = (files.json(path) for path in (SPLIT_REPORT, COLLECT_REPORT, CLEANING_REPORT))
    said = []
    if collected:
        sources = ", ".join(f"{name} ({count:,})" for name, count in (collected.get("images_by_source") or {}).items())
        said.append(f"{figure('', collected.get('images'))} images were collected: {sources or 'of unknown source'}.")
    if cleaned:
        said.append(f"Cleaning rejected {figure('', cleaned.get('rejected'))} of them.")
    if split:
        sides = ", ".join(f"{side} {figure('', split.get(side))}" for side in SPLITS)
        said.append(f"Sides: {sides}. The network learnt from train; val chose the epoch and the calibration.")
    return _paragraphs(said) or _text(missing(COLLECT_REPORT, "collect"))


def _analyses(files: RunFiles, family: str, metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return _text(missing(evaluate_report(family or "cnn") / "metrics.json", "evaluate"))
    name = FAMILIES[family]
    shown = ("accuracy", "balanced_accuracy", "macro_f1", "macro_precision", "macro_recall", "calibration_error")
    rows = [[words(key), interval(key, metrics)] for key in shown if key in metrics]
    blocks: list[Block] = [Table(f"{name} on {metrics.get('images', 0):,} test images", ("metric", "value"), rows)]
    sections = (model_sections.metrics(files), model_sections.slices(files), release_sections.compression(files))
    for found, kinds in zip(sections, (("class",), ("parts",), ("Size", "Speed")), strict=True):
        blocks += _tables(found, name, kinds)
    robust = files.json(ROBUSTNESS_REPORT)
    if robust:
        said = ("clean_accuracy", "corruption_accuracy", "worst_corruption", "worst_corruption_accuracy", "worst_class",
                "worst_class_accuracy")  # fmt: skip
        rows = [[words(key), figure(key, robust[key])] for key in said if key in robust]
        blocks.append(Table("On spoilt test images", ("what", "value"), rows))
    else:
        blocks.append(missing(ROBUSTNESS_REPORT, "robustness"))
    return "\n\n".join(_text(block) for block in blocks)


def _tables(found: Sequence[Block], name: str, titles: Sequence[str]) -> list[Block]:
    """Of a section, what is missing and the tables with these words in their titles, of this family or of none."""
    others = {f"{other}," for other in FAMILIES.values()} - {f"{name},"}
    return [
        block
        for block in found
        if isinstance(block, Table)
        and any(word in block.title for word in titles)
        and not block.title.startswith(tuple(others))
    ]


def _earlier(files: RunFiles, origin: Origin) -> list[str]:
    return earlier_words(of_earlier_run(origin.lock, files.md5s))


def _measured_limits(files: RunFiles, metrics: Mapping[str, Any], family: str) -> list[str]:
    """What the figures themselves say against trusting them."""
    said = []
    low, high = metrics.get("accuracy_low"), metrics.get("accuracy_high")
    if low is not None and high is not None:
        said.append(
            f"With {metrics.get('images', 0):,} test images the accuracy is known to {100 * (high - low):.1f} points only."
        )
    classes = files.json(evaluate_report(family) / "detail.json").get("per_class") or []
    few = [str(one["label"]) for one in classes if one["support"] < _FEW]
    if few:
        shown = ", ".join(few[:10]) + (", ..." if len(few) > 10 else "")
        said.append(f"{len(few)} of {len(classes)} classes have fewer than {_FEW} test images ({shown}).")
    said += [str(note) for note in files.json(evaluate_report(family) / "detail.json").get("notes") or []]
    over = files.json(ROBUSTNESS_REPORT).get("over_budget") or []
    said += [f"Over budget in robustness: {one}" for one in over]
    gate = files.json(GATE_REPORT)
    if gate and not gate.get("passed"):
        said += [f"Blocked by the gate: {one}" for one in gate.get("verdict") or []]
    said += [f"Its forms differ: {one}" for one in files.json(PARITY_REPORT).get("over_budget") or []]
    said.append("An image of none of the classes is answered with one of them, unless it is marked as unknown.")
    return said


def _said(text: str | None, key: str) -> str:
    if text and text.strip():
        return escaped(text.strip())
    return f"Not stated. The owner can say it in `params.yaml`, `report.{key}`."


def _paragraphs(said: Sequence[str]) -> str:
    return escaped(" ".join(said))


def _list(said: Sequence[str]) -> str:
    return "\n".join(f"- {escaped(one)}" for one in said)


def _text(block: Block) -> str:
    match block:
        case Table():
            return block.markdown().strip("\n")
        case Text() | Missing():
            return escaped(block.text)
        case Tiles():
            return _list([f"{value} {name}" for value, name in block.tiles])
        case _:
            return ""

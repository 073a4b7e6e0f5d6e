"""Stage `evaluate <family>`: measure a trained model on the test images; numbers, plot data and pictures."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np

from pipeline.stages import family_argument, run_stage
from visionloop.card import load_calibration
from visionloop.config import EvaluateParams, load_section
from visionloop.data.packing import PackedSplit, load_split
from visionloop.evaluation.calibration_pictures import rest_png, trusted_png
from visionloop.evaluation.curves import curves_csv, micro_csv, pr_curves, roc_curves
from visionloop.evaluation.detail import confused_pairs, detail, notes, pairs_csv
from visionloop.evaluation.history import read_history
from visionloop.evaluation.intervals import interval_numbers, intervals
from visionloop.evaluation.measure_pictures import classes_png, pairs_png, slices_png, training_png
from visionloop.evaluation.metrics import classes_csv, confusion, confusion_csv, per_class, require_images, summarize
from visionloop.evaluation.pictures import confusion_png, mistakes_png, pr_curves_png, roc_curves_png
from visionloop.evaluation.predictions import Answers, SplitPredictions, answer, worst_mistakes, write_predictions
from visionloop.evaluation.slices import read_attributes, slices, slices_csv
from visionloop.evaluation.trust import Trusted, trust_detail, trust_numbers
from visionloop.evaluation.unknowns import read_foreign
from visionloop.explanation import report as explanation
from visionloop.files import write_bytes, write_json, write_text
from visionloop.models import Family, load_model
from visionloop.models.devices import choose_device
from visionloop.paths import CLASS_MEANS, CLEAN, PACKED, calibrate_report, evaluate_report, family_folder, train_report
from visionloop.records import Split
from visionloop.unknown import ClassMeans, judge


def main() -> None:
    """Read data/packed, data/clean.parquet, models/<family> and the training's epochs; write reports/evaluate/<family>."""
    family = family_argument(sys.argv)
    params = load_section(EvaluateParams)
    model, card = load_model(family_folder(family))
    labels = card.labels
    device = choose_device("auto")

    sides: dict[Split, PackedSplit] = {"val": load_split(PACKED, "val"), "test": load_split(PACKED, "test")}
    answers = {side: answer(model, one.images, device, f"{family} {side}") for side, one in sides.items()}
    trusted = _trusted(family, sides, answers)
    splits = {side: one.predictions for side, one in trusted.items()}
    data, test, val = sides["test"], splits["test"], splits["val"]
    require_images(test)
    classes = per_class(test, labels)
    metrics = summarize(test, classes, params.confidence_level, params.top_k)
    uncertain = intervals(test, len(labels), params.confidence_level, params.top_k)
    pairs = confused_pairs(test, labels, params.confidence_level)
    parts, no_parts = slices(test, labels, read_attributes(CLEAN, test.ids), params.confidence_level)
    said = [*notes(test, labels, params.top_k), *no_parts]
    metrics["val_accuracy"] = round(float(val.correct.mean()), 4) if len(val.targets) else 0.0
    curves, rocs = pr_curves(test, labels), roc_curves(test, labels)
    strange = read_foreign(calibrate_report(family) / "foreign.csv")

    folder = evaluate_report(family)
    title = f"{family} ({card.architecture}), {len(test.targets)} test images"
    write_predictions(
        folder / "predictions.parquet", labels, splits, answers, {side: one.doubt for side, one in trusted.items()}
    )
    write_text(folder / "classes.csv", classes_csv(classes, uncertain.classes))
    write_text(folder / "pairs.csv", pairs_csv(pairs))
    write_text(folder / "slices.csv", slices_csv(parts))
    write_text(folder / "confusion.csv", confusion_csv(test, labels))
    for name, lines in (("pr", curves), ("roc", rocs)):
        write_text(folder / f"{name}_curves.csv", curves_csv(lines))
        write_text(folder / f"{name}_micro.csv", micro_csv(lines))
    write_bytes(folder / "confusion.png", confusion_png(confusion(test, len(labels)), labels, title))
    for file, draw in (("reliability.png", trusted_png), ("risk_coverage.png", rest_png)):
        write_bytes(folder / file, draw(trusted["test"], title))
    write_bytes(folder / "pr_curves.png", pr_curves_png(curves, title))
    write_bytes(folder / "roc_curves.png", roc_curves_png(rocs, title))
    write_bytes(folder / "classes.png", classes_png(classes, uncertain.classes, title))
    write_bytes(folder / "slices.png", slices_png(parts, metrics["accuracy"], title))
    write_bytes(folder / "pairs.png", pairs_png(pairs, title))
    history = read_history(train_report(family) / "plots" / "metrics")
    write_bytes(folder / "training.png", training_png(history, f"{family} ({card.architecture}), training"))

    def names(classes: np.ndarray) -> list[str]:
        return [labels[number] for number in classes]

    wrong = worst_mistakes(test, params.mistake_images)
    write_bytes(
        folder / "mistakes.png",
        mistakes_png(
            data.images[wrong],
            names(test.targets[wrong]),
            names(test.predicted[wrong]),
            test.probabilities[wrong].max(1),
            mistakes=int((~test.correct).sum()),
            of=len(test.targets),
            title=f"{family} ({card.architecture})",
        ),
    )
    explained = explanation.write(
        folder,
        model,
        labels,
        sides,
        splits,
        setting=params.explanation,
        explained_images=params.explained_images,
        mistake_images=params.mistake_images,
        title=f"{family} ({card.architecture})",
    )
    write_json(
        folder / "detail.json",
        detail(
            test,
            labels,
            metrics=metrics,
            classes=classes,
            intervals=uncertain,
            pairs=pairs,
            slices=parts,
            notes=said,
            confidence_level=params.confidence_level,
        )
        | {"calibration": trust_detail(trusted["test"], params.confidence_level)},
    )
    write_json(
        folder / "metrics.json",
        metrics | interval_numbers(uncertain) | trust_numbers(trusted["test"], strange, params.confidence_level),
    )
    for sentence in (*said, explained, *(part.sentence for part in parts if part.verdict == "worse")):
        print(sentence)
    print(
        f"{folder}: {family} answers {metrics['accuracy']:.2%} of {len(test.targets)} test images rightly "
        f"({params.confidence_level:.0%} interval {metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%}), "
        f"macro F1 {metrics['macro_f1']:.4f}"
    )


def _trusted(family: Family, sides: Mapping[Split, PackedSplit], answers: Mapping[Split, Answers]) -> dict[Split, Trusted]:
    """Each side under the family's calibration."""
    folder = family_folder(family)
    calibration, means = load_calibration(folder), ClassMeans.from_bytes((folder / CLASS_MEANS).read_bytes())
    found = {}
    for side, data in sides.items():
        raw = answers[side]
        predictions = SplitPredictions(tuple(data.ids), data.labels, calibration.apply(raw.logits))
        doubt = judge(calibration, raw.logits.astype(np.float64) / calibration.temperature, raw.embedding, means)
        found[side] = Trusted(predictions, raw.logits, doubt, calibration)
    return found


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

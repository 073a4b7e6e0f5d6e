"""Stage `evaluate <family>`: measure a trained model on the test images; numbers, plot data and pictures."""

from __future__ import annotations

import sys

import numpy as np

from pipeline.stages import family_argument, run_stage
from visionloop.config import EvaluateParams, load_section
from visionloop.data.packing import PackedSplit, load_split
from visionloop.evaluation.curves import curves_csv, micro_csv, pr_curves
from visionloop.evaluation.detail import confused_pairs, detail, notes, pairs_csv
from visionloop.evaluation.gradcam import gradcam
from visionloop.evaluation.intervals import interval_numbers, intervals
from visionloop.evaluation.metrics import classes_csv, confusion, confusion_csv, per_class, require_images, summarize
from visionloop.evaluation.pictures import confusion_png, gradcam_png, mistakes_png, pr_curves_png
from visionloop.evaluation.predictions import SplitPredictions, predict, spread, worst_mistakes, write_predictions
from visionloop.evaluation.slices import read_attributes, slices, slices_csv
from visionloop.files import write_bytes, write_json, write_text
from visionloop.models import load_model
from visionloop.models.devices import choose_device
from visionloop.paths import CLEAN, PACKED, evaluate_report, family_folder


def main() -> None:
    """Read data/packed, data/clean.parquet and models/<family>; write reports/evaluate/<family>."""
    family = family_argument(sys.argv)
    params = load_section(EvaluateParams)
    model, card = load_model(family_folder(family))
    labels = card.labels
    device = choose_device("auto")

    def answers(name: str, data: PackedSplit) -> SplitPredictions:
        return SplitPredictions(tuple(data.ids), data.labels, predict(model, data.images, device, f"{family} {name}"))

    data = load_split(PACKED, "test")
    test, val = answers("test", data), answers("val", load_split(PACKED, "val"))
    require_images(test)
    classes = per_class(test, labels)
    metrics = summarize(test, classes, params.confidence_level, params.top_k)
    uncertain = intervals(test, len(labels), params.confidence_level, params.top_k)
    pairs = confused_pairs(test, labels, params.confidence_level)
    parts, no_parts = slices(test, labels, read_attributes(CLEAN, test.ids), params.confidence_level)
    said = [*notes(test, labels, params.top_k), *no_parts]
    metrics["val_accuracy"] = round(float(val.correct.mean()), 4) if len(val.targets) else 0.0
    curves = pr_curves(test, labels)

    folder = evaluate_report(family)
    title = f"{family} ({card.architecture}), {len(test.targets)} test images"
    write_predictions(folder / "predictions.parquet", labels, {"val": val, "test": test})
    write_text(folder / "classes.csv", classes_csv(classes, uncertain.classes))
    write_text(folder / "pairs.csv", pairs_csv(pairs))
    write_text(folder / "slices.csv", slices_csv(parts))
    write_text(folder / "confusion.csv", confusion_csv(test, labels))
    write_text(folder / "pr_curves.csv", curves_csv(curves))
    write_text(folder / "pr_micro.csv", micro_csv(curves))
    write_bytes(folder / "confusion.png", confusion_png(confusion(test, len(labels)), labels, title))
    write_bytes(folder / "pr_curves.png", pr_curves_png(curves, title))

    def names(classes: np.ndarray) -> list[str]:
        return [labels[number] for number in classes]

    shown = spread(test, params.gradcam_images)
    maps = gradcam(model, data.images[shown], test.predicted[shown])
    write_bytes(
        folder / "gradcam.png",
        gradcam_png(
            data.images[shown],
            maps,
            names(test.targets[shown]),
            names(test.predicted[shown]),
            f"Grad-CAM, {family} ({card.architecture})",
        ),
    )
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
        ),
    )
    write_json(folder / "metrics.json", metrics | interval_numbers(uncertain))
    for sentence in (*said, *(part.sentence for part in parts if part.verdict == "worse")):
        print(sentence)
    print(
        f"{folder}: {family} answers {metrics['accuracy']:.2%} of {len(test.targets)} test images rightly "
        f"({params.confidence_level:.0%} interval {metrics['accuracy_low']:.2%} to {metrics['accuracy_high']:.2%}), "
        f"macro F1 {metrics['macro_f1']:.4f}"
    )


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

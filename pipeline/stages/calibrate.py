"""Stage `calibrate <family>`: how far a trained model's answers are to be trusted, fitted on the validation images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.stages import family_argument, run_stage
from visionloop.card import Calibration, ModelCard, UnknownRule
from visionloop.config import CalibrateParams, load_section
from visionloop.data.packing import load_sample, load_split
from visionloop.errors import DataError
from visionloop.evaluation.calibration import (
    calibration_error,
    first_class,
    fit_temperature,
    log_loss,
    precision_thresholds,
    reliability,
    rest,
    review_threshold,
    thresholds_csv,
)
from visionloop.evaluation.calibration_pictures import reliability_png, unknowns_png
from visionloop.evaluation.predictions import Answers, answer
from visionloop.evaluation.unknowns import (
    FOLDER,
    IMAGES_OF_A_KIND,
    KINDS,
    choose,
    fit_means,
    folder_images,
    foreign_csv,
    kept_threshold,
    made,
    means_sample,
    unknowns_csv,
)
from visionloop.features import softmax
from visionloop.files import write_bytes, write_json, write_text
from visionloop.models import load_model
from visionloop.models.devices import choose_device
from visionloop.paths import (
    CALIBRATE_REPORTS,
    CALIBRATION,
    CLASS_MEANS,
    MODEL_TORCH,
    PACKED,
    calibrate_report,
    family_folder,
)
from visionloop.unknown import SCORES, Score, strangeness


def main() -> None:
    """Read the packed images and models/<family>; write its calibration.json, class_means.npz, and reports/calibrate."""
    family = family_argument(sys.argv)
    params = load_section(CalibrateParams)
    model, card = load_model(family_folder(family))
    device = choose_device("auto")
    val, train = load_split(PACKED, "val"), load_sample(PACKED)
    if not len(val.labels):
        raise DataError("There is no validation image to calibrate on; raise split.val.")
    targets = np.asarray(val.labels, np.int64)

    raw = answer(model, val.images, device, f"{family} val")
    temperature = fit_temperature(raw.logits, targets)
    plain, probabilities = softmax(raw.logits), softmax(raw.logits.astype(np.float64) / temperature.value)
    confidence, correct = first_class(probabilities, targets)
    thresholds = precision_thresholds(probabilities, targets, card.labels, params.precision)
    review_below = review_threshold(confidence, params.review_share)
    left = rest(confidence, correct, review_below)

    sample = means_sample(train.labels)
    means = fit_means(answer(model, train.images[sample], device, f"{family} means").embedding, train.labels[sample])
    foreign, unread = _foreign(params, card, val.images)
    strange = {kind: answer(model, images, device, f"{family} {kind}") for kind, images in foreign.items()}

    def score(which: Score, of: Answers) -> npt.NDArray[np.float64]:
        return strangeness(which, of.logits.astype(np.float64) / temperature.value, of.embedding, means)

    known = {which: score(which, raw) for which in SCORES}
    scores = {which: {kind: score(which, of) for kind, of in strange.items()} for which in SCORES}
    measured = choose(known, scores)
    threshold = kept_threshold(known[measured.score], params.known_kept)
    kept = float((known[measured.score] <= threshold).mean())
    calibration = Calibration(
        temperature=temperature.value,
        precision_thresholds={row.label: row.threshold for row in thresholds},
        unknown=UnknownRule(score=measured.score, threshold=threshold, kept=kept),
        review_below=review_below,
        review_share=params.review_share,
        weights=card.files[MODEL_TORCH],
    )

    write_json(family_folder(family) / CALIBRATION, calibration.model_dump(mode="json"))
    write_bytes(family_folder(family) / CLASS_MEANS, means.to_bytes())
    folder, title = calibrate_report(family), f"{family} ({card.architecture}), {len(targets)} validation images"
    write_text(folder / "thresholds.csv", thresholds_csv(thresholds))
    write_text(folder / "unknowns.csv", unknowns_csv(measured))
    write_text(folder / "foreign.csv", foreign_csv(measured, scores[measured.score]))
    before, after = (reliability(*first_class(one, targets)) for one in (plain, probabilities))
    write_bytes(folder / "reliability.png", reliability_png(before, after, title))
    write_bytes(folder / "unknowns.png", unknowns_png(measured, title))
    best = measured.judged_by[measured.score]
    numbers = {
        "temperature": temperature.value,
        "temperature_low": temperature.low,
        "temperature_high": temperature.high,
        "log_loss_raw": log_loss(raw.logits, targets),
        "log_loss": log_loss(raw.logits, targets, temperature.value),
        "calibration_error_raw": calibration_error(plain, targets),
        "calibration_error": calibration_error(probabilities, targets),
        "adaptive_calibration_error_raw": calibration_error(plain, targets, adaptive=True),
        "adaptive_calibration_error": calibration_error(probabilities, targets, adaptive=True),
        "classes_with_threshold": sum(row.threshold is not None for row in thresholds),
        "review_below": review_below,
        "reviewed": left.reviewed,
        "rest_accuracy": left.accuracy,
        "unknown_threshold": threshold,
        "known_kept": kept,
        "unknown_auroc": best.auroc,
        "unknown_auroc_low": best.low,
        "unknown_auroc_high": best.high,
        "unknown_fpr95": best.fpr95,
        **{f"{which}_auroc": one.auroc for which, one in measured.judged_by.items()},
        **{f"{which}_fpr95": one.fpr95 for which, one in measured.judged_by.items()},
    }
    report = {name: round(value, 4) for name, value in numbers.items() if value is not None}
    # In lists, because `dvc metrics show` would make columns of the words.
    notes = [temperature.note, measured.reason, *unread]
    write_json(CALIBRATE_REPORTS / f"{family}.json", {**report, "unknown_score": [measured.score], "notes": notes})
    print(
        f"{family_folder(family) / CALIBRATION}: {temperature.note} {measured.reason} On other kinds its AUROC is "
        f"{best.auroc:.3f}, and {best.fpr95:.1%} of the foreign images pass where 95 % of the known ones do."
    )


def _foreign(
    params: CalibrateParams, card: ModelCard, known: npt.NDArray[np.uint8]
) -> tuple[dict[str, npt.NDArray[np.uint8]], list[str]]:
    """Made images of each kind, in colour where the known ones are, and the owner's; and what is to be said of these."""
    spec = card.preprocess
    gray = bool((known[:100] == known[:100, :, :, :1]).all())
    foreign = {kind: made(kind, IMAGES_OF_A_KIND, spec.height, spec.width, gray=gray, known=card.labels) for kind in KINDS}
    own, refused = folder_images(Path(params.foreign), spec)
    if len(own):
        foreign[FOLDER] = own
    return foreign, [f"{refused} files in {params.foreign} are no images that can be read."] if refused else []


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

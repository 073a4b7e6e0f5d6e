"""`visionloop crossvalidate` and `learning-curve`: stages of experiments/dvc.yaml brought up to date, and what they found.

Does not cover: tuning.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Literal

from pipeline import repro
from visionloop.config import CleanParams, load_section
from visionloop.data.out_of_fold import OutOfFold, read_out_of_fold
from visionloop.errors import ArtifactError
from visionloop.files import atomic_path
from visionloop.paths import EXPERIMENTS_YAML, OUT_OF_FOLD_ANSWERS, crossvalidate_report, learning_curve_report


def crossvalidate(family: Literal["cnn", "vit"], on_line: Callable[[str], None]) -> repro.ReproResult:
    """Bring the cross-validation of a family up to date, with the stages that it stands on.

    Raises:
        PipelineError: a stage refused; the message is its sentence.
    """
    return repro.reproduce([f"{EXPERIMENTS_YAML}:crossvalidate@{family}"], on_line)


def learning_curve(family: Literal["cnn", "vit"], on_line: Callable[[str], None]) -> repro.ReproResult:
    """Bring the learning curve of a family up to date, with the stages that it stands on.

    Raises:
        PipelineError: a stage refused; the message is its sentence.
    """
    return repro.reproduce([f"{EXPERIMENTS_YAML}:learningcurve@{family}"], on_line)


def curve_shown(family: Literal["cnn", "vit"]) -> list[str]:
    """What the learning curve of a family says, in sentences.

    Raises:
        ArtifactError: it did not run yet, or its report is damaged.
    """
    folder = learning_curve_report(family)
    try:
        curve = json.loads((folder / "curve.json").read_text(encoding="utf-8"))
        points = ", ".join(f"{one['accuracy']:.2%} with {one['images']:,}" for one in curve["points"])
        return [f"{family}: {points} training images.", curve["answer"], f"See {folder}/learning_curve.png."]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{folder} has no report ({error}); run `visionloop learning-curve {family}`.") from error


def shown(family: Literal["cnn", "vit"]) -> list[str]:
    """What the cross-validation of a family found, in sentences; it may have run days ago.

    Raises:
        ArtifactError: it did not run yet, or its report is damaged.
    """
    folder = crossvalidate_report(family)
    try:
        numbers = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return [
            f"{family}: {numbers['accuracy']:.2%} is the mean of {numbers['folds']} folds, spread "
            f"{numbers['accuracy_spread']:.2%}, 95 % interval {numbers['accuracy_low']:.2%} to "
            f"{numbers['accuracy_high']:.2%}; see {folder}/folds.png.",
            f"`visionloop crossvalidate {family} --accept` lets `clean` judge labels by the answers.",
        ]
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{folder} has no report ({error}); run `visionloop crossvalidate {family}`.") from error


def accept(family: Literal["cnn", "vit"]) -> list[str]:
    """Copy a family's out-of-fold answers to where `clean` finds them, and say what follows.

    A copy, and not the stage's output itself: what `clean` reads may not come out of a stage that stands on `clean`.

    Raises:
        ArtifactError: there are none yet, or they are damaged.
        PipelineError: the pipeline runs.
    """
    source = crossvalidate_report(family) / "out_of_fold.parquet"
    answers = read_out_of_fold(source)
    if answers is None:
        raise ArtifactError(f"{source} is not there; run `visionloop crossvalidate {family}` first.")
    with repro.locked():
        before = _standing()
        with atomic_path(OUT_OF_FOLD_ANSWERS) as tmp:
            shutil.copyfile(source, tmp)
    replaced = f", in place of the {before.family}'s" if before and before.data_id != answers.data_id else ""
    said = [f"{len(answers.ids):,} answers of the {family} lie in {OUT_OF_FOLD_ANSWERS}{replaced}."]
    if load_section(CleanParams).suspect_labels:
        said.append("The next `dvc repro` judges the labels of these images by them; remove the file to take it back.")
    else:
        said.append("clean.suspect_labels is false, so nothing looks at them; set it to true in params.yaml.")
    return said


def _standing() -> OutOfFold | None:
    """The answers that are replaced; damaged ones are replaced without a word."""
    try:
        return read_out_of_fold(OUT_OF_FOLD_ANSWERS)
    except ArtifactError:
        return None

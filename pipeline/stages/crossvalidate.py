"""Stage `crossvalidate <family>`: one training per fold, the accuracy with its spread, and an answer to every image unseen.

It stands in experiments/dvc.yaml and runs when it is asked for.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from pipeline.stages import family_argument, run_stage, spin_briefly
from visionloop.config import TrainParams, load_section
from visionloop.data.out_of_fold import write_out_of_fold
from visionloop.data.packing import load_meta, load_split
from visionloop.data.splitting import read_split
from visionloop.files import write_bytes, write_json
from visionloop.paths import CROSSVALIDATE, PACKED, SPLIT, crossvalidate_report


def main() -> None:
    """Read data/packed and data/split.parquet; write reports/crossvalidate/<family>."""
    spin_briefly()  # so torch is loaded below
    from visionloop import crossvalidation
    from visionloop.evaluation.metrics import per_class, wilson
    from visionloop.evaluation.pictures import folds_png

    family = family_argument(sys.argv)
    folder = CROSSVALIDATE / family
    result = crossvalidation.cross_validate(
        family,
        [load_split(PACKED, "train"), load_split(PACKED, "val")],
        {row.id: row.fold for row in read_split(SPLIT)},
        load_meta(PACKED),
        load_section(TrainParams),
        folder=folder,
        on_epoch=lambda fold, record: _say(
            f"{family} fold {fold + 1} epoch {record.epoch}/{record.epochs}: loss {record.train_loss:.4f}"
            + ("" if record.restored else f", {record.seconds_left:.0f} s left of this fold")
        ),
        say=_say,
    )
    numbers = crossvalidation.summarize(result)

    report, classes = crossvalidate_report(family), result.answers.classes
    parts = [crossvalidation.predictions(result, fold) for fold in range(len(result.train_images))]
    bars = []
    for part in parts:
        low, high = wilson(int(part.correct.sum()), len(part.ids), crossvalidation.CONFIDENCE)
        bars.append((float(part.correct.mean()), low, high))
    recalls = [[math.nan if row.recall is None else row.recall for row in per_class(part, classes)] for part in parts]
    mean = (numbers["accuracy"], numbers["accuracy_low"], numbers["accuracy_high"])
    title = f"{family}, {len(parts)} folds, {numbers['images']:,} images"
    write_out_of_fold(report / "out_of_fold.parquet", result.answers)
    write_bytes(report / "folds.png", folds_png(bars, mean, np.array(recalls).T.tolist(), classes, title))
    write_json(report / "metrics.json", numbers)
    crossvalidation.clear(folder)
    _say(
        f"{report}: {family} answers {numbers['accuracy']:.2%} rightly, mean of {len(parts)} folds, spread "
        f"{numbers['accuracy_spread']:.2%}, {crossvalidation.CONFIDENCE:.0%} interval {numbers['accuracy_low']:.2%} to "
        f"{numbers['accuracy_high']:.2%}"
    )


def _say(sentence: str) -> None:
    print(sentence, flush=True)


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

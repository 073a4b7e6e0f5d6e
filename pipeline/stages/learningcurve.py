"""Stage `learningcurve <family>`: accuracy against the number of training images, and what twice as many would bring.

It stands in experiments/dvc.yaml and runs when it is asked for.
"""

from __future__ import annotations

import sys

from pipeline.stages import family_argument, run_stage, spin_briefly
from visionloop.config import TrainParams, load_section
from visionloop.data.packing import load_meta, load_split
from visionloop.files import write_bytes, write_json, write_text
from visionloop.paths import LEARNING_CURVE, PACKED, learning_curve_report
from visionloop.records import SPLITS


def main() -> None:
    """Read data/packed; write reports/learning-curve/<family>."""
    spin_briefly()  # so torch is loaded below
    from visionloop import learning_curve
    from visionloop.crossvalidation import clear
    from visionloop.evaluation.measure_pictures import learning_curve_png

    family = family_argument(sys.argv)
    folder = LEARNING_CURVE / family
    trained = learning_curve.learning_curve(
        family,
        {side: load_split(PACKED, side) for side in SPLITS},
        load_meta(PACKED),
        load_section(TrainParams),
        folder=folder,
        on_epoch=lambda share, record: _say(
            f"{family} share {share:g} epoch {record.epoch}/{record.epochs}: loss {record.train_loss:.4f}"
            + ("" if record.restored else f", {record.seconds_left:.0f} s left of this part")
        ),
        say=_say,
    )
    curve = learning_curve.fit(trained)
    report = learning_curve_report(family)
    write_text(report / "points.csv", learning_curve.points_csv(curve))
    write_json(report / "curve.json", learning_curve.report(curve, trained.notes))
    picture = learning_curve_png(
        [(one.images, one.accuracy, one.low, one.high) for one in curve.points],
        (curve.factor, curve.exponent),
        (curve.twice, curve.twice_interval.low, curve.twice_interval.high),
        curve.answer,
        f"{family}, {trained.correct.shape[1]:,} test images",
    )
    write_bytes(report / "learning_curve.png", picture)
    write_json(report / "metrics.json", learning_curve.numbers(curve))
    clear(folder, "share-*")
    _say(f"{report}: {family}. {curve.answer}")


def _say(sentence: str) -> None:
    print(sentence, flush=True)


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

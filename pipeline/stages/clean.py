"""Measure, score and judge every image; a rejected one is a row with a reason, and a page shows them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pipeline.stages import run_stage
from visionloop.config import CleanParams, ComputeParams, load_section
from visionloop.data import cleaning, cleaning_page
from visionloop.data.decisions import read_decisions, resolve
from visionloop.data.executor import make_executor
from visionloop.data.out_of_fold import read_out_of_fold
from visionloop.data.shards import read_bytes, read_images
from visionloop.data.thumbs import Thumbs
from visionloop.files import write_json, write_text
from visionloop.paths import CLEAN, CLEANING_PAGE, CLEANING_REPORT, DECISIONS, IMAGES, OUT_OF_FOLD_ANSWERS, SHARDS
from visionloop.progress import track
from visionloop.records import CleanRow
from visionloop.tables import write_rows


def main() -> None:
    params = load_section(CleanParams)
    max_pixels = int(params.max_megapixels * 1e6)
    images = read_images(IMAGES)
    ids, labels = np.sort(cleaning.image_ids(images)), {image.label for image in images}
    decisions = resolve(read_decisions(DECISIONS), ids, labels, cleaning.MIN_CLASS_IMAGES, DECISIONS)
    answers = read_out_of_fold(OUT_OF_FOLD_ANSWERS)
    with Thumbs(len(images), CLEAN.parent) as thumbs:
        with make_executor(load_section(ComputeParams), len(images)) as executor:
            measures = cleaning.measure_all(images, read_bytes(SHARDS, images), executor, max_pixels, thumbs)
        scores = cleaning.score(images, measures, thumbs, decisions, params, answers=answers)
    judged = cleaning.judge(images, measures, scores, params)
    numbers = cleaning.summary(judged)

    sections = cleaning_page.choose(judged)
    shown = sorted({index for section in sections for index in section.positions})
    pictures = cleaning_page.pictures(read_bytes(SHARDS, (images[index] for index in shown)), max_pixels)
    write_text(CLEANING_PAGE, cleaning_page.render(judged, numbers, sections, pictures))
    write_json(CLEANING_REPORT, numbers)
    cleaning.check(judged, params)  # after the page, which says what to mend
    write_rows(CLEAN, CleanRow, track(judged, "judge"))
    _tell(numbers, scores.doubts.notes, params)


def _tell(numbers: Mapping[str, float], notes: tuple[str, ...], params: CleanParams) -> None:
    print(f"{numbers['kept']:,} of {numbers['images']:,} images kept in {numbers['classes']} classes -> {CLEAN}")
    # An image stands under its gravest finding, so the reasons add up; `finding_` in the report counts every one.
    for name, count in numbers.items():
        if name.startswith("reason_"):
            reason = name.removeprefix("reason_")
            what = "rejected" if reason in {*params.reject, "decision_drop"} else "kept"
            print(f"{reason}: {count:,}, {what}; see {CLEANING_PAGE}#{reason}")
    if across := numbers["clusters_across_labels"]:
        print(f"{across:,} groups of near duplicates carry several labels; see {CLEANING_PAGE}#near_duplicate")
    applied, idle, absent = (numbers[f"decisions_{name}"] for name in ("applied", "without_effect", "of_absent_images"))
    if applied or idle or absent:
        print(
            f"{DECISIONS}: decisions applied {applied}, without effect {idle} (the page says why), about images that are "
            f"not in the data {absent}"
        )
    for note in notes:
        print(note)


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

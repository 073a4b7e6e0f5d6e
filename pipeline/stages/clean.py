"""Measure, score and judge every image; a rejected one is a row with a reason, and a page shows them."""

from __future__ import annotations

from pipeline.stages import run_stage
from visionloop.config import CleanParams, ComputeParams, load_section
from visionloop.data import cleaning, cleaning_page
from visionloop.data.executor import make_executor
from visionloop.data.shards import read_bytes, read_images
from visionloop.files import write_json, write_text
from visionloop.paths import CLEAN, CLEANING_PAGE, CLEANING_REPORT, IMAGES, SHARDS
from visionloop.records import CleanRow
from visionloop.tables import write_rows


def main() -> None:
    params = load_section(CleanParams)
    max_pixels = int(params.max_megapixels * 1e6)
    images = read_images(IMAGES)
    with make_executor(load_section(ComputeParams), len(images)) as executor:
        measurements = cleaning.measure_all(images, read_bytes(SHARDS, images), executor, max_pixels)
    scores = cleaning.score(images, measurements, params)
    rows = cleaning.judge(images, measurements, scores, params)
    numbers = cleaning.summary(rows)

    shown = {index for groups in cleaning_page.chosen(rows).values() for group in groups for index in group}
    pictures = cleaning_page.pictures(read_bytes(SHARDS, (images[index] for index in shown)), max_pixels)
    write_text(CLEANING_PAGE, cleaning_page.render(rows, numbers, pictures))
    write_json(CLEANING_REPORT, numbers)
    cleaning.check(rows, params)  # after the page, which says what to mend
    write_rows(CLEAN, CleanRow, rows)

    print(f"{numbers['kept']:,} of {numbers['images']:,} images kept in {numbers['classes']} classes -> {CLEAN}")
    for name, count in numbers.items():
        if name.startswith("reason_"):
            reason = name.removeprefix("reason_")
            print(f"{reason}: {count:,}, {'rejected' if reason in params.reject else 'kept'}; see {CLEANING_PAGE}#{reason}")


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

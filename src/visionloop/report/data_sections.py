"""The sections of a report about the images: what was collected, cleaned, split and augmented."""

from __future__ import annotations

from pathlib import Path

from visionloop.paths import (
    AUGMENT_REPORT,
    CLEANING_PAGE,
    CLEANING_REPORT,
    COLLECT_REPORT,
    CONTACT_SHEET,
    OPERATIONS_SHEET,
    SPLIT_REPORT,
)
from visionloop.records import SPLITS
from visionloop.report.blocks import Block, Drawing, Missing, Shares, Table, Text, Tiles, figure, words
from visionloop.report.files import RunFiles

MAX_CLASSES = 200


def missing(path: Path, stage: str) -> Missing:
    """The sentence for a file that is not there."""
    return Missing(f"{path} is not there: the stage {stage} has not run, or was stopped. `dvc repro {stage}` writes it.")


def drawing(files: RunFiles, path: Path, title: str, stage: str) -> Block:
    """A picture, or why it is not there."""
    image = files.image(path)
    if image:
        return Drawing(image, title, str(path))
    return Missing(f"{path} is not shown here.") if files.has(path) else missing(path, stage)


def data(files: RunFiles) -> list[Block]:
    """What was collected, per class and side, and what cleaning found."""
    blocks: list[Block] = []
    collected, cleaned, split = (files.json(path) for path in (COLLECT_REPORT, CLEANING_REPORT, SPLIT_REPORT))
    if collected:
        sources = collected.get("images_by_source") or {}
        blocks.append(
            Tiles(
                [
                    (figure("images", collected.get("images")), "images collected"),
                    (figure("classes", collected.get("classes")), "classes"),
                    (", ".join(map(str, sources)) or "unknown", "source" if len(sources) == 1 else "sources"),
                    (f"{collected.get('bytes', 0) / 1e6:.1f} MB", "of encoded images"),
                    (figure("skipped", collected.get("skipped")), "files passed over"),
                ]
            )
        )
    else:
        blocks.append(missing(COLLECT_REPORT, "collect"))
    blocks += _by_class(split) if split else [missing(SPLIT_REPORT, "split")]
    if not cleaned:
        return [*blocks, missing(CLEANING_REPORT, "clean")]
    blocks.append(
        Text(
            f"Cleaning kept {figure('', cleaned.get('kept'))} of {figure('', cleaned.get('images'))} images and rejected "
            f"{figure('', cleaned.get('rejected'))}. {CLEANING_PAGE} shows them; a remark alone rejects nothing."
        )
    )
    findings = {
        name.removeprefix("finding_"): (count, cleaned.get(f"reason_{name.removeprefix('finding_')}", 0))
        for name, count in cleaned.items()
        if name.startswith("finding_")
    }
    if findings:
        rows = [[words(name), figure("", count), figure("", first)] for name, (count, first) in findings.items()]
        blocks.append(Table("What cleaning found", ("finding", "images", "gravest of the image"), rows))
    decided = cleaned.get("decisions_applied")
    if decided:
        blocks.append(Text(f"People decided about {figure('', decided)} images, in data/decisions.csv."))
    return blocks


def splits(files: RunFiles) -> list[Block]:
    """The sides, whether anything leaks between them, and how alike they are."""
    split = files.json(SPLIT_REPORT)
    if not split:
        return [missing(SPLIT_REPORT, "split")]
    blocks: list[Block] = [
        Tiles(
            [
                *((figure("", split.get(side)), f"{side} images") for side in SPLITS),
                (figure("", split.get("groups")), "groups of images that stay together"),
                (figure("", split.get("leaks")), "images that stand on two sides"),
                (figure("", split.get("kept_in_test")), "kept in test from an earlier split"),
            ]
        )
    ]
    measures = split.get("by_measure") or []
    if measures:
        rows = [
            [words(str(row.get("measure"))), str(row.get("side")),
             *(figure("", row.get(name)) for name in ("distance", "by_chance", "train_mean", "mean"))]
            for row in measures
        ]  # fmt: skip
        blocks.append(
            Table(
                "How far a side is from train",
                ("measure", "side", "distance", "what chance gives at most", "mean of train", "mean of the side"),
                rows,
                ("Distance of the distributions, 0 to 1 (Kolmogorov-Smirnov).",),
            )
        )
    return blocks


def augmentation(files: RunFiles) -> list[Block]:
    """What training sees of the images."""
    report = files.json(AUGMENT_REPORT)
    blocks: list[Block] = []
    if report:
        out, own = report.get("out_of_range"), report.get("originals_out_of_range")
        blocks.append(
            Text(
                f"Of the augmented images {figure('share', out)} lie outside the range of the originals in brightness, "
                f"contrast, sharpness or saturation; of the originals themselves {figure('share', own)}."
            )
        )
        operations = report.get("operations_out_of_range") or {}
        if operations:
            rows = [[words(name), figure("share", share)] for name, share in operations.items()]
            blocks.append(Table("Each operation alone, at its strongest", ("operation", "out of range"), rows))
    else:
        blocks.append(missing(AUGMENT_REPORT, "augment"))
    blocks.append(drawing(files, CONTACT_SHEET, "Images as training sees them", "augment"))
    blocks.append(drawing(files, OPERATIONS_SHEET, "Each operation alone, at its strongest", "augment"))
    return blocks


def _by_class(split: dict[str, object]) -> list[Block]:
    found = split.get("by_class")
    rows = found if isinstance(found, list) else []
    if not rows:
        return []
    shown = [(str(row.get("label")), [int(row.get(side) or 0) for side in SPLITS]) for row in rows[:MAX_CLASSES]]
    notes = (f"The first {MAX_CLASSES} of {len(rows)} classes.",) if len(rows) > MAX_CLASSES else ()
    return [Shares("Images per class and side", ("class", *SPLITS, "all"), shown, notes)]

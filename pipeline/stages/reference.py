"""Stage `reference`: the drift reference, held-out images scored by the deployed model."""

from __future__ import annotations

from pipeline.stages import run_stage
from serving.repository import champion_folder
from visionloop.config import ReferenceParams, load_section
from visionloop.data.shards import read_bytes, read_images
from visionloop.data.splitting import read_split
from visionloop.errors import DataError
from visionloop.files import write_json
from visionloop.observe import Observer
from visionloop.paths import IMAGES, MODEL_REPOSITORY, REFERENCE, REFERENCE_REPORT, SHARDS, SPLIT
from visionloop.progress import track
from visionloop.records import LoggedPrediction
from visionloop.reference import score
from visionloop.runtime import load
from visionloop.tables import write_rows


def main() -> None:
    """Read the shards, the split and the champion of model_repository; write data/reference.parquet and its report."""
    params = load_section(ReferenceParams)
    targets = {row.id: row.label for row in read_split(SPLIT) if row.split in params.splits}
    images = {row.id: row for row in read_images(IMAGES) if row.id in targets}
    if not images:
        raise DataError(f"None of the collected images is in {', '.join(params.splits)}; run `dvc repro` from the start.")
    folder = champion_folder(MODEL_REPOSITORY)
    model, card = load(folder)
    observer = Observer.load(folder, card, model_version=folder.name)

    scored = score(read_bytes(SHARDS, images.values()), targets, model, observer)
    rows = sorted(track(scored, "score", len(images)), key=lambda row: row.image_sha256)
    write_rows(REFERENCE, LoggedPrediction, rows)
    accuracy = sum(row.label == row.target for row in rows) / len(rows)
    confidence = sum(row.confidence or 0.0 for row in rows) / len(rows)
    write_json(REFERENCE_REPORT, {"rows": len(rows), "accuracy": accuracy, "mean_confidence": confidence})
    print(
        f"{REFERENCE}: {len(rows)} held-out images scored by version {folder.name} ({card.precision}), "
        f"accuracy {accuracy:.4f}, mean confidence {confidence:.3f}"
    )


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

"""visionloop.observe and visionloop.reference: one builder of rows, the same numbers live and in the reference."""

from __future__ import annotations

import time
import uuid
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tests.onnx_models import linear_card, linear_model
from visionloop.card import Calibration, UnknownRule
from visionloop.errors import DataError, ImageError
from visionloop.features import EmbeddingPCA
from visionloop.files import sha256_bytes
from visionloop.observe import Observer
from visionloop.paths import MODEL_ONNX
from visionloop.preprocess import decode, encode_png, resize
from visionloop.records import ImageRow, LoggedPrediction
from visionloop.reference import prediction_id, score
from visionloop.runtime import OnnxModel
from visionloop.tables import read_rows, write_rows
from visionloop.unknown import ClassMeans

WHEN = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)
CARD = linear_card(files={MODEL_ONNX: "f" * 64})
PCA = EmbeddingPCA(np.zeros(3, np.float32), np.eye(3, dtype=np.float32)[:2])
OBSERVER = Observer(CARD, PCA, model_version="7")
PIXELS = np.full((4, 4, 3), 200, np.uint8)
DATA = encode_png(PIXELS)


def answered(**changes: object) -> LoggedPrediction:
    logits, embedding = np.array([0, np.log(3), 0], np.float32), np.array([5, 6, 7], np.float32)
    return OBSERVER.answered(DATA, decode(DATA), PIXELS, logits, embedding, **changes)  # type: ignore[arg-type]


def test_an_answered_image_is_a_row_with_these_numbers() -> None:
    row = answered(request_id="r-1", time=WHEN, prediction_id="p-1", decode_ms=1.5, infer_ms=2.5, total_ms=5.0, batch_size=4)
    assert row.probabilities == pytest.approx((0.2, 0.6, 0.2))
    assert row.label == "bee"
    assert row.confidence == pytest.approx(0.6)
    assert row.margin == pytest.approx(0.4)
    assert row.entropy == pytest.approx(-(0.6 * np.log(0.6) + 0.4 * np.log(0.2)))
    assert row.energy == pytest.approx(-np.log(5))
    assert row.embedding == (5.0, 6.0)
    assert (row.image_sha256, row.file_bytes) == (sha256_bytes(DATA), len(DATA))
    assert (row.width_pixels, row.height_pixels, row.mode, row.format) == (4, 4, "RGB", "PNG")
    assert row.brightness == pytest.approx(200, abs=1e-3)
    # A uniform image has no contrast, no edges, no colour, one gray and no clipped pixel.
    assert row.contrast == pytest.approx(0, abs=1e-3)
    assert (row.saturation, row.gray_entropy, row.clipped_share) == (0, 0, 0)
    assert (row.model_name, row.model_version, row.model_sha256) == ("classifier", "7", "f" * 64)
    assert (row.precision, row.route, row.preprocess_version) == ("fp32", "champion", CARD.preprocess.version)
    assert (row.prediction_id, row.request_id, row.time, row.batch_size) == ("p-1", "r-1", WHEN, 4)
    assert (row.decode_ms, row.infer_ms, row.total_ms) == (1.5, 2.5, 5.0)
    assert (row.status, row.reason, row.target) == ("ok", "", None)


def test_a_calibrated_model_says_how_strange_an_image_is() -> None:
    rule = UnknownRule(score="distance", threshold=10.0, kept=0.95)
    calibration = Calibration(temperature=2.0, precision_thresholds={}, unknown=rule, review_below=0.61, review_share=0.05)
    card = CARD.model_copy(update={"calibration": calibration})
    means = ClassMeans(np.eye(3), np.array([[0.0, 0, 0], [5, 6, 4]]))
    observer = Observer(card, PCA, model_version="7", class_means=means)
    logits, embedding = np.array([0, np.log(3), 0], np.float32), np.array([5, 6, 7], np.float32)
    # The logits are those of the exported graph, so the temperature is in them already: the probability is 3/5.
    score, *flags = observer.doubt(logits, embedding)
    assert (score, flags) == (9.0, [False, True])
    row = observer.answered(DATA, decode(DATA), PIXELS, logits, embedding + 1)
    assert (row.unknown_score, row.unknown, row.review) == (18.0, True, True)
    assert row.probabilities == pytest.approx((0.2, 0.6, 0.2))
    plain = answered()
    assert (plain.unknown_score, plain.unknown, plain.review) == (None, None, None)


def test_a_rejected_image_is_a_row_with_the_reason_and_no_numbers() -> None:
    with pytest.raises(ImageError) as refused:
        decode(b"GIF89a")
    row = OBSERVER.rejected(b"GIF89a", refused.value, request_id="r-2", total_ms=0.3)
    assert (row.status, row.reason, row.batch_size) == ("rejected", "unsupported_format", 0)
    assert (row.request_id, row.total_ms, row.file_bytes) == ("r-2", 0.3, 6)
    assert row.model_sha256 == "f" * 64
    absent = ("label", "probabilities", "confidence", "entropy", "margin", "energy", "embedding", "width_pixels", "mode",
              "brightness", "contrast", "sharpness", "saturation", "gray_entropy", "clipped_share", "infer_ms")  # fmt: skip
    assert {getattr(row, name) for name in absent} == {None}


def test_new_ids_are_uuid7_and_sort_by_time() -> None:
    rows = [answered() for _ in range(50)]
    ids = [row.prediction_id for row in rows]
    assert {uuid.UUID(item).version for item in ids} == {7}
    assert ids == sorted(set(ids))
    assert rows[0].time.tzinfo is UTC


def test_rows_survive_parquet(tmp_path: Path) -> None:
    rows = [answered(time=WHEN), OBSERVER.rejected(b"x", ImageError("unreadable", "No image."), time=WHEN)]
    write_rows(tmp_path / "rows.parquet", LoggedPrediction, rows)
    assert read_rows(tmp_path / "rows.parquet", LoggedPrediction) == rows


def test_observing_costs_less_than_a_millisecond_of_cpu() -> None:
    """The budget of the serving path at 64 pixels; 0.12 ms were measured, the best of five keeps a busy machine out."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode_png(pixels)
    decoded = decode(data)
    logits, embedding = np.zeros(3, np.float32), np.zeros(3, np.float32)
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(40):
            OBSERVER.answered(data, decoded, pixels, logits, embedding)
        best = min(best, (time.process_time() - start) / 40)
    assert best < 0.001


def image_rows(count: int) -> list[tuple[ImageRow, bytes]]:
    rng = np.random.default_rng(1)
    files = [encode_png(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)) for _ in range(count)]
    return [
        (
            ImageRow(sha256_bytes(data), "bee", "folder", "", "folder", f"bee/{i}.png", len(data), WHEN, None, "part-0", i),
            data,
        )
        for i, data in enumerate(files)
    ]


def test_the_reference_holds_what_the_server_would_log() -> None:
    model = OnnxModel(linear_model().SerializeToString(), threads=1)
    images = image_rows(70)  # more than one batch
    rows = list(score(iter(images), {row.id: "bee" for row, _ in images}, model, OBSERVER))
    assert [row.image_sha256 for row in rows] == [row.id for row, _ in images]
    assert {row.target for row in rows} == {"bee"}
    assert {row.time for row in rows} == {WHEN}
    same_by_design = {"prediction_id", "time", "batch_size", "target"}
    for (_, data), row in zip(images, rows, strict=True):
        decoded = decode(data)
        pixels = resize(decoded.image, CARD.preprocess)
        logits, embedding = model.run(pixels[None])
        live = OBSERVER.answered(data, decoded, pixels, logits[0], embedding[0])
        changes = {field.name: getattr(row, field.name) for field in fields(row) if field.name in same_by_design}
        assert replace(live, **changes) == row


def test_scoring_twice_gives_equal_rows() -> None:
    model = OnnxModel(linear_model().SerializeToString(), threads=1)
    images = image_rows(3)
    targets = {row.id: "bee" for row, _ in images}
    assert list(score(images, targets, model, OBSERVER)) == list(score(images, targets, model, OBSERVER))


def test_an_image_that_clean_kept_and_cannot_be_decoded_stops_the_reference() -> None:
    (row, data), *_ = image_rows(1)
    model = OnnxModel(linear_model().SerializeToString(), threads=1)
    with pytest.raises(DataError, match=r"bee/0\.png was kept by `clean` but cannot be decoded now: The image is damaged"):
        list(score([(row, data[:-20])], {row.id: "bee"}, model, OBSERVER))


def test_reference_ids_are_uuid7_of_image_and_time() -> None:
    first, second = (sha256_bytes(data) for data in (b"a", b"b"))
    found = uuid.UUID(prediction_id(first, WHEN))
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert found.int >> 80 == int(WHEN.timestamp() * 1000)
    assert prediction_id(first, WHEN) == str(found) != prediction_id(second, WHEN)
    assert prediction_id(first, WHEN) < prediction_id(first, WHEN.replace(year=2027))
    assert uuid.UUID(prediction_id(first, datetime(1960, 1, 1, tzinfo=UTC))).version == 7

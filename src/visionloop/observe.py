"""One image and its answer as the row that the prediction store and the drift reference hold. The only builder of that row.

The model server and the `reference` stage both build their rows with an `Observer`, so a difference between the live rows
and the reference is a difference of the world. Needs only numpy, Pillow, pydantic and uuid6: the model server imports it.

Does not cover: writing rows (the store does) and testing them (`monitoring`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import uuid6

from visionloop.card import ModelCard
from visionloop.errors import ImageError
from visionloop.features import EmbeddingPCA, image_features, output_features
from visionloop.files import sha256_bytes
from visionloop.paths import CLASS_MEANS, EMBEDDING_PCA, MODEL_ONNX
from visionloop.preprocess import DecodedImage, PixelArray
from visionloop.records import LoggedPrediction
from visionloop.unknown import ClassMeans, judge


def new_prediction_id() -> str:
    """A new UUID version 7, so ids sort by time."""
    return str(uuid6.uuid7())


@dataclass(frozen=True, slots=True)
class Observer:
    """What all rows of one model version share. Made once when the model is loaded.

    >>> observer = Observer(card, pca, model_version="3")
    >>> row = observer.answered(data, decoded, pixels, logits[0], embedding[0], total_ms=4.2)
    """

    card: ModelCard
    pca: EmbeddingPCA
    model_version: str
    route: str = "champion"
    class_means: ClassMeans | None = None  # where the card's calibration measures by the distance to them

    @classmethod
    def load(cls, folder: Path, card: ModelCard, model_version: str) -> Observer:
        """An observer of the model in `folder`, whose card was read.

        Raises:
            ArtifactError: a file is missing or damaged.
        """
        pca = EmbeddingPCA.from_bytes(card.read_file(folder, EMBEDDING_PCA))
        rule = card.calibration.unknown if card.calibration else None
        by_distance = rule is not None and rule.score == "distance"
        means = ClassMeans.from_bytes(card.read_file(folder, CLASS_MEANS)) if by_distance else None
        return cls(card, pca, model_version, class_means=means)

    def answered(
        self,
        data: bytes,
        decoded: DecodedImage,
        pixels: PixelArray,
        logits: npt.NDArray[np.float32],
        embedding: npt.NDArray[np.float32],
        *,
        prediction_id: str | None = None,
        request_id: str = "",
        time: datetime | None = None,
        decode_ms: float | None = None,
        infer_ms: float | None = None,
        total_ms: float | None = None,
        batch_size: int = 1,
        target: str | None = None,
    ) -> LoggedPrediction:
        """The row of an answered image.

        `data` are the encoded bytes, `pixels` the model's input uint8 [H, W, 3], `logits` [K] and `embedding` [D] the
        model's answer to this image. `prediction_id` and `time` (UTC) are made here unless given; the times in ms are None
        where they were not measured.
        """
        output = output_features(logits)
        image = image_features(pixels)
        components = self.pca.project(embedding[None])[0]
        score, unknown, review = self.doubt(logits, embedding)
        return LoggedPrediction(
            prediction_id=prediction_id or new_prediction_id(),
            request_id=request_id,
            time=time or datetime.now(UTC),
            status="ok",
            reason="",
            model_name=self.card.name,
            model_version=self.model_version,
            model_sha256=self.card.files[MODEL_ONNX],
            preprocess_version=self.card.preprocess.version,
            precision=self.card.precision,
            route=self.route,
            label=self.card.labels[int(np.argmax(logits))],
            probabilities=output.probabilities,
            confidence=output.confidence,
            entropy=output.entropy,
            margin=output.margin,
            energy=output.energy,
            embedding=tuple(float(value) for value in components),
            image_sha256=sha256_bytes(data),
            file_bytes=len(data),
            width_pixels=decoded.width_pixels,
            height_pixels=decoded.height_pixels,
            mode=decoded.mode,
            format=decoded.format,
            brightness=image.brightness,
            contrast=image.contrast,
            sharpness=image.sharpness,
            saturation=image.saturation,
            gray_entropy=image.gray_entropy,
            clipped_share=image.clipped_share,
            decode_ms=decode_ms,
            infer_ms=infer_ms,
            total_ms=total_ms,
            batch_size=batch_size,
            target=target,
            unknown_score=score,
            unknown=unknown,
            review=review,
        )

    def doubt(
        self, logits: npt.NDArray[np.float32], embedding: npt.NDArray[np.float32]
    ) -> tuple[float | None, bool | None, bool | None]:
        """How strange an image is, whether it is unknown, and whether its answer goes to a person.

        `logits` [K] and `embedding` [D] are the model's answer; None is what the card's calibration does not say.
        """
        if self.card.calibration is None:
            return None, None, None
        doubt = judge(self.card.calibration, logits[None], embedding[None], self.class_means)
        score = None if doubt.score is None else float(doubt.score[0])
        return score, None if doubt.unknown is None else bool(doubt.unknown[0]), bool(doubt.review[0])

    def rejected(
        self,
        data: bytes,
        error: ImageError,
        *,
        prediction_id: str | None = None,
        request_id: str = "",
        time: datetime | None = None,
        decode_ms: float | None = None,
        total_ms: float | None = None,
        target: str | None = None,
    ) -> LoggedPrediction:
        """The row of an image that was refused with `error`; every number of the model and of the image is None."""
        return LoggedPrediction(
            prediction_id=prediction_id or new_prediction_id(),
            request_id=request_id,
            time=time or datetime.now(UTC),
            status="rejected",
            reason=error.reason,
            model_name=self.card.name,
            model_version=self.model_version,
            model_sha256=self.card.files[MODEL_ONNX],
            preprocess_version=self.card.preprocess.version,
            precision=self.card.precision,
            route=self.route,
            label=None,
            probabilities=None,
            confidence=None,
            entropy=None,
            margin=None,
            energy=None,
            embedding=None,
            image_sha256=sha256_bytes(data),
            file_bytes=len(data),
            width_pixels=None,
            height_pixels=None,
            mode=None,
            format=None,
            brightness=None,
            contrast=None,
            sharpness=None,
            saturation=None,
            gray_entropy=None,
            clipped_share=None,
            decode_ms=decode_ms,
            infer_ms=None,
            total_ms=total_ms,
            batch_size=0,
            target=target,
        )

"""How strange an image is to the model, and what a calibration makes of an answer. The only place that computes either.

Evaluation measures these scores, the model server and the drift reference apply them, so both speak of the same numbers.
Only numpy and the card are used, because the model server imports this module.

Does not cover: fitting and choosing (`evaluation/calibration.py`, `evaluation/unknowns.py`).
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from visionloop.card import Calibration
from visionloop.errors import ArtifactError
from visionloop.features import FloatArray, softmax

Score = Literal["probability", "energy", "distance"]
# From the one that needs least to the one that needs most: equal ones are decided for the first.
SCORES: tuple[Score, ...] = ("probability", "energy", "distance")


@dataclass(frozen=True)
class ClassMeans:
    """Class means and one shared covariance of the embedding, for the distance of Lee et al. 2018, arXiv:1807.03888.

    Lies beside the model as `class_means.npz`, hashed in the card. The embedding is whitened once, so that a distance is
    a plain one.
    """

    whitening: FloatArray  # [D, D]; embedding @ whitening has the identity as its covariance within classes
    means: FloatArray  # [C, D], whitened, of the C classes that had an image

    def distances(self, embedding: npt.NDArray[np.floating]) -> FloatArray:
        """Squared Mahalanobis distance [N] of embeddings [N, D] to the nearest class mean."""
        white = embedding.astype(np.float64) @ self.whitening
        squares = (white**2).sum(axis=1)[:, None] - 2 * white @ self.means.T + (self.means**2).sum(axis=1)
        return np.asarray(np.maximum(squares.min(axis=1, initial=np.inf), 0))

    def to_bytes(self) -> bytes:
        """The content of `class_means.npz`, in float32; equal arrays give equal bytes."""
        buffer = io.BytesIO()
        np.savez(buffer, whitening=self.whitening.astype(np.float32), means=self.means.astype(np.float32))
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> ClassMeans:
        """Read what `to_bytes` made. Raises ArtifactError where it is something else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return cls(arrays["whitening"].astype(np.float64), arrays["means"].astype(np.float64))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ArtifactError(
                f"class_means.npz cannot be read ({error}); rebuild it with `dvc repro calibrate`."
            ) from error


@dataclass(frozen=True)
class Doubt:
    """What a calibration makes of N answers."""

    score: FloatArray | None  # [N], higher is stranger; None where the calibration sets no rule
    unknown: npt.NDArray[np.bool_] | None  # [N], the image seems to be of none of the classes
    review: npt.NDArray[np.bool_]  # [N], the answer should go to a person


def strangeness(
    score: Score, logits: npt.NDArray[np.floating], embedding: npt.NDArray[np.floating], means: ClassMeans | None
) -> FloatArray:
    """Score [N] of calibrated logits [N, K] and embedding [N, D], float64; higher is stranger, whichever score it is.

    - probability: 1 minus the largest probability (Hendrycks and Gimpel 2017, arXiv:1610.02136), 0 to 1 - 1/K.
    - energy: -log of the sum of exp of the logits (Liu et al. 2020, arXiv:2010.03759, divided by the temperature, which
      is inside the logits).
    - distance: squared Mahalanobis distance to the nearest class mean; needs `means`.

    Raises:
        ArtifactError: the score is "distance" and there are no class means.
    """
    if score == "probability":
        return np.asarray(1 - softmax(logits).max(axis=1, initial=0.0))
    if score == "energy":
        wide = logits.astype(np.float64)
        peak = wide.max(axis=1)
        return np.asarray(-(peak + np.log(np.exp(wide - peak[:, None]).sum(axis=1))))
    if means is None:
        raise ArtifactError("The calibration measures the distance to class means, and there are none; rebuild the model.")
    return means.distances(embedding)


def judge(
    calibration: Calibration,
    logits: npt.NDArray[np.floating],
    embedding: npt.NDArray[np.floating],
    means: ClassMeans | None,
) -> Doubt:
    """Which of N answers (calibrated logits [N, K], embedding [N, D]) are unknown, and which go to a person."""
    score = unknown = None
    if calibration.unknown is not None:
        score = strangeness(calibration.unknown.score, logits, embedding, means)
        unknown = score > calibration.unknown.threshold
    return Doubt(score, unknown, softmax(logits).max(axis=1, initial=0.0) < calibration.review_below)

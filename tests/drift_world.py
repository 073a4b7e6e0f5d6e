"""A small real world for drift: scikit-learn's digits at 32 x 32, a linear model on principal components, rows as logged.

For tests and `benchmarks/drift_false_alarms.py`. Nothing heavy is trained; rows go through the project's one `Observer`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from visionloop.card import ModelCard
from visionloop.config import MonitorParams
from visionloop.corruptions import corrupt
from visionloop.errors import ImageError
from visionloop.features import EmbeddingPCA
from visionloop.observe import Observer
from visionloop.preprocess import DecodedImage, PixelArray, PreprocessSpec, encode_png
from visionloop.records import LoggedPrediction

LABELS = tuple("0123456789")
COMPONENTS = 8
TRAIN_IMAGES = 600
START = datetime(2026, 3, 1, tzinfo=UTC)
PARAMS = MonitorParams(
    window_rows=500, min_rows=200, alpha=0.001, max_accuracy_drop=0.03, max_reject_share=0.05, keep_days=90
)


@dataclass(frozen=True)
class World:
    """A trained model and the images that it has not seen."""

    images: PixelArray  # [N, 32, 32, 3], held out
    labels: tuple[str, ...]
    pca: PCA
    classifier: LogisticRegression
    observer: Observer

    def rows(self, images: Sequence[PixelArray] | PixelArray, labels: Sequence[str] | None = None) -> list[LoggedPrediction]:
        """The rows that a server would log for these images, a second apart, with true labels where given."""
        batch = np.stack(list(images))
        embeddings = self.pca.transform(_flat(batch)).astype(np.float32)
        logits = self.classifier.decision_function(embeddings).astype(np.float32)
        found = []
        for index, pixels in enumerate(batch):
            decoded = DecodedImage(Image.fromarray(pixels), "PNG", "RGB", pixels.shape[1], pixels.shape[0])
            row = self.observer.answered(
                encode_png(pixels), decoded, pixels, logits[index], embeddings[index],
                time=START + timedelta(seconds=index), total_ms=2.0 + (index % 50) / 50,
                target=None if labels is None else labels[index],
            )  # fmt: skip
            found.append(row)
        return found

    def rejected(self, count: int) -> list[LoggedPrediction]:
        """Rows of images that could not be read."""
        error = ImageError("truncated", "The image is damaged.")
        return [self.observer.rejected(b"\x89PNG", error, time=START) for _ in range(count)]


@functools.cache
def world() -> World:
    """The world, made once a process (about a second)."""
    digits = load_digits()
    images = np.stack([_upscale(image) for image in digits.images])
    labels = digits.target.astype(str)
    order = np.random.default_rng(0).permutation(len(images))
    train, held_out = order[:TRAIN_IMAGES], order[TRAIN_IMAGES:]
    pca = PCA(24, random_state=0).fit(_flat(images[train]))
    embeddings = pca.transform(_flat(images[train])).astype(np.float32)
    classifier = LogisticRegression(C=0.5, max_iter=2000).fit(embeddings, labels[train])
    card = ModelCard(
        family="cnn", architecture="linear", labels=LABELS, preprocess=PreprocessSpec(32, 32), mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5), embedding_size=24, precision="fp32", parameters=250, files={"model.onnx": "a" * 64},
    )  # fmt: skip
    observer = Observer(card, EmbeddingPCA.fit(embeddings, COMPONENTS), model_version="3")
    return World(images[held_out], tuple(labels[held_out]), pca, classifier, observer)


@functools.cache
def clean_rows() -> tuple[LoggedPrediction, ...]:
    """All held-out images (1,197), as they are, with their labels."""
    here = world()
    return tuple(here.rows(here.images, here.labels))


@functools.cache
def shifted_rows(name: str, severity: int) -> tuple[LoggedPrediction, ...]:
    """The same images, corrupted, with their labels."""
    here = world()
    rng = np.random.default_rng(7)
    return tuple(here.rows([corrupt(image, name, severity, rng) for image in here.images], here.labels))


def halves(seed: int, reference_rows: int = 597) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Two disjoint random sets of indices of the held-out images; under no drift either could be the reference."""
    order = np.random.default_rng(seed).permutation(len(world().images))
    return order[:reference_rows], order[reference_rows:]


def pick(rows: Sequence[LoggedPrediction], indices: Sequence[int] | npt.NDArray[np.int64]) -> list[LoggedPrediction]:
    """Rows by index, in that order."""
    return [rows[int(index)] for index in indices]


def traffic(rows: Sequence[LoggedPrediction], start: datetime = START) -> list[LoggedPrediction]:
    """The rows as live traffic: no true label, a second apart from `start`."""
    return [replace(row, target=None, time=start + timedelta(seconds=index)) for index, row in enumerate(rows)]


def _upscale(image: npt.NDArray[np.float64]) -> PixelArray:
    gray = Image.fromarray(np.rint(image * 255 / 16).astype(np.uint8))
    return np.array(gray.resize((32, 32), Image.Resampling.BILINEAR).convert("RGB"))


def _flat(images: PixelArray) -> npt.NDArray[np.float32]:
    return np.asarray(images[..., 0].reshape(len(images), -1) / np.float32(255), dtype=np.float32)

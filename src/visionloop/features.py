"""The numbers that are watched for drift, from a model's input and its answer. The only place that computes them.

The drift reference and the live server both call these functions, so a difference between the two is a difference of the
world. Only numpy is used, because the model server imports this module.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
SignalGroup = Literal["probability", "confidence", "embedding", "image", "class"]

CONFIDENCE_SIGNALS = ("confidence", "entropy", "margin")
IMAGE_SIGNALS = ("brightness", "contrast", "sharpness", "saturation")
CLASS_SIGNAL = "label"
# Above this many classes the single probabilities are no longer tested one by one: with 50 the Bonferroni threshold is
# already 60 times the alpha (reference: Rabanser et al., "Failing Loudly", NeurIPS 2019, tests one per class).
MAX_PROBABILITY_SIGNALS = 50


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """Statistics of one model input, uint8 [H, W, 3]."""

    brightness: float  # mean of gray, 0 to 255
    contrast: float  # standard deviation of gray
    sharpness: float  # variance of the 4-neighbour Laplacian of gray
    saturation: float  # mean of max(R, G, B) - min(R, G, B)
    gray_entropy: float  # of the 64-bin histogram of gray, bits, 0 to 6
    clipped_share: float  # share of gray pixels <= 2 or >= 253


@dataclass(frozen=True, slots=True)
class OutputFeatures:
    """What is derived from one image's logits."""

    probabilities: tuple[float, ...]
    confidence: float
    entropy: float
    margin: float
    energy: float


@dataclass(frozen=True)
class EmbeddingPCA:
    """A projection of the penultimate layer on its first principal components, fitted on held-out images.

    Versioned with the model: lies beside it as `embedding_pca.npz`, hashed in the card.
    """

    mean: npt.NDArray[np.float32]  # [D]
    components: npt.NDArray[np.float32]  # [C, D]

    @classmethod
    def fit(cls, embeddings: npt.NDArray[np.float32], components: int) -> EmbeddingPCA:
        """Fit on embeddings [N, D] by singular value decomposition; the sign of each component is fixed."""
        wide = embeddings.astype(np.float64)
        mean = wide.mean(axis=0)
        _, _, axes = np.linalg.svd(wide - mean, full_matrices=False)
        axes = axes[: min(components, len(axes))]
        largest = np.abs(axes).argmax(axis=1)
        axes = axes * np.sign(axes[np.arange(len(axes)), largest])[:, None]
        return cls(mean.astype(np.float32), axes.astype(np.float32))

    def project(self, embeddings: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Project embeddings [N, D] to [N, C]."""
        return np.asarray((embeddings - self.mean) @ self.components.T, dtype=np.float32)

    def to_bytes(self) -> bytes:
        """The content of `embedding_pca.npz`."""
        buffer = io.BytesIO()
        np.savez(buffer, mean=self.mean, components=self.components)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> EmbeddingPCA:
        """Read what `to_bytes` made."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(arrays["mean"], arrays["components"])


def gray(images_nhwc: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Luma of uint8 RGB images [..., H, W, 3] as float32 [..., H, W], ITU-R BT.601 weights (as Pillow's "L")."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return np.asarray(images_nhwc.astype(np.float32) @ weights, dtype=np.float32)


def image_features(image_hwc: npt.NDArray[np.uint8]) -> ImageFeatures:
    """Statistics of one model input, uint8 [H, W, 3] with H and W at least 3."""
    luma = gray(image_hwc)
    laplacian = luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:] - 4 * luma[1:-1, 1:-1]
    red, green, blue = image_hwc[..., 0], image_hwc[..., 1], image_hwc[..., 2]
    # Pairwise, because numpy's maximum over an axis of three is 30 times as slow.
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    counts = np.bincount((luma.astype(np.uint8) >> 2).ravel(), minlength=64)
    shares = counts[counts > 0] / luma.size
    return ImageFeatures(
        brightness=float(luma.mean()),
        contrast=float(luma.std()),
        sharpness=float(laplacian.var()),
        saturation=float(spread.mean()),
        gray_entropy=float(-(shares * np.log2(shares)).sum()) + 0.0,
        clipped_share=float(((luma <= 2) | (luma >= 253)).mean()),
    )


def softmax(logits: npt.NDArray[np.floating]) -> FloatArray:
    """Probabilities float64 [..., K] of logits [..., K]."""
    wide = logits.astype(np.float64)
    exponents = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True))


def output_features(logits: npt.NDArray[np.floating]) -> OutputFeatures:
    """Confidence values of one image's logits [K]. With one class the margin is 1."""
    probabilities = softmax(logits)
    ordered = np.sort(probabilities)[::-1]
    peak = float(logits.max())
    energy = -(peak + float(np.log(np.exp(logits.astype(np.float64) - peak).sum())))
    positive = probabilities[probabilities > 0]
    return OutputFeatures(
        probabilities=tuple(float(p) for p in probabilities),
        confidence=float(ordered[0]),
        entropy=float(-(positive * np.log(positive)).sum()) + 0.0,
        margin=float(ordered[0] - ordered[1]) if len(ordered) > 1 else 1.0,
        energy=energy,
    )


def signal_groups(labels: Sequence[str], components: int) -> Mapping[str, SignalGroup]:
    """Name of each watched signal and its group, in a fixed order: "p:<label>", confidence, "e:<i>", image, "label".

    With 10 classes and 8 components these are 26 signals.
    """
    groups: dict[str, SignalGroup] = {}
    if len(labels) <= MAX_PROBABILITY_SIGNALS:
        groups.update({f"p:{label}": "probability" for label in labels})
    groups.update(dict.fromkeys(CONFIDENCE_SIGNALS, "confidence"))
    groups.update({f"e:{index}": "embedding" for index in range(components)})
    groups.update(dict.fromkeys(IMAGE_SIGNALS, "image"))
    groups[CLASS_SIGNAL] = "class"
    return groups

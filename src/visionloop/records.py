"""The rows that cross a file or a process border, as small frozen values.

Column names are the field names. What a number means, its unit and its range stand here and nowhere else. Imported by the
model server, so only the standard library is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class ImageRow:
    """One collected image. The encoded bytes lie in the shard; everything else also stands in `data/images.parquet`."""

    id: str  # sha256 of the encoded bytes, 64 hexadecimal digits
    label: str
    source: str  # which source brought it: "digits", "folder", ...
    group: str  # what belongs together beyond this image, as the source says: a patient, a camera; "" where unknown
    labelled_by: str  # who or what gave the label: "folder", a CSV's column, the person of a feedback; "" where unknown
    path: str  # where that source had it, with "/" between parts
    size_bytes: int
    time: datetime  # UTC; when the source says the image came to be (a file's modification time)
    split_hint: Split | None  # the side that a pre-split folder put it on
    shard: str  # file name below data/shards
    row: int  # row number in that shard


@dataclass(frozen=True, slots=True)
class CleanRow:
    """One image's measures and verdict. A rejected image is a row with a reason; nothing is deleted."""

    id: str
    label: str  # after decisions
    given_label: str  # the source's
    path: str
    source: str
    group: str
    time: datetime
    width_pixels: int  # 0 where the image cannot be decoded
    height_pixels: int
    mode: str  # Pillow's mode before conversion: "L", "RGB", "CMYK", ...
    format: str  # "JPEG", "PNG", "WEBP", "BMP"; "" where unknown
    bit_depth: int  # bits of one channel: 1, 8, 16
    alpha: bool  # some pixel is not opaque
    animated: bool  # more than one frame; the first one counts
    exif_orientation: int  # 1 to 8 as the file says; 1 where it says nothing
    brightness: float  # mean of gray, 0 to 255
    contrast: float  # standard deviation of gray, 0 to 127.5
    sharpness: float  # variance of the Laplacian of gray
    entropy: float  # of the 64-bin histogram of gray, in bits, 0 to 6
    colourfulness: float  # Hasler and Suesstrunk (2003); 0 for gray
    perceptual_hash: str  # 16 hexadecimal digits; "" where the image cannot be decoded
    cluster: str  # id of the first image among its exact and near duplicates; its own id when it has none
    outlier_score: float  # 0 to 1, how far it lies from its neighbours in feature space; 0 where not computed
    label_quality: float  # 0 to 1, out-of-fold probability of the given label (cleanlab); 1 where not computed
    suggested_label: str  # the out-of-fold answer where it disputes the label; else ""
    findings: tuple[str, ...]  # every reason that applies, the gravest first
    verdict: Literal["keep", "reject"]
    reason: str  # the first finding, or what a decision says; "" when kept without remark
    detail: str  # sentences with the numbers behind the findings
    decided_by: str  # who decided in data/decisions.csv; "" for the machine's verdict
    split_hint: Split | None


@dataclass(frozen=True, slots=True)
class SplitRow:
    """The side that a kept image stands on."""

    id: str
    label: str
    split: Split
    cluster: str
    fold: int = -1  # of the k-fold assignment of train and val images, from 0; -1 for test images and where k is 0


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of one image."""

    label: str
    probability: float
    probabilities: tuple[float, ...]  # in the order of the card's labels; they sum to 1
    prediction_id: str = ""  # set by the server, the key for feedback
    model_version: str = ""
    unknown: bool = False  # the image seems to be of none of the classes; false, too, where the model cannot say
    review: bool = False  # the answer should go to a person; false, too, where the model cannot say


@dataclass(frozen=True, slots=True)
class LoggedPrediction:
    """One answered or refused image, as it lies in the prediction store and in the drift reference.

    For a rejected image `status` is "rejected", `reason` is its code and every number of the model is absent (None).
    """

    prediction_id: str  # UUID version 7: sorts by time
    request_id: str  # the client's own id; "" when it gave none
    time: datetime  # UTC, server clock, when the answer was ready
    status: Literal["ok", "rejected"]
    reason: str
    model_name: str
    model_version: str
    model_sha256: str
    preprocess_version: str
    precision: str  # "fp32" or "int8"
    route: str  # "champion"; later "canary", "shadow"
    label: str | None  # predicted class
    probabilities: tuple[float, ...] | None  # [K], the card's order
    confidence: float | None  # largest probability
    entropy: float | None  # of the probabilities, in nats
    margin: float | None  # largest minus second largest probability
    energy: float | None  # -logsumexp of the logits
    embedding: tuple[float, ...] | None  # principal components of the embedding, 8 to 16 of them
    image_sha256: str
    file_bytes: int
    width_pixels: int | None
    height_pixels: int | None
    mode: str | None
    format: str | None
    brightness: float | None  # mean gray of the model's input, 0 to 255
    contrast: float | None  # standard deviation of gray
    sharpness: float | None  # variance of the Laplacian of gray
    saturation: float | None  # mean of max(R,G,B) - min(R,G,B), 0 to 255
    gray_entropy: float | None  # of the 64-bin histogram of gray, in bits
    clipped_share: float | None  # share of gray pixels <= 2 or >= 253
    decode_ms: float | None
    infer_ms: float | None
    total_ms: float | None
    batch_size: int  # images in the batch that the model saw
    target: str | None = None  # the true label, where known (reference, feedback)
    # Absent for a model without calibration, and in rows of before there was one.
    unknown_score: float | None = None  # how strange the image is to the model, by the score of its calibration
    unknown: bool | None = None  # stranger than nearly all validation images: perhaps of none of the classes
    review: bool | None = None  # among the least certain answers, which the owner wants a person to see


@dataclass(frozen=True, slots=True)
class SignalDrift:
    """One signal's two-sample test."""

    signal: str
    test: Literal["ks", "chisquare"]
    statistic: float
    p_value: float
    drifted: bool  # p_value < threshold
    group: Literal["probability", "confidence", "embedding", "image", "class"]


@dataclass(frozen=True, slots=True)
class Window:
    """Which rows were judged."""

    window_id: str  # "<model_version>-<index>": judging a closed window again is a no-op
    model_version: str
    start: datetime
    end: datetime
    rows: int  # answered images
    rejected: int  # refused images in the same span


@dataclass(frozen=True, slots=True)
class DriftResult:
    """What the tests say of a window against the reference."""

    window: Window
    threshold: float  # per signal, after Bonferroni
    signals: tuple[SignalDrift, ...]
    estimated_accuracy: float | None  # without labels, by ATC
    reference_accuracy: float | None
    health: tuple[str, ...]  # level 0: sentences about missing values, reject rate, duplicates
    estimated_interval: tuple[float, float] | None = None  # 95 %, bootstrap over window and reference


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about a window, and why."""

    action: Literal["wait", "alert", "retrain"]
    reason: str
    window_id: str
    level: Literal["insufficient", "none", "health", "drift", "harm"]


@dataclass(frozen=True, slots=True)
class Feedback:
    """A person's label for an earlier prediction."""

    prediction_id: str
    label: str
    source: str  # who or what labelled it
    time: datetime  # UTC

"""The model card: labels, input spec, files with their hashes, metrics, and where the model comes from.

One `card.json` lies beside the weights at every step (torch, exported, shipped, deployed). Nothing loads a model file but
through `read_file`, which checks its hash. Imported by the model server.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from visionloop.errors import ArtifactError
from visionloop.features import softmax
from visionloop.files import read_verified, sha256_file, write_text
from visionloop.paths import CALIBRATION, CARD, MODEL_TORCH
from visionloop.preprocess import RULES, PreprocessSpec

INPUT_NAME = "images"  # uint8 [N, H, W, 3]
LOGITS_NAME = "logits"  # float32 [N, K]
EMBEDDING_NAME = "embedding"  # float32 [N, D]

Runtime = Literal["onnxruntime", "openvino"]  # names of the packages
Compute = Literal["fp32", "bf16"]  # what float parts are calculated in
Precision = Literal["fp32", "fp16", "int8"]


class UnknownRule(BaseModel):
    """When an image is answered with "unknown": its score is above the threshold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    score: Literal["energy", "distance", "probability"]
    threshold: float  # higher scores are stranger, whichever score it is
    kept: float = Field(gt=0, le=1)  # of the validation images that are at or below it


class Calibration(BaseModel):
    """How far the model's answers are to be trusted, fitted on the validation side by `calibrate`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(gt=0, allow_inf_nan=False)  # logits are divided by it; inside the exported graph
    precision_thresholds: dict[str, float | None]  # label -> least probability for the stated precision; None: none has it
    unknown: UnknownRule | None  # None: there were too few validation images to set one
    review_below: float  # an answer whose probability is below goes to a person; 0: none does
    review_share: float = Field(ge=0, lt=1)  # of the answers, as the owner asked for it
    weights: str = ""  # sha256 of the model.pt that it was fitted to

    def apply(self, logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """Calibrated probabilities, float64 [N, K], of raw logits [N, K] (those the torch model gives)."""
        return softmax(np.asarray(logits, np.float64) / self.temperature)


class Smaller(BaseModel):
    """What a pruned network or a student was made from; it learnt from that network's answers and took its place."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["pruning", "student"]
    architecture: str  # of the network before, as the next three
    architecture_options: dict[str, Any]
    parameters: int
    multiply_adds: int  # for one image
    multiply_adds_after: int
    val_accuracy: float


class ModelCard(BaseModel):
    """What one needs to know to use the model files in this folder."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    name: str = "classifier"
    family: str  # "cnn" or "vit"
    architecture: str
    labels: tuple[str, ...]  # index in the logits -> class name
    preprocess: PreprocessSpec
    preprocess_rules: dict[str, Any] = Field(default_factory=lambda: dict(RULES))  # what the spec leaves unsaid
    mean: tuple[float, float, float]  # of the training pixels, 0 to 1, RGB; already inside the graph
    std: tuple[float, float, float]
    embedding_size: int
    precision: Precision  # of the weights
    runtime: Runtime = (
        "onnxruntime"  # what `quantize` measured to be the best one; whoever serves the model loads it in this
    )
    compute: Compute = "fp32"
    parameters: int  # number of weights
    files: dict[str, str] = Field(default_factory=dict)  # file name in this folder -> sha256
    metrics: dict[str, float] = Field(default_factory=dict)  # flat: "test_accuracy", "latency_ms_batch_1", ...
    lineage: dict[str, str] = Field(default_factory=dict)  # "data": sha256 of the split, "visionloop": version, ...
    notes: tuple[str, ...] = ()  # decisions in words, as "INT8 is shipped: ..."
    architecture_options: dict[str, Any] = Field(default_factory=dict)
    calibration: Calibration | None = None
    smaller: Smaller | None = None
    quantization_aware: bool = False  # INT8 of a network that was trained on with the rounding: another one than FP32's

    @field_validator("preprocess_rules")
    @classmethod
    def _known_rules(cls, rules: dict[str, Any]) -> dict[str, Any]:
        # A model that learnt from images prepared otherwise would be asked about ours; the words may change.
        if rules.get("rules") != RULES["rules"]:
            raise ValueError("preprocess_rules are not those of this visionloop")
        return rules

    def with_files(self, folder: Path, names: tuple[str, ...]) -> ModelCard:
        """A card that names these files of `folder` with their present hashes, and no others."""
        return self.model_copy(update={"files": {name: sha256_file(folder / name) for name in names}})

    def write(self, folder: Path) -> None:
        """Write `card.json` into `folder`, whole or not at all."""
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False)
        write_text(folder / CARD, text + "\n")

    def read_file(self, folder: Path, name: str) -> bytes:
        """The bytes of a file that the card names, after its hash was checked.

        Raises:
            ArtifactError: the card does not name it, it is missing, or it is damaged.
        """
        if name not in self.files:
            raise ArtifactError(f"{folder / CARD} names no file {name!r}; it has {sorted(self.files)}.")
        return read_verified(folder / name, self.files[name])

    def verify(self, folder: Path) -> None:
        """Check every file of the card. Raises ArtifactError at the first that is missing or damaged."""
        for name in self.files:
            self.read_file(folder, name)


def load_card(folder: Path) -> ModelCard:
    """Read `card.json` of a model folder.

    Raises:
        ArtifactError: there is none, or it is not a card.
    """
    path = folder / CARD
    try:
        return ModelCard.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}); run `dvc repro` to build the model, or `dvc pull` to fetch it."
        ) from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is no model card of this visionloop; rebuild it with `dvc repro`.") from error


def load_calibration(folder: Path) -> Calibration:
    """Read `calibration.json` of a model folder.

    Raises:
        ArtifactError: there is none, or it is no calibration, or one of other weights than those that lie there.
    """
    path = folder / CALIBRATION
    try:
        found = Calibration.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}); run `dvc repro calibrate`.") from error
    except (ValidationError, UnicodeDecodeError) as error:
        raise ArtifactError(
            f"{path} is no calibration of this visionloop; rebuild it with `dvc repro calibrate`."
        ) from error
    if found.weights and found.weights != load_card(folder).files.get(MODEL_TORCH):
        raise ArtifactError(
            f"{path} was fitted to another model than {folder / MODEL_TORCH}, whose answers its thresholds do not fit; run "
            f"`dvc repro calibrate@{folder.name}`."
        )
    return found

"""The typed form of `params.yaml`, and its only reader.

One frozen model per section; a section is named after the stage that it steers. An unknown key is refused with the nearest
known one, a missing key is named, and a wrong value is answered with the allowed range. The whole file is checked whichever
section is asked for, so a bad value stops the first stage and not the ninth.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from visionloop.errors import ConfigError
from visionloop.paths import PARAMS
from visionloop.preprocess import Filter, Fit, PreprocessSpec

MAX_PARAMS_BYTES = 1 << 20

# The gravest first: what is no image, what contradicts or repeats another, what shows nothing, what may be wrong.
CleanReason = Literal[
    "unreadable", "truncated", "empty", "unsupported_format", "too_large", "too_small", "conflicting_labels",
    "exact_duplicate", "blank", "suspect_label", "outlier", "near_duplicate", "dark", "bright", "blurred", "low_information",
    "odd_size", "odd_aspect", "animated",
]  # fmt: skip
# The first five cannot be decoded; the other two would stand twice in the packed arrays.
_MUST_REJECT: tuple[CleanReason, ...] = (
    "unreadable", "truncated", "empty", "unsupported_format", "too_large", "exact_duplicate", "conflicting_labels",
)  # fmt: skip

# Keys of the section augment that change a single image wherever they are not 0 or false, in the order of their work;
# `automatic` stands between the geometry and the colours.
CHANGES = (
    "horizontal_flip", "vertical_flip", "crop_padding_pixels", "resized_crop", "rotation_degrees", "scale", "shear_degrees",
    "brightness", "contrast", "saturation", "hue", "blur_pixels", "erasing",
)  # fmt: skip

Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _rising(values: tuple[float, ...]) -> tuple[float, ...]:
    if any(value <= 0 for value in values) or list(values) != sorted(set(values)):
        raise PydanticCustomError("rising", "It must be a list of numbers above 0, each above the one before it")
    return values


def _dask_address(value: str) -> str:
    if not re.fullmatch(r"(tcp|tls|ucx|wss?)://(\[[0-9a-fA-F:.%]+\]|[\w.-]+):[0-9]{1,5}", value):
        raise PydanticCustomError("dask_address", "It must be the address of a Dask scheduler, as tcp://host:8786, or null")
    return value


Amounts = Annotated[tuple[float, ...], BeforeValidator(_tuple), AfterValidator(_rising), Field(min_length=1, max_length=50)]


def _sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", value):
        raise PydanticCustomError(
            "sha256", "It must be 64 hexadecimal digits in small letters, as sha256sum prints them, or null"
        )
    return value


def _folder_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", value):
        raise PydanticCustomError("folder_name", "It must be the name of a folder in models/, or none")
    if value in ("exported", "shipped"):
        raise PydanticCustomError(
            "folder_name",
            "It must be a model that is there before this training: cnn, vit, or a folder of your own in models/",
        )
    return value


def _study_url(value: str) -> str:
    if not re.fullmatch(r"sqlite:///[^:?]+|postgresql(\+\w+)?://\S+", value):
        raise PydanticCustomError(
            "study_url", "It must be postgresql+psycopg://user@host/database, sqlite:///path/of/a.db, or null"
        )
    return value


class Section(BaseModel):
    """A section of `params.yaml`: frozen, strict (no "3" for 3), unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    section: ClassVar[str]


class ComputeParams(Section):
    """Where the work on single images runs. No stage declares this section: it changes how fast, never what comes out."""

    section: ClassVar[str] = "compute"
    workers: int = Field(ge=0, le=256, description="processes; 0 means one per core")
    dask: Annotated[str, AfterValidator(_dask_address)] | None = Field(
        description="address of a Dask scheduler, as tcp://host:8786; null for processes here"
    )
    processes: int = Field(default=1, ge=1, le=1024, description="that train one model together on this machine")


class CollectParams(Section):
    section: ClassVar[str] = "collect"
    source: str = Field(min_length=1, description="a file of `visionloop.data.sources`: digits, folder, csv, archive, ...")
    path: str = Field(min_length=1, description="the folder that holds what the source reads; DVC watches it")
    options: dict[str, int | float | str | bool | None] = Field(description="of the source; see docs/sources.md")
    feedback: bool = Field(description="add the labelled live images of data/feedback")
    images_per_shard: int = Field(ge=1, le=1_000_000, description="rows of one Parquet shard")
    max_skipped_share: Share = Field(description="more files that cannot be read stop the run")


class CleanParams(Section):
    section: ClassVar[str] = "clean"
    min_side_pixels: int = Field(ge=1, le=10_000, description="a shorter side is `too_small`")
    max_megapixels: float = Field(gt=0, le=1000, description="more is `too_large`, refused before decoding")
    blank_contrast: float = Field(ge=0, le=127.5, description="a standard deviation of gray below this is `blank`")
    near_duplicate_error: float = Field(ge=0, le=1, description="two pictures this close are the same one")
    reject: Annotated[tuple[CleanReason, ...], BeforeValidator(_tuple)] = Field(description="reasons that reject an image")
    outliers: bool = Field(description="look for images that are foreign to the set")
    suspect_labels: bool = Field(description="look for wrong labels by models that never saw the image")
    max_rejected_share: Share = Field(description="more rejected images than this stop the run")

    @model_validator(mode="after")
    def _must_reject(self) -> CleanParams:
        missing = [reason for reason in _MUST_REJECT if reason not in self.reject]
        if missing:
            raise ValueError(f"reject lacks {', '.join(missing)}; {', '.join(_MUST_REJECT)} cannot be learnt from")
        return self


class SplitParams(Section):
    section: ClassVar[str] = "split"
    train: Share = Field(description="share of images to learn from")
    val: Share = Field(description="share to stop early and to calibrate on")
    test: Share = Field(description="share that is never learnt from")
    seed: Seed = Field(description="another seed, another split")
    by_group: bool = Field(description="images of one group of their source stand on one side")
    time_gap_seconds: float = Field(ge=0, le=31_536_000, description="so do images of a source taken this close; 0: off")
    newest_in_test: bool = Field(description="the newest images of a class are test, the next val; else content decides")
    folds: int = Field(ge=0, le=50, description="of the k-fold assignment of train and val images; 0 for none")
    max_difference: Share = Field(description="between train and another side, beyond which the run warns")

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitParams:
        if self.folds == 1:
            raise ValueError("folds is 1, which leaves nothing to learn from; it must be 0 or at least 2")
        total = self.train + self.val + self.test
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ValueError(f"train, val and test sum to {total:g}; they must sum to 1")
        if min(self.train, self.val, self.test) == 0:
            raise ValueError("train, val and test must each be above 0")
        return self


class PreprocessParams(Section):
    section: ClassVar[str] = "preprocess"
    height: int = Field(ge=8, le=1024, description="pixels of the model's input")
    width: int = Field(ge=8, le=1024, description="pixels of the model's input")
    fit: Fit = Field(description="what happens to another aspect ratio")
    filter: Filter = Field(description="Pillow's resampling filter")

    @property
    def spec(self) -> PreprocessSpec:
        """The value that travels with the model."""
        return PreprocessSpec(self.height, self.width, self.fit, self.filter)


class AugmentParams(Section):
    section: ClassVar[str] = "augment"
    horizontal_flip: Literal[False, True, "alternating"] = Field(
        description="mirror half of the images; alternating: each one every other epoch"
    )
    vertical_flip: bool = Field(description="turn half of the images upside down")
    crop_padding_pixels: int = Field(ge=0, le=128, description="random shift by up to this many pixels")
    resized_crop: Share = Field(description="random part of at least this share of the area, enlarged; 0 means none")
    padding: Literal["reflect", "edge"] = Field(description="what fills the border that a shift or rotation opens")
    rotation_degrees: float = Field(ge=0, le=180, description="random rotation by up to this angle")
    scale: float = Field(ge=0, lt=1, description="random zoom by up to this share")
    shear_degrees: float = Field(ge=0, le=60, description="random slant by up to this angle")
    automatic: Literal["none", "randaugment", "trivialaugment", "augmix"] = Field(description="a policy of a paper")
    randaugment_operations: int = Field(ge=1, le=8, description="N of RandAugment: operations one after another")
    randaugment_magnitude: int = Field(ge=0, le=30, description="M of RandAugment")
    augmix_severity: float = Field(ge=0.1, le=10, description="of AugMix's operations")
    brightness: float = Field(ge=0, lt=1, description="random factor 1 +- this")
    contrast: float = Field(ge=0, lt=1, description="random factor 1 +- this")
    saturation: float = Field(ge=0, lt=1, description="random factor 1 +- this")
    hue: float = Field(ge=0, le=0.5, description="random turn of the colours by up to this share of the circle")
    blur_pixels: float = Field(ge=0, le=16, description="half of the images: Gaussian blur of up to this deviation")
    erasing: Share = Field(description="probability of a grey rectangle")
    mixup: float = Field(ge=0, le=100, description="alpha of MixUp; 0 means none")
    cutmix: float = Field(ge=0, le=100, description="alpha of CutMix; 0 means none; with both, each takes half")
    mixed_share: Share = Field(description="share of the training images that are mixed, where mixup or cutmix is on")
    balance: Literal["none", "sampler", "variants"] = Field(description="how small classes are made to count more")
    balance_strength: Share = Field(description="0 leaves the classes as they are, 1 makes them equal")
    store: Literal["packed", "stream"] = Field(
        description="where training reads from: arrays of decoded images, or the shards themselves, decoded in every epoch"
    )
    max_out_of_range: Share = Field(description="more augmented images outside the data's statistics stop the run")
    contact_sheet_images: int = Field(ge=1, le=64, description="images on reports/augmentation.png")
    seed: Seed = Field(description="of sheets, range check and variants; training draws from its own seed")

    @model_validator(mode="after")
    def _something_to_do(self) -> AugmentParams:
        if self.balance == "variants" and not (self.automatic != "none" or any(getattr(self, name) for name in CHANGES)):
            raise ValueError(
                "balance is variants, but nothing here changes an image; turn on a change or set balance: sampler"
            )
        if self.balance == "variants" and self.store == "stream":
            raise ValueError(
                "balance is variants, which are stored beside decoded images, and store is stream, which stores none; set "
                "balance: sampler, or store: packed"
            )
        return self


class SmallerParams(Section):
    section: ClassVar[str] = "train"
    by: Literal["none", "pruning", "student"] = Field(description="what comes after the training, if anything")
    share: float = Field(gt=0, lt=1, description="pruning: of the multiply-adds, taken out by whole channels")
    architecture: str | None = Field(description="student: of the same family")
    options: dict[str, int | float | str | bool] = Field(description="student: arguments of its architecture")
    epochs: int = Field(ge=1, le=100_000, description="in which the smaller network learns from the trained one")
    rate: float = Field(gt=0, le=100, description="times the family's learning_rate")
    max_accuracy_drop: Share = Field(description="on val; one that loses more is not kept")

    @model_validator(mode="after")
    def _student(self) -> SmallerParams:
        if self.by == "student" and self.architecture is None:
            raise ValueError("smaller.by is student, but smaller.architecture is null; name the student's architecture")
        if self.by != "student" and (self.architecture is not None or self.options):
            raise ValueError(
                f"smaller.architecture and smaller.options are a student's, but smaller.by is {self.by}; set by: student, "
                "or architecture: null and options: {}"
            )
        return self


class FamilyParams(Section):
    section: ClassVar[str] = "train"
    architecture: str = Field(min_length=1, description="a name of `visionloop.models.ARCHITECTURES` or torchvision")
    learning_rate: float = Field(gt=0, le=100, description="peak, after warm-up")
    options: dict[str, int | float | str | bool] = Field(description="arguments of the architecture")
    weights: str | None = Field(description="null, a local file, or `torchvision` (which may download)")
    weights_sha256: Annotated[str, AfterValidator(_sha256)] | None = Field(description="of that local file; null: any")
    freeze: Literal["none", "backbone", "norms"] = Field(
        description="backbone: only the head learns; norms: their statistics"
    )
    layer_decay: float = Field(
        gt=0, le=1, description="each layer further from the head learns at this share of the next one"
    )
    teacher: Annotated[str, AfterValidator(_folder_name)] = Field(description="none, or a folder of models/ to distil from")
    smaller: SmallerParams = Field(description="a smaller network that learns from the trained one and takes its place")
    override: dict[str, int | float | str | bool] = Field(description="keys of train that this family wants otherwise")

    @model_validator(mode="after")
    def _whole(self) -> FamilyParams:
        if self.smaller.by != "none" and self.freeze != "none":
            raise ValueError(
                f"freeze is '{self.freeze}', but smaller.by is {self.smaller.by}, which trains the whole network; set one "
                "of them to none"
            )
        return self

    @model_validator(mode="after")
    def _pretrained(self) -> FamilyParams:
        if self.freeze != "none" and self.weights is None:
            raise ValueError(
                f"freeze is '{self.freeze}' but weights is null, so what is frozen would stay as it was drawn; name "
                "pretrained weights, or set freeze to none"
            )
        if self.weights_sha256 is not None and self.weights in (None, "torchvision"):
            raise ValueError(
                f"weights_sha256 is of a local file, but weights is {_shown(self.weights)}; set weights_sha256 to null"
            )
        if self.freeze == "backbone" and self.layer_decay < 1:
            raise ValueError(
                f"layer_decay is {self.layer_decay:g}, but freeze is 'backbone' and only the head learns; set it to 1"
            )
        return self


class TrainParams(Section):
    section: ClassVar[str] = "train"
    seed: Seed = Field(description="initial weights, order of batches, augmentation")
    epochs: int = Field(ge=1, le=100_000, description="passes over the training images, unless stopped early")
    batch_size: int = Field(ge=1, le=65_536, description="images at once, over all processes")
    accumulate: int = Field(ge=1, le=1024, description="batches whose gradients are added up for a step")
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = Field(description="muon for matrices and filters, sgd for the rest")
    momentum: float = Field(ge=0, lt=1, description="of sgd (Nesterov's) and muon")
    weight_decay: float = Field(
        ge=0, le=10, description="decoupled, but adam's, which is added to the gradient; norms and biases are spared"
    )
    batch_scaling: Literal["none", "linear", "sqrt"] = Field(description="of the learning rate with the images of a step")
    base_batch_size: int = Field(ge=1, le=65_536, description="images of a step that learning_rate is meant for, if scaled")
    schedule: Literal["constant", "step", "linear", "cosine", "one_cycle", "plateau"] = Field(
        description="of the learning rate after warm-up"
    )
    warmup_epochs: float = Field(
        ge=0, le=1000, description="linear rise from 0, at most half of the run; of one_cycle, the rising part"
    )
    final_rate: Share = Field(description="share of the peak at the end of linear, cosine and one_cycle; plateau's least")
    step_epochs: int = Field(ge=1, le=100_000, description="step: between two steps; plateau: patience")
    step_factor: float = Field(gt=0, lt=1, description="of step and plateau")
    loss: Literal["cross_entropy", "focal", "bce"] = Field(description="bce: each class by itself, yes or no")
    label_smoothing: float = Field(ge=0, lt=1, description="of a target, in equal parts to all classes")
    focal_gamma: float = Field(ge=0, le=10, description="of focal; 0 is cross-entropy")
    class_weights: Literal["none", "balanced", "effective"] = Field(description="small classes count more in the loss")
    distillation_share: Share = Field(description="of the teacher in the loss, where a family has one")
    distillation_temperature: float = Field(gt=0, le=100, description="softens both answers")
    gradient_clip_norm: float = Field(ge=0, le=1e6, description="0 means no clipping")
    ema_decay: float = Field(ge=0, lt=1, description="per step, of the weights' moving average; 0 means none")
    metric: Literal["accuracy", "balanced_accuracy", "macro_f1", "loss"] = Field(
        description="on val; of the best epoch, early stopping and plateau"
    )
    keep: Literal["best", "last"] = Field(description="which epoch's weights are the result")
    early_stopping_epochs: int = Field(ge=0, le=100_000, description="epochs without a better one; 0 means never")
    initial_scale: float = Field(
        ge=0.25, le=1, description="of the images' sides in the first epoch, rounded down; 1: all epochs see full size"
    )
    full_scale_from: float = Field(gt=0, lt=1, description="share of the epochs from which on images have full size")
    adversarial: Literal["none", "fgsm", "pgd", "free"] = Field(description="train on attacked images")
    adversarial_epsilon: float = Field(gt=0, le=64, description="largest change of a pixel, in levels of 255")
    adversarial_steps: int = Field(ge=1, le=100, description="of pgd; replays of a batch in free")
    precision: Literal["auto", "fp32", "bf16"] = Field(description="auto measures a few steps of each, takes the faster")
    layout: Literal["auto", "channels_last", "contiguous"] = Field(description="of the maps in memory; auto measures")
    compile: Literal["auto", "never", "always"] = Field(description="auto: where torch.compile earns its own time back")
    device: Literal["auto", "cpu", "cuda"] = Field(description="auto takes CUDA where there is one")
    cnn: FamilyParams
    vit: FamilyParams

    @model_validator(mode="after")
    def _schedule(self) -> TrainParams:
        kind = self.schedule
        if kind == "one_cycle" and not 0 < self.warmup_epochs < self.epochs:
            raise ValueError(
                f"schedule one_cycle rises during warmup_epochs, which is {self.warmup_epochs:g} of {self.epochs} epochs; "
                f"take {0.3 * self.epochs:g} (0.3 of the epochs is usual), or schedule cosine"
            )
        if kind in ("step", "plateau") and self.step_epochs >= self.epochs:
            raise ValueError(
                f"schedule {kind} with step_epochs {self.step_epochs} changes nothing in {self.epochs} epochs; lower "
                "step_epochs, or take schedule constant"
            )
        if kind == "plateau" and 0 < self.early_stopping_epochs <= self.step_epochs:
            raise ValueError(
                f"early_stopping_epochs is {self.early_stopping_epochs}, so training stops before schedule plateau lowers "
                f"the rate after step_epochs {self.step_epochs}; raise the first above the second"
            )
        if kind in ("linear", "cosine", "one_cycle", "plateau") and self.final_rate == 1:
            raise ValueError(f"final_rate is 1, so schedule {kind} never falls; lower it, or take schedule constant")
        return self

    @model_validator(mode="after")
    def _resizing(self) -> TrainParams:
        if self.initial_scale == 1:
            return self
        if (self.epochs - 1) / self.epochs < self.full_scale_from:
            raise ValueError(
                f"initial_scale is {self.initial_scale:g}, and of {self.epochs} epochs none begins at or after the "
                f"share {self.full_scale_from:g} of full_scale_from, so the network would never learn from images of full "
                "size; lower full_scale_from, or set initial_scale to 1"
            )
        if self.schedule == "plateau":
            raise ValueError(
                f"initial_scale is {self.initial_scale:g}, but schedule plateau lowers the rate where the score on images "
                "of full size stands still, as it may while smaller ones are learnt; take schedule cosine, or set "
                "initial_scale to 1"
            )
        if self.compile == "always":
            raise ValueError(
                f"initial_scale is {self.initial_scale:g}, but compile is always, and each size would be compiled anew; set "
                "compile to never, or initial_scale to 1"
            )
        return self

    @model_validator(mode="after")
    def _attack(self) -> TrainParams:
        if self.adversarial == "free" and self.adversarial_steps == 1:
            raise ValueError(
                "adversarial is free, but adversarial_steps is 1: the attack on a batch comes from its replays; take 2 or "
                "more (4 to 8 are usual), or fgsm"
            )
        if self.adversarial == "free" and self.accumulate > 1:
            raise ValueError(
                f"adversarial is free, which changes the weights at each replay of a batch, but accumulate is "
                f"{self.accumulate}; set it to 1, or take fgsm"
            )
        return self

    @model_validator(mode="after")
    def _overrides(self, info: ValidationInfo) -> TrainParams:
        # Settings that `of` merged are those of one family, and are asked about that one alone.
        for name in (info.context or {}).get("families", ("cnn", "vit")):
            if self.family(name).override:
                self.of(name)
            else:
                self._check_teacher(name)
        if self.cnn.teacher == "vit" and self.vit.teacher == "cnn":
            raise ValueError("cnn.teacher is 'vit' and vit.teacher is 'cnn', so each waits for the other; set one to none")
        return self

    def _check_teacher(self, name: str) -> None:
        self._check_smaller(name)
        teacher = self.family(name).teacher
        if teacher == "none":
            return
        if teacher == name:
            raise ValueError(
                f"{name}.teacher is '{name}', which is what this training makes; name the other family, or copy "
                f"models/{name} to a folder of another name"
            )
        if self.distillation_share == 0:
            raise ValueError(
                f"{name}.teacher is '{teacher}', but distillation_share is 0, so nobody would listen; raise it "
                "(0.5 is usual), or set teacher to none"
            )
        if self.loss == "bce":
            raise ValueError(
                f"{name}.teacher is '{teacher}', whose answers are shares among the classes, but loss is bce, for which "
                "each class is by itself; take cross_entropy, or set teacher to none"
            )

    def _check_smaller(self, name: str) -> None:
        if self.family(name).smaller.by == "student" and (self.loss == "bce" or self.distillation_share == 0):
            why = "loss is bce, for which each class is by itself" if self.loss == "bce" else "distillation_share is 0"
            raise ValueError(
                f"{name}.smaller.by is student, which learns from the answers of the trained network, but {why}; take "
                "cross_entropy and a distillation_share of 0.5 or more, or set smaller.by to none"
            )

    def family(self, name: str) -> FamilyParams:
        """What is a family's own, "cnn" or "vit"."""
        return {"cnn": self.cnn, "vit": self.vit}[name]

    def of(self, name: str) -> TrainParams:
        """These settings with the family's `override` put in; what every part of a training reads.

        Raises:
            ValueError: the override has an unknown key, or a value that is not allowed.
        """
        override = self.family(name).override
        shared = {key: getattr(self, key) for key in type(self).model_fields if key not in ("cnn", "vit")}
        for key in override:
            if key not in shared:
                near = difflib.get_close_matches(key, shared, n=1, cutoff=0.5)
                hint = f"did you mean '{near[0]}'" if near else f"it may have {', '.join(shared)}"
                raise ValueError(f"{name}.override has the unknown key '{key}'; {hint}")
        families = {family: self.family(family).model_copy(update={"override": {}}) for family in ("cnn", "vit")}
        try:
            return TrainParams.model_validate({**shared, **override, **families}, context={"families": (name,)})
        except ValidationError as error:
            item = error.errors()[0]
            raise ValueError(f"{name}.override, {_sentence(dict(item), TrainParams).rstrip('.')}") from None


Scalar = int | float | str | bool | None
# Keys of augment that change no image while training; `visionloop tune` cannot learn anything about them.
_NOT_TRAINED = ("store", "max_out_of_range", "contact_sheet_images", "seed")


class SpaceEntry(Section):
    """What a tuned key may be: a range, or choices."""

    section: ClassVar[str] = "tune"
    low: int | float | None = Field(default=None, description="the least value")
    high: int | float | None = Field(default=None, description="the greatest")
    log: bool = Field(default=False, description="draw by order of magnitude, as suits a learning rate")
    step: int | float | None = Field(default=None, description="values low, low + step, ... up to high")
    choices: Annotated[tuple[Scalar, ...], BeforeValidator(_tuple)] | None = Field(default=None, description="the values")

    @model_validator(mode="after")
    def _shape(self) -> SpaceEntry:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.step is not None or self.log:
                raise ValueError("it has choices and a range; leave one of them away")
            if not self.choices:
                raise ValueError("choices is empty; name at least one value")
            if len({(type(value), value) for value in self.choices}) < len(self.choices):
                raise ValueError(f"choices names a value twice: {_shown(self.choices)}")
            return self
        if self.low is None or self.high is None:
            raise ValueError("it needs {low, high}, with log or step where wanted, or {choices: [...]}")
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high is {self.high:g}; low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"low is {self.low:g}; with log: true it must be above 0")
        if self.step is not None:
            if self.log:
                raise ValueError("log and step exclude each other; leave one away, or list choices")
            if self.step <= 0:
                raise ValueError(f"step is {self.step:g}; it must be above 0")
            steps = (self.high - self.low) / self.step
            if round(steps) < 1 or abs(steps - round(steps)) > 1e-9 * steps:
                raise ValueError(f"steps of {self.step:g} from {self.low:g} do not end at {self.high:g}")
        return self

    def values(self, whole: bool) -> tuple[Scalar, ...] | None:
        """Every value in turn, of a range of `whole` numbers or of any; None where there is no end of them."""
        if self.choices is not None:
            return self.choices
        assert self.low is not None and self.high is not None
        step = self.step if self.step is not None else (1 if whole and not self.log else None)
        if step is None:
            return None
        count = round((self.high - self.low) / step) + 1
        # Rounded as people write them: 0.1 + 2 * 0.1 is 0.30000000000000004.
        return tuple(
            self.low + index * step if whole else float(f"{self.low + index * step:.12g}") for index in range(count)
        )

    @property
    def extremes(self) -> tuple[Scalar, ...]:
        """The values that show whether all are allowed: each choice, or both ends."""
        return self.choices if self.choices is not None else (self.low, self.high)


class TuneParams(Section):
    section: ClassVar[str] = "tune"
    family: Literal["cnn", "vit"] = Field(description="whose training is tuned")
    sampler: Literal["grid", "random", "tpe"] = Field(description="which values a trial gets")
    pruner: Literal["none", "median", "hyperband"] = Field(description="which trials stop early")
    objectives: Annotated[tuple[Literal["accuracy", "latency"], ...], BeforeValidator(_tuple)] = Field(
        description="accuracy on val; with latency, of one image in ONNX Runtime, the trade-off is looked for"
    )
    trials: int = Field(ge=1, le=10_000, description="in all, over every worker and resumed run")
    timeout_minutes: float = Field(ge=0, le=100_000, description="no trial begins after; 0 means no limit")
    epochs: int | None = Field(ge=1, le=100_000, description="of a trial; null takes those of train")
    seed: Seed = Field(description="of the sampler; trials train with train.seed, so that equal values mean equal results")
    storage: Annotated[str, AfterValidator(_study_url)] | None = Field(
        description="SQLAlchemy URL of the studies; null means a SQLite file in var"
    )
    space: dict[str, SpaceEntry] = Field(min_length=1, description="key of train or augment: what it may be")

    @model_validator(mode="after")
    def _objectives(self) -> TuneParams:
        if self.objectives not in (("accuracy",), ("accuracy", "latency")):
            raise ValueError(f"objectives is {_shown(self.objectives)}; it must be [accuracy] or [accuracy, latency]")
        if len(self.objectives) > 1 and self.pruner != "none":
            raise ValueError(
                f"pruner is {self.pruner} and objectives are two; nobody knows before its end whether a trial is on the "
                "front of both, so set pruner: none, or objectives: [accuracy]"
            )
        return self


def tuned_tree(family: str, values: Mapping[str, Scalar]) -> dict[str, dict[str, Any]]:
    """Tuned keys with their values as sections of `params.yaml`, which may be laid over it.

    A key that both families share goes into the `override` of the tuned one: the other's training stays as it is.

    >>> tuned_tree("cnn", {"train.weight_decay": 0.1, "train.cnn.options.width": 24})
    {'train': {'cnn': {'override': {'weight_decay': 0.1}, 'options': {'width': 24}}}}
    """
    tree: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, *parts = key.split(".")
        if section == "train" and parts[0] != family:
            parts = [family, "override", *parts]
        place = tree.setdefault(section, {})
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        place[parts[-1]] = value
    return tree


def tuned(
    train: TrainParams, augment: AugmentParams, family: str, values: Mapping[str, Scalar]
) -> tuple[TrainParams, AugmentParams]:
    """Both sections with the tuned keys set to `values`.

    Raises:
        ConfigError: a value, or their combination, is not allowed.
    """
    trees: dict[str, dict[str, Any]] = {"train": train.model_dump(), "augment": augment.model_dump()}
    for section, changes in tuned_tree(family, values).items():
        _lay_over(trees[section], changes)
    try:
        return TrainParams.model_validate(trees["train"]), AugmentParams.model_validate(trees["augment"])
    except ValidationError as error:
        item = dict(error.errors()[0])
        kind: type[BaseModel] = TrainParams if error.title == TrainParams.__name__ else AugmentParams
        raise ConfigError(_sentence(item, kind, f"{getattr(kind, 'section')}.")) from None  # noqa: B009 - of a Section


def refuse_together(train: TrainParams, augment: AugmentParams, family: str) -> None:
    """Refuse sections that are each allowed, and not beside each other.

    Raises:
        ConfigError: naming the keys.
    """
    if problem := _problem_together(train, augment, family):
        raise ConfigError(f"{problem[0].upper()}{problem[1:]}.")


def _problem_together(train: TrainParams, augment: AugmentParams, family: str) -> str:
    """Why a family cannot be trained with both sections, "" where it can."""
    merged, rate = train.of(family), train.family(family).learning_rate
    mixes = [name for name in ("mixup", "cutmix") if getattr(augment, name) > 0 and augment.mixed_share > 0]
    if merged.optimizer != "adam" and rate * merged.weight_decay >= 1:
        return (
            f"the {family}'s learning_rate {rate:g} times its weight_decay {merged.weight_decay:g} is 1 or more, so "
            "each step would take away the whole of the weights; lower one of them"
        )
    if merged.loss == "focal" and mixes:
        return (
            f"the {family}'s loss is focal, but augment.{mixes[0]} mixes images: no class of a mixed image can be "
            f"certain, so all would count as hard; take cross_entropy, or set augment.{mixes[0]} to 0"
        )
    if merged.loss == "bce" and "mixup" in mixes:
        return (
            f"the {family}'s loss is bce, which asks of each class whether it is there, but augment.mixup blends "
            "images, so that each of two is there in part; take cross_entropy, or augment.cutmix in its place"
        )
    if merged.class_weights != "none" and augment.balance == "sampler" and augment.balance_strength > 0:
        return (
            f"the {family}'s class_weights is {merged.class_weights} and augment.balance is sampler, so small "
            "classes would be made up for twice; set one of them to none"
        )
    return ""


def _lay_over(tree: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping):
            _lay_over(tree[key], value)
        else:
            tree[key] = value


class CalibrateParams(Section):
    section: ClassVar[str] = "calibrate"
    precision: float = Field(gt=0.5, lt=1, description="that each class's threshold keeps, on val")
    review_share: float = Field(ge=0, lt=1, description="of the answers, the least certain, goes to a person")
    known_kept: float = Field(ge=0.5, lt=1, description="share of the val images that are not called unknown")
    foreign: str = Field(min_length=1, description="folder of images of none of the classes; may be empty")


class EvaluateParams(Section):
    section: ClassVar[str] = "evaluate"
    confidence_level: float = Field(gt=0.5, lt=1, description="of every interval")
    top_k: int = Field(ge=2, le=100, description="an answer counts as right in top-k where the class is among the k best")
    explanation: Literal["auto", "gradcam", "layercam", "integrated_gradcam", "rollout"] = Field(
        description="how maps are made of where the evidence lies; auto: by what does best on val"
    )
    explained_images: int = Field(ge=0, le=64, description="pictures with such a map; 0 leaves all explanations out")
    mistake_images: int = Field(ge=0, le=200, description="pictures in the gallery of worst mistakes")


class SelectParams(Section):
    section: ClassVar[str] = "select"
    alpha: float = Field(gt=0, lt=0.5, description="level of the paired test")
    max_latency_ms: float = Field(gt=0, le=60_000, description="median for one image on this machine, ONNX Runtime")


class ExportParams(Section):
    section: ClassVar[str] = "export"
    opset: int = Field(ge=17, le=24, description="of the ONNX graph")
    golden_images: int = Field(ge=2, le=1000, description="held-out images whose answers every later form must repeat")
    max_logit_difference: float = Field(gt=0, le=1, description="between torch and ONNX on the golden images")


class RobustnessParams(Section):
    section: ClassVar[str] = "robustness"
    images: int = Field(ge=1, le=100_000, description="test images that are corrupted and moved; all where there are fewer")
    attack_images: int = Field(ge=1, le=100_000, description="of these, the ones that are attacked")
    seed: Seed = Field(description="of the choice of images, the corruptions and the attacks' starts")
    epsilons: Amounts = Field(description="of the attacks: largest change of a pixel, in levels of 255")
    pgd_steps: int = Field(ge=1, le=1000, description="of projected gradient ascent, over each epsilon")
    shifts_pixels: Amounts = Field(description="up, down, left and right")
    rotations_degrees: Amounts = Field(description="in both senses")
    scales: Amounts = Field(description="factors of size; below 1 the border is continued")
    budgets: dict[str, Annotated[float, Field(ge=0, le=100)] | None] = Field(
        description="number of the report: ..._error at most, any other at least; null only reports it"
    )

    @model_validator(mode="after")
    def _known_budgets(self) -> RobustnessParams:
        curves = {
            "fgsm": self.epsilons, "pgd": self.epsilons, "shift": self.shifts_pixels, "rotation": self.rotations_degrees,
            "scale": self.scales,
        }  # fmt: skip
        known = [
            "clean_accuracy", "corruption_accuracy", "mean_corruption_error", "relative_corruption_error",
            "extra_corruption_accuracy", "worst_corruption_accuracy", "worst_class_accuracy",
            *(f"{change}_accuracy_{amount:g}" for change, amounts in curves.items() for amount in amounts
              if (change, amount) != ("scale", 1.0)),  # the size as it is
        ]  # fmt: skip
        for name, limit in self.budgets.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean '{near[0]}'" if near else f"there are {', '.join(known)}"
                raise ValueError(f"budgets has '{name}', which the report does not measure; {hint}")
            if limit is not None and limit > 1 and name != "relative_corruption_error":
                raise ValueError(
                    f"budgets.{name} is {limit:g}, and it is measured as a share; write it from 0 to 1, as 0.75 for 75 %"
                )
        return self


class QuantizeParams(Section):
    section: ClassVar[str] = "quantize"
    target: Literal["auto", "cpu-vnni", "cpu", "cuda", "tensorrt"] = Field(description="auto: this machine's processor")
    runtimes: Annotated[tuple[Literal["onnxruntime", "openvino"], ...], BeforeValidator(_tuple)] = Field(
        min_length=1, description="that may run the shipped model; the faster one here does"
    )
    activations: Literal["auto", "uint8", "int8"] = Field(description="auto: what the target takes")
    calibration_images: int = Field(ge=8, le=10_000, description="training images that set the ranges, at most")
    search_seconds: float = Field(ge=0, le=86_400, description="after these no further recipe is tried")
    measure_seconds: float = Field(gt=0, le=3600, description="of timing all forms, a batch size and number of threads")
    max_accuracy_drop: Share = Field(description="a form may lose this much accuracy on val and still ship")
    max_class_drop: Share = Field(description="and this much of any class's recall")
    min_speedup: float = Field(
        ge=0, le=100, description="and must be this many times as fast as FP32; at 0 speed decides nothing"
    )
    qat_epochs: int = Field(
        ge=0, le=1000, description="of training with INT8's rounding, only where INT8 loses too much; 0 never trains"
    )
    qat_rate: float = Field(gt=0, le=1, description="learning rate of it at the first step, falling to 0")
    embedding_components: int = Field(ge=2, le=64, description="principal components logged with each prediction")

    @model_validator(mode="after")
    def _check(self) -> QuantizeParams:
        if "onnxruntime" not in self.runtimes:
            raise ValueError("runtimes lacks onnxruntime, whose FP32 the others are compared with; add it")
        return self


class Tolerance(Section):
    section: ClassVar[str] = "parity"
    min_agreement: Share = Field(description="share of images with the same first class")
    max_logit_distance: float = Field(ge=0, le=1000, description="of any logit of any image")
    mean_logit_distance: float = Field(ge=0, le=1000, description="over all logits of all images")


class Tolerances(Section):
    section: ClassVar[str] = "parity"
    onnx: Tolerance = Field(description="torch and ONNX FP32")
    shipped: Tolerance = Field(description="ONNX FP32 and the shipped form, offline")
    tensor: Tolerance = Field(description="the shipped form offline and served, from the same arrays")
    bytes: Tolerance = Field(description="the same from the same files")


class ParityParams(Section):
    section: ClassVar[str] = "parity"
    images: int = Field(ge=1, le=1000, description="held-out images, as they came")
    odd_pictures: int = Field(ge=0, le=20, description="of these, the ones of which every kind of odd file is made")
    tolerances: Tolerances = Field(description="between two forms of the model; beyond one nothing is published")


class GateParams(Section):
    section: ClassVar[str] = "gate"
    confidence_level: float = Field(gt=0.5, lt=1, description="of every interval, and of the test of the classes")
    require: Literal["no_worse", "better"] = Field(description="on the frozen test set; better: its whole interval above 0")
    max_drop: Share = Field(description="the interval of the difference must end above a loss of this")
    newest: Literal["unseen", "feedback", "none"] = Field(
        description="unseen: test images that the served model's data version did not have; feedback: labelled live ones"
    )
    min_newest_images: int = Field(ge=2, le=10_000_000, description="fewer are reported and not judged")
    max_newest_drop: Share = Field(description="as max_drop, on the newest images")
    min_accuracy: Share = Field(description="on all test images, for the first model too")
    max_class_drop: Share = Field(description="of any class's recall, where chance does not explain it")
    max_latency_ratio: float = Field(gt=0, le=1000, description="one image, against the served model on this machine")
    allow_removed_classes: bool = Field(description="whether a class that the served model answers may be gone")


class DeployParams(Section):
    section: ClassVar[str] = "deploy"
    backend: Literal["python", "onnxruntime"] = Field(description="python on the server from pip")
    max_batch_size: int = Field(ge=1, le=1024, description="images in one request and in one dynamic batch")
    max_queue_delay_microseconds: int = Field(ge=0, le=1_000_000, description="how long a batch may wait to fill")
    instances: int = Field(ge=1, le=64, description="copies of the model")
    threads: int = Field(ge=0, le=256, description="of ONNX Runtime per copy; 0 lets it choose")
    keep_versions: int = Field(ge=1, le=100, description="older versions stay for a roll-back")


class ReferenceParams(Section):
    section: ClassVar[str] = "reference"
    splits: Annotated[tuple[Literal["val", "test"], ...], BeforeValidator(_tuple)] = Field(
        min_length=1, description="held-out sides; never `train`"
    )


class ReportParams(Section):
    section: ClassVar[str] = "report"
    model_name: str = Field(min_length=1, max_length=100, description="on the model card and the report page")
    licence: str | None = Field(pattern=r"^[a-z0-9.-]+$", description="of the model, as apache-2.0, cc-by-4.0 or other")
    contact: str | None = Field(description="who answers questions about the model")
    intended_use: str | None = Field(description="what the model is for, and for whom")
    out_of_scope: str | None = Field(description="what it is not for")
    ethical_considerations: str | None = Field(description="whom it may harm and how, what was done about it")
    limits: str | None = Field(description="what users must know beyond what was measured")


class ServeParams(Section):
    section: ClassVar[str] = "serve"
    http_port: int = Field(ge=1, le=65_535, description="Triton's HTTP port; the next free one where it is taken")
    grpc_port: int = Field(ge=1, le=65_535)
    metrics_port: int = Field(ge=1, le=65_535)
    prefect_port: int = Field(ge=1, le=65_535)
    evidently_port: int = Field(ge=1, le=65_535, description="not Evidently's own 8000, which is Triton's too")
    store_url: str = Field(min_length=1, description="SQLAlchemy URL of the prediction store")
    max_image_megabytes: float = Field(gt=0, le=1000, description="larger images are refused")
    max_image_megapixels: float = Field(gt=0, le=1000)
    keep_images: Share = Field(description="share of the answered images whose bytes are kept for labelling; 0 keeps none")
    keep_images_megabytes: float = Field(gt=0, le=10_000_000, description="room for them; the oldest go first")


class MonitorParams(Section):
    section: ClassVar[str] = "monitor"
    window_rows: int = Field(ge=10, le=1_000_000, description="a window closes at this many predictions")
    min_rows: int = Field(ge=2, le=1_000_000, description="fewer are `insufficient`, never `no drift`")
    alpha: float = Field(gt=0, lt=1, description="false alarms a window by design")
    max_accuracy_drop: Share = Field(description="an estimated loss above this is harm")
    max_reject_share: Share = Field(description="more refused images than this is a health alert")
    keep_days: int = Field(ge=1, le=3650, description="snapshots and windows older than this are removed")

    @model_validator(mode="after")
    def _rows(self) -> MonitorParams:
        if self.min_rows > self.window_rows:
            raise ValueError(f"min_rows is {self.min_rows}, above window_rows {self.window_rows}")
        return self


class Params(Section):
    """The whole of `params.yaml`, a field per section."""

    section: ClassVar[str] = ""
    compute: ComputeParams
    collect: CollectParams
    clean: CleanParams
    split: SplitParams
    preprocess: PreprocessParams
    augment: AugmentParams
    train: TrainParams
    tune: TuneParams
    calibrate: CalibrateParams
    evaluate: EvaluateParams
    select: SelectParams
    export: ExportParams
    robustness: RobustnessParams
    quantize: QuantizeParams
    parity: ParityParams
    gate: GateParams
    deploy: DeployParams
    reference: ReferenceParams
    report: ReportParams
    serve: ServeParams
    monitor: MonitorParams

    @model_validator(mode="after")
    def _together(self) -> Params:
        for family in ("cnn", "vit"):
            if problem := _problem_together(self.train, self.augment, family):
                raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _processes(self) -> Params:
        for family in ("cnn", "vit"):
            batch_size = self.train.of(family).batch_size
            if batch_size < self.compute.processes:
                raise ValueError(
                    f"train.batch_size of the {family} is {batch_size}, too few images for compute.processes: "
                    f"{self.compute.processes}, which share each batch; raise the one or lower the other"
                )
        return self

    @model_validator(mode="after")
    def _space(self) -> Params:
        for key, entry in self.tune.space.items():
            if problem := _space_problem(self, key, entry):
                raise ValueError(f"tune.space, {key}: {problem}")
        if self.tune.sampler == "grid":
            points = math.prod(
                len(entry.values(is_whole(self.tune.family, key, entry)) or ()) for key, entry in self.tune.space.items()
            )
            if points > self.tune.trials:
                raise ValueError(
                    f"tune.sampler is grid and its space has {points} combinations, but tune.trials is {self.tune.trials}; "
                    "raise trials, or name fewer values"
                )
        return self


def _tunable(family: str) -> list[str]:
    """Every key that a space may name, but for the options of the architecture."""
    shared = [name for name in TrainParams.model_fields if name not in ("cnn", "vit")]
    own = [name for name in FamilyParams.model_fields if name not in ("options", "override")]
    augment = [name for name in AugmentParams.model_fields if name not in _NOT_TRAINED]
    return [
        *(f"train.{name}" for name in shared),
        *(f"train.{family}.{name}" for name in own),
        *(f"augment.{name}" for name in augment),
    ]


def is_whole(family: str, key: str, entry: SpaceEntry) -> bool:
    """Whether the range of a tuned key is one of whole numbers: by the key's type, for an option by how it is written."""
    if key.startswith(f"train.{family}.options."):
        return all(isinstance(value, int) for value in (entry.low, entry.high, entry.step or 1))
    return _type_of(key) is int


def _type_of(key: str) -> object:
    section, _, name = key.rpartition(".")
    kinds: dict[str, type[BaseModel]] = {"train": TrainParams, "augment": AugmentParams}
    return kinds.get(section, FamilyParams).model_fields[name].annotation


def _space_problem(params: Params, key: str, entry: SpaceEntry) -> str:  # noqa: PLR0911 - each check its sentence
    """Why this key cannot be tuned over this entry, or ""."""
    tune, known, prefix = params.tune, _tunable(params.tune.family), f"train.{params.tune.family}.options."
    is_option = key.startswith(prefix) and key.removeprefix(prefix).isidentifier()
    if not is_option and key not in known:
        if key.startswith(("train.cnn.", "train.vit.")) and not key.startswith(f"train.{tune.family}."):
            return f"tune.family is {tune.family}; name keys of train.{tune.family}"
        near = difflib.get_close_matches(key, [*known, f"{prefix}<name>"], n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'" if near else f"keys are train.<key>, train.{tune.family}.<key> and augment.<key>"
        return f"there is no such key to tune; {hint}"
    if key == "train.epochs" and (tune.epochs is not None or tune.pruner != "none"):
        return "epochs can be tuned with tune.epochs: null and tune.pruner: none only, since pruning compares equal epochs"
    if key.startswith("augment.") and "variants" in (entry.choices or ()):
        return _VARIANTS
    if entry.choices is None and not is_option and (problem := _range_problem(key, entry)):
        return problem
    if tune.sampler == "grid" and entry.values(is_whole(tune.family, key, entry)) is None:
        return "tune.sampler is grid, and this range has no end of values; give it a step, or choices"
    for value in entry.extremes:
        if problem := _value_problem(params, key, value):
            return f"{_shown(value)} is not allowed: {problem.rstrip('.')}"
    return ""


def _value_problem(params: Params, key: str, value: Scalar) -> str:
    """Why this key may never have this value, whatever the others are, or "".

    What the present settings have against it is for `refuse_space` to say: their change must not stop who does not tune.
    """
    section, *parts = key.split(".")
    kind: type[BaseModel] = TrainParams if section == "train" else AugmentParams
    tree = getattr(params, section).model_dump()
    changes: Any = value
    for part in reversed(parts):
        changes = {part: changes}
    _lay_over(tree, changes)
    try:
        kind.model_validate(tree)
    except ValidationError as error:
        # A validator of a whole section speaks of several keys together, and gets the whole section.
        own = [dict(item) for item in error.errors() if not isinstance(item["input"], Mapping)]
        return _sentence(own[0], kind, f"{section}.") if own else ""
    return ""


_VARIANTS = "variants are stored by the stage augment, before training; tune with augment.balance: none or sampler"


def refuse_space(tune: TuneParams, train: TrainParams, augment: AugmentParams) -> None:
    """Refuse a search space that does not go with the settings that it would change.

    Raises:
        ConfigError: naming the key and the value.
    """
    for key, entry in tune.space.items():
        if key.startswith("augment.") and augment.balance == "variants":
            raise ConfigError(f"params.yaml: tune.space, {key}: {_VARIANTS}.")
        for value in entry.extremes:
            try:
                tuned(train, augment, tune.family, {key: value})
            except ConfigError as error:
                raise ConfigError(f"params.yaml: tune.space, {key}: {_shown(value)} is not allowed: {error}") from None


def _range_problem(key: str, entry: SpaceEntry) -> str:
    if _type_of(key) not in (int, float):
        return "it is no number, so it has no range; write {choices: [...]}"
    if _type_of(key) is int and not all(isinstance(value, int) for value in (entry.low, entry.high, entry.step or 1)):
        return "it is a whole number, so low, high and step must be whole numbers"
    return ""


SectionT = TypeVar("SectionT", bound=Section)


def load_section(kind: type[SectionT], path: Path = PARAMS) -> SectionT:
    """Read one section of `params.yaml`, after the whole file was checked.

    A stage calls this once for each section that it declares in `dvc.yaml`; a test compares the two.

    >>> load_section(TrainParams).epochs
    40

    Raises:
        ConfigError: the file is missing, not YAML, or says something that is not allowed.
    """
    return cast(SectionT, getattr(load_params(path), kind.section))


def load_params(path: Path = PARAMS) -> Params:
    """Read and check the whole of `params.yaml`.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    return parse_params(_read(path), str(path))


def parse_params(text: str, name: str = "params.yaml") -> Params:
    """Check the text of a params file; `name` stands in the messages."""
    try:
        tree = yaml.load(text, Loader=_Yaml12Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise ConfigError(f"{name}{where}: this is not the YAML that is read here: {problem}.") from None
    except RecursionError:
        raise ConfigError(f"{name} is nested too deeply; a params file has sections, keys and short lists.") from None
    except ValueError as error:  # Python's own limit on the digits of a number
        raise ConfigError(f"{name}: a value cannot be read ({str(error).split(';')[0]}).") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{name} is {'empty' if tree is None else 'not a mapping of sections'}; restore it from git.")
    try:
        return Params.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{name}: {_sentence(dict(item))}" for item in error.errors())) from None


OptionsT = TypeVar("OptionsT", bound=BaseModel)


def check_options(kind: type[OptionsT], values: Mapping[str, Any], key: str, name: str = "params.yaml") -> OptionsT:
    """Check the free-form mapping at `key` against the model of what was chosen there, as the options of a source.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        said = (_sentence(dict(item), kind, f"{key}.") for item in error.errors())
        raise ConfigError("\n".join(f"{name}: {sentence}" for sentence in said)) from None


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_PARAMS_BYTES:
            raise ConfigError(f"{path} has over {MAX_PARAMS_BYTES >> 20} MiB; a params file has a few kilobytes.")
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8; save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); run this in the project's folder, where params.yaml lies."
        ) from error


def _sentence(item: Mapping[str, Any], root: type[BaseModel] | None = None, prefix: str = "") -> str:
    location = [str(part) for part in item["loc"]]
    key = (prefix + ".".join(location)).rstrip(".")
    value = item["input"]
    if item["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], root or Params)
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys are {', '.join(known) or 'none'}."
        return f"unknown key '{key}'; {hint}"
    if item["type"] == "missing":
        return f"'{key}' is missing; add it."
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"section '{key}': {message}." if key else f"{message}."
    for said, meant in _WORDS.items():
        message = message.replace(said, meant)
    if item["type"] == "model_type":
        message = "it must be a section with keys of its own"
    elif item["type"] in ("too_short", "string_too_short"):
        message = "it must not be empty"
    return f"'{key}' is {_shown(value)}; {message[0].lower() + message[1:]}."


_WORDS = {
    "Input should be": "it must be",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "False, True or": "false, true or",
    "a valid string": "text",
    "a valid tuple": "a list",
    "a valid dictionary": "a section with keys of its own",
}


def _shown(value: object) -> str:
    """A value as it would be written in YAML, cut to 80 characters."""
    named = {None: "null", True: "true", False: "false"}
    text = (
        named[value]
        if value is None or isinstance(value, bool)
        else repr(list(value) if isinstance(value, tuple) else value)
    )
    return text if len(text) <= 80 else text[:77] + "..."


def _known_keys(location: list[str], model: type[BaseModel]) -> list[str]:
    if location[:2] == ["tune", "space"] and len(location) == 3:
        return list(SpaceEntry.model_fields)
    for part in location:
        field = model.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        model = field.annotation
    return list(model.model_fields)


class _Yaml12Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2, as DVC reads it: 1e-3 is a number, yes and no are words.

    Repeated keys and aliases are refused: the first hides a typo, the second can grow without bound.
    """

    def compose_node(self, parent: yaml.nodes.Node | None, index: int) -> yaml.nodes.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.constructor.ConstructorError(None, None, "an alias (*name) is not read here", event.start_mark)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: yaml.nodes.ScalarNode) -> int:
        return int(self.construct_scalar(node))  # 010 is ten, as in YAML 1.2; PyYAML's own says eight

    def construct_mapping(self, node: yaml.nodes.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(getattr(key_node, "value", ""))
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key '{key}' stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _Yaml12Loader.construct_yaml_int)
_Yaml12Loader.yaml_implicit_resolvers = {}
_DIGITS = list("-+0123456789")
_Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"),
                                    list("tTfF"))  # fmt: skip
_Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Yaml12Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), _DIGITS)
_Yaml12Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    [*_DIGITS, "."],
)

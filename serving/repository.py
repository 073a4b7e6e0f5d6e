"""The Triton model repository: written whole, read back, published by rename.

    model_repository/
      release.json                       which version is the champion; written last
      classifier/config.pbtxt, labels.txt
      classifier/<n>/                    model.onnx, model.py, card.json, embedding_pca.npz, golden.npz (how it answered
                                         where it was made), images.npz (what it has seen)
      classify/config.pbtxt, 1/model.py  the public model: image bytes in, label out

`classifier` takes the uint8 tensor; its folder serves Triton's `onnxruntime` backend and its Python backend alike.
`config.pbtxt` is written through the ModelConfig message in `tritonclient`, from the model card. Triton loads only
folders whose name is a plain number and that the version policy lists, so a half-written version, which has another name,
is never served.

Imported by the model server, which reads the release; only writing needs `tritonclient` and a runtime.
Does not cover: proving that a version answers rightly (stage `parity`) and starting a server (`serving.server`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from visionloop.card import EMBEDDING_NAME, INPUT_NAME, LOGITS_NAME, ModelCard, load_card
from visionloop.errors import ArtifactError, ConfigError, ServingError
from visionloop.files import sync_folder, write_bytes, write_json, write_text
from visionloop.paths import CLASS_MEANS, EMBEDDING_PCA, GOLDEN, LABELS, MODEL_ONNX, RELEASE, SEEN

if TYPE_CHECKING:
    from visionloop.config import DeployParams

CLASSIFIER = "classifier"
CLASSIFY = "classify"
CONFIG = "config.pbtxt"
CLASSIFY_VERSION = 1
# Tensors of `classify`.
IMAGE, REQUEST_ID = "image", "request_id"
LABEL, PROBABILITY, PROBABILITIES = "label", "probability", "probabilities"
PREDICTION_ID, MODEL_VERSION = "prediction_id", "model_version"
UNKNOWN, REVIEW = "unknown", "review"

_STAGING_PREFIX = "staging-"
_MODEL_PY = 'from serving.triton.{module} import TritonPythonModel\n\n__all__ = ["TritonPythonModel"]\n'


class Release(BaseModel):
    """What `release.json` says. `previous` is served beside the champion, so that a switch and a way back lose no
    request."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    champion: int
    previous: int | None
    model_sha256: str
    precision: Literal["fp32", "fp16", "int8"]
    family: str


def read_release(repository: Path) -> Release:
    """Which version is the champion.

    Raises:
        ArtifactError: nothing was published yet, or the file is damaged.
    """
    path = repository / RELEASE
    try:
        return Release.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read ({error.strerror}); run `dvc repro deploy` to publish a model."
        ) from error
    except ValidationError as error:
        raise ArtifactError(f"{path} is no release of this visionloop; run `dvc repro deploy` to write it again.") from error


def champion_folder(repository: Path) -> Path:
    """The folder of the champion: model.onnx, card.json, embedding_pca.npz."""
    return version_folder(repository, read_release(repository).champion)


def version_folder(repository: Path, version: int) -> Path:
    """The folder of one version of `classifier`."""
    return repository / CLASSIFIER / str(version)


def versions(repository: Path) -> list[int]:
    """The published versions, oldest first; folders that Triton would not serve (`01`, `abc`) and links are left out."""
    found = {number: version_folder(repository, number) for number in _numbers(repository)}
    return sorted(number for number, folder in found.items() if folder.is_dir() and not folder.is_symlink())


def _numbers(repository: Path) -> list[int]:
    """Every number that is taken, also by what is no version."""
    folder = repository / CLASSIFIER
    names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
    return [int(name) for name in names if name.isdecimal() and name == str(int(name)) and name != "0"]


def publish(
    shipped: Path,
    repository: Path,
    params: DeployParams,
    *,
    seen: bytes | None = None,
    lineage: Mapping[str, str] | None = None,
) -> tuple[int, bool]:
    """Publish the model folder `shipped` as the next version and make it the champion.

    `seen` is the content of `images.npz`, by which the gate will tell old test images from new ones; `lineage` is added to
    the published card's. Returns the champion's
    version and whether it is new: where the champion has the same model, labels, preprocessing and calibration, only the
    configuration is brought up to date. Killed at any moment, the repository still serves the old champion.

    Raises:
        ArtifactError: a file of `shipped` is missing or damaged.
        ServingError: the repository cannot be written.
    """
    card = load_card(shipped)
    try:
        return _publish(shipped, card, repository, params, _Extra(seen, dict(lineage or {})))
    except OSError as error:
        raise ServingError(
            f"The model repository {repository} cannot be written ({error.strerror}); "
            "free some disk space or make the folder writable, and run the stage again. The old version is untouched."
        ) from error


@dataclass(frozen=True, slots=True)
class _Extra:
    """What is published beside the shipped files."""

    seen: bytes | None
    lineage: dict[str, str]


def _publish(shipped: Path, card: ModelCard, repository: Path, params: DeployParams, extra: _Extra) -> tuple[int, bool]:
    old = read_release(repository) if (repository / RELEASE).exists() else None
    old_folder = version_folder(repository, old.champion) if old else repository
    old_card = _whole_card(old_folder) if old else None
    if old and old_card and _is_same_model(old_card, card, old_folder, shipped):
        _write_models(repository, card, params, _served(old))
        return old.champion, False
    _remove_leftovers(repository)
    version = max([*_numbers(repository), old.champion if old else 0], default=0) + 1
    card = card.model_copy(update={"lineage": {**card.lineage, **extra.lineage}})
    _write_version(shipped, card, version_folder(repository, version), extra.seen)
    stays = old_card is not None and params.keep_versions > 1 and _goes_beside(old_card, card, old_folder)
    release = Release(
        champion=version,
        previous=old.champion if old and stays else None,
        model_sha256=card.files[MODEL_ONNX],
        precision=card.precision,
        family=card.family,
    )
    _write_models(repository, card, params, _served(release))
    write_json(repository / RELEASE, release.model_dump(mode="json"))
    for outdated in versions(repository)[: -params.keep_versions]:
        shutil.rmtree(version_folder(repository, outdated))
    return version, True


def _whole_card(folder: Path) -> ModelCard | None:
    """The card of a published version, or None where a file is missing or damaged (so that it is published anew)."""
    try:
        card = load_card(folder)
        card.verify(folder)
    except ArtifactError:
        return None
    return card


def _fit_one_config(served: ModelCard, card: ModelCard) -> bool:
    """All versions of a model share one config.pbtxt, so two of other shapes cannot be served side by side."""
    return (served.preprocess.height, served.preprocess.width, len(served.labels), served.embedding_size) == (
        card.preprocess.height,
        card.preprocess.width,
        len(card.labels),
        card.embedding_size,
    )


def _goes_beside(served: ModelCard, card: ModelCard, folder: Path) -> bool:
    """Whether the old version can be served beside the new one: Triton loads both, or neither."""
    from visionloop.compression.parity import check_golden
    from visionloop.runtime import load

    if not _fit_one_config(served, card):
        return False
    try:
        check_golden(load(folder, threads=1)[0], served, folder)
    except ArtifactError:
        return False
    return True


def _is_same_model(served: ModelCard, card: ModelCard, folder: Path, shipped: Path) -> bool:
    """Whether publishing `card` of `shipped` would change nothing of what `served` of `folder` answers."""
    old, new = (
        {name: one.files[name] for name in _served_files(one) if name != GOLDEN and name in one.files}
        for one in (served, card)
    )
    said = [(one.labels, one.preprocess, one.calibration) for one in (served, card)]
    return old == new and said[0] == said[1] and _same_golden(served, card, folder, shipped)


def _same_golden(served: ModelCard, card: ModelCard, folder: Path, shipped: Path) -> bool:
    """Whether both were seen to answer alike; sums in another order move the last bits, another processor moves more."""
    from visionloop.compression.parity import ELSEWHERE, Golden, logit_error

    if GOLDEN not in served.files or GOLDEN not in card.files:
        return GOLDEN not in card.files
    before, after = (Golden.from_bytes(one.read_file(place, GOLDEN)) for one, place in ((served, folder), (card, shipped)))
    return before.ids == after.ids and logit_error(before.logits, after.logits) <= ELSEWHERE


def _served_files(card: ModelCard) -> tuple[str, ...]:
    return (MODEL_ONNX, EMBEDDING_PCA, *(name for name in (CLASS_MEANS, GOLDEN) if name in card.files))


def _served(release: Release) -> list[int]:
    return sorted({release.champion} | ({release.previous} if release.previous else set()))


def _remove_leftovers(repository: Path) -> None:
    for leftover in (repository / CLASSIFIER).glob(f"{_STAGING_PREFIX}*"):
        shutil.rmtree(leftover)


def _write_version(shipped: Path, card: ModelCard, target: Path, seen: bytes | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=target.parent))
    try:
        staging.chmod(0o755)  # mkdtemp gives 0700, which a server of another user could not read
        for name in _served_files(card):
            write_bytes(
                staging / name, card.read_file(shipped, name)
            )  # the bytes that were hashed are those that are written
        write_text(staging / "model.py", _MODEL_PY.format(module=CLASSIFIER))
        if seen is not None:
            write_bytes(staging / SEEN, seen)
        published = card.with_files(staging, _served_files(card))
        published.write(staging)
        sync_folder(staging)
        staging.rename(target)
        sync_folder(target.parent)
    finally:
        if staging.exists():
            shutil.rmtree(staging)


def _write_models(repository: Path, card: ModelCard, params: DeployParams, served: list[int]) -> None:
    classify = repository / CLASSIFY / str(CLASSIFY_VERSION)
    _write_if_changed(repository / CLASSIFIER / LABELS, "".join(f"{_one_line(label)}\n" for label in card.labels))
    _write_if_changed(repository / CLASSIFIER / CONFIG, config_text(classifier_config(card, params, served)))
    _write_if_changed(classify / "model.py", _MODEL_PY.format(module=CLASSIFY))
    _write_if_changed(repository / CLASSIFY / CONFIG, config_text(classify_config(params)))


def _write_if_changed(path: Path, text: str) -> None:
    # Triton reloads a model whose files have a new time; an unchanged one should stay as it is.
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def _one_line(label: str) -> str:
    return " ".join(label.split())


def classifier_config(card: ModelCard, params: DeployParams, served: list[int]) -> Any:
    """The ModelConfig of `classifier`: uint8 images [H, W, 3] in, logits [K] and embedding [D] out, batched dynamically."""
    from tritonclient.grpc import model_config_pb2 as pb

    if params.backend == "onnxruntime" and card.runtime != "onnxruntime":
        raise ConfigError(
            f"The model was chosen for {card.runtime}, which deploy.backend: onnxruntime does not run; set deploy.backend: "
            "python, or quantize.runtimes: [onnxruntime] and run `dvc repro quantize`."
        )
    config = pb.ModelConfig(name=CLASSIFIER, backend=params.backend, max_batch_size=params.max_batch_size)
    if params.backend == "onnxruntime":
        config.default_model_filename = MODEL_ONNX
        config.parameters["intra_op_thread_count"].string_value = str(params.threads)
    else:
        config.parameters["threads"].string_value = str(params.threads)
    config.parameters["preprocess_version"].string_value = card.preprocess.version
    shape = [card.preprocess.height, card.preprocess.width, 3]
    config.input.add(name=INPUT_NAME, data_type=pb.TYPE_UINT8, dims=shape)
    config.output.add(name=LOGITS_NAME, data_type=pb.TYPE_FP32, dims=[len(card.labels)], label_filename=LABELS)
    config.output.add(name=EMBEDDING_NAME, data_type=pb.TYPE_FP32, dims=[card.embedding_size])
    config.version_policy.specific.versions.extend(served)
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=params.instances)
    config.dynamic_batching.SetInParent()  # a delay of 0 alone would leave the message out, and dynamic batching with it
    config.dynamic_batching.max_queue_delay_microseconds = params.max_queue_delay_microseconds
    return config


def classify_config(params: DeployParams) -> Any:
    """The ModelConfig of `classify`: one encoded image a row in, and what the model says of it out.

    `probabilities` has an open length, so that a champion with other classes needs no new configuration.
    """
    from tritonclient.grpc import model_config_pb2 as pb

    config = pb.ModelConfig(name=CLASSIFY, backend="python", max_batch_size=params.max_batch_size)
    config.input.add(name=IMAGE, data_type=pb.TYPE_STRING, dims=[1])
    config.input.add(name=REQUEST_ID, data_type=pb.TYPE_STRING, dims=[1], optional=True)
    config.output.add(name=LABEL, data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name=PROBABILITY, data_type=pb.TYPE_FP32, dims=[1])
    config.output.add(name=PROBABILITIES, data_type=pb.TYPE_FP32, dims=[-1])
    config.output.add(name=PREDICTION_ID, data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name=MODEL_VERSION, data_type=pb.TYPE_STRING, dims=[1])
    config.output.add(name=UNKNOWN, data_type=pb.TYPE_BOOL, dims=[1])
    config.output.add(name=REVIEW, data_type=pb.TYPE_BOOL, dims=[1])
    config.version_policy.specific.versions.append(CLASSIFY_VERSION)
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=params.instances)
    config.dynamic_batching.SetInParent()  # a delay of 0 alone would leave the message out, and dynamic batching with it
    config.dynamic_batching.max_queue_delay_microseconds = params.max_queue_delay_microseconds
    return config


def config_text(config: Any) -> str:
    """A ModelConfig as the text of `config.pbtxt`, proved to read back as the same message."""
    from google.protobuf import text_format

    text: str = text_format.MessageToString(config)
    assert read_config(text) == config, "config.pbtxt does not read back as it was written"
    return text


def read_config(text: str) -> Any:
    """The ModelConfig that the text of a `config.pbtxt` says.

    Raises:
        ArtifactError: it is not the text of a ModelConfig.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    try:
        return text_format.Parse(text, pb.ModelConfig())
    except text_format.ParseError as error:
        raise ArtifactError(f"config.pbtxt cannot be read ({error}); run `dvc repro deploy` to write it again.") from error


def release_identity(repository: Path) -> tuple[int, int]:
    """Identity of `release.json`, cheap enough to ask before every batch: it changes with every publishing."""
    status = os.stat(repository / RELEASE)  # noqa: PTH116 - half the cost of Path.stat, and asked before every batch
    return status.st_mtime_ns, status.st_ino

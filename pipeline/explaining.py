"""Explain one image, from a file or from what the endpoint kept: what `visionloop explain` does.

Maps come from the torch network of a family, since a graph that is served has no gradients; where it answers unlike the
served version, that is said. Does not cover: images that were not kept (`serve.keep_images`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.images import read_image
from serving.repository import read_release, version_folder
from serving.store import Store
from visionloop import runtime
from visionloop.card import ModelCard, load_calibration, load_card
from visionloop.config import ServeParams, load_section
from visionloop.errors import ArtifactError, ConfigError, ImageError, PipelineError
from visionloop.explanation.methods import METHODS, NAMES, Method
from visionloop.explanation.report import FALLBACK
from visionloop.explanation.single import Explained, explain, explained_png
from visionloop.features import softmax
from visionloop.files import write_bytes
from visionloop.models import load_model
from visionloop.models.devices import choose_device
from visionloop.paths import (
    CALIBRATION,
    CARD,
    CLASS_MEANS,
    LIVE_IMAGES,
    MODEL_REPOSITORY,
    RELEASE,
    SELECTED,
    evaluate_report,
    family_folder,
)
from visionloop.preprocess import preprocess
from visionloop.records import LoggedPrediction
from visionloop.unknown import ClassMeans

Model = Literal["shipped", "cnn", "vit"]
_NEAR = 0.05  # INT8 on the digits stays within 0.03 of torch's probability; more than this is worth a sentence


@dataclass(frozen=True)
class Asked:
    """An image to explain."""

    name: str  # of the file, or the prediction id
    data: bytes
    prediction: LoggedPrediction | None = None  # what the endpoint said of it then


@dataclass(frozen=True)
class Answer:
    """What was found, and the picture of it."""

    explained: Explained
    family: str
    picture: Path
    notes: tuple[str, ...]


def from_file(path: Path) -> Asked:
    """The image of a file. Raises ImageError where it cannot be read."""
    try:
        return Asked(path.name, path.read_bytes())
    except OSError as error:
        raise ImageError("unreadable", f"{path} cannot be read ({error.strerror}); name an image file.") from error


def from_store(prediction_id: str) -> Asked:
    """The kept image of a prediction.

    Raises:
        PipelineError: the store does not have the prediction, it was refused, or its image was not kept.
    """
    params = load_section(ServeParams)
    with Store(params.store_url) as store:
        store.create()
        row = store.find_predictions([prediction_id]).get(prediction_id)
    if row is None:
        raise PipelineError(
            f"The store has no prediction {prediction_id!r:.80}; take the id that the endpoint answered, about a second "
            "after it did."
        )
    if row.status != "ok":
        raise PipelineError(f"Prediction {prediction_id} is a refused image ({row.reason}); there is no answer to explain.")
    data = read_image(LIVE_IMAGES, row.image_sha256)
    if data is None:
        advice = (
            "serve.keep_images is 0, so no image is: set it to the share to keep (1.0 keeps all) and restart the server"
            if params.keep_images == 0
            else f"serve.keep_images keeps a share of {params.keep_images:g}, and the oldest go when "
            "serve.keep_images_megabytes are full"
        )
        raise PipelineError(
            f"The image of prediction {prediction_id} is not kept ({advice}); if you have its file, run "
            "`visionloop explain FILE`."
        )
    return Asked(prediction_id, data, row)


def run(asked: Asked, model: Model, out: Path) -> Answer:
    """Explain an image and write the picture.

    Raises:
        ImageError: the bytes are no image that the model takes.
        ArtifactError: there is no trained model, or its network gives no map.
        ConfigError: `out` is no PNG file.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out is {out}, and the picture is a PNG; give it a name that ends in .png.")
    served = _served(asked.prediction)
    family = _family(served) if model == "shipped" else model
    folder = family_folder(family)
    network, card = load_model(folder)
    calibration = load_calibration(folder) if (folder / CALIBRATION).is_file() else None
    by_distance = calibration is not None and calibration.unknown is not None and calibration.unknown.score == "distance"
    means = ClassMeans.from_bytes((folder / CLASS_MEANS).read_bytes()) if by_distance else None
    method, notes = _method(family)
    image = preprocess(asked.data, card.preprocess)
    network.to(choose_device("auto"))
    explained = explain(network, card, image, method, calibration=calibration, means=means)
    notes += _compared(asked, explained, card, served)
    title = f"{asked.name}: {card.architecture} answers {explained.labels[0]} ({explained.probabilities[0]:.1%})"
    write_bytes(out, explained_png(explained, title, notes))
    return Answer(explained, family, out, notes)


def _served(prediction: LoggedPrediction | None) -> tuple[Path, ModelCard] | None:
    """The folder and card of the version that answered, or that would: the champion. None where there is none (any more)."""
    if prediction is not None and prediction.model_version.isdecimal():
        folder = version_folder(MODEL_REPOSITORY, int(prediction.model_version))
    elif (MODEL_REPOSITORY / RELEASE).is_file():
        folder = version_folder(MODEL_REPOSITORY, read_release(MODEL_REPOSITORY).champion)
    else:
        return None
    return (folder, load_card(folder)) if (folder / CARD).is_file() else None


def _family(served: tuple[Path, ModelCard] | None) -> str:
    if served is not None:
        return served[1].family
    try:
        return str(json.loads(SELECTED.read_text(encoding="utf-8"))["family"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"No model is deployed, and {SELECTED} names none; run `make run`, or say --model cnn or --model vit."
        ) from error


def _method(family: str) -> tuple[Method, tuple[str, ...]]:
    """The method that the stage evaluate took for the family."""
    path = evaluate_report(family) / "explanation_detail.json"
    try:
        named = json.loads(path.read_text(encoding="utf-8"))["method"]
    except (OSError, ValueError, KeyError, TypeError):
        named = None
    found = next((method for method in METHODS if method == named), None)
    if found is not None:
        return found, ()
    return FALLBACK, (f"{path} names no method, so maps are made by {NAMES[FALLBACK]}; `dvc repro evaluate` chooses one.",)


def _compared(asked: Asked, explained: Explained, card: ModelCard, served: tuple[Path, ModelCard] | None) -> tuple[str, ...]:
    """What the served version says of the image, and where that differs from the explained network."""
    label, probability = explained.labels[0], explained.probabilities[0]
    if asked.prediction is not None:
        version = asked.prediction.model_version
        its_label, its_probability = asked.prediction.label or "", asked.prediction.confidence or 0.0
    elif served is not None:
        version = served[0].name
        graph, its_card = runtime.load(served[0])
        logits, _ = graph.run(preprocess(asked.data, its_card.preprocess)[None])
        probabilities = softmax(logits)[0]
        best = int(probabilities.argmax())
        its_label, its_probability = its_card.labels[best], float(probabilities[best])
    else:
        return ("No model is deployed to compare with.",)
    if served is None:
        said = "is not in the model repository any more"
    elif served[1].family != card.family:
        said = f"is a {served[1].architecture}, and the explained network a {card.architecture}"
    elif served[1].lineage.get("data") != card.lineage.get("data"):
        said = "was trained on another data version than the explained network"
    elif its_label != label or abs(its_probability - probability) > _NEAR:
        said = "differs from the explained network, which was trained again or is less rounded"
    else:
        said = "agrees with the explained network"
    answers = "answered" if asked.prediction is not None else "answers"
    return (f"The served version {version} {answers} {its_label} ({its_probability:.1%}) and {said}.",)

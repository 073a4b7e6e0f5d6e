"""One image and why it is answered as it is: maps for the answer and for the runner-up, as values and as a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from visionloop.card import Calibration, ModelCard
from visionloop.errors import ArtifactError
from visionloop.evaluation.pictures import short
from visionloop.explanation import pictures
from visionloop.explanation.methods import NAMES, Method, heat_maps
from visionloop.features import softmax
from visionloop.models import Classifier
from visionloop.unknown import ClassMeans, judge

_TILE = 224  # pixels of each picture


@dataclass(frozen=True)
class Explained:
    """What a model says of one image, and where it sees it."""

    image: npt.NDArray[np.uint8]  # [H, W, 3], as the model takes it
    labels: tuple[str, ...]  # the answer, and the runner-up where there is one
    probabilities: tuple[float, ...]  # of these, calibrated where there is a calibration
    maps: npt.NDArray[np.float32]  # [2, H, W], for these
    doubts: tuple[str, ...]  # "unknown", "review"
    method: Method


def explain(
    model: Classifier,
    card: ModelCard,
    image: npt.NDArray[np.uint8],
    method: Method,
    *,
    calibration: Calibration | None = None,
    means: ClassMeans | None = None,
) -> Explained:
    """Explain one image, uint8 [H, W, 3], with the network of the card.

    Raises:
        ArtifactError: the image has another size than the card says, or the network has nothing to make such a map from.
    """
    size = (card.preprocess.height, card.preprocess.width, 3)
    if image.shape != size:
        raise ArtifactError(
            f"The image is an array of {' x '.join(map(str, image.shape))}, and the model takes "
            f"{' x '.join(map(str, size))}; bring it to that size with visionloop.preprocess."
        )
    device = next(model.parameters()).device
    model.eval()
    with torch.inference_mode():
        logits, embedding = (found.float().cpu().numpy() for found in model(torch.from_numpy(image[None].copy()).to(device)))
    doubts: tuple[str, ...] = ()
    if calibration is not None:
        logits = logits / calibration.temperature
        doubt = judge(calibration, logits, embedding, means)
        said = (("unknown", doubt.unknown is not None and bool(doubt.unknown[0])), ("review", bool(doubt.review[0])))
        doubts = tuple(name for name, holds in said if holds)
    probabilities = softmax(logits)[0]
    best = np.argsort(-probabilities, kind="stable")[:2]
    maps = heat_maps(model, np.repeat(image[None], len(best), axis=0), best, method)
    return Explained(
        image,
        tuple(card.labels[number] for number in best),
        tuple(float(probabilities[number]) for number in best),
        maps,
        doubts,
        method,
    )


def explained_png(explained: Explained, title: str, notes: tuple[str, ...] = ()) -> bytes:
    """The image, and the map for the answer and for the runner-up laid over it, with their probabilities."""
    words = "the image" + "".join(f"\n{doubt}" for doubt in explained.doubts)
    items = [pictures.Item((explained.image,), words, bad=bool(explained.doubts))]
    for label, probability, heat in zip(explained.labels, explained.probabilities, explained.maps, strict=True):
        nothing = "" if heat.any() else "\nno place speaks for it"
        caption = f"for {short(label)}, {probability:.1%}{nothing}"
        items.append(pictures.Item((pictures.laid_over(explained.image, heat),), caption))
    note = " ".join((f"Bright places speak for the class, by {NAMES[explained.method]}.", *notes))
    return pictures.sheet_png(items, title, note, across=len(items), tile=_TILE)

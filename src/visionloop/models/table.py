"""The architectures by name, and the one way to build or load a classifier."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from visionloop.card import ModelCard, load_card
from visionloop.errors import ArtifactError, ConfigError
from visionloop.models import small_resnet, small_vit, speed_net
from visionloop.models.classifier import Classifier
from visionloop.models.network import Family, Network, Option, check_norms
from visionloop.models.pruning import fit_shapes
from visionloop.models.tensors import read_tensors
from visionloop.paths import MODEL_TORCH

Builder = Callable[[int, tuple[int, int], Mapping[str, Option]], Network]

ARCHITECTURES: Mapping[str, Builder] = MappingProxyType(
    {small_resnet.NAME: small_resnet.build, small_vit.NAME: small_vit.build, speed_net.NAME: speed_net.build}
)


def build(
    architecture: str,
    *,
    num_classes: int,
    image_size: tuple[int, int],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    options: Mapping[str, Option],
    weights: str | None = None,
    weights_sha256: str | None = None,
) -> Classifier:
    """Build a classifier: a name of `ARCHITECTURES`, else one of torchvision's networks.

    `image_size` is (height, width) in pixels; `mean` and `std` are of the training pixels / 255, RGB. `weights` is None
    (fresh, from torch's global generator), the path of a file, whose hash is checked if `weights_sha256` is given, or
    "torchvision", which downloads unless cached.

    Raises:
        ConfigError: an unknown name (with the nearest known ones), an unknown option, an image size that does not fit.
        ArtifactError: see `load_weights`.

    >>> build("small_vit", num_classes=10, image_size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3, options={}).family
    'vit'
    """
    if architecture in ARCHITECTURES:
        network = ARCHITECTURES[architecture](num_classes, image_size, options)
    else:
        # torchvision takes a second to import, and the small networks do without it.
        from visionloop.models import torchvision_networks

        known = [*ARCHITECTURES, *torchvision_networks.names()]
        if architecture not in known:
            raise ConfigError(_unknown(architecture, known, torchvision_networks.NOT_COVERED))
        network = torchvision_networks.build(architecture, num_classes, image_size, options)
    notes: tuple[str, ...] = ()
    if weights is not None:
        from visionloop.models.weights import load_weights

        notes = load_weights(architecture, network, weights, weights_sha256)
    return Classifier(architecture, network, mean=mean, std=std, weight_notes=notes)


def check_buildable(
    architecture: str,
    image_size: tuple[int, int],
    options: Mapping[str, Option],
    *,
    freeze: str = "none",
    weights: str | None = None,
    weights_sha256: str | None = None,
) -> Family:
    """The family of a network that is built without memory for its weights: what is wrong is known before any training.

    Of `weights`, a file is read and its hash compared; nothing is downloaded.

    Raises:
        ConfigError: see `build`; or `freeze` is "norms" and the network has none that could be.
        ArtifactError: the file of weights is missing or another one.
    """
    with torch.device("meta"):
        built = build(architecture, num_classes=2, image_size=image_size, mean=(0.5,) * 3, std=(0.25,) * 3, options=options)
    if freeze == "norms":
        check_norms(architecture, built.network)
    if weights is not None:
        from visionloop.models.weights import check_weights

        check_weights(architecture, built.network, weights, weights_sha256)
    return built.family


def load_model(folder: Path) -> tuple[Classifier, ModelCard]:
    """Load `model.pt` of a model folder, in eval mode on the CPU, after its hash was checked against the card.

    Raises:
        ArtifactError: the card or the file is missing or damaged, or they do not belong together.
    """
    card = load_card(folder)
    data = card.read_file(folder, MODEL_TORCH)
    # Building draws fresh weights that are overwritten at once; the caller's random state must not notice.
    with torch.random.fork_rng(devices=[]):
        classifier = build(
            card.architecture,
            num_classes=len(card.labels),
            image_size=(card.preprocess.height, card.preprocess.width),
            mean=card.mean,
            std=card.std,
            options=card.architecture_options,
        )
    state = read_tensors(data, str(folder / MODEL_TORCH))
    try:
        if not isinstance(state, Mapping):
            raise TypeError(f"it holds a {type(state).__name__}")
        if card.smaller is not None and card.smaller.by == "pruning":
            fit_shapes(classifier, state)
        classifier.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ArtifactError(
            f"{folder / MODEL_TORCH} does not fit the {card.architecture} of its card "
            f"({str(error).splitlines()[0][:120]}); rebuild it with `dvc repro`."
        ) from error
    return classifier.eval(), card


def _unknown(architecture: str, known: list[str], not_covered: tuple[str, ...]) -> str:
    if architecture in not_covered:
        return f"{architecture} has auxiliary or convolutional heads and is not covered; take resnet18 or efficientnet_b0."
    near = difflib.get_close_matches(architecture, known, n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(near)}" if near else f"own ones are {', '.join(ARCHITECTURES)}"
    return f"There is no architecture '{architecture}'; {hint}, and torchvision's classification networks go by their names."

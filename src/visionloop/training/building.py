"""The network that a family's settings ask for, made for the classes and images at hand, and the card of such a network.

Does not cover: networks that are trained already; `visionloop.models.load_model` reads those with their cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from visionloop.card import ModelCard
from visionloop.config import FamilyParams
from visionloop.data.packing import PackedMeta
from visionloop.models import Classifier, build
from visionloop.models.pruning import fit_shapes


def classifier_for(settings: FamilyParams, meta: PackedMeta, *, pretrained: bool = True) -> Classifier:
    """An untrained classifier, drawn from torch's global generator, or with the weights that `settings` names.

    Without `pretrained` those weights are not read: for a place to put others into, or where only the shape counts.

    Raises:
        ConfigError, ArtifactError: see `visionloop.models.build`.
    """
    return build(
        settings.architecture,
        num_classes=len(meta.labels),
        image_size=(meta.preprocess.height, meta.preprocess.width),
        mean=meta.mean,
        std=meta.std,
        options=settings.options,
        weights=settings.weights if pretrained else None,
        weights_sha256=settings.weights_sha256 if pretrained else None,
    )


def with_weights(settings: FamilyParams, meta: PackedMeta, weights: Mapping[str, Tensor]) -> Classifier:
    """A fresh classifier with these weights, pruned ones too: what was trained may be compiled or laid out otherwise."""
    classifier = classifier_for(settings, meta, pretrained=False)
    fit_shapes(classifier, weights)
    classifier.load_state_dict(weights)
    return classifier


def card_for(classifier: Classifier, meta: PackedMeta, **more: Any) -> ModelCard:
    """The card of a classifier of this data, in FP32; `more` are further fields of `ModelCard`."""
    return ModelCard(
        family=classifier.family,
        architecture=classifier.architecture,
        labels=meta.labels,
        preprocess=meta.preprocess,
        mean=meta.mean,
        std=meta.std,
        embedding_size=classifier.embedding_size,
        precision="fp32",
        parameters=sum(parameter.numel() for parameter in classifier.parameters()),
        **more,
    )

"""A trained model of `models/` as a teacher: its answers to the training images, for the loss to learn from.

Does not cover: the loss, see `losses.distillation`; teachers without weights for torch, as what stage `export` writes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from visionloop.card import load_card
from visionloop.config import FamilyParams
from visionloop.data.packing import PackedMeta
from visionloop.errors import ConfigError
from visionloop.models import Classifier, load_model
from visionloop.paths import MODEL_TORCH, family_folder

NONE = "none"


class Teacher:
    """A classifier in eval mode that sees the student's images at its own size and learns nothing."""

    def __init__(self, classifier: Classifier, size: tuple[int, int]) -> None:
        self.classifier = classifier.eval().requires_grad_(False)
        self._size = size

    def to(self, device: torch.device) -> Teacher:
        """This teacher, on the device."""
        self.classifier.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The student's images [N, H, W, 3], uint8 or float in 0..255, to logits float32 [N, K].

        Images of another size are resized (bilinear, and smoothed before they shrink); what the student's own size has lost
        does not come back, so a teacher for 224 pixels knows less of images of 32.
        """
        if tuple(images.shape[1:3]) != self._size:
            maps = images.permute(0, 3, 1, 2).to(torch.float32)
            images = F.interpolate(maps, self._size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        logits: Tensor = self.classifier(images)[0]
        return logits


def load_teacher(settings: FamilyParams, meta: PackedMeta) -> Teacher | None:
    """The teacher that a family names, `models/<teacher>`, on the CPU; None where it names none.

    Raises:
        ArtifactError: there is no such model, it is damaged, or it has no weights for torch.
        ConfigError: its classes are not those of the data.
    """
    if settings.teacher == NONE:
        return None
    classifier, card = load_model(family_folder(settings.teacher))
    if card.labels != meta.labels:
        raise ConfigError(
            f"The teacher '{settings.teacher}' knows other classes than the data ({_difference(card.labels, meta.labels)}); "
            "train it on this data first, or set teacher to none."
        )
    return Teacher(classifier, (card.preprocess.height, card.preprocess.width))


def teacher_id(settings: FamilyParams) -> str:
    """The sha256 of the teacher's weights, which name a training as its own data do; "" where there is none.

    Raises:
        ArtifactError: there is no such model.
    """
    if settings.teacher == NONE:
        return ""
    return load_card(family_folder(settings.teacher)).files.get(MODEL_TORCH, "")


def _difference(theirs: tuple[str, ...], ours: tuple[str, ...]) -> str:
    said = []
    for who, names in (("the teacher", sorted(set(theirs) - set(ours))), ("the data", sorted(set(ours) - set(theirs)))):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            said.append(f"only {who} has '{names[0]}'{more}")
    return ", ".join(said) or "the same ones in another order"

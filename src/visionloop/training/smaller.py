"""After a training: the smaller network that learns from the trained one, and whether it takes its place.

`smaller.by` is `pruning` (channels of the trained network are taken out, see `models.pruning`) or `student` (another
architecture from fresh weights). Either learns from labels and from the first network's answers, as `distillation_share`
says.

Does not cover: the training itself (`loop`), and INT8, which comes after either (`visionloop.compression`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from visionloop.card import Smaller
from visionloop.config import FamilyParams, TrainParams
from visionloop.data.packing import PackedMeta
from visionloop.errors import ConfigError
from visionloop.models import Classifier
from visionloop.models.pruning import multiply_adds, pruned
from visionloop.training.building import classifier_for

# A student begins as any network does; what was pruned must not be shaken by a rise to a high rate it no longer needs.
_WARMUP = {"pruning": 0.0, "student": 0.1}  # of the epochs


@dataclass(frozen=True)
class Step:
    """The second training, before its first epoch."""

    classifier: Classifier
    settings: FamilyParams
    params: TrainParams
    smaller: Smaller
    taught: bool  # whether the first network's answers are learnt, beside the labels
    image_size: tuple[int, int]  # height and width, pixels
    max_accuracy_drop: float

    def verdict(self, after: float) -> tuple[str, bool]:
        """A sentence, and whether the smaller network takes the place of the first, by its accuracy on val."""
        before = self.smaller.val_accuracy
        made = "The pruned network" if self.smaller.by == "pruning" else f"The student ({self.settings.architecture})"
        share = self.smaller.multiply_adds_after / self.smaller.multiply_adds
        said = (
            f"{made} has {share:.0%} of the multiply-adds of the network that it learnt from, and {after:.2%} on val, "
            f"{before:.2%} before"
        )
        if before - after > self.max_accuracy_drop + 1e-9:
            return f"{said}: that is more than the {self.max_accuracy_drop:.1%} allowed, so the first one is kept.", False
        return f"{said}; it takes its place.", True


def smaller_step(
    first: Classifier,
    settings: FamilyParams,
    params: TrainParams,
    meta: PackedMeta,
    *,
    val_accuracy: float,
    say: Callable[[str], None],
) -> Step:
    """Make the smaller network that `settings.smaller` asks for and what to train it with; `params` are of this family.

    `val_accuracy` is the first network's.

    Fresh weights are drawn from torch's global generator.

    Raises:
        ConfigError: so much cannot be pruned; or the student cannot be built, is of the other family, or is not smaller.
    """
    wanted = settings.smaller
    size = (meta.preprocess.height, meta.preprocess.width)
    changes: dict[str, Any] = {
        "weights": None,
        "weights_sha256": None,
        "learning_rate": settings.learning_rate * wanted.rate,
    }
    if wanted.by == "student":
        assert wanted.architecture is not None
        changes |= {"architecture": wanted.architecture, "options": wanted.options}
    own = settings.model_copy(update=changes)
    made = pruned(first, wanted.share, size) if wanted.by == "pruning" else classifier_for(own, meta)
    before, after = multiply_adds(first, size), multiply_adds(made, size)
    if made.family != first.family or after >= before:
        raise ConfigError(
            f"The student {made.architecture} ({made.family}, {after / 1e6:,.1f} million multiply-adds) is no smaller "
            f"network of the family of {first.architecture} ({first.family}, {before / 1e6:,.1f} million); name another one "
            "under smaller.architecture, or narrow it by smaller.options."
        )
    say(
        f"A smaller network ({wanted.by}) of {after / 1e6:,.1f} million multiply-adds learns from the trained one, which "
        f"has {before / 1e6:,.1f} million."
    )
    smaller = Smaller(
        by="pruning" if wanted.by == "pruning" else "student",
        architecture=first.architecture,
        architecture_options=dict(settings.options),
        parameters=sum(parameter.numel() for parameter in first.parameters()),
        multiply_adds=before,
        multiply_adds_after=after,
        val_accuracy=val_accuracy,
    )
    epochs = wanted.epochs
    second = params.model_copy(
        update={
            "epochs": epochs,
            "schedule": "cosine",
            "warmup_epochs": _WARMUP[wanted.by] * epochs,
            "early_stopping_epochs": 0,
            "initial_scale": 1.0,  # what is learnt from was learnt at full size
        }
    )
    taught = params.distillation_share > 0 and params.loss != "bce"
    return Step(made, own, second, smaller, taught, size, wanted.max_accuracy_drop)

"""What a training leaves as the pretrained weights have it.

Does not cover thawing a frozen backbone after some epochs: train twice, the second time with the first's model.pt as
weights.
"""

from __future__ import annotations

from torch.nn.modules.batchnorm import _BatchNorm

from visionloop.config import FamilyParams
from visionloop.models import Classifier
from visionloop.models.network import check_norms


def apply_freeze(model: Classifier, settings: FamilyParams) -> None:
    """Freeze what `settings.freeze` names, before the optimizer is made.

    - `backbone`: only the head learns. All before it stays in eval mode even under `model.train()`: batch norms keep their
      statistics, and no dropout or stochastic depth disturbs the embedding, which so is that of the pretrained model.
    - `norms`: batch norms normalise by their pretrained statistics, which small batches of the new data would blur. Their
      scales and shifts still learn, as do all other weights.

    Raises:
        ConfigError: the norms are to be frozen and the network has no batch norm.
    """
    if settings.freeze == "backbone":
        head = set(model.network.head.parameters())
        for parameter in model.network.parameters():
            parameter.requires_grad_(parameter in head)
        children = model.network.named_children()
        model.frozen = tuple(f"network.{name}" for name, child in children if child is not model.network.head)
    elif settings.freeze == "norms":
        check_norms(model.architecture, model.network)
        model.frozen = tuple(name for name, module in model.named_modules() if isinstance(module, _BatchNorm))
    model.train(model.training)

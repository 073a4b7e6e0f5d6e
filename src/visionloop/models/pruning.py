"""Structured pruning: whole channels of a trained network are taken out, and what is left is a smaller plain network.

Which layers must shrink together is found by Torch-Pruning (DepGraph, Fang et al. 2023, arXiv:2301.12900); of each such
group, the channels with the least L2 norm over all its weights go, the same share of every group. In transformers only the
hidden neurons of the perceptrons go, since what attention adds to the tokens must keep its width.

Does not cover: training the smaller network (`visionloop.training`), and zeros among weights, which make nothing faster.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from visionloop.errors import ConfigError
from visionloop.models.classifier import Classifier
from visionloop.models.network import Network

# Runtimes calculate in blocks of 8 or 16 channels, so others would be filled up with nothing.
_MULTIPLE = 8
_HALVINGS = 7  # of the range in which the share of channels is looked for


def pruned(classifier: Classifier, share: float, image_size: tuple[int, int]) -> Classifier:
    """A copy of a trained classifier with at least `share` of its multiply-adds taken out, as near to it as channels allow.

    `image_size` is (height, width) in pixels. It answers worse until it is trained again. The same weights give the same
    network.

    >>> smaller = pruned(classifier, 0.5, (32, 32))
    >>> multiply_adds(smaller, (32, 32)) <= 0.5 * multiply_adds(classifier, (32, 32))
    True

    Raises:
        ConfigError: the network has no layer that could shrink, or not so much of it can be taken out.
    """
    allowed = (1 - share) * multiply_adds(classifier, image_size)
    low, high = 0.0, 1.0  # share of the channels
    best: tuple[int, Classifier] | None = None
    for _ in range(_HALVINGS):
        ratio = (low + high) / 2
        found = _without(classifier, ratio, image_size)
        left = multiply_adds(found, image_size)
        if left > allowed:
            low = ratio
            continue
        high = ratio
        if best is None or left > best[0]:
            best = (left, found)
    if best is None:
        raise ConfigError(
            f"{classifier.architecture} cannot be pruned by {share:.0%} of its multiply-adds; lower smaller.share, or take "
            "a student."
        )
    return best[1]


def multiply_adds(classifier: Classifier, image_size: tuple[int, int]) -> int:
    """Of one image (height, width), in convolutions, linear layers and attention; a mirrored second view is not counted."""
    # It loads the compiler Triton, a twentieth of what a stage takes to start.
    from torch.utils.flop_counter import FlopCounterMode

    was_training, network = classifier.training, classifier.network
    counter = FlopCounterMode(display=False)
    classifier.eval()
    try:
        with torch.no_grad(), counter:
            network.head(network.embed(_blank(classifier, image_size)))
    finally:
        classifier.train(was_training)
    return int(counter.get_total_flops()) // 2


def fit_shapes(classifier: Classifier, state: Mapping[str, Tensor]) -> None:
    """Give a fresh network's layers the shapes of a pruned one's weights, so that its `load_state_dict` takes them.

    Names that only one side has are left for `load_state_dict` to refuse.
    """
    for name, module in classifier.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for leaf, tensor in own:
            wanted = state.get(f"{name}.{leaf}" if name else leaf)
            if wanted is None or wanted.shape == tensor.shape or wanted.ndim != tensor.ndim:
                continue
            made = torch.zeros(wanted.shape, dtype=tensor.dtype, device=tensor.device)
            if isinstance(tensor, nn.Parameter):
                setattr(module, leaf, nn.Parameter(made, requires_grad=tensor.requires_grad))
            else:
                setattr(module, leaf, made)
        _describe(module)


def _describe(module: nn.Module) -> None:
    """Bring a layer's sizes in line with its weights."""
    if isinstance(module, nn.Conv2d):
        outputs, inputs = module.weight.shape[:2]
        if module.groups > 1 and module.groups == module.out_channels:
            module.groups = outputs
        module.out_channels, module.in_channels = outputs, inputs * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.BatchNorm2d):
        assert module.running_mean is not None
        module.num_features = len(module.running_mean)
    elif isinstance(module, nn.LayerNorm) and module.elementwise_affine:
        module.normalized_shape = tuple(module.weight.shape)


def _without(classifier: Classifier, ratio: float, image_size: tuple[int, int]) -> Classifier:
    """A copy without this share of the channels of every group."""
    import torch_pruning

    made = copy.deepcopy(classifier)
    network = made.network
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    kept = {id(layer) for layer in network.prunable()}
    if not kept:
        raise ConfigError(f"{made.architecture} has no layer that could be pruned; take a student.")
    ignored = [
        module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear) and id(module) not in kept
    ]
    network.requires_grad_(True)  # the graph is read from gradients
    averages, network.flip_average = network.flip_average, False  # a second view is no layer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch_pruning.pruner.BasePruner(
            _Answer(network),
            _blank(made, image_size),
            torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=ignored,
            round_to=_MULTIPLE,
        ).step()
    network.flip_average = averages
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
        parameter.grad = None
    return made


def _blank(classifier: Classifier, image_size: tuple[int, int]) -> Tensor:
    return torch.zeros(1, 3, *image_size, device=next(classifier.parameters()).device)


class _Answer(nn.Module):
    """A network as one call, which Torch-Pruning traces."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network.head(self.network.embed(images))
        return logits

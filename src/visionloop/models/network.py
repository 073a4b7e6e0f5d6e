"""What every architecture offers: an embedding, a linear head on it, and the place where Grad-CAM looks.

Also the checks of options that the architectures share.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from visionloop.errors import ConfigError
from visionloop.models.layers import layers_in_order

Family = Literal["cnn", "vit"]
Option = int | float | str | bool


# The last map of a ResNet at 224 pixels, for which Grad-CAM was made, has 7 x 7 positions.
LEAST_MAP_SIDE = 7


@dataclass(frozen=True)
class GradcamLayer:
    """The layer whose output and gradient make the heat-map, and how either becomes a map [N, C, h, w].

    In a convolutional network: the deepest layer with at least `LEAST_MAP_SIDE` positions a side, because the last map of a
    small image has so few that each sees all of it. In a ViT: the first norm, before attention, because after the last
    block every patch carries the whole image's answer. See `explanation/__init__.py` for what was measured.
    """

    module: nn.Module
    to_map: Callable[[Tensor], Tensor]
    places: tuple[int, ...] = (2, 3)  # the dimensions of the module's output that are places in the image
    leading: int = 0  # entries of the first of these dimensions that are no place, before the others: a class token


@dataclass(frozen=True)
class AttentionLayer:
    """A layer of self-attention over all tokens, from the tokens that go in to what is added to them.

    torch's fused kernel keeps no attention; with these three, `explanation/attention.py` recomputes it.
    """

    source: nn.Module  # its first input are the tokens [N, T, D]
    answer: nn.Module  # its output, or the first of its outputs, is the projected answer [N, T, D]
    heads: int
    weight: Tensor  # [3 D, D], and `bias` [3 D]: queries, keys and values, in this order
    bias: Tensor
    project: Tensor  # [D, D], the last projection's weight


@dataclass(frozen=True)
class Attention:
    """What attention roll-out needs of a network whose tokens all see one another, from the first layer to the last."""

    layers: tuple[AttentionLayer, ...]
    # How tokens make the embedding: the first alone, all alike, or as the softmax over a module's output [N, T, 1] says.
    pooling: Literal["class_token", "mean"] | nn.Module


class Network(nn.Module):
    """A network from normalised float images [N, 3, H, W] to an embedding [N, D], with a linear head `head` on it."""

    family: Family
    head: nn.Linear
    flip_average = False  # whether answers in use are the mean over an image and its mirror image
    side_multiple = 4  # of which the sides of smaller training images are multiples (`training.resizing`)

    def embed(self, images: Tensor) -> Tensor:
        """Images float [N, 3, H, W] to the penultimate layer, float [N, D]."""
        raise NotImplementedError

    def gradcam_layer(self) -> GradcamLayer:
        """The layer that maps by gradients look at."""
        raise NotImplementedError

    def attention(self) -> Attention | None:
        """Its self-attention for roll-out; None where there is none, or only within windows."""
        return None

    def layers(self) -> list[list[str]]:
        """The names of all parameters, grouped from the input to the head; see `layers_in_order`."""
        return layers_in_order(self, self.head)

    def prunable(self) -> list[nn.Module]:
        """The layers whose outputs may be taken out channel by channel: all but the head and what never learns."""
        layers = [
            module for module in self.modules() if isinstance(module, nn.Conv2d | nn.Linear) and module is not self.head
        ]
        return [layer for layer in layers if layer.weight.requires_grad]

    def prepare(self, images: Tensor) -> None:
        """Set what starts from the data, before the first step of a training from fresh weights; by default nothing does.

        Images float [N, 3, H, W], normalised, of the training side.
        """

    def learning_rate_scales(self) -> Mapping[str, float]:
        """Parameters, by their names in this network, that learn at another rate than the rest: at so many times it."""
        return {}

    def after_step(self) -> None:
        """Bring weights back to where they must be, after every step of the optimizer; by default all may go anywhere."""


def same(maps: Tensor) -> Tensor:
    """The output of a convolution is a map already."""
    return maps


def tokens_as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patches [N, h * w, C], row by row, as a map [N, C, h, w]."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)


def with_mirror_images(images: Tensor) -> Tensor:
    """Images [N, 3, H, W] and after them their mirror images, [2 N, 3, H, W]."""
    return torch.cat([images, images.flip(3)])


def mean_of_views(embedding: Tensor, count: int) -> Tensor:
    """The means [N, D] of embeddings [2 N, D] of `count` images and of their mirror images.

    A linear head makes the mean logits of them.
    """
    return (embedding[:count] + embedding[count:]) / 2


def both_views(maps: Tensor) -> Tensor:
    """The maps [2 N, C, h, w] of N images and of their mirror images as [N, C, h, w], each place with its mirrored one."""
    plain, mirrored = maps.chunk(2)
    return (plain + mirrored.flip(3)) / 2


def check_norms(architecture: str, network: nn.Module) -> None:
    """Refuse to freeze the norms of a network where none keeps statistics.

    Raises:
        ConfigError: naming the architecture.
    """
    if not any(isinstance(module, _BatchNorm) for module in network.modules()):
        raise ConfigError(
            f"freeze is 'norms', but {architecture} has no batch norm whose statistics could be kept; set it to 'none' or "
            "'backbone'."
        )


def refuse_unknown(architecture: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Refuse an option that the architecture does not have.

    Raises:
        ConfigError: with the nearest option that it has.
    """
    names = sorted(known)
    for option in options:
        if option not in names:
            near = difflib.get_close_matches(option, names, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(names)}."
            raise ConfigError(f"{architecture} has no option '{option}'; {hint}")


def whole_number(architecture: str, options: Mapping[str, Option], name: str, *, default: int, low: int, high: int) -> int:
    """An option as a whole number from `low` to `high`. Raises ConfigError with the range."""
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{architecture}: option '{name}' is {value!r}; it must be a whole number from {low} to {high}.")
    return value


def chosen(architecture: str, options: Mapping[str, Option], name: str, known: Iterable[str], *, default: str) -> str:
    """An option as one of the `known` words. Raises ConfigError with these."""
    value = options.get(name, default)
    words = tuple(known)
    if value not in words:
        raise ConfigError(f"{architecture}: option '{name}' is {value!r}; it must be one of {', '.join(words)}.")
    return str(value)


def yes_or_no(architecture: str, options: Mapping[str, Option], name: str) -> bool:
    """An option as true or false, false unless set. Raises ConfigError."""
    value = options.get(name, False)
    if not isinstance(value, bool):
        raise ConfigError(f"{architecture}: option '{name}' is {value!r}; it must be true or false.")
    return value


def number(
    architecture: str, options: Mapping[str, Option], name: str, *, default: float, low: float, below: float
) -> float:
    """An option as a number from `low` to below `below`. Raises ConfigError with the range."""
    value = options.get(name, default)
    if isinstance(value, bool | str) or not low <= value < below:
        raise ConfigError(
            f"{architecture}: option '{name}' is {value!r}; it must be a number from {low:g} to below {below:g}."
        )
    return float(value)

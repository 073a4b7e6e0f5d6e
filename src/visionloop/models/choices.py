"""What the project's own networks let one choose by name: the activation and the initial weights.

Does not cover torchvision's networks, whose authors chose both, and which refuse the two options.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from visionloop.models.network import Option, chosen

ACTIVATIONS: Mapping[str, type[nn.Module]] = MappingProxyType(
    {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}
)
INITIALISATIONS = ("xavier", "he", "truncated_normal")
CHOICES = ("activation", "initialisation")

# Of BERT (arXiv:1810.04805) and, through it, of ViT's heads and positions and of Swin (arXiv:2103.14030).
TRUNCATED_STD = 0.02
# The slope below zero of torch's LeakyReLU, and of the paper that brought it (Maas et al. 2013).
_SLOPE = 0.01


def activation(architecture: str, options: Mapping[str, Option], *, default: str = "relu") -> Callable[[], nn.Module]:
    """What makes the activation that the options name. Raises ConfigError with the known names."""
    return ACTIVATIONS[chosen(architecture, options, "activation", ACTIVATIONS, default=default)]


def initialisation(architecture: str, options: Mapping[str, Option]) -> str | None:
    """The initialisation that the options name; None is the architecture's own. Raises ConfigError with the known names."""
    if "initialisation" not in options:
        return None
    return chosen(architecture, options, "initialisation", INITIALISATIONS, default="he")


def initialise(network: nn.Module, kind: str) -> None:
    """Draw every convolution and linear layer of `network` anew from torch's global generator; biases become 0.

    - "xavier": uniform of the variance 2 / (fan_in + fan_out) (Glorot and Bengio 2010).
    - "he": normal of the variance gain^2 / fan (He et al. 2015, arXiv:1502.01852). The fan is fan_out for convolutions,
      which keeps the gradient's size, and fan_in for linear layers, which keeps the values'. The gain is of the network's
      activation, see `gain`.
    - "truncated_normal": normal of the deviation 0.02, drawn again beyond two deviations, so that the weights' own is
      0.0176.

    A convolution's fans are its channels times its places: of a 3 x 3 convolution of a map of 16 channels, fan_in is 144.
    """
    kinds = [module for module in network.modules() if isinstance(module, tuple(ACTIVATIONS.values()))]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            _draw(module, kind, gain(type(kinds[0]) if kinds else nn.ReLU))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def gain(kind: type[nn.Module]) -> float:
    """By how much weights must be larger to make up for what an activation takes from the values' deviation.

    The square root of 2 for ReLU, which halves their square; a little less for LeakyReLU; 5/3 for tanh, as torch has it.
    GELU and SiLU are smooth forms of ReLU and take its gain.
    """
    if kind is nn.Tanh:
        return 5 / 3
    return math.sqrt(2 / (1 + _SLOPE**2)) if kind is nn.LeakyReLU else math.sqrt(2)


def _draw(module: nn.Conv2d | nn.Linear, kind: str, gain: float) -> None:
    weight: Tensor = module.weight
    if kind == "xavier":
        nn.init.xavier_uniform_(weight)
    elif kind == "he":
        fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(weight)
        nn.init.normal_(weight, std=gain / math.sqrt(fan_out if isinstance(module, nn.Conv2d) else fan_in))
    else:
        nn.init.trunc_normal_(weight, std=TRUNCATED_STD, a=-2 * TRUNCATED_STD, b=2 * TRUNCATED_STD)

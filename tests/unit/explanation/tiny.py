"""Networks whose evidence is known exactly, because they are linear."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from visionloop.models import Classifier, Family, GradcamLayer
from visionloop.models.network import Network, same


class Linear(Network):
    """Three channels as they are, their means, and a head: each place adds its part and nothing else."""

    family: Family = "cnn"

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.maps = nn.Identity()
        self.head = nn.Linear(3, len(weight), bias=False)
        self.head.weight = nn.Parameter(weight)

    def embed(self, images: Tensor) -> Tensor:
        embedded: Tensor = self.maps(images).mean((2, 3))
        return embedded

    def gradcam_layer(self) -> GradcamLayer:
        return GradcamLayer(self.maps, same)


def linear(weight: Tensor) -> Classifier:
    """`weight` [K, 3] for the mean levels, 0 to 1, of red, green and blue."""
    return Classifier("linear", Linear(weight), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)).eval()


def colours(strength: float = 60.0) -> Classifier:
    """Class 0 is red, 1 green, 2 blue: the colour with the highest mean."""
    return linear(strength * torch.eye(3))


class Blind(Network):
    """A network that names no layer."""

    family: Family = "cnn"

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def embed(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

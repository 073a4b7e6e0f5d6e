"""Small images and networks to attack: part of what tells a class is out of an attack's reach, part is not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.unit.training.worlds import meta
from visionloop.models import Classifier, build

EPSILON = 8.0


def net(seed: int = 0, dropout: float = 0.0) -> Classifier:
    """A fresh network for images 8 x 8 of three classes."""
    torch.manual_seed(seed)
    options = {"width": 8, "stages": 2, "dropout": dropout}
    world = meta()
    return build("small_resnet", num_classes=3, image_size=(8, 8), mean=world.mean, std=world.std, options=options)


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with a 3 x 3 square of the class's colour, 60 levels above it, and over all a pattern of its own of 4 levels.

    Both tell the class. A plain network reads the pattern as well, which an attack of 8 levels turns around; the square is
    out of its reach.
    """
    random = generator(seed)
    labels = torch.randint(0, 3, (count,), generator=random)
    pattern = 4 * torch.randint(-1, 2, (3, 8, 8, 3), generator=generator(9))
    images = 128 + 12 * torch.randn(count, 8, 8, 3, generator=random) + pattern[labels]
    for image, label, (row, column) in zip(images, labels, torch.randint(0, 5, (count, 2), generator=random), strict=True):
        image[row : row + 3, column : column + 3, label] += 60
    return images.round().clamp(0, 255).to(torch.uint8), labels


def generator(seed: int = 0) -> torch.Generator:
    """A torch generator of that seed."""
    return torch.Generator().manual_seed(seed)


def learn_plainly(model: Classifier, images: Tensor, labels: Tensor, epochs: int = 20) -> Classifier:
    """The model after some epochs of Adam, in eval mode."""
    optimizer, random = torch.optim.Adam(model.parameters(), lr=0.01), generator(1)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=random).split(32):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen])[0], labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()

"""The model as the rest of the project knows it: uint8 images in, logits and embedding out.

Cast, scale, mean and standard deviation, and the change of layout are inside, so they travel with the weights into ONNX.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from visionloop.models.network import Family, GradcamLayer, Network

# A channel that never varies has a deviation of 0; one gray level keeps the division finite.
_LEAST_STD = 1 / 255


class Classifier(nn.Module):
    """A network behind the one input that every model of the project takes.

    >>> logits, embedding = classifier(torch.zeros(4, 16, 16, 3, dtype=torch.uint8))
    >>> logits.shape
    torch.Size([4, 10])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        architecture: str,
        network: Network,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        weight_notes: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.weight_notes = weight_notes  # what was taken of a weights file and what was not, in sentences
        self.network = network
        self.frozen: tuple[str, ...] = ()  # modules that stay in eval mode, by name; see `training.freezing`
        # Not in the state dict: the card carries both, and a weights file of other data must not bring its own.
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([max(x, _LEAST_STD) for x in std]).view(1, 3, 1, 1), persistent=False)

    @property
    def family(self) -> Family:
        """ "cnn" or "vit"."""
        return self.network.family

    @property
    def embedding_size(self) -> int:
        """D, the numbers in an embedding."""
        return self.network.head.in_features

    @property
    def num_classes(self) -> int:
        """K, the logits of an image."""
        return self.network.head.out_features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [N, H, W, 3] to (logits float32 [N, K], embedding float32 [N, D])."""
        embedding = self.network.embed(self.normalise(images))
        logits = self.network.head(embedding)
        return logits.float(), embedding.float()

    def normalise(self, images: Tensor) -> Tensor:
        """Images [N, H, W, 3] of levels from 0 to 255 as the network takes them: float32 [N, 3, H, W]."""
        # The permuted view has the strides of torch.channels_last, which convolutions on a CPU are fastest with.
        pixels: Tensor = (images.permute(0, 3, 1, 2).to(torch.float32) / 255 - self.mean) / self.std
        return pixels

    def train(self, mode: bool = True) -> Self:
        """Switch to training, all but what is frozen."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def gradcam_layer(self) -> GradcamLayer:
        """Where Grad-CAM looks in this architecture."""
        return self.network.gradcam_layer()

"""torchvision's classification networks by name, with an embedding, a head and the right Grad-CAM layer.

The last linear layer becomes `head`; what feeds it is the embedding. Does not cover networks with auxiliary heads
(googlenet, inception_v3) or without a linear head (squeezenet). Nothing is downloaded here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from visionloop.errors import ConfigError
from visionloop.models.network import Family, GradcamLayer, Network, Option, same, tokens_as_map

NOT_COVERED = ("googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1")
# Where the last map of a convolutional network comes out, in the order in which they are looked for.
_LAST_MAPS = ("layer4", "trunk_output", "conv5", "features", "layers", "blocks")


class TorchvisionNetwork(Network):
    """A torchvision network cut before its last linear layer."""

    def __init__(self, name: str, body: nn.Module, head_name: str) -> None:
        super().__init__()
        self.family: Family = family_of(name)
        parent, _, leaf = head_name.rpartition(".")
        owner = body.get_submodule(parent)
        head = getattr(owner, leaf)
        assert isinstance(head, nn.Linear)
        setattr(owner, leaf, nn.Identity())
        self.body = body
        self.head = head
        self.head_name = head_name  # as torchvision's own state dicts call it

    def embed(self, images: Tensor) -> Tensor:
        """Images float [N, 3, H, W] to float [N, D]."""
        out: Tensor = self.body(images)
        return out

    def gradcam_layer(self) -> GradcamLayer:
        """The last map of a convolutional network; the last block's first norm of a ViT; the last norm of a Swin."""
        body: Any = self.body
        if hasattr(body, "encoder"):  # VisionTransformer: a class token, then the patches; the last block's answer is the
            # class token alone, so only what enters that block still has a gradient at every patch
            side = body.image_size // body.patch_size
            return GradcamLayer(body.encoder.layers[-1].ln_1, lambda tokens: tokens_as_map(tokens[:, 1:], (side, side)))
        if hasattr(body, "permute") and hasattr(body, "norm"):  # SwinTransformer: maps are [N, h, w, C]
            return GradcamLayer(body.norm, lambda maps: maps.permute(0, 3, 1, 2))
        module = next(getattr(body, name) for name in _LAST_MAPS if hasattr(body, name))
        return GradcamLayer(module[-1] if isinstance(module, nn.ModuleList) else module, same)


def names() -> list[str]:
    """The names that `build` takes."""
    every = torchvision.models.list_models(module=torchvision.models)
    return [name for name in every if name not in NOT_COVERED]


def family_of(name: str) -> Family:
    """The family of a torchvision network: attention makes it a "vit"."""
    return "vit" if name.startswith(("vit_", "swin_", "maxvit_")) else "cnn"


def build(name: str, num_classes: int, image_size: tuple[int, int], options: Mapping[str, Option]) -> TorchvisionNetwork:
    """Build a torchvision network with fresh weights; `options` go to torchvision as they are.

    Raises:
        ConfigError: an option that the network does not take, or an image size that it cannot work on.
    """
    sized: dict[str, Any] = {}
    if name.startswith("vit_"):
        if image_size[0] != image_size[1]:
            raise ConfigError(
                f"{name} takes square images, got {image_size[0]} x {image_size[1]}; set preprocess.height and width equal."
            )
        patch = int(name.rsplit("_", 1)[1])
        if image_size[0] % patch:
            raise ConfigError(
                f"{name}: images of {image_size[0]} pixels cannot be cut into patches of {patch}; "
                f"make preprocess.height and preprocess.width multiples of {patch}."
            )
        sized = {"image_size": image_size[0]}
    elif name.startswith("maxvit_"):
        sized = {"input_size": image_size}
    own = {"num_classes", "weights", "progress", *sized} & set(options)
    if own:
        raise ConfigError(f"{name}: option '{min(own)}' is set by visionloop itself; remove it from the options.")
    try:
        body = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **sized, **options)
    except (TypeError, ValueError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in options.items()) or "none"
        raise ConfigError(
            f"{name} cannot be built with images of {image_size[0]} x {image_size[1]} and the options {shown}: {error}; "
            "torchvision's networks need `options: {}` unless you know theirs."
        ) from error
    head_name = [key for key, module in body.named_modules() if isinstance(module, nn.Linear)][-1]
    network = TorchvisionNetwork(name, body, head_name)
    _try(name, network, image_size)
    return network


def _try(name: str, network: TorchvisionNetwork, image_size: tuple[int, int]) -> None:
    """One blank image through the network, so that an image too small for it is refused here and not in a kernel."""
    network.eval()
    try:
        with torch.inference_mode():
            network.embed(torch.zeros(1, 3, *image_size))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"{name} cannot work on images of {image_size[0]} x {image_size[1]} pixels "
            f"({str(error).splitlines()[0][:120]}); raise preprocess.height and preprocess.width."
        ) from error
    network.train()

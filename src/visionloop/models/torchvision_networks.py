"""torchvision's classification networks by name, with an embedding, a head and the right Grad-CAM layer.

The last linear layer becomes `head`; what feeds it is the embedding. Does not cover networks with auxiliary heads
(googlenet, inception_v3) or without a linear head (squeezenet). Nothing is downloaded here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.maxvit import MaxVitBlock
from torchvision.models.regnet import AnyStage
from torchvision.models.vision_transformer import Encoder
from torchvision.ops.misc import MLP

from visionloop.errors import ConfigError
from visionloop.models.choices import CHOICES
from visionloop.models.layers import layers_in_order
from visionloop.models.network import (
    LEAST_MAP_SIDE,
    Attention,
    AttentionLayer,
    Family,
    GradcamLayer,
    Network,
    Option,
    same,
    tokens_as_map,
)

NOT_COVERED = ("googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1")


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
        self.gradcam: GradcamLayer | None = None  # found by `build`, which runs a blank image

    def embed(self, images: Tensor) -> Tensor:
        """Images float [N, 3, H, W] to float [N, D]."""
        out: Tensor = self.body(images)
        return out

    def gradcam_layer(self) -> GradcamLayer:
        """A ViT's first norm; in others the deepest of the main stages whose map is large enough."""
        assert self.gradcam is not None
        return self.gradcam

    def attention(self) -> Attention | None:
        """A plain ViT's; Swin and MaxViT look into windows, through which no roll-out goes."""
        if not hasattr(self.body, "encoder"):
            return None
        body: Any = self.body
        mixers = [block.self_attention for block in body.encoder.layers]
        return Attention(
            tuple(
                AttentionLayer(
                    mixer, mixer, mixer.num_heads, mixer.in_proj_weight, mixer.in_proj_bias, mixer.out_proj.weight
                )
                for mixer in mixers
            ),
            "class_token",
        )

    def prunable(self) -> list[nn.Module]:
        """Of a transformer the first layer of every perceptron (MaxViT has none that stands alone), else all that learn."""
        if self.family == "cnn":
            return super().prunable()
        return [block[0] for block in self.modules() if isinstance(block, MLP)]

    def layers(self) -> list[list[str]]:
        """The names of all parameters, grouped from the input to the head: torchvision's blocks, and what stands alone."""
        return layers_in_order(self, self.head, (type(self.body), AnyStage, Encoder, MaxVitBlock))


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
    made = [option for option in CHOICES if option in options]
    if made:
        raise ConfigError(
            f"{name} is torchvision's, which has chosen its {made[0]} itself; remove '{made[0]}' from the options, or take "
            "small_resnet or small_vit."
        )
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
    network.gradcam = _find_gradcam_layer(name, network, image_size)
    return network


def _find_gradcam_layer(name: str, network: TorchvisionNetwork, image_size: tuple[int, int]) -> GradcamLayer:
    """Run one blank image, so that an image too small is refused here and not in a kernel, and look at the maps' sizes."""
    body: Any = network.body
    modules, to_map = _stages(body)
    sides: dict[int, int] = {}

    def note(index: int, output: Tensor) -> None:
        if output.ndim == 4:
            sides[index] = min(to_map(output).shape[2:])

    handles = [
        module.register_forward_hook(lambda _module, _inputs, output, index=index: note(index, output))
        for index, module in enumerate(modules)
    ]
    network.eval()
    try:
        with torch.inference_mode():
            network.embed(torch.zeros(1, 3, *image_size))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"{name} cannot work on images of {image_size[0]} x {image_size[1]} pixels "
            f"({str(error).splitlines()[0][:120]}); raise preprocess.height and preprocess.width."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        network.train()
    if hasattr(body, "encoder"):
        side = body.image_size // body.patch_size  # tokens are the class token, then the patches
        return GradcamLayer(modules[0], lambda tokens: tokens_as_map(tokens[:, 1:], (side, side)), (1,), leading=1)
    least = min(LEAST_MAP_SIDE, max(sides.values()))
    places = (2, 3) if to_map is same else (1, 2)
    return GradcamLayer(modules[max(index for index, side in sides.items() if side >= least)], to_map, places)


def _stages(body: Any) -> tuple[list[nn.Module], Callable[[Tensor], Tensor]]:
    """The main stages of a torchvision network in their order, and how their output becomes a map [N, C, h, w]."""
    if hasattr(body, "encoder"):
        return [body.encoder.layers[0].ln_1], same
    if hasattr(body, "layer4"):
        return [body.layer1, body.layer2, body.layer3, body.layer4], same
    if hasattr(body, "conv5"):
        return [body.stage2, body.stage3, body.stage4, body.conv5], same
    container = next(getattr(body, name) for name in ("trunk_output", "features", "layers", "blocks") if hasattr(body, name))
    swin = hasattr(body, "permute")  # its maps are [N, h, w, C]
    return list(container), (lambda maps: maps.permute(0, 3, 1, 2)) if swin else same

"""The layers of a network: every parameter once, in the order in which an image passes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visionloop.models import Classifier, build
from visionloop.models.layers import layers_in_order
from visionloop.models.network import Option


def make(name: str, size: int = 64, options: dict[str, Option] | None = None) -> Classifier:
    return build(name, num_classes=3, image_size=(size, size), mean=(0.5,) * 3, std=(0.2,) * 3, options=options or {}).eval()


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("small_resnet", {"blocks": 2}, 1 + 6 + 1),
        ("small_vit", {"depth": 3, "stem": "conv"}, 1 + 3 + 1),
        ("small_vit", {"depth": 3, "stem": "tokenizer", "pooling": "sequence"}, 1 + 3 + 1 + 1),  # the pooling has weights
        ("small_vit", {"depth": 3, "stem": "whitened"}, 1 + 3 + 1),
        ("resnet18", {}, 1 + 8 + 1),
        ("mobilenet_v3_small", {}, 1 + 11 + 2 + 1),  # a convolution and a linear layer stand before the head
        ("efficientnet_b0", {}, 1 + 16 + 1 + 1),
        ("convnext_tiny", {}, 1 + 18 + 3 + 1),  # three convolutions halve the map between the stages
        ("vit_b_16", {}, 1 + 12 + 1),
        ("swin_t", {}, 1 + 12 + 3 + 1),
        ("densenet121", {}, 1 + 58 + 3 + 1),
        ("regnet_y_400mf", {}, 1 + 16 + 1),
        ("shufflenet_v2_x0_5", {}, 1 + 16 + 1 + 1),
        ("mnasnet0_5", {}, 3 + 16 + 1 + 1),
        ("vgg11_bn", {}, 8 + 2 + 1),
    ],
)
def test_layers_are_in_the_order_of_the_forward_pass(name: str, options: dict[str, Option], layers: int) -> None:
    network = make(name, options=options).network
    found = network.layers()
    assert len(found) == layers
    names = [parameter for layer in found for parameter in layer]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    assert set(found[-1]) >= {f"head.{leaf}" for leaf, _ in network.head.named_parameters()}

    depth = {parameter: index for index, layer in enumerate(found) for parameter in layer}
    passed: list[int] = []
    for prefix, module in network.named_modules():
        own = [f"{prefix}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)]
        if own and prefix and not list(module.children()):
            module.register_forward_hook(lambda *_, layer=depth[own[0]]: passed.append(layer))
    with torch.inference_mode():
        network.head(network.embed(torch.zeros(1, 3, 64, 64)))
    assert passed == sorted(passed)
    assert set(passed) == set(range(layers))


def test_positions_and_tokens_go_with_the_first_layer_and_the_last_norm_with_the_head() -> None:
    first, *_, last = make("vit_b_16").network.layers()
    assert set(first) == {
        "body.class_token", "body.encoder.pos_embedding", "body.conv_proj.weight", "body.conv_proj.bias",
    }  # fmt: skip
    assert set(last) == {"body.encoder.ln.weight", "body.encoder.ln.bias", "head.weight", "head.bias"}


def test_a_norm_goes_with_the_convolution_before_it_else_with_what_follows() -> None:
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False)),
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False)),
        nn.Linear(4, 2, bias=False),
    )
    assert layers_in_order(network, network[2]) == [
        ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"],
        ["0.3.weight"],
        ["1.0.weight", "1.0.bias", "1.1.weight"],
        ["2.weight"],
    ]

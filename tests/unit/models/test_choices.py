"""Activation and initialisation by name: the values of the one, the spread of the other against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from visionloop.errors import ConfigError
from visionloop.models import Classifier, build
from visionloop.models.choices import ACTIVATIONS, INITIALISATIONS
from visionloop.models.network import Option

# Wide enough that the deviation of a few thousand drawn weights is within 5 % of the formula's.
OWN: dict[str, dict[str, Option]] = {
    "small_resnet": {"width": 32, "stages": 2},
    "small_vit": {"width": 64, "depth": 2, "stem": "tokenizer", "pooling": "sequence"},
}


def make(architecture: str, **options: Option) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build(
            architecture, num_classes=100, image_size=(16, 16), mean=(0.5,) * 3, std=(0.25,) * 3,
            options={**OWN.get(architecture, {}), **options},
        )  # fmt: skip


def layers(model: Classifier) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


@pytest.mark.parametrize(
    ("name", "values"),
    # At -2 and 1: GELU is x times the normal distribution's share below x, SiLU x / (1 + e^-x).
    [
        ("relu", (0.0, 1.0)),
        ("leaky_relu", (-0.02, 1.0)),
        ("gelu", (-2 * 0.0227501, 0.8413447)),
        ("silu", (-2 * 0.1192029, 0.7310586)),
        ("tanh", (-0.9640276, 0.7615942)),
    ],
)
def test_an_activation_has_its_values_and_every_place_of_the_networks(name: str, values: tuple[float, float]) -> None:
    assert ACTIVATIONS[name]()(torch.tensor([-2.0, 1.0])).tolist() == pytest.approx(values, abs=1e-6)
    # Two norms a block, of two blocks, share one activation each, and one follows the last; a block of the ViT has one,
    # and the tokenizer two.
    for architecture, places in (("small_resnet", 2 + 1), ("small_vit", 2 + 2)):
        found = [module for module in make(architecture, activation=name).modules() if type(module) in ACTIVATIONS.values()]
        assert {type(module) for module in found} == {ACTIVATIONS[name]}
        assert len(found) == places


@pytest.mark.parametrize("architecture", OWN)
@pytest.mark.parametrize("kind", INITIALISATIONS)
def test_weights_have_the_spread_of_the_formula_and_biases_are_0(architecture: str, kind: str) -> None:
    for name, layer in layers(make(architecture, initialisation=kind)):
        places = math.prod(layer.kernel_size) if isinstance(layer, nn.Conv2d) else 1
        fan_in, fan_out = layer.weight.shape[1] * places, layer.weight.shape[0] * places
        expected = {
            "xavier": math.sqrt(2 / (fan_in + fan_out)),
            "he": math.sqrt(2 / (fan_out if isinstance(layer, nn.Conv2d) else fan_in)),
            "truncated_normal": 0.02 * 0.8796257,  # of a normal that is cut at two deviations
        }[kind]
        # The deviation of n draws is itself uncertain by 1 / sqrt(2 n); five times that is never met by chance.
        tolerance = 5 / math.sqrt(2 * layer.weight.numel())
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=tolerance), name
        if kind == "xavier":
            assert float(layer.weight.detach().abs().max()) <= expected * math.sqrt(3)
        if kind == "truncated_normal":
            assert float(layer.weight.detach().abs().max()) <= 2 * 0.02
        if layer.bias is not None:
            assert layer.bias.abs().sum() == 0


@pytest.mark.parametrize(("activation", "gain"), [("leaky_relu", math.sqrt(2 / 1.0001)), ("tanh", 5 / 3)])
def test_he_takes_the_gain_of_the_activation(activation: str, gain: float) -> None:
    stem = make("small_resnet", width=512, initialisation="he", activation=activation).network.get_submodule("stem")
    assert isinstance(stem, nn.Conv2d)
    # 13,824 weights: three deviations of their deviation are 2 %, and between tanh and ReLU lie 18 %.
    assert float(stem.weight.detach().std()) == pytest.approx(gain / math.sqrt(512 * 9), rel=0.02)


def test_unnamed_each_network_starts_as_before_the_options_came() -> None:
    resnet, vit = make("small_resnet"), make("small_vit", stem="conv", pooling="mean")
    head = resnet.network.head.weight.detach()
    assert float(head.abs().max()) <= 1 / math.sqrt(64)  # torch's own for a linear layer, and none of the three
    assert float(head.std()) == pytest.approx(1 / math.sqrt(3 * 64), rel=0.05)
    for name, layer in layers(resnet):
        if isinstance(layer, nn.Conv2d):  # He's, by fan_out
            expected = math.sqrt(2 / (layer.weight.shape[0] * math.prod(layer.kernel_size)))
            tolerance = 5 / math.sqrt(2 * layer.weight.numel())
            assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=tolerance), name
    assert {type(module) for module in resnet.modules()} & set(ACTIVATIONS.values()) == {nn.ReLU}
    assert {type(module) for module in vit.network.get_submodule("blocks").modules()} & set(ACTIVATIONS.values()) == {
        nn.GELU
    }
    assert {type(module) for module in vit.network.get_submodule("stem").modules()} & set(ACTIVATIONS.values()) == {nn.ReLU}
    bound = math.sqrt(6 / (64 + 192))
    largest = float(vit.network.get_submodule("blocks.0.qkv").weight.detach().abs().max())  # type: ignore[operator]
    assert 0.99 * bound < largest <= bound


@pytest.mark.parametrize(
    ("architecture", "options", "sentence"),
    [
        ("small_resnet", {"activation": "swish"}, "it must be one of relu, leaky_relu, gelu, silu, tanh."),
        ("small_vit", {"initialisation": "lecun"}, "it must be one of xavier, he, truncated_normal."),
        ("small_vit", {"initialisation": True}, "it must be one of xavier, he, truncated_normal."),
        ("resnet18", {"initialisation": "he"}, "resnet18 is torchvision's, which has chosen its initialisation itself"),
        ("vit_b_16", {"activation": "silu"}, "vit_b_16 is torchvision's, which has chosen its activation itself"),
    ],
)
def test_another_name_and_another_network_are_refused(architecture: str, options: dict[str, Option], sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        make(architecture, **options)
    assert sentence in str(refusal.value)

"""The learning rate of each step, and decay that spares what it must."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visionloop.models import build
from visionloop.training.optimizers import Optimizer, learning_rate_factor, split_parameters


def test_warm_up_then_cosine() -> None:
    factors = [learning_rate_factor(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.001
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_a_warm_up_longer_than_the_training_takes_half_of_it() -> None:
    assert max(range(6), key=lambda step: learning_rate_factor(step, 6, 1000)) == 3
    assert learning_rate_factor(0, 1, 5) == 1


def test_norms_biases_and_positions_are_spared() -> None:
    model = build("small_vit", num_classes=3, image_size=(8, 8), mean=(0.5,) * 3, std=(0.2,) * 3, options={"depth": 1})
    decayed, spared = split_parameters(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(parameter)] for parameter in decayed} == {
        "network.stem.weight", "network.blocks.0.qkv.weight", "network.blocks.0.project.weight",
        "network.blocks.0.widen.weight", "network.blocks.0.narrow.weight", "network.head.weight",
    }  # fmt: skip
    assert "network.positions" in {names[id(parameter)] for parameter in spared}
    assert len(decayed) + len(spared) == len(names)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_decay_is_decoupled_from_the_gradient(kind: str) -> None:
    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone(), layer.bias.detach().clone()
    optimizer = Optimizer(layer, kind, weight_decay=0.5)  # type: ignore[arg-type]
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(2):
        optimizer.step(learning_rate=0.1)
    # Without a gradient only the decay is left: 1 - 0.1 * 0.5 at each step, no momentum of it, and none for the bias.
    assert torch.allclose(layer.weight, before[0] * 0.95**2)
    assert torch.equal(layer.bias, before[1])


def test_sgd_is_nesterov_with_momentum() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    optimizer = Optimizer(layer, "sgd", weight_decay=0.0)
    for _ in range(2):
        layer.weight.grad = torch.ones_like(layer.weight)
        optimizer.step(learning_rate=0.1)
    # Velocity 1, then 1.9; Nesterov steps by gradient + 0.9 * velocity: 1.9, then 2.71.
    assert layer.weight.item() == pytest.approx(-0.1 * (1.9 + 2.71))

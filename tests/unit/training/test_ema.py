"""The moving average against its closed form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from visionloop.training.ema import Ema


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def wander(net: nn.Sequential, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        net(torch.randn(8, 3, generator=generator))  # moves the statistics of the norm


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.9999])
def test_the_average_is_the_weighted_mean_of_the_closed_form(decay: float) -> None:
    net = model()
    ema = Ema(net, decay)
    seen = []
    for step in range(7):
        wander(net, step)
        ema.update()
        seen.append(net[0].weight.detach().double().clone())  # type: ignore[operator]
    factors = torch.tensor([(1 - decay) * decay ** (6 - step) for step in range(7)], dtype=torch.float64)
    wanted = (torch.stack(seen) * factors[:, None, None]).sum(0) / (1 - decay**7)
    torch.testing.assert_close(ema.weights()["0.weight"], wanted.float())


def test_the_first_update_gives_the_weights_themselves_and_none_gives_those_of_the_start() -> None:
    net = model()
    ema = Ema(net, 0.999)
    assert torch.equal(ema.weights()["0.weight"], net[0].weight)  # type: ignore[arg-type]
    wander(net, 0)
    ema.update()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in ema.weights().items())


def test_constant_weights_stay_as_they_are() -> None:
    net = model()
    ema = Ema(net, 0.99)
    for _ in range(50):
        ema.update()
    assert torch.equal(ema.weights()["0.weight"], net[0].weight)  # type: ignore[arg-type]


def test_buffers_are_those_of_now_and_nothing_is_shared_with_the_model() -> None:
    net = model()
    ema = Ema(net, 0.9)
    for step in range(3):
        wander(net, step)
        ema.update()
    weights = ema.weights()
    assert list(weights) == list(net.state_dict())
    assert torch.equal(weights["1.running_mean"], net[1].running_mean)  # type: ignore[arg-type]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for value in weights.values():
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert float(ema.weights()["0.weight"].abs().sum()) > 0
    net.load_state_dict(ema.weights())


def test_it_goes_on_from_its_state_with_the_same_bits() -> None:
    net = model()
    ema = Ema(net, 0.9)
    for step in range(3):
        wander(net, step)
        ema.update()
    saved = copy.deepcopy(ema.state_dict())
    other = model()
    resumed = Ema(other, 0.9)
    resumed.load_state_dict(saved)
    for step in range(3, 6):
        for one, average in ((net, ema), (other, resumed)):
            wander(one, step)
            average.update()
    assert all(torch.equal(resumed.weights()[name], ema.weights()[name]) for name, _ in net.named_parameters())

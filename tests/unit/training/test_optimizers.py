"""One step of each optimizer, against torch's own and values worked out by hand; who decays, who learns how fast."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.unit.training import worlds
from visionloop.models import Classifier, build
from visionloop.models.network import Network, Option
from visionloop.training.optimizers import Optimizer, batch_scale, groups, is_spared, muon_names, shares

KINDS = ("sgd", "adam", "adamw", "muon")


class Tiny(Network):
    """Two linear layers; the first bias asks for ten times the rate."""

    family = "cnn"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def learning_rate_scales(self) -> Mapping[str, float]:
        return {"body.bias": 10.0}


def tiny() -> Classifier:
    torch.manual_seed(0)
    return Classifier("tiny", Tiny(), mean=(0.5,) * 3, std=(0.2,) * 3)


def make(model: Classifier, kind: str, **changes: Any) -> Optimizer:
    params = worlds.params(optimizer=kind, **changes)
    optimizer: Optimizer = Optimizer(model, params, params.cnn, steps_images=16)
    return optimizer


def small(name: str, options: dict[str, Option] | None = None, size: int = 8) -> Classifier:
    torch.manual_seed(0)
    return build(name, num_classes=3, image_size=(size, size), mean=(0.5,) * 3, std=(0.2,) * 3, options=options or {})


def set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_a_matrix_moves_as_torchs_own_moves_it(kind: str) -> None:
    """Without a decay SGD is torch's; Adam's L2 and AdamW's decay are torch's as they are."""
    model = tiny()
    weight = nn.Parameter(model.network.head.weight.detach().clone())
    decay = 0.0 if kind == "sgd" else 0.3
    theirs: torch.optim.Optimizer
    if kind == "sgd":
        theirs = torch.optim.SGD([weight], momentum=0.8, nesterov=True)
    else:
        theirs = (torch.optim.Adam if kind == "adam" else torch.optim.AdamW)([weight], weight_decay=decay)
    optimizer = make(model, kind, momentum=0.8, weight_decay=decay)
    for seed, rate in enumerate((0.1, 0.05, 0.02)):
        set_gradients(model, seed)
        gradient = model.network.head.weight.grad
        assert gradient is not None
        weight.grad = gradient.clone()
        theirs.param_groups[0]["lr"] = rate
        theirs.step()
        optimizer.step(rate)
    assert torch.allclose(model.network.head.weight, weight, rtol=1e-6, atol=1e-7)


def test_sgd_is_nesterov_with_momentum() -> None:
    model = tiny()
    weight, before = model.network.head.weight, model.network.head.weight.detach().clone()
    optimizer = make(model, "sgd", weight_decay=0.0, momentum=0.9)
    for _ in range(2):
        weight.grad = torch.ones_like(weight)
        optimizer.step(0.1)
    # Velocity 1, then 1.9; Nesterov steps by gradient + 0.9 * velocity: 1.9, then 2.71.
    assert torch.allclose(weight, before - 0.1 * (1.9 + 2.71))


def test_sgd_without_momentum_takes_the_gradient() -> None:
    model = tiny()
    before = model.network.head.weight.detach().clone()
    optimizer = make(model, "sgd", weight_decay=0.0, momentum=0.0)
    set_gradients(model, 0)
    optimizer.step(0.1)
    assert torch.allclose(model.network.head.weight, before - 0.1 * model.network.head.weight.grad)  # type: ignore[operator]


@pytest.mark.parametrize("kind", ["sgd", "adamw", "muon"])
def test_decay_is_decoupled_from_the_gradient(kind: str) -> None:
    model = tiny()
    before = values(model)
    optimizer = make(model, kind, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(2):
        optimizer.step(0.1)
    # Without a gradient only the decay is left: 1 - 0.1 * 0.5 at each step, no momentum of it, and none for the biases.
    for name, value in values(model).items():
        assert torch.allclose(value, before[name] * (1 if name.endswith("bias") else 0.95**2)), name


def test_the_decay_of_adam_goes_through_its_gradient() -> None:
    model = tiny()
    before = model.network.head.weight.detach().clone()
    optimizer = make(model, "adam", weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.01)
    # The first step of Adam is the sign of what it is given, here of the weights themselves.
    assert torch.allclose(model.network.head.weight, before - 0.01 * before.sign(), atol=1e-6)


def test_norms_biases_positions_and_gains_are_spared() -> None:
    model = small("small_vit", {"depth": 1})
    found = {name for group in groups(model, 1.0) if group.decayed for name in group.names}
    assert found == {
        "network.stem.weight", "network.blocks.0.qkv.weight", "network.blocks.0.project.weight",
        "network.blocks.0.widen.weight", "network.blocks.0.narrow.weight", "network.head.weight",
    }  # fmt: skip
    assert sum(len(group.names) for group in groups(model, 1.0)) == len(list(model.parameters()))
    swin = small("swin_t", size=64)
    spared = {name for name, parameter in swin.named_parameters() if is_spared(name, parameter)}
    assert {name.rpartition(".")[2] for name in spared} == {"weight", "bias", "relative_position_bias_table"}
    assert all(parameter.ndim == 1 for name, parameter in swin.named_parameters() if name in spared and "table" not in name)
    convnext = small("convnext_tiny", size=64)
    assert all(is_spared(name, p) == (p.ndim not in {2, 4}) for name, p in convnext.named_parameters())


@pytest.mark.parametrize(("kind", "expected"), [("none", 0.01), ("linear", 0.04), ("sqrt", 0.02)])
def test_the_peak_grows_with_the_images_of_a_step(kind: str, expected: float) -> None:
    params = worlds.params(batch_scaling=kind, base_batch_size=32, learning_rate=0.01)
    assert Optimizer(tiny(), params, params.cnn, steps_images=128).peak == pytest.approx(expected)
    assert batch_scale(params, 32) == 1


def change(model: Classifier, kind: str, rate: float = 1e-3, **changes: Any) -> dict[str, float]:
    """By how much the largest number of each parameter changed in one step from gradients of 1."""
    before = values(model)
    optimizer = make(model, kind, weight_decay=0.0, **changes)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(rate)
    return {name: float((value - before[name]).abs().max()) for name, value in values(model).items()}


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_layer_decay_is_the_share_by_which_the_parameters_move(kind: str) -> None:
    model = small("small_vit", {"depth": 3})
    moved = change(model, kind, layer_decay=0.5)
    head = moved["network.head.weight"]
    for name, share in (
        ("network.norm.weight", 1), ("network.blocks.2.qkv.weight", 0.5), ("network.blocks.1.norm2.bias", 0.25),
        ("network.blocks.0.narrow.weight", 0.125), ("network.positions", 0.0625), ("network.stem.weight", 0.0625),
    ):  # fmt: skip
        assert moved[name] == pytest.approx(share * head, rel=1e-3), name


def test_a_network_may_ask_for_other_rates() -> None:
    assert shares(tiny(), 0.5) == {
        "network.body.weight": 0.5, "network.body.bias": 5.0, "network.head.weight": 1.0, "network.head.bias": 1.0,
    }  # fmt: skip
    moved = change(tiny(), "sgd")
    assert moved["network.body.bias"] == pytest.approx(10 * moved["network.body.weight"], rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_is_left_out(kind: str) -> None:
    model = small("small_resnet", {"width": 4})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("head" in name or "stages.1" in name)
    moved = change(model, kind)
    assert {name for name, value in moved.items() if value} == {n for n in moved if "head" in n or "stages.1" in n}


def test_muon_is_torchs_on_filters_as_matrices_but_for_the_rounding_to_bfloat16() -> None:
    model = small("small_resnet", {"width": 4, "stages": 1}).to(memory_format=torch.channels_last)
    start = values(model)
    optimizer = make(model, "muon", momentum=0.9, weight_decay=0.1)
    name = "network.stages.0.conv1.weight"
    matrix = nn.Parameter(start[name].reshape(4, 4 * 9).clone())
    theirs = torch.optim.Muon([matrix], lr=0.1, momentum=0.9, weight_decay=0.1)
    for seed, rate in enumerate((0.1, 0.03)):
        set_gradients(model, seed)
        gradient = dict(model.named_parameters())[name].grad
        assert gradient is not None
        matrix.grad = gradient.reshape(4, 36).clone()
        theirs.param_groups[0]["lr"] = rate
        theirs.step()  # type: ignore[no-untyped-call]
        optimizer.step(rate)
    found = values(model)[name]
    # A bfloat16 of about 1 is off by up to 0.004; the steps of the iteration blow that up a few times, the rates shrink it.
    assert torch.allclose(found, matrix.detach().view(4, 4, 3, 3), rtol=0, atol=0.13 * 0.02)
    assert float((found - start[name]).abs().max()) > 0.03  # what a step of twice the length or without decay would miss
    # The step itself: its singular values are near 1, as five Newton-Schulz steps bring them, whatever the gradient's.
    fresh = small("small_resnet", {"width": 4, "stages": 1})
    optimizer = make(fresh, "muon", momentum=0.9, weight_decay=0.0)
    set_gradients(fresh, 5)
    optimizer.step(0.1)
    singular = torch.linalg.svdvals((values(fresh)[name] - start[name]).flatten(1) / 0.1)
    assert float(singular.min()) > 0.6
    assert float(singular.max()) < 1.3


@pytest.mark.parametrize("leaf", ["blocks.0.widen.weight", "blocks.0.narrow.weight"])  # higher than wide, wider than high
def test_a_step_of_muon_turns_each_singular_value_as_its_polynomial_says(leaf: str) -> None:
    model = small("small_vit", {"depth": 1})
    weight = dict(model.named_parameters())["network." + leaf]
    start = weight.detach().clone()
    set_gradients(model, 3)
    assert weight.grad is not None
    left, singular, right = torch.linalg.svd(weight.grad.double(), full_matrices=False)
    singular = singular / weight.grad.double().norm()
    for _ in range(5):  # coefficients of arXiv:2502.16982
        singular = 3.4445 * singular - 4.7750 * singular**3 + 2.0315 * singular**5
    make(model, "muon", momentum=0.0, weight_decay=0.0).step(0.1)
    longer = max(1, weight.shape[0] / weight.shape[1]) ** 0.5
    assert torch.allclose((start - weight).double(), 0.1 * longer * (left * singular) @ right, rtol=0, atol=1e-6)


def test_muon_takes_hidden_matrices_and_sgd_the_rest() -> None:
    names = muon_names(small("small_vit", {"depth": 1}))
    assert {name.removeprefix("network.") for name in names} == {
        "stem.weight", "blocks.0.qkv.weight", "blocks.0.project.weight", "blocks.0.widen.weight", "blocks.0.narrow.weight",
    }  # fmt: skip
    mobile = small("mobilenet_v3_small", size=32)
    depthwise = {
        f"{name}.weight" for name, module in mobile.named_modules() if isinstance(module, nn.Conv2d) and module.groups > 1
    }
    assert len(depthwise) == 11
    assert not depthwise & muon_names(mobile)
    model = small("small_resnet", {"width": 4})
    before = model.network.head.weight.detach().clone()
    optimizer = make(model, "muon", weight_decay=0.0, momentum=0.9)
    set_gradients(model, 0)
    optimizer.step(0.1)
    assert torch.allclose(model.network.head.weight, before - 0.19 * model.network.head.weight.grad)  # type: ignore[operator]


def test_muon_without_a_hidden_matrix_is_sgd() -> None:
    model = small("small_resnet", {"width": 4})
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("head" in name)
    moved = change(model, "muon", rate=0.1, momentum=0.5)
    assert moved["network.head.weight"] == pytest.approx(0.15, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_state_read_back_goes_on_with_the_same_bits(kind: str, layout: torch.memory_format) -> None:
    def run(model: Classifier, optimizer: Optimizer, seeds: range) -> None:
        for seed in seeds:
            set_gradients(model, seed)
            optimizer.step(0.01 / (seed + 1))

    whole = small("small_resnet", {"width": 4}).to(memory_format=torch.channels_last)
    optimizer = make(whole, kind, layer_decay=0.8)
    run(whole, optimizer, range(2))
    buffer = io.BytesIO()
    torch.save({"model": whole.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    run(whole, optimizer, range(2, 5))

    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    again = small("small_resnet", {"width": 4}).to(memory_format=layout)
    again.load_state_dict(state["model"])
    restored = make(again, kind, layer_decay=0.8)
    restored.load_state_dict(state["optimizer"])
    run(again, restored, range(2, 5))
    expected = values(whole)
    assert all(torch.equal(value, expected[name]) for name, value in values(again).items())

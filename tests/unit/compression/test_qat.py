"""visionloop.compression.qat: what is rounded and how, what training with it gains, and what it leaves as it was."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.onnx_models import TRAIN, VAL, digits
from tests.torch_models import OPSET, badly_ranged, trained
from visionloop.compression.export import onnx_bytes, torch_answers
from visionloop.compression.graph import prepare
from visionloop.compression.parity import logit_error
from visionloop.compression.qat import Rounding, Tuned, fine_tune, rounded, rounded_weight
from visionloop.compression.quantize import Quantizer, Recipe, chained
from visionloop.compression.targets import profile
from visionloop.data.packing import PackedSplit
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import TrainingError
from visionloop.runtime import OnnxModel

DATA = digits()
TRAIN_SIDE = PackedSplit(DATA.images[TRAIN], DATA.labels[TRAIN], [str(index) for index in range(1257)])
VAL_SIDE = PackedSplit(DATA.images[VAL], DATA.labels[VAL], [str(index) for index in range(360)])
CALIBRATION = DATA.images[TRAIN][:70]  # not a multiple of a batch
TWO_BITS = Rounding(weight_max=1, activation_steps=15)  # far harsher than INT8: a weight is -1, 0 or 1 times its scale


def tuned(
    model: nn.Module, rounding: Rounding = TWO_BITS, *, epochs: int = 1, rate: float = 1e-3, images: int = 1257
) -> Tuned:
    side = PackedSplit(TRAIN_SIDE.images[:images], TRAIN_SIDE.labels[:images], TRAIN_SIDE.ids[:images])
    return fine_tune(model, side, VAL_SIDE, AugmentPolicy(), CALIBRATION, rounding=rounding, epochs=epochs, rate=rate)


def test_weights_are_rounded_by_output_channel_and_their_gradient_passes() -> None:
    weight = torch.tensor([[2.0, -1.1, 0.9], [0.02, 0.004, 0.016], [0.0, 0.0, 0.0]], requires_grad=True)
    found = rounded_weight(weight, 2)
    expected = np.array([[2, -1, 1], [0.02, 0, 0.02], [0, 0, 0]], np.float32)
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-7)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None and torch.equal(weight.grad, torch.ones(3, 3))


def test_a_factor_of_a_channel_as_of_a_folded_norm_changes_no_integer() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    factors = torch.tensor([0.25, 1.0, 8.0, -2.0]).view(4, 1, 1, 1)  # powers of two, so that float rounds nothing
    assert torch.equal(rounded_weight(weight * factors, 64), rounded_weight(weight, 64) * factors)


class Identity(nn.Module):
    """The mean level of each colour / 100 - 1, through a linear layer that changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)
        nn.init.eye_(self.layer.weight)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        values = images.float().mean((1, 2)) / 100 - 1
        return self.layer(values), values


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [
        (Rounding(activation_steps=4), [0, 0.5, 1]),  # from -1 to 1 in halves; beyond the range it is cut
        (Rounding(activation_steps=2, signed=True), [0, 0, 1]),  # -1, 0 and 1
    ],
)
def test_inputs_are_rounded_within_the_range_of_the_calibration_images(rounding: Rounding, expected: list[float]) -> None:
    levels = np.array([[[[0, 110, 200]]], [[[110, 130, 250]]]], dtype=np.uint8)  # -1, 0.1, 1 and 0.1, 0.3, 1.5
    model = Identity()
    with rounded(model, rounding) as forward:
        assert forward.watch(levels[:1]) == 3
        np.testing.assert_allclose(forward(torch.from_numpy(levels[1:]))[0][0].detach(), expected, atol=1e-6)
    np.testing.assert_allclose(torch_answers(model, levels[1:])[0], [[0.1, 0.3, 1.5]], atol=1e-6)


def test_the_simulation_answers_like_the_integers_of_onnx_runtime() -> None:
    """The network of which INT8 makes another one: simulated in torch it is that other one, by far the most part."""
    model, card = badly_ranged()
    quantizer = Quantizer(prepare(onnx_bytes(model, card=card, opset=OPSET)), CALIBRATION)
    int8 = quantizer.static(Recipe(chained(quantizer.graph.graph), seven_bits=True))  # exact on any processor
    images = DATA.images[VAL]
    integers = OnnxModel(int8, threads=1).run_all(images)[0]
    copied = copy.deepcopy(model)
    with rounded(copied, Rounding.of(profile("cpu"), "uint8")) as forward, torch.no_grad():
        forward.watch(CALIBRATION)
        simulated = forward(torch.from_numpy(images))[0].numpy()
    lost = logit_error(torch_answers(model, images)[0], integers)
    assert lost > 0.3
    assert logit_error(integers, simulated) < 0.5 * lost
    np.testing.assert_array_equal(torch_answers(copied, images)[0], torch_answers(model, images)[0])


def test_a_target_gives_the_integers() -> None:
    assert Rounding.of(profile("cpu-vnni"), "uint8") == Rounding(127, 255, signed=False)
    assert Rounding.of(profile("cpu"), "uint8") == Rounding(64, 255, signed=False)
    assert Rounding.of(profile("tensorrt"), "int8") == Rounding(127, 255, signed=True)


def test_training_wins_back_what_rounding_lost_and_changes_nothing_else() -> None:
    model, _ = trained("cnn")
    before = {name: values.clone() for name, values in model.state_dict().items()}
    state = torch.random.get_rng_state()
    found = tuned(model, epochs=2)
    assert found.before.accuracy < 0.3
    assert found.after.accuracy > found.before.accuracy + 0.3
    assert found.best_epoch == 2
    assert str(found).endswith("before, both with rounding simulated")

    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(found.model.state_dict()) == list(before)
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())
    learnt = {name for name, values in found.model.state_dict().items() if not torch.equal(values, before[name])}
    assert {"network.stem.weight", "network.head.bias"} <= learnt
    assert not [name for name in learnt if "running" in name or "batches" in name]
    # What comes out is a plain network, that rounds no more: in float it answers otherwise than it was trained to.
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in found.model.modules())


def test_equal_arguments_give_equal_bits() -> None:
    model, _ = trained("cnn")
    first, second = (tuned(model, images=256).model.state_dict() for _ in range(2))
    assert all(torch.equal(values, second[name]) for name, values in first.items())


def test_where_no_epoch_is_better_the_network_stays_as_it_came() -> None:
    model, _ = trained("cnn")
    found = tuned(model, Rounding(), rate=1e-12, images=128)
    assert (found.best_epoch, found.before) == (0, found.after)
    assert all(torch.equal(values, model.state_dict()[name]) for name, values in found.model.state_dict().items())
    assert str(found) == f"1 epochs, none of which was better than the {found.before.accuracy:.2%} of val before"


def test_a_loss_that_is_not_finite_is_told_with_the_parameter_to_lower() -> None:
    with pytest.raises(
        TrainingError, match=r"not finite in epoch 1; lower quantize\.qat_rate, or set quantize\.qat_epochs to 0"
    ):
        tuned(trained("cnn")[0], rate=1e35, images=128)

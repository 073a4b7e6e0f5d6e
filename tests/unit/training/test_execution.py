"""The choice follows the seconds that were measured, changes no weight and no name, and never compiles without end."""

from __future__ import annotations

import copy
import functools
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unit.training import worlds
from visionloop import compiler
from visionloop.errors import TrainingError
from visionloop.models import Classifier, build
from visionloop.models.network import Network
from visionloop.training.execution import Execution, Forward, candidates, compile_pays, measure_execution, pick

CPU = torch.device("cpu")
PLAIN, CONTIGUOUS = Execution(), Execution(layout="contiguous")
BF16 = Execution("bf16")


class Tiny(Network):
    """Two linear layers, which compile in seconds."""

    family = "vit"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3 * 8 * 8, 16)
        self.head = nn.Linear(16, 3)

    def embed(self, images: Tensor) -> Tensor:
        return F.gelu(self.body(images.flatten(1)))


def tiny() -> Classifier:
    torch.manual_seed(0)
    return Classifier("tiny", Tiny(), mean=(0.5,) * 3, std=(0.25,) * 3).train()


def small_cnn() -> Classifier:
    torch.manual_seed(0)
    return build(
        "small_resnet", num_classes=3, image_size=(8, 8), mean=(0.4,) * 3, std=(0.2,) * 3, options={"width": 8, "stages": 2}
    ).train()


def batch(count: int = 16) -> tuple[Tensor, Tensor]:
    data = worlds.split(count, 0)
    return torch.from_numpy(data.images), torch.from_numpy(data.labels)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({PLAIN: 1.0, BF16: 0.5}, BF16),
        ({PLAIN: 1.0, BF16: 2.0}, PLAIN),
        ({PLAIN: 1.04, CONTIGUOUS: 1.03, BF16: 1.0}, PLAIN),  # within 5 % of the fastest the simplest
        ({PLAIN: 1.06, CONTIGUOUS: 1.03, BF16: 1.0}, CONTIGUOUS),
        ({PLAIN: 1.06, CONTIGUOUS: float("inf"), BF16: 1.0}, BF16),
    ],
)
def test_the_simplest_within_five_percent_of_the_fastest(seconds: dict[Execution, float], best: Execution) -> None:
    assert pick(seconds) == best


@pytest.mark.parametrize(
    ("compiled", "steps", "pays"), [(0.9, 401, True), (0.9, 399, False), (1.1, 10_000, False), (1.0, 10_000, False)]
)
def test_compiling_forty_seconds_pays_after_four_hundred_tenths_saved(compiled: float, steps: int, pays: bool) -> None:
    assert compile_pays(1.0, compiled, 40.0, steps) is pays


def test_a_candidate_whose_first_step_is_hopeless_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of the steps of fp32 and bf16 in turn: of 30 s the first is enough, of 1.9 s the first may be preparation."""
    for long, rounds in ((30.0, 1), (1.9, 3)):
        taken: list[str] = []

        def step(forward: Forward, images: Tensor, labels: Tensor, long: float = long, taken: list[str] = taken) -> float:
            taken.append(forward._execution.precision)
            return 0.2 if taken[-1] == "fp32" else long

        monkeypatch.setattr("visionloop.training.execution._step_seconds", step)
        chosen, note = measure_execution(tiny(), *batch(), worlds.params(precision="auto"), steps=100)
        assert chosen == PLAIN
        assert note == f"Steps run fp32 channels_last: 200 ms for 16 images, against {long * 1000:.0f} bf16 channels_last."
        assert taken.count("bf16") == rounds
        assert taken.count("fp32") == 7


def test_the_first_candidate_is_not_judged_by_what_a_process_loads_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([9.0, 0.1, *[0.1] * 100])
    monkeypatch.setattr("visionloop.training.execution._step_seconds", lambda *_: next(seconds))
    assert measure_execution(tiny(), *batch(), worlds.params(precision="auto"), steps=100)[0] == PLAIN


def test_what_params_give_is_not_measured() -> None:
    model, (images, labels) = small_cnn(), batch()
    given = worlds.params(precision="bf16", layout="contiguous")
    assert measure_execution(model, images, labels, given, steps=1) == (Execution("bf16", "contiguous"), "")
    assert candidates(worlds.params(precision="auto"), CPU) == [PLAIN, BF16]
    every = candidates(worlds.params(precision="auto", layout="auto"), CPU)
    assert [str(one) for one in every] == ["fp32 channels_last", "fp32 contiguous", "bf16 channels_last", "bf16 contiguous"]


def test_measuring_leaves_model_and_random_state_and_names_every_candidate() -> None:
    model, (images, labels) = small_cnn(), batch()
    before, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    params = worlds.params(precision="auto", layout="auto", compile="auto")
    best, said = measure_execution(model, images, labels, params, steps=3)
    assert said.startswith(f"Steps run {best}: ")
    assert all(" ms for 16 images, against " in said and str(one) in said for one in candidates(params, CPU))
    assert "compiling does not pay below 600 s" in said or "no C++ compiler" in said
    assert not best.compiled
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_layouts_give_the_same_logits_and_bf16_close_ones(kind: str) -> None:
    images = batch()[0].to(getattr(torch, kind))
    with torch.inference_mode():
        expected, other, rounded = (
            execution.prepare(small_cnn().eval())(images)[0] for execution in (PLAIN, CONTIGUOUS, BF16)
        )
    assert torch.allclose(other, expected, atol=1e-5)  # sums in another order
    assert rounded.dtype == torch.float32
    assert 1e-5 < float((rounded - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_the_maps_lie_as_the_layout_says() -> None:
    for execution, inner in ((PLAIN, 1), (CONTIGUOUS, 0)):
        model = small_cnn()
        strides: list[tuple[int, ...]] = []
        network: Any = model.network
        network.stem.register_forward_hook(lambda module, inputs, output, seen=strides: seen.append(output.stride()))
        execution.prepare(model)(batch()[0])
        assert (strides[0][1] == 1) == bool(inner), execution


def test_the_choice_goes_through_a_checkpoint() -> None:
    for execution in (PLAIN, CONTIGUOUS, Execution("bf16", "contiguous", True)):
        assert Execution.from_state(execution.state_dict()) == execution


def test_without_a_compiler_auto_goes_on_and_always_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    model, (images, labels) = small_cnn(), batch()
    best, said = measure_execution(model, images, labels, worlds.params(compile="auto"), steps=10**9)
    assert best == PLAIN
    assert said.startswith("Steps are not compiled: there is no C++ compiler 'no-such-compiler'; install one")
    with pytest.raises(TrainingError, match=r"train\.compile is 'always', but there is no C\+\+ compiler"):
        Execution(compiled=True).prepare(model)


@pytest.mark.parametrize(("width", "threads", "risky"), [(8, 2, True), (8, 1, False), (16, 2, False)])
def test_narrow_convolutions_are_not_compiled_on_several_threads(width: int, threads: int, risky: bool) -> None:
    """What was seen to crash is named; 600 s of steps would otherwise be tried."""
    options = {"width": width, "stages": 2}
    model = build("small_resnet", num_classes=3, image_size=(8, 8), mean=(0.4,) * 3, std=(0.2,) * 3, options=options).train()
    images, labels = batch()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _, said = measure_execution(model, images, labels, worlds.params(compile="auto"), steps=1)
        always, warned = measure_execution(model, images, labels, worlds.params(compile="always"), steps=1)
    finally:
        torch.set_num_threads(before)
    assert ("network.stem has 3 and 8 channels" in said) == risky
    short = re.search(r"Steps are not compiled: \d+ s of steps are to come", said) is not None
    assert short != risky or bool(compiler.missing())
    assert always == Execution(compiled=True)
    assert warned.startswith("Steps are compiled as asked, but network.stem has 3 and 8") == risky


@pytest.mark.skipif(bool(compiler.missing()), reason=f"torch.compile cannot work here: {compiler.missing()}")
def test_compiled_steps_keep_names_and_gradients_and_have_two_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batch sizes get a graph each; a third size, validation and a frozen gradient run as they are.

    The graphs are torch's, the code that runs them is not compiled: that alone would take 20 to 60 s.
    """
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    plain, compiled = tiny(), tiny()
    forward = Execution(compiled=True).prepare(compiled)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for size in (16, 15, 7, 16):
        images, labels = batch(size)
        F.cross_entropy(plain(images)[0], labels).backward()  # type: ignore[no-untyped-call]
        F.cross_entropy(forward(images)[0], labels).backward()  # type: ignore[no-untyped-call]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)
    with torch.inference_mode():
        forward(batch(5)[0])
    compiled.eval()
    forward(batch(4)[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2

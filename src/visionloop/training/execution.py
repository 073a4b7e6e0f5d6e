"""How steps are computed: the precision, the layout of the maps in memory, compiled or not; `auto` is settled by timing.

No rule replaces the measurement: on two CPU cores bf16 nearly doubles a ResNet's steps and halves a MobileNet's. Candidates
take turns, step by step, so that another program slows all of them alike, and the simplest one within 5 % of the fastest is
taken. Does not cover float16, which needs loss scaling and gains nothing over bf16 on any device of the last years.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visionloop import compiler
from visionloop.config import TrainParams
from visionloop.errors import TrainingError
from visionloop.models import Classifier

Precision = Literal["fp32", "bf16"]
Layout = Literal["channels_last", "contiguous"]

# A candidate must be this much faster than a simpler one: less is within what two measurements of one candidate differ by.
TOLERANCE = 0.05
_WARM_UP = 1
_ROUNDS = 6
_LEAST_ROUNDS = 2
# After the least rounds no round begins later than this; of large networks a step takes seconds.
_SECONDS = 20.0
# What takes this many times as long as the fastest after the least rounds is not tried again.
_HOPELESS = 1.5
# Nor is what takes this many times as long, and so many seconds, in its first step, though that also prepares what later
# ones find: without instructions for bf16, a step of 256 images of a ViT took 13 times as long, and three of them 89 s.
_HOPELESS_AT_ONCE, _SECONDS_AT_ONCE = 4.0, 2.0
# The batches of an epoch have two sizes, and each gets a graph of its own: one graph for every size is slower, and more
# graphs than these would compile for minutes without end.
_GRAPHS = 2
# Compiling took 20 to 60 s for the networks here, and saved at most a fifth of a step: a trial below ten minutes of
# training cannot end well.
_LEAST_SECONDS_TO_COMPILE = 600.0
# Channels of a vector of 32-bit floats in AVX-512. With torch 2.15 and two threads, compiled convolutions of 8 and of 12
# channels wrote past their memory ("double free or corruption") within 20 steps, with batch norm and without; 16, 32, 64 and
# ResNet-18 did not in any trial, nor did one thread.
_VECTOR = 16


@dataclass(frozen=True, slots=True)
class Execution:
    """How the steps of a training are computed.

    >>> execution = Execution("bf16")
    >>> forward = execution.prepare(model)
    >>> logits, embedding = forward(images)
    """

    precision: Precision = "fp32"
    layout: Layout = "channels_last"
    compiled: bool = False

    def prepare(self, model: Classifier) -> Forward:
        """Bring the model's weights into the layout, in place, and give what steps and validation call."""
        return Forward(model, self)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which forward passes run; `Forward` enters it by itself."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: after a resume nothing is measured again, since another answer would give other bits."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Execution:
        """What `state_dict` gave."""
        return cls(**state)

    def __str__(self) -> str:
        return f"{self.precision} {self.layout}{' compiled' if self.compiled else ''}"


class Forward:
    """A model as a training calls it; the model itself, its parameters and their names stay as they are.

    Only steps run compiled: where the model is in eval mode or no gradient is wanted, and for batches of a third size, it
    runs as it is, since each of these would be a graph of its own.
    """

    def __init__(self, model: Classifier, execution: Execution) -> None:
        last = execution.layout == "channels_last"
        self._model = model.to(memory_format=torch.channels_last if last else torch.contiguous_format)
        self._execution = execution
        self._compiled: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
        self._graphs: set[tuple[Any, ...]] = set()
        if execution.compiled:
            if lack := compiler.missing():
                raise TrainingError(f"train.compile is 'always', but {lack}; or set it to 'never'.")
            # torch keeps the graphs of all models with one forward together, and compiles no more than eight.
            torch.compiler.reset()
            self._compiled = torch.compile(model.forward, dynamic=False)

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, H, W, 3], uint8 or float32 of 0 to 255, to (logits float32 [N, K], embedding float32 [N, D]).

        Raises:
            TrainingError: torch.compile failed.
        """
        if self._execution.layout == "contiguous":
            # The model sees [N, 3, H, W] without gaps once it has turned this view.
            images = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
        with self._execution.autocast(images.device):
            if self._compiled is None or not self._has_graph(images):
                return _pair(self._model(images))
            try:
                return _pair(self._compiled(images))
            except torch._dynamo.exc.TorchDynamoException as error:
                raise TrainingError(
                    f"torch.compile failed ({_first_line(error)}); set train.compile to 'never', or report it to PyTorch."
                ) from error

    def _has_graph(self, images: Tensor) -> bool:
        if not (self._model.training and torch.is_grad_enabled()):
            return False
        key = (images.shape, images.dtype, images.requires_grad)
        if key not in self._graphs and len(self._graphs) < _GRAPHS:
            self._graphs.add(key)
        return key in self._graphs


def measure_execution(
    model: Classifier, images: Tensor, labels: Tensor, params: TrainParams, *, steps: int
) -> tuple[Execution, str]:
    """What `precision`, `layout` and `compile` of `params` come to, and a sentence with the times, "" where all is given.

    The model is in training mode, on its device, and is left as it was, as are torch's random states. `images` [N, H, W, 3]
    and `labels` int64 [N] are a batch as steps get it; `steps` are those to come, by which a compilation must earn itself.

    Raises:
        TrainingError: `compile` is "always" and cannot work.
    """
    device = images.device
    choices = candidates(params, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seconds = {choices[0]: 0.0} if len(choices) == 1 else _race(model, choices, images, labels)
        best = pick(seconds)
        said = ""
        if len(choices) > 1:
            others = ", ".join(f"{value * 1000:.0f} {choice}" for choice, value in seconds.items() if choice != best)
            said = f"Steps run {best}: {seconds[best] * 1000:.0f} ms for {len(labels)} images, against {others}."
        if params.compile == "always":
            best = replace(best, compiled=True)
            if risk := _unsafe(model, device):
                said = f"{said} Steps are compiled as asked, but {risk}.".strip()
        elif params.compile == "auto" and params.initial_scale < 1:
            said = f"{said} Steps are not compiled: initial_scale makes images of several sizes.".strip()
        elif params.compile == "auto":
            best, more = _try_compile(model, best, images, labels, steps)
            said = f"{said} {more}".strip()
    return best, said


def candidates(params: TrainParams, device: torch.device) -> list[Execution]:
    """What `precision` and `layout` allow on this device, the simpler ones first; none is compiled."""
    precisions: Sequence[Precision] = ("fp32", "bf16") if params.precision == "auto" else (params.precision,)
    if device.type == "cuda" and len(precisions) > 1 and not torch.cuda.is_bf16_supported(including_emulation=False):
        precisions = ("fp32",)
    layouts: Sequence[Layout] = ("channels_last", "contiguous") if params.layout == "auto" else (params.layout,)
    return [Execution(precision, layout) for precision in precisions for layout in layouts]


def pick(seconds: Mapping[Execution, float]) -> Execution:
    """The first, which is the simplest, of those whose seconds are within `TOLERANCE` of the least."""
    least = min(seconds.values())
    return next(choice for choice, value in seconds.items() if value <= least * (1 + TOLERANCE))


def compile_pays(plain: float, compiled: float, compiling: float, steps: int) -> bool:
    """Whether `steps` steps save more seconds than compiling takes, all three in seconds."""
    return (plain - compiled) * steps > compiling


def _race(model: Classifier, choices: Sequence[Execution], images: Tensor, labels: Tensor) -> dict[Execution, float]:
    """The least seconds of a step of each candidate: what another program takes of the machine only ever adds time."""
    running = {choice: choice.prepare(copy.deepcopy(model)) for choice in choices}
    least = dict.fromkeys(choices, float("inf"))
    start = time.perf_counter()
    for turn in range(_WARM_UP + _ROUNDS):
        if turn >= _WARM_UP + _LEAST_ROUNDS and time.perf_counter() - start > _SECONDS:
            break
        taken = {choice: _step_seconds(forward, images, labels) for choice, forward in running.items()}
        if turn < _WARM_UP:
            # The first candidate's first step is no measure: it pays for what a process loads once.
            limit = max(_SECONDS_AT_ONCE, _HOPELESS_AT_ONCE * min(taken.values()))
            slow = {choice: value for choice, value in taken.items() if value > limit and choice != choices[0]}
            least |= slow
            running = {choice: forward for choice, forward in running.items() if choice not in slow}
            continue
        least |= {choice: min(least[choice], value) for choice, value in taken.items()}
        if turn >= _WARM_UP + _LEAST_ROUNDS - 1:
            limit = _HOPELESS * min(least.values())
            running = {choice: forward for choice, forward in running.items() if least[choice] <= limit}
    return least


def _try_compile(model: Classifier, plain: Execution, images: Tensor, labels: Tensor, steps: int) -> tuple[Execution, str]:
    """`plain`, compiled where that pays, and a sentence."""
    if lack := compiler.missing() or _unsafe(model, images.device):
        return plain, f"Steps are not compiled: {lack}."
    forward = plain.prepare(copy.deepcopy(model))
    seconds = min(_step_seconds(forward, images, labels) for _ in range(_WARM_UP + _LEAST_ROUNDS))
    if seconds * steps < _LEAST_SECONDS_TO_COMPILE:
        return plain, (
            f"Steps are not compiled: {seconds * steps:.0f} s of steps are to come, and compiling does not pay below "
            f"{_LEAST_SECONDS_TO_COMPILE:.0f} s."
        )
    compiled = replace(plain, compiled=True)
    try:
        faster = compiled.prepare(copy.deepcopy(model))
        compiling = _GRAPHS * _step_seconds(faster, images, labels)
    except TrainingError as error:
        return plain, f"Steps are not compiled: {error}"
    pairs = [(_step_seconds(forward, images, labels), _step_seconds(faster, images, labels)) for _ in range(_ROUNDS)]
    before, after = (min(column) for column in zip(*pairs, strict=True))
    pays = compile_pays(before, after, compiling, steps)
    return (compiled if pays else plain), (
        f"Steps are {'' if pays else 'not '}compiled: that makes {after * 1000:.0f} ms of {before * 1000:.0f} and takes "
        f"{compiling:.0f} s, which the {steps:,} steps to come {'' if pays else 'do not '}earn back."
    )


def _unsafe(model: Classifier, device: torch.device) -> str:
    """Why compiled steps may crash, as the end of a sentence; "" where no reason is known."""
    if device.type != "cpu" or torch.get_num_threads() == 1:
        return ""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and (
            module.out_channels % _VECTOR or (module.in_channels != 3 and module.in_channels % _VECTOR)
        ):
            return (
                f"{name} has {module.in_channels} and {module.out_channels} channels, and torch.compile has crashed on a "
                f"CPU with several threads where they are no multiples of {_VECTOR}"
            )
    return ""


def _step_seconds(forward: Forward, images: Tensor, labels: Tensor) -> float:
    """Forward and backward; the update is the same for all candidates."""
    _wait(images.device)
    start = time.perf_counter()
    F.cross_entropy(forward(images)[0], labels).backward()  # type: ignore[no-untyped-call]
    _wait(images.device)
    taken = time.perf_counter() - start
    forward._model.zero_grad(set_to_none=True)
    return taken


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _pair(answer: Any) -> tuple[Tensor, Tensor]:
    logits, embedding = answer
    return logits, embedding


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]

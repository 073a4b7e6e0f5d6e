"""Quantization-aware training: a trained network learns to bear the rounding that INT8 brings.

Weights and inputs of the layers are rounded in the forward pass as integers would be, and the gradient passes as if they
were not (Jacob et al. 2018, arXiv:1712.05877). The network learns its own float answers again, and the labels beside them.
It stays in evaluation mode: batch norms keep their statistics, nothing is dropped, and what is trained is the graph that
will be quantized.

Does not cover: the integers themselves, which the `search` makes of the trained network; products of two activations, the
projections into queries, keys and values of torchvision's ViTs, and sums, which are trained in float. Has not run on a GPU.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from visionloop.compression.targets import Activations, Profile
from visionloop.data.packing import PackedSplit
from visionloop.data.policy import AugmentPolicy
from visionloop.errors import TrainingError
from visionloop.progress import note, track
from visionloop.runtime import Images
from visionloop.training.batches import Batch, batch_sizes, plain_batches, seed_of, to_device, train_batches
from visionloop.training.losses import distillation
from visionloop.training.validation import Scores, scores, tally

_BATCH = 64
_CALIBRATION_BATCH = 64
_LABELS_SHARE = 0.5  # of the loss; the rest is the float network's answers
_LEAST_SCALE = 1e-12  # of a channel or a map that is all zeros


@dataclass(frozen=True, slots=True)
class Rounding:
    """The integers that are simulated; `of` gives those of a target."""

    weight_max: int = 127  # the largest integer of a weight, the least is its negative; 64 is called 7 bits
    activation_steps: int = 255  # from the least to the largest value
    signed: bool = False  # activations: a range around 0, as TensorRT wants it, instead of one from least to largest

    @classmethod
    def of(cls, profile: Profile, activations: Activations) -> Self:
        """As `quantize.Quantizer` makes them for a target."""
        return cls(64 if profile.saturates else 127, signed=activations == "int8")


@dataclass(frozen=True)
class Tuned:
    """A network after quantization-aware training, on the CPU and in evaluation mode."""

    model: nn.Module
    best_epoch: int  # whose weights these are; 0 where none was better on val than the network as it came
    epochs: int
    before: Scores  # on val, rounded, as it came
    after: Scores  # of the best epoch

    def __str__(self) -> str:
        """What training came to, as the report says it."""
        if not self.best_epoch:
            return f"{self.epochs} epochs, none of which was better than the {self.before.accuracy:.2%} of val before"
        return (
            f"{self.after.accuracy:.2%} of val after epoch {self.best_epoch} of {self.epochs}, "
            f"{self.before.accuracy:.2%} before, both with rounding simulated"
        )


def fine_tune(
    model: nn.Module,
    train_data: PackedSplit,
    val_data: PackedSplit,
    policy: AugmentPolicy,
    calibration: Images,
    *,
    rounding: Rounding,
    epochs: int,
    rate: float,
    seed: int = 0,
    device: torch.device | None = None,
) -> Tuned:
    """Train a copy of `model` for `epochs` with its rounding simulated, and keep the best epoch on val.

    `model` maps uint8 [N, H, W, 3] to logits [N, K] and embedding [N, D], is in evaluation mode and stays as it is. The
    ranges of activations are those of the `calibration` images, set anew by each epoch's weights. `rate` is that of Adam
    (arXiv:1412.6980) at the first step and falls to 0 by a cosine. Best is the best accuracy, among equals the lowest loss.
    On the CPU equal arguments give equal bits; torch's random state stays as it was.

    >>> fine_tune(model, train, val, policy, images, rounding=Rounding(), epochs=2, rate=1e-4).best_epoch
    2

    Raises:
        TrainingError: the loss is not finite.
    """
    device = device or torch.device("cpu")
    teacher = copy.deepcopy(model).eval().requires_grad_(False).to(device)
    student = copy.deepcopy(model).eval().to(device)
    learnt = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learnt, rate)
    steps = len(batch_sizes(len(train_data.labels), _BATCH)) * epochs
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), rounded(student, rounding) as forward:
        torch.manual_seed(seed_of(seed, 0, 3))

        def judge() -> Scores:
            classes = forward.watch(calibration)
            return scores(tally(forward, to_device(plain_batches(val_data, _BATCH), device), classes, device))

        before = best = judge()
        kept, best_epoch = _weights(student), 0
        for epoch in range(1, epochs + 1):
            batches = train_batches(train_data, policy, batch_size=_BATCH, seed=seed, epoch=epoch)
            shown = track(batches, f"training with INT8's rounding, epoch {epoch}/{epochs}", len(train_data.labels), _size)
            total = torch.zeros((), device=device)
            for batch in to_device(iter(shown), device):
                with torch.no_grad():
                    wanted = teacher(batch.images)[0]
                loss = _loss(forward(batch.images)[0], wanted, batch)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += loss.detach()
            if not math.isfinite(float(total)):
                raise TrainingError(
                    f"The loss of quantization-aware training is not finite in epoch {epoch}; lower quantize.qat_rate, or "
                    "set quantize.qat_epochs to 0."
                )
            found = judge()
            note(f"with INT8's rounding: {found.accuracy:.2%} of val after epoch {epoch}, {before.accuracy:.2%} before")
            if (found.accuracy, -found.loss) > (best.accuracy, -best.loss):
                best, best_epoch, kept = found, epoch, _weights(student)
    student.load_state_dict(kept)
    return Tuned(student.cpu(), best_epoch, epochs, before, best)


class Rounded:
    """A network called with its weights and the inputs of its layers rounded."""

    def __init__(self, model: nn.Module, rounding: Rounding) -> None:
        self._model = model
        self._most = rounding.weight_max
        self._layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
        self._inputs = {id(module): _Range(rounding) for module in model.modules()}
        self._watching = False
        self._convolved: list[Tensor] = []  # outputs of convolutions in the pass that is watched

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images uint8 [N, H, W, 3] to (logits [N, K], embedding [N, D]), as integers would nearly answer."""
        weights = {f"{name}.weight": rounded_weight(layer.weight, self._most) for name, layer in self._layers.items()}
        logits, embedding = torch.func.functional_call(self._model, weights, (images,))
        return logits, embedding

    @torch.no_grad()
    def watch(self, images: Images) -> int:
        """Set the ranges from what the float network makes of `images` uint8 [N, H, W, 3]; the number of its logits."""
        for known in self._inputs.values():
            known.clear()
        device = next(self._model.parameters()).device
        self._watching = True
        for start in range(0, len(images), _CALIBRATION_BATCH):
            self._convolved.clear()
            logits, _ = self._model(torch.from_numpy(images[start : start + _CALIBRATION_BATCH]).to(device))
        self._watching = False
        self._convolved.clear()
        return int(logits.shape[1])

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """What a layer gets instead of its inputs; None: the same."""
        values, *others = inputs
        known = self._inputs[id(module)]
        if not self._watching:
            return (known.rounded(values), *others)
        # A batch norm behind a convolution is folded into it, and no number is rounded between them.
        if not (isinstance(module, _BatchNorm) and any(values is output for output in self._convolved)):
            known.widen(values)
        return None

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Remember what a convolution gave."""
        if self._watching:
            self._convolved.append(output)


class _Range:
    """The least and the largest value of a layer's inputs, and the rounding between them."""

    def __init__(self, rounding: Rounding) -> None:
        self._rounding = rounding
        self.clear()

    def clear(self) -> None:
        """Nothing was seen."""
        self._low = self._high = 0.0  # a range without 0 has no integer for padding
        self._seen = False

    def widen(self, values: Tensor) -> None:
        """Take values in."""
        low, high = torch.aminmax(values)
        self._low, self._high, self._seen = min(self._low, float(low)), max(self._high, float(high)), True

    def rounded(self, values: Tensor) -> Tensor:
        """Values to the nearest integer and back; as they are where none was seen."""
        if not self._seen:
            return values
        steps = self._rounding.activation_steps
        if self._rounding.signed:
            most = steps // 2
            scale = max(-self._low, self._high, _LEAST_SCALE) / most
            return torch.fake_quantize_per_tensor_affine(values, scale, 0, -most, most)
        scale = max(self._high - self._low, _LEAST_SCALE) / steps
        return torch.fake_quantize_per_tensor_affine(values, scale, round(-self._low / scale), 0, steps)


@contextmanager
def rounded(model: nn.Module, rounding: Rounding) -> Iterator[Rounded]:
    """`model` as it answers with rounding; at the end of the block nothing of it is left in the model.

    >>> with rounded(model, Rounding()) as forward:
    ...     forward.watch(calibration)
    ...     logits, embedding = forward(images)
    """
    forward = Rounded(model, rounding)
    handles = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, _BatchNorm)):
            handles.append(module.register_forward_pre_hook(forward.before))
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(forward.after))
    try:
        yield forward
    finally:
        for handle in handles:
            handle.remove()


def rounded_weight(weight: Tensor, most: int) -> Tensor:
    """Weights [O, ...] to integers from -`most` to `most` and back, with a scale for each output channel.

    A batch norm that is folded into them multiplies a channel and its scale alike, so it changes no integer.
    """
    scale = weight.detach().flatten(1).abs().amax(1).clamp_min(_LEAST_SCALE) / most
    return torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros_like(scale, dtype=torch.int32), 0, -most, most)


def _loss(logits: Tensor, wanted: Tensor, batch: Batch) -> Tensor:
    own = batch.loss(lambda labels: F.cross_entropy(logits, labels, reduction="none"))
    return _LABELS_SHARE * own + (1 - _LABELS_SHARE) * distillation(logits, wanted, temperature=1.0)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: values.detach().clone() for name, values in model.state_dict().items()}


def _size(batch: Batch) -> int:
    return len(batch.labels)

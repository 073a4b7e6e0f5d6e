"""The learning-rate finder: one short training whose rate grows with every step, and what its losses say.

The range test of Smith 2015 (arXiv:1506.01186), with the rate growing by a constant factor, as in fastai. It asks about the
network, the optimizer, the batches and the loss of params.yaml; teacher, attacks and averaging are left out, and so is the
schedule. It answers for the first steps of a training from its first weights; what 30 epochs like best may differ by a
factor of two or three.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from visionloop.config import TrainParams
from visionloop.data.packing import PackedMeta, PackedSplit
from visionloop.errors import ConfigError, TrainingError
from visionloop.models import Classifier, Family
from visionloop.models.devices import choose_device
from visionloop.progress import track
from visionloop.training.batches import Batch, seed_of, train_batches
from visionloop.training.building import classifier_for
from visionloop.training.execution import Execution
from visionloop.training.freezing import apply_freeze
from visionloop.training.losses import Loss
from visionloop.training.optimizers import Optimizer
from visionloop.training.resizing import check_sizes, resized, sizes

Floats = npt.NDArray[np.float64]

LOWEST: Final = 1e-6
HIGHEST: Final = 10.0
STEPS: Final = 150
# A loss of this many times the least one is not coming back: fastai's rule.
_DIVERGED = 4.0
# The noise of batches is averaged over about this share of the sweep, half a decade of the usual seven.
_SMOOTHING = 1 / 30
_LEAST_STEPS = 20


@dataclass(frozen=True, slots=True)
class RateSweep:
    """A finished sweep; rates are what `learning_rate` would be, before `batch_scaling`."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]  # of the batch at each step, before the step
    smooth: tuple[float, ...]
    suggestion: float | None  # None where the loss never fell
    configured: float


def find_rate(
    family: Family,
    data: PackedSplit,
    meta: PackedMeta,
    params: TrainParams,
    *,
    lowest: float = LOWEST,
    highest: float = HIGHEST,
    steps: int = STEPS,
) -> RateSweep:
    """Train the family's network afresh for at most `steps` steps, from the rate `lowest` to `highest`.

    It stops once the loss is four times its least. The caller's random state is left as it was, and nothing is kept.

    Raises:
        ConfigError: the range is empty, or has too few steps; or see `visionloop.models.build`.
        TrainingError: the loss is not finite from the first step on; or the device is not there.
    """
    if not 0 < lowest < highest:
        raise ConfigError(f"The rates go from {lowest:g} to {highest:g}; the first must be above 0 and below the second.")
    if steps < _LEAST_STEPS:
        raise ConfigError(f"{steps} steps are too few to see where the loss falls; take at least {_LEAST_STEPS}.")
    settings, params = params.family(family), params.of(family)
    device = choose_device(params.device)
    with torch.random.fork_rng(devices=[0] if device.type == "cuda" else []):
        torch.manual_seed(seed_of(params.seed, 0, 2))
        model = classifier_for(settings, meta).to(device)
        apply_freeze(model, settings)
        steps_images = params.batch_size * params.accumulate
        optimizer = Optimizer(model, params, settings, steps_images=steps_images)
        counts = torch.from_numpy(np.bincount(data.labels, minlength=len(meta.labels)))
        full = (meta.preprocess.height, meta.preprocess.width)
        check_sizes(model, full, params)
        size = sizes(full, model.network.side_multiple, params)[0]  # as a training begins
        batches = _endless(data, meta, params, size)
        if settings.weights is None:
            with torch.no_grad():
                model.network.prepare(model.normalise(next(batches).images.to(device)))
        sweep = _Sweep(model, optimizer, Loss(params, counts, device), params, device)
        scale = optimizer.peak / settings.learning_rate
        rates = tuple(float(rate) for rate in np.geomspace(lowest, highest, steps))
        losses = sweep.losses([rate * scale for rate in rates], batches)
    if not losses:
        raise TrainingError(
            "The loss is not finite at the first step; see that the images are not empty and the weights hold no NaN."
        )
    rates = rates[: len(losses)]
    smooth, suggestion = suggest(np.array(rates), np.array(losses))
    return RateSweep(rates, tuple(losses), tuple(smooth.tolist()), suggestion, settings.learning_rate)


class _Sweep:
    """The steps of a sweep."""

    def __init__(
        self, model: Classifier, optimizer: Optimizer, loss: Loss, params: TrainParams, device: torch.device
    ) -> None:
        self._model, self._optimizer, self._loss, self._params, self._device = model, optimizer, loss, params, device
        layout = "channels_last" if params.layout == "auto" else params.layout
        precision = "fp32" if params.precision == "auto" else params.precision
        self._forward = Execution(precision, layout).prepare(model)

    def losses(self, rates: list[float], batches: Iterator[Batch]) -> list[float]:
        """The loss before each step, up to where it diverges."""
        self._model.train()
        found: list[float] = []
        for rate in track(rates, "find a learning rate"):
            loss = float(sum(self._backward(next(batches)) for _ in range(self._params.accumulate)))
            # A spike of one batch ends nothing: the median of the last three does.
            recent = float(np.median([*found[-2:], loss]))
            if not math.isfinite(loss) or (len(found) > 2 and recent > _DIVERGED * min(found)):
                break
            found.append(loss)
            if self._params.gradient_clip_norm:
                torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._params.gradient_clip_norm)
            self._optimizer.step(rate)
            self._model.network.after_step()
            self._model.zero_grad(set_to_none=True)
        return found

    def _backward(self, batch: Batch) -> Tensor:
        batch = batch.each(lambda part: part.to(self._device))
        logits, _ = self._forward(batch.images)
        loss = self._loss(logits, batch) / self._params.accumulate
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


def suggest(rates: Floats, losses: Floats) -> tuple[Floats, float | None]:
    """The smoothed losses, and the rate of the last decade before the least loss at which they fall fastest.

    At the least loss itself training is about to diverge; a tenth of its rate is a usual advice, the steepest place of the
    fall another. The whole fall will not do: the first drop of a loss that starts above chance lies decades too low. None
    where the losses fall no further than the batches differ.
    """
    logs = np.log(rates)
    width = max(1.0, len(losses) * _SMOOTHING)
    places = np.arange(len(losses))
    kernel = np.exp(-0.5 * ((places[:, None] - places[None, :]) / width) ** 2)
    smooth: Floats = (kernel @ losses) / kernel.sum(1)
    least = int(smooth.argmin())
    fall = slice(0, least + 1)
    noise = float(np.std(losses[fall] - smooth[fall]))
    if smooth[fall].max() - smooth[least] <= noise:
        return smooth, None
    slopes = np.where(rates >= rates[least] / 10, np.gradient(smooth, logs), np.inf)
    return smooth, float(rates[slopes[fall].argmin()])


def picture(sweep: RateSweep, title: str) -> bytes:
    """The losses against the rates as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.semilogx(sweep.rates, sweep.losses, ".", color="0.7", markersize=3, label="loss of each step")
    axes.semilogx(sweep.rates, sweep.smooth, color="C0", label="smoothed")
    if sweep.suggestion is not None:
        axes.axvline(sweep.suggestion, color="C1", label=f"falls fastest: {sweep.suggestion:.2g}")
    if sweep.rates[0] <= sweep.configured <= sweep.rates[-1]:
        axes.axvline(sweep.configured, color="C2", linestyle="--", label=f"in params.yaml: {sweep.configured:g}")
    # The last losses of a sweep that diverges would press the rest into a line.
    top = 1.1 * max(sweep.smooth[0], sweep.losses[0])
    axes.set(xlabel="learning_rate", ylabel="training loss", title=title, ylim=(0, top))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _endless(data: PackedSplit, meta: PackedMeta, params: TrainParams, size: tuple[int, int]) -> Iterator[Batch]:
    """Epoch after epoch, of images of this height and width."""
    epoch = 0
    while True:
        epoch += 1
        for batch in train_batches(data, meta.policy, batch_size=params.batch_size, seed=params.seed, epoch=epoch):
            yield batch._replace(images=resized(batch.images, size))

"""The learning rate of each step, as a share of the peak.

Does not cover restarts of the cosine, nor a momentum that changes with the rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from visionloop.config import TrainParams

# The share that one_cycle starts from, as in torch.optim.lr_scheduler.OneCycleLR and fastai.
ONE_CYCLE_START: Final = 1 / 25


class Schedule:
    """Where the learning rate stands, by the keys `schedule`, `warmup_epochs`, `final_rate`, `step_epochs`, `step_factor`.

    The warm-up (Goyal et al. 2017, arXiv:1706.02677) is a line: of W steps, the first takes 1 / (W + 1) and the step after
    the last takes 1. It takes at most half of the training, so that a short trial run still learns. Then, over what is left,

    - `constant` stays at 1;
    - `step` multiplies by `step_factor` every `step_epochs` epochs, counted from the first, warm-up or not;
    - `linear` falls in a line, `cosine` in half a cosine (Loshchilov and Hutter 2016, arXiv:1608.03983), towards
      `final_rate`, which the step after the last would have;
    - `plateau` multiplies by `step_factor`, down to `final_rate`, after each `step_epochs` epochs without a better metric;
      epochs that begin within the warm-up do not count.

    `one_cycle` (Smith and Topin 2017, arXiv:1708.07120, in the form of torch's OneCycleLR) rises in half a cosine from 1/25
    to 1 during all of `warmup_epochs` and falls in another to `final_rate`, which the last step has.

    >>> Schedule(params, steps_per_epoch=20).factor(0)
    0.01639344262295082
    """

    def __init__(self, params: TrainParams, steps_per_epoch: int) -> None:
        self._params = params
        self._steps_per_epoch = steps_per_epoch
        self.steps = params.epochs * steps_per_epoch
        wanted = round(params.warmup_epochs * steps_per_epoch)
        longest = self.steps if params.schedule == "one_cycle" else self.steps // 2
        self.warmup_steps = min(wanted, longest)
        self.note = ""  # a sentence for the user where the warm-up is shorter than asked for
        if wanted > longest:
            self.note = (
                f"The warm-up takes {longest} of the {self.steps} steps: {params.warmup_epochs:g} of {params.epochs} epochs "
                "would leave too little of the training."
            )
        # What `plateau` remembers.
        self._epochs_done = 0
        self._best: float | None = None
        self._worse_epochs = 0
        self._dropped = 1.0

    def factor(self, step: int) -> float:
        """The share of the peak at `step`, which counts from 0 over all epochs; later steps have the last one's."""
        step = min(step, self.steps - 1)
        kind, warmup = self._params.schedule, self.warmup_steps
        if kind == "one_cycle":
            return self._one_cycle(step)
        if step < warmup:
            return (step + 1) / (warmup + 1) * self._level(step)
        if kind in ("linear", "cosine"):
            done = (step - warmup) / (self.steps - warmup)
            left = 1 - done if kind == "linear" else 0.5 * (1 + math.cos(math.pi * done))
            return self._params.final_rate + (1 - self._params.final_rate) * left
        return self._level(step)

    def epoch_end(self, metric: float, higher_is_better: bool) -> None:
        """Tell the metric of a finished epoch; `plateau` listens. A metric that is NaN is not better than any."""
        begun_at = self._epochs_done * self._steps_per_epoch
        self._epochs_done += 1
        if self._params.schedule != "plateau":
            return
        value = metric if higher_is_better else -metric
        if not math.isnan(value) and (self._best is None or value > self._best):
            self._best, self._worse_epochs = value, 0
        elif begun_at >= self.warmup_steps:
            self._worse_epochs += 1
        if self._worse_epochs >= self._params.step_epochs:
            self._dropped = max(self._dropped * self._params.step_factor, self._params.final_rate)
            self._worse_epochs = 0

    def state_dict(self) -> dict[str, Any]:
        """Numbers only; empty of news for every schedule but `plateau`."""
        return {
            "epochs_done": self._epochs_done,
            "best": self._best,
            "worse_epochs": self._worse_epochs,
            "dropped": self._dropped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of the same settings."""
        self._epochs_done, self._best = state["epochs_done"], state["best"]
        self._worse_epochs, self._dropped = state["worse_epochs"], state["dropped"]

    def _level(self, step: int) -> float:
        """What `step` and `plateau` have come down to; 1 for the others."""
        if self._params.schedule == "step":
            drops: int = step // (self._params.step_epochs * self._steps_per_epoch)
            return float(self._params.step_factor**drops)
        return self._dropped

    def _one_cycle(self, step: int) -> float:
        top = max(0, self.warmup_steps - 1)  # the step that has the peak
        if step < top:
            return _between(ONE_CYCLE_START, 1.0, step / top)
        return _between(1.0, self._params.final_rate, (step - top) / max(1, self.steps - 1 - top))


def _between(start: float, end: float, done: float) -> float:
    """Half a cosine from `start` to `end`."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))

"""What a study found: its trials as rows, the best of them, how much each key mattered, and the front of two objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import optuna
from optuna.importance import FanovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState

from visionloop.errors import ConfigError, TrainingError
from visionloop.evaluation.metrics import wilson
from visionloop.tuning.space import Plan, Values, same

State = Literal["complete", "pruned", "failed", "unfinished"]

_STATES: Mapping[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "unfinished",
    TrialState.WAITING: "unfinished",
}
# The forest behind fANOVA (Hutter et al. 2014) needs some values to split by; with fewer its shares are chance.
_LEAST_TRIALS = 8


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial."""

    number: int
    state: State
    values: Values
    accuracy: float | None  # on val, of the best epoch; of a pruned trial, of the last
    latency_ms: float | None
    val_loss: float | None
    epochs: int  # that were trained
    seconds: float | None
    error: str
    resumed: int  # times that another worker went on with it
    curve: tuple[tuple[int, float], ...]  # (epoch, accuracy on val), where epochs were reported


@dataclass(frozen=True)
class Results:
    """A study at the time of asking."""

    plan: Plan
    name: str
    rows: tuple[TrialRow, ...]
    importances: dict[str, float]  # of accuracy, summing to 1, the greatest first; empty with too few trials
    val_images: int
    max_latency_ms: float

    @property
    def complete(self) -> tuple[TrialRow, ...]:
        """The trials that were trained to their end."""
        return tuple(row for row in self.rows if row.state == "complete")

    @property
    def front(self) -> tuple[TrialRow, ...]:
        """The trials that no other beats in both objectives, the fastest first; empty with one objective."""
        if len(self.plan.tune.objectives) == 1:
            return ()
        found: list[TrialRow] = []
        for row in sorted(self.complete, key=lambda row: (_latency(row), *_order(row))):
            if not found or _accuracy(row) > _accuracy(found[-1]):
                found.append(row)
        return tuple(found)

    @property
    def best(self) -> TrialRow:
        """The most accurate trial, with two objectives among those within `select.max_latency_ms`.

        Among equals it is the one of the lowest latency, then of the lowest validation loss, then the first.

        Raises:
            TrainingError: no trial came to its end; or each is over the budget.
        """
        if not self.complete:
            failed = [row for row in self.rows if row.state == "failed"]
            why = f"; trial {failed[0].number} failed: {failed[0].error}" if failed else ""
            raise TrainingError(f"No trial of {len(self.rows)} came to its end{why}")
        allowed = [row for row in self.complete if _latency(row) <= self.max_latency_ms]
        if not allowed:
            fastest = min(self.complete, key=_latency)
            raise TrainingError(
                f"Each of {len(self.complete)} trials is over select.max_latency_ms = {self.max_latency_ms:g}, the fastest "
                f"with {_latency(fastest):.2f} ms; raise it, or let tune.space name smaller networks."
            )
        return min(allowed, key=_order)

    @property
    def baseline(self) -> TrialRow | None:
        """The trial with the values of `params.yaml` as it is, if there was one."""
        current = self.plan.current()
        return next((row for row in self.complete if current is not None and same(row.values, current)), None)

    def trial(self, number: int) -> TrialRow:
        """A complete trial by its number.

        Raises:
            ConfigError: there is none.
        """
        for row in self.complete:
            if row.number == number:
                return row
        known = ", ".join(str(row.number) for row in sorted(self.complete, key=_order)[:10])
        raise ConfigError(f"The study has no complete trial {number}; the best are {known or 'none'}.")

    def interval(self, row: TrialRow) -> tuple[float, float]:
        """Wilson's 95 % interval of a trial's accuracy, by chance of the images alone."""
        return wilson(round(_accuracy(row) * self.val_images), self.val_images, 0.95)

    def report(self) -> dict[str, Any]:
        """The numbers for DVC: counts, the best trial and its values, and what it gains."""
        best, baseline = self.best, self.baseline
        counts = {state: sum(row.state == state for row in self.rows) for state in ("complete", "pruned", "failed")}
        values = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in best.values.items()}
        return {
            "study": self.name,
            "trials": len(self.rows),
            **counts,
            "seconds": round(sum(row.seconds or 0 for row in self.rows), 1),
            "best_trial": best.number,
            "val_accuracy": round(_accuracy(best), 4),
            "val_loss": None if best.val_loss is None else float(f"{best.val_loss:.4g}"),
            "latency_ms": best.latency_ms,
            "baseline_val_accuracy": None if baseline is None else round(_accuracy(baseline), 4),
            "best": values,
            "importances": {key: round(share, 4) for key, share in self.importances.items()},
        }


def collect(
    plan: Plan, study: optuna.Study, trials: Sequence[FrozenTrial], *, val_images: int, max_latency_ms: float
) -> Results:
    """The results of a study from Optuna's own records; `trials` are those that count."""
    rows = tuple(_row(plan, trial) for trial in trials)
    return Results(plan, study.study_name, rows, _importances(study, rows, len(plan.tune.space)), val_images, max_latency_ms)


def _row(plan: Plan, trial: FrozenTrial) -> TrialRow:
    curve = tuple(sorted(trial.intermediate_values.items()))
    values = trial.values if trial.state == TrialState.COMPLETE else None
    return TrialRow(
        number=trial.number,
        state=_STATES[trial.state],
        values=plan.values(trial.params),
        accuracy=values[0] if values else (curve[-1][1] if curve else None),
        latency_ms=values[1] if values and values[1:] else None,
        val_loss=trial.user_attrs.get("val_loss"),
        epochs=int(trial.user_attrs.get("reached", 0)),
        seconds=trial.user_attrs.get("seconds"),
        error=trial.user_attrs.get("error", ""),
        resumed=int(trial.user_attrs.get("resumed", 0)),
        curve=curve,
    )


def _importances(study: optuna.Study, rows: Sequence[TrialRow], keys: int) -> dict[str, float]:
    accuracies = [row.accuracy for row in rows if row.state == "complete"]
    if keys < 2 or len(accuracies) < _LEAST_TRIALS or np.ptp(np.array(accuracies, dtype=float)) == 0:
        return {}
    found = optuna.importance.get_param_importances(
        study, evaluator=FanovaImportanceEvaluator(seed=0), target=lambda trial: cast(float, trial.values[0])
    )
    return {key: float(share) for key, share in found.items()}


def _accuracy(row: TrialRow) -> float:
    assert row.accuracy is not None
    return row.accuracy


def _latency(row: TrialRow) -> float:
    return row.latency_ms if row.latency_ms is not None else 0.0


def _order(row: TrialRow) -> tuple[float, float, float, int]:
    return (-_accuracy(row), _latency(row), row.val_loss if row.val_loss is not None else math.inf, row.number)

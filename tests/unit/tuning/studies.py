"""Plans over the small data sets of the training tests; a trial takes a fifth of a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.forked import say
from tests.unit.training import worlds
from visionloop.config import TuneParams, load_params
from visionloop.tuning.space import Plan
from visionloop.tuning.study import Tuning

ROOT = Path(__file__).parents[3]
CONTINUOUS = {
    "train.cnn.learning_rate": {"low": 0.001, "high": 0.1, "log": True},
    "train.batch_size": {"choices": [16, 32]},
}
GRID = {"train.batch_size": {"choices": [16, 32]}, "train.label_smoothing": {"low": 0.0, "high": 0.3, "step": 0.1}}
_DEFAULTS: dict[str, Any] = {
    "family": "cnn", "sampler": "random", "pruner": "none", "objectives": ("accuracy",), "trials": 4,
    "timeout_minutes": 0.0, "epochs": 2, "seed": 0, "storage": None, "space": CONTINUOUS,
}  # fmt: skip


def plan(train: dict[str, Any] | None = None, **changes: Any) -> Plan:
    """A plan of quick trials; `train` goes to `worlds.params`, the rest to the section tune."""
    tune = TuneParams.model_validate({**_DEFAULTS, **changes})
    settings = worlds.params(**{"epochs": tune.epochs or 4, **(train or {})})
    return Plan(tune, settings, load_params(ROOT / "params.yaml").augment, worlds.meta())


def study(made: Plan, folder: Path) -> Tuning:
    return Tuning(made, folder, worlds.split(96, 0), worlds.split(48, 1), opset=20)


def work(folder: Path, changes: dict[str, Any]) -> None:
    """A worker's process."""
    study(plan(**changes), folder).work(say)


def claim(folder: Path, changes: dict[str, Any]) -> None:
    """A worker that claims a trial and is gone before the first epoch."""
    study(plan(**changes), folder).claim()


def outcome(tuning: Tuning) -> list[tuple[int, str, tuple[Any, ...], list[float]]]:
    """Number, state, values and objectives of every trial."""
    return [
        (trial.number, trial.state.name, tuple(tuning.plan.values(trial.params).values()), trial.values)
        for trial in tuning.trials()
    ]

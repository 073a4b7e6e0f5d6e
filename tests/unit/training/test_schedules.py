"""The learning rate of every step, against torch's own schedulers and values worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler

from tests.unit.training import worlds
from visionloop.training.schedules import Schedule


def schedule(kind: str, *, epochs: int = 10, per_epoch: int = 10, **changes: object) -> Schedule:
    settings = {"warmup_epochs": 0.0, "step_epochs": 3, **changes}
    return Schedule(worlds.params(schedule=kind, epochs=epochs, **settings), per_epoch)


def factors(made: Schedule) -> list[float]:
    return [made.factor(step) for step in range(made.steps)]


def torch_rates(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], steps: int) -> list[float]:
    """What torch's scheduler sets for an optimizer with the rate 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_torchs() -> None:
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=100, eta_min=0.1), 100)
    assert factors(schedule("cosine", final_rate=0.1)) == pytest.approx(expected)


def test_linear_is_torchs() -> None:
    expected = torch_rates(lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=100), 100)
    assert factors(schedule("linear", final_rate=0.2)) == pytest.approx(expected)


def test_step_is_torchs() -> None:
    expected = torch_rates(lambda o: lr_scheduler.StepLR(o, step_size=30, gamma=0.1), 100)
    assert factors(schedule("step", step_factor=0.1)) == pytest.approx(expected)


@pytest.mark.parametrize(("epochs", "warmup"), [(10, 3.0), (10, 8.0), (2, 0.2), (3, 1.0)])
def test_one_cycle_is_torchs(epochs: int, warmup: float) -> None:
    final = 0.002
    expected = torch_rates(
        lambda o: lr_scheduler.OneCycleLR(
            o, max_lr=1.0, total_steps=10 * epochs + 1, pct_start=warmup * 10 / (10 * epochs), cycle_momentum=False
        ),
        1,
    )  # its start, 1/25 of the peak
    made = factors(schedule("one_cycle", epochs=epochs, warmup_epochs=warmup, final_rate=final))
    assert made[0] == pytest.approx(expected[0])
    whole = torch_rates(
        lambda o: lr_scheduler.OneCycleLR(
            o, max_lr=1.0, total_steps=10 * epochs, pct_start=warmup / epochs, cycle_momentum=False,
            final_div_factor=1 / 25 / final,
        ),
        10 * epochs - 1,
    )  # fmt: skip
    assert made[:-1] == pytest.approx(whole)
    assert made[-1] == pytest.approx(final)


def test_the_least_one_cycle_that_has_room() -> None:
    assert factors(schedule("one_cycle", epochs=2, per_epoch=1, warmup_epochs=1.0)) == pytest.approx([1, 0])


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "plateau", "step"])
def test_the_warm_up_is_a_line_that_ends_at_the_peak(kind: str) -> None:
    made = schedule(kind, warmup_epochs=2.0, step_epochs=9)
    assert [made.factor(step) for step in range(20)] == pytest.approx([(step + 1) / 21 for step in range(20)])
    assert made.factor(20) == 1
    assert made.note == ""


def test_cosine_after_a_warm_up() -> None:
    made = factors(schedule("cosine", warmup_epochs=1.0))
    assert made[55] == pytest.approx(0.5)
    assert 0 < made[99] < 0.001
    assert made[10:] == sorted(made[10:], reverse=True)


def test_a_warm_up_longer_than_the_training_takes_half_of_it_and_says_so() -> None:
    made = schedule("cosine", epochs=3, per_epoch=2, warmup_epochs=7.5)
    assert max(range(6), key=made.factor) == 3
    assert made.note == "The warm-up takes 3 of the 6 steps: 7.5 of 3 epochs would leave too little of the training."
    assert schedule("cosine", epochs=1, per_epoch=1, warmup_epochs=5.0).factor(0) == 1


def test_steps_count_the_epochs_of_the_warm_up() -> None:
    made = schedule("step", warmup_epochs=2.0, step_epochs=4, step_factor=0.5)
    assert [made.factor(step) for step in (39, 40, 79, 80, 99)] == [1, 0.5, 0.5, 0.25, 0.25]


def test_constant_stays_and_later_steps_have_the_last_ones_rate() -> None:
    assert set(factors(schedule("constant"))) == {1.0}
    assert schedule("cosine", final_rate=0.1).factor(10_000) == schedule("cosine", final_rate=0.1).factor(99)


METRICS = [0.5, 0.6, 0.6, 0.55, 0.59, 0.7, 0.69, 0.7, 0.7, math.nan, 0.1, 0.2, 0.71, 0.5]


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_plateau_is_torchs(higher_is_better: bool) -> None:
    made = schedule("plateau", epochs=30, step_epochs=3, step_factor=0.3, final_rate=0.05)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    # torch lowers the rate after more than `patience` bad epochs, here after as many; and wants no NaN.
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, "max" if higher_is_better else "min", 0.3, patience=2, threshold=0, min_lr=0.05, eps=0
    )
    for metric in METRICS:
        value = metric if higher_is_better else -metric
        made.epoch_end(value, higher_is_better)
        theirs.step(value)
        assert made.factor(0) == pytest.approx(optimizer.param_groups[0]["lr"])
    assert made.factor(0) == pytest.approx(0.05)


def test_plateau_does_not_count_the_warm_up_nor_fall_below_its_least() -> None:
    made = schedule("plateau", epochs=30, warmup_epochs=4.0, step_epochs=2, step_factor=0.1, final_rate=0.05)
    levels = []
    for _ in range(9):
        made.epoch_end(0.5, higher_is_better=True)
        levels.append(made.factor(299))
    assert levels == pytest.approx([1, 1, 1, 1, 1, 0.1, 0.1, 0.05, 0.05])


def test_plateau_goes_on_from_its_state() -> None:
    whole, cut = schedule("plateau", step_factor=0.5), schedule("plateau", step_factor=0.5)
    for metric in METRICS[:5]:
        whole.epoch_end(metric, higher_is_better=True)
        cut.epoch_end(metric, higher_is_better=True)
    again = schedule("plateau", step_factor=0.5)
    again.load_state_dict(cut.state_dict())
    for metric in METRICS[5:]:
        whole.epoch_end(metric, higher_is_better=True)
        again.epoch_end(metric, higher_is_better=True)
        assert again.factor(0) == whole.factor(0)
    assert again.state_dict() == whole.state_dict()
    assert whole.factor(0) < 0.5

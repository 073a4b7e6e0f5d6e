"""Real studies: nothing is tried twice, nothing is lost, and a seed gives the same trials however often one is killed."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.forked import Forked
from tests.unit.training import worlds
from tests.unit.tuning.studies import GRID, claim, outcome, plan, study, work
from visionloop.errors import ConfigError
from visionloop.training import train

_LONG: dict[str, Any] = {"trials": 3, "epochs": 40}


def start(folder: Path, **changes: Any) -> Forked:
    return Forked(work, folder, changes)


def test_a_grid_covers_its_product_and_no_more(tmp_path: Path) -> None:
    tuning = study(plan(space=GRID, sampler="grid", trials=100, epochs=1), tmp_path)
    tuning.work()
    found = outcome(tuning)
    assert {values for _, _, values, _ in found} == {(b, s) for b in (16, 32) for s in (0.0, 0.1, 0.2, 0.3)}
    assert len(found) == 8
    assert {state for _, state, _, _ in found} == {"COMPLETE"}


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_small_space_is_exhausted_without_a_repetition(sampler: str, tmp_path: Path) -> None:
    tuning = study(plan(space=GRID, sampler=sampler, trials=20, epochs=1), tmp_path)
    tuning.work()
    assert len({values for _, _, values, _ in outcome(tuning)}) == len(outcome(tuning)) == 8


def test_the_first_trial_is_what_params_has(tmp_path: Path) -> None:
    tuning = study(plan(trials=1), tmp_path)
    tuning.work()
    assert [values for _, _, values, _ in outcome(tuning)] == [(0.01, 16)]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_the_same_seed_gives_the_same_study_also_when_asked_piece_by_piece(sampler: str, tmp_path: Path) -> None:
    whole = study(plan(sampler=sampler, trials=12, epochs=1), tmp_path / "whole")
    whole.work()
    for trials in (*range(1, 12, 3), 12):
        pieces = study(plan(sampler=sampler, trials=trials, epochs=1), tmp_path / "pieces")
        pieces.work()
    assert outcome(whole) == outcome(pieces)
    other = study(plan(sampler=sampler, trials=12, epochs=1, seed=1), tmp_path / "other")
    other.work()
    assert outcome(other)[1:] != outcome(whole)[1:]


def test_training_the_values_of_a_trial_gives_its_accuracy(tmp_path: Path) -> None:
    tuning = study(plan(trials=3), tmp_path / "study")
    tuning.work()
    for trial in tuning.trials():
        params, meta = tuning.plan.settings(tuning.plan.values(trial.params))
        best = train("cnn", worlds.split(96, 0), worlds.split(48, 1), meta, params, resume=tmp_path / "alone").best
        assert [best.val_accuracy] == trial.values
        assert best.val_loss == trial.user_attrs["val_loss"]


def test_a_study_that_is_killed_goes_on_where_it_was_and_ends_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    with start(folder, **_LONG) as process:
        for line in process.stdout:
            if line.startswith("trial 1: learning_rate"):
                break
        checkpoint = folder / plan(**_LONG).name / "trial-0001" / "checkpoint.bin"
        deadline = time.monotonic() + 60
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    tuning = study(plan(**_LONG), folder)
    assert [trial.state for trial in tuning.trials()] == [TrialState.COMPLETE, TrialState.RUNNING]

    said: list[str] = []
    tuning.work(said.append)
    assert any(sentence.startswith("trial 1: Training goes on after epoch ") for sentence in said)
    assert not any(sentence.startswith("trial 0:") for sentence in said)
    assert [trial.user_attrs.get("resumed", 0) for trial in tuning.trials()] == [0, 1, 0]
    alone = study(plan(**_LONG), tmp_path / "alone")
    alone.work()
    assert outcome(tuning) == outcome(alone)
    assert not list((folder / tuning.name).iterdir()), "the checkpoints of finished trials are removed"


def test_workers_at_once_do_every_trial_once(tmp_path: Path, database_url: str) -> None:
    changes: dict[str, Any] = {"space": GRID, "sampler": "grid", "trials": 8, "epochs": 3, "storage": database_url}
    workers = [start(tmp_path, **changes) for _ in range(3)]
    said = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    with contextlib.closing(study(plan(**changes), tmp_path)) as tuning:
        found = outcome(tuning)
        owners = {trial.user_attrs["owner"]["pid"] for trial in tuning.trials()}
    assert len({values for _, _, values, _ in found}) == len(found) == 8
    assert {state for _, state, _, _ in found} == {"COMPLETE"}
    begun = sorted(line for text in said for line in text.splitlines() if ": batch_size" in line)
    assert len(begun) == 8, "a trial was begun twice"
    assert len(owners) > 1


def test_a_trial_that_kills_its_workers_is_given_up_after_three(tmp_path: Path) -> None:
    for _ in range(3):
        with Forked(claim, tmp_path, {"trials": 2}) as process:
            said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
    tuning = study(plan(trials=2), tmp_path)
    tuning.work()
    first, second = tuning.trials()
    assert (first.state, second.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert first.user_attrs["error"].startswith("3 workers died of it after epoch 0, by the memory it needs")


def test_a_worker_elsewhere_is_dead_when_its_counter_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = study(plan(trials=2), tmp_path)
    trial, _ = tuning.claim()
    assert trial is not None
    trial.set_user_attr("owner", {"machine": "elsewhere", "pid": 1, "started": 0.0})
    other = study(plan(trials=1), tmp_path)
    assert other.claim() == (None, True), "a trial elsewhere is waited for"
    monkeypatch.setattr("visionloop.tuning.study.GRACE_SECONDS", 0.2)
    time.sleep(0.3)
    trial.set_user_attr("beat", 1)
    assert other.claim() == (None, True), "its counter moved"
    time.sleep(0.3)
    again, _ = other.claim()
    assert again is not None
    assert again.number == trial.number


def test_trials_that_fall_behind_are_stopped(tmp_path: Path) -> None:
    space = {"train.cnn.learning_rate": {"choices": [0.01, 0.011, 0.012, 0.013, 0.014, 1e-7]}}
    changes: dict[str, Any] = {"space": space, "sampler": "grid", "pruner": "median", "trials": 6, "epochs": 8}
    seed = next(seed for seed in range(100) if plan(**changes, seed=seed).grid()[-1] == {"train.cnn.learning_rate": 1e-7})
    tuning = study(plan(**changes, seed=seed), tmp_path)
    tuning.work()
    *first, last = tuning.trials()
    assert {trial.state for trial in first} == {TrialState.COMPLETE}, "the median of fewer than five says nothing"
    assert last.state == TrialState.PRUNED
    assert max(last.intermediate_values) == 2, "the first third of the epochs is left alone"


def test_hyperband_stops_hopeless_trials_early_and_the_best_is_whole(tmp_path: Path) -> None:
    # Equals are not told apart, so each bracket needs some of both kinds.
    rates = [*(0.01 + 0.0005 * step for step in range(6)), *(factor * 1e-7 for factor in range(1, 7))]
    space = {"train.cnn.learning_rate": {"choices": rates}}
    tuning = study(plan(space=space, sampler="grid", pruner="hyperband", trials=12, epochs=9), tmp_path)
    tuning.work()
    trials = tuning.trials()
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert len(pruned) >= 2
    assert min(max(trial.intermediate_values) for trial in pruned) <= 3, "the first rungs are after 1 and 3 of 9 epochs"
    whole = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert max(whole, key=lambda trial: trial.values[0]).params["train.cnn.learning_rate"] >= 0.01


def test_latency_is_measured_once_for_a_network(tmp_path: Path) -> None:
    space = {"train.cnn.options.width": {"choices": [8, 64]}, "train.batch_size": {"choices": [16, 32]}}
    tuning = study(plan(space=space, sampler="grid", objectives=("accuracy", "latency"), trials=4, epochs=1), tmp_path)
    tuning.work()
    by_width: dict[int, set[float]] = {8: set(), 64: set()}
    for trial in tuning.trials():
        by_width[trial.params["train.cnn.options.width"]].add(trial.values[1])
    assert {len(found) for found in by_width.values()} == {1}
    assert 0 < by_width[8].pop() < by_width[64].pop()


def test_values_that_do_not_fit_together_are_a_failed_trial_with_a_sentence(tmp_path: Path) -> None:
    space = {"train.vit.options.heads": {"choices": [4, 3]}, "train.vit.options.width": {"choices": [32, 48]}}
    tuning = study(plan(family="vit", space=space, trials=4, epochs=1), tmp_path)
    tuning.work()
    failed = [trial for trial in tuning.trials() if trial.state == TrialState.FAIL]
    assert [tuple(trial.params.values()) for trial in failed] == [(3, 32)]
    assert "heads" in failed[0].user_attrs["error"]
    assert len(tuning.trials()) == 4


def test_no_trial_begins_after_the_time_is_over(tmp_path: Path) -> None:
    tuning = study(plan(trials=1000, epochs=1, timeout_minutes=0.02), tmp_path)
    begin = time.monotonic()
    tuning.work()
    assert time.monotonic() - begin < 10
    assert 1 <= len(tuning.trials()) < 100


def test_a_database_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "studies.db").write_bytes(b"no database at all, but long enough to be looked at" * 20)
    with pytest.raises(ConfigError, match=r"studies.db cannot be used \(file is not a database\)"):
        study(plan(), tmp_path)
    with pytest.raises(
        ConfigError, match=r"cannot be used \(Can't load plugin: .*nodriver\); check tune.storage"
    ) as refusal:
        study(plan(storage="postgresql+nodriver://user:secret@host/database"), tmp_path / "other")
    assert "secret" not in str(refusal.value)

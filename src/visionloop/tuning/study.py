"""One study: trials are claimed one by one under a lock, trained, and told; a killed worker's trial goes on where it was.

Any number of workers, on one machine or several, share a study through its database. Optuna's own heartbeat needs
`Study.optimize`, which starts a new trial for a dead one; here the same trial waits again, so that its number, its values
and its checkpoint stay, and the number of trials is exact. Trials learn from train and are judged on val, never on test.

Does not cover: starting the workers (`pipeline.tuning`), and what is made of the trials (`results.py`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import torch
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from visionloop.compression.export import onnx_bytes
from visionloop.config import FamilyParams
from visionloop.data.packing import PackedSplit
from visionloop.errors import ArtifactError, ConfigError, DataError, TrainingError
from visionloop.models import Classifier
from visionloop.runtime import OnnxModel, measure_latency
from visionloop.training import EpochRecord, train
from visionloop.training.building import card_for
from visionloop.tuning.space import Plan, Values, same, shown

# A worker elsewhere that has not moved its counter for this long is dead: six missed beats.
BEAT_SECONDS = 15.0
GRACE_SECONDS = 90.0
_WAIT_SECONDS = 0.5  # between two looks at trials that others are training
_TRIES = 3  # of a sampler to propose values that no trial had
_LATENCY_CALLS = 200
# A trial may kill its worker, and would then kill them all. Deaths count as long as no further epoch was reached.
_MOST_DEATHS = 3

Say = Callable[[str], None]


class Tuning:
    """A study, opened or made, and the work on it.

    >>> Tuning(plan, Path("var/tune"), train_data, val_data, opset=20).work(print)

    Raises:
        ConfigError: the database cannot be used.
    """

    def __init__(self, plan: Plan, folder: Path, train_data: PackedSplit, val_data: PackedSplit, *, opset: int) -> None:
        self.plan, self.name = plan, plan.name
        self._train_data, self._val_data, self._opset = train_data, val_data, opset
        self._folder = folder / self.name
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sqlite = _sqlite_path(plan.tune.storage, folder)
        url = f"sqlite:///{self._sqlite}" if self._sqlite else plan.tune.storage
        assert url is not None
        self._storage = self._connect(url)
        self.study = optuna.create_study(
            study_name=self.name,
            storage=self._storage,
            directions=[StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE][: len(plan.tune.objectives)],
            load_if_exists=True,
        )
        self._pruner = _pruner(plan)
        self._said: set[str] = set()
        self._seen: dict[int, tuple[int, float]] = {}  # trial elsewhere: its counter, and when it was last another one
        self._stop_at = time.monotonic() + plan.tune.timeout_minutes * 60 if plan.tune.timeout_minutes else float("inf")

    def close(self) -> None:
        """Give the database's connections back."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def trials(self) -> list[FrozenTrial]:
        """Every trial but those that only repeated another's values."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if "repeats" not in trial.user_attrs]

    def work(self, say: Say = lambda sentence: None) -> None:
        """Train trials until there are `tune.trials`, or the time is over; wait for those that others are training.

        A trial that fails by its values (they do not fit together, the loss is not finite) is one with a sentence; any other
        error ends this worker, and the trial waits for the next.
        """
        while True:
            trial, wait = self.claim()
            if trial is not None:
                self._run(trial, say)
            elif wait:
                time.sleep(_WAIT_SECONDS)
            else:
                return

    def claim(self) -> tuple[Trial | None, bool]:
        """The next trial to train, or None and whether others' trials are still to be waited for."""
        with self._locked():
            self._revive()
            trials = self.trials()
            if time.monotonic() >= self._stop_at:
                return None, False
            waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
            trial = self._ask(waiting[0]) if waiting else self._new(trials)
            return trial, any(other.state == TrialState.RUNNING for other in trials)

    def _new(self, trials: list[FrozenTrial]) -> Trial | None:
        plan, known = self.plan, [self.plan.values(trial.params) for trial in trials]
        number = len(self.study.get_trials(deepcopy=False))
        if len(trials) >= plan.tune.trials:
            return None
        if plan.tune.sampler == "grid":
            return self._unseen(known, number)
        if not trials and (current := plan.current()):
            self.study.enqueue_trial(current)  # so that the best is never worse than what params.yaml has
            return self._ask(number)
        if plan.points is not None and len(known) >= plan.points:
            return None
        for attempt in range(_TRIES):
            trial = self._ask(number + attempt)
            twins = [other for other, values in zip(trials, known, strict=True) if same(values, plan.values(trial.params))]
            if not twins:
                return trial
            trial.set_user_attr("repeats", twins[0].number)
            self.study.tell(trial, state=TrialState.FAIL)
        return self._unseen(known, number + _TRIES)

    def _unseen(self, known: list[Values], number: int) -> Trial | None:
        """A trial with the first combination that none had; None when each was tried."""
        point = next((point for point in self.plan.grid() if not any(same(point, values) for values in known)), None)
        if point is None:
            return None
        self.study.enqueue_trial(point)
        return self._ask(number)

    def _ask(self, number: int) -> Trial:
        """Begin the trial of this number; its draws depend on the seed and the number, not on who asks or asked before."""
        seed = int(np.random.SeedSequence([self.plan.tune.seed, number]).generate_state(1)[0])
        is_tpe = self.plan.tune.sampler == "tpe"
        self.study.sampler = optuna.samplers.TPESampler(seed=seed) if is_tpe else optuna.samplers.RandomSampler(seed=seed)
        self.study.pruner = self._pruner
        trial = self.study.ask(self.plan.distributions)
        trial.set_user_attr("owner", _owner())
        return trial

    def _revive(self) -> None:
        """Let the trials of dead workers wait again. Called under the lock, which a trial without an owner outlived."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            owner = trial.user_attrs.get("owner")
            if owner is None or self._is_dead(trial, owner):
                number, deaths = trial._trial_id, int(trial.user_attrs.get("deaths", 0)) + 1
                if deaths < _MOST_DEATHS:
                    self._storage.set_trial_user_attr(number, "deaths", deaths)
                    self._storage.set_trial_user_attr(number, "resumed", int(trial.user_attrs.get("resumed", 0)) + 1)
                    self._storage.set_trial_state_values(number, state=TrialState.WAITING)
                    continue
                error = (
                    f"{deaths} workers died of it after epoch {trial.user_attrs.get('reached', 0)}, by the memory it needs "
                    "or by a fault of a library; train these values alone to see which"
                )
                self._storage.set_trial_user_attr(number, "error", error)
                self._storage.set_trial_state_values(number, state=TrialState.FAIL)

    def _is_dead(self, trial: FrozenTrial, owner: dict[str, Any]) -> bool:
        mine = _owner()
        if owner["machine"] == mine["machine"]:
            if owner == mine:
                return False
            try:
                return abs(psutil.Process(owner["pid"]).create_time() - float(owner["started"])) > 1
            except psutil.Error:
                return True
        beat, now = int(trial.user_attrs.get("beat", 0)), time.monotonic()
        seen, since = self._seen.get(trial.number, (-1, now))
        self._seen[trial.number] = (beat, now if beat != seen else since)
        return now - self._seen[trial.number][1] > GRACE_SECONDS

    def _run(self, trial: Trial, say: Say) -> None:
        values, start = self.plan.values(trial.params), time.monotonic()
        folder = self._folder / f"trial-{trial.number:04}"
        folder.mkdir(parents=True, exist_ok=True)
        say(f"trial {trial.number}: {shown(values)}")
        told: list[float] | None = None
        with self._beating(trial._trial_id):
            try:
                told = self._train(trial, values, folder, say)
                state, said = TrialState.COMPLETE, f"validation {told[0]:.2%}" + "".join(f", {ms:.2f} ms" for ms in told[1:])
            except optuna.TrialPruned:
                state, said = TrialState.PRUNED, "stopped early, behind the others"
            except (ConfigError, TrainingError, DataError, ArtifactError, torch.OutOfMemoryError) as error:
                state, said = TrialState.FAIL, f"failed: {str(error).splitlines()[0]}"
        with self._locked():
            # Suppressed: this worker slept so long that another one has finished its trial, with the same result.
            with contextlib.suppress(UpdateFinishedTrialError):
                trial.set_user_attr("seconds", round(time.monotonic() - start, 2))
                if state == TrialState.FAIL:
                    trial.set_user_attr("error", said.removeprefix("failed: "))
            self.study.tell(trial, told, state=state, skip_if_finished=True)
        shutil.rmtree(folder, ignore_errors=True)
        say(f"trial {trial.number}: {said}")

    def _train(self, trial: Trial, values: Values, folder: Path, say: Say) -> list[float]:
        """Train with these values; the objectives of the best epoch."""
        params, meta = self.plan.settings(values)
        family, is_single = self.plan.tune.family, len(self.plan.tune.objectives) == 1
        (frozen,) = (one for one in self.study.get_trials(deepcopy=False) if one.number == trial.number)

        def on_epoch(record: EpochRecord) -> None:
            if record.epoch > trial.user_attrs.get("reached", 0):
                trial.set_user_attr("reached", record.epoch)
                if trial.user_attrs.get("deaths"):
                    trial.set_user_attr("deaths", 0)
            if not is_single or record.epoch in frozen.intermediate_values:
                return
            trial.report(record.val_accuracy, record.epoch)
            # After the last epoch there is nothing to save by stopping.
            if record.epoch < record.epochs and not record.restored and trial.should_prune():
                raise optuna.TrialPruned

        def say_once(sentence: str) -> None:
            if sentence not in self._said:  # most are the same for all trials
                self._said.add(sentence)
                say(f"trial {trial.number}: {sentence}")

        sides = self._train_data, self._val_data
        result = train(family, *sides, meta, params, resume=folder, on_epoch=on_epoch, say=say_once)
        trial.set_user_attr("val_loss", result.best.val_loss)
        trial.set_user_attr("best_epoch", result.best.epoch)
        accuracy = result.best.val_accuracy
        return [accuracy] if is_single else [accuracy, self._latency(result.classifier, params.family(family))]

    def _latency(self, classifier: Classifier, settings: FamilyParams) -> float:
        """Milliseconds for one image, median. Measured once for a network: other weights do not make it faster."""
        key = f"latency_ms {settings.architecture} {json.dumps(settings.options, sort_keys=True)}"
        if key not in self.study.user_attrs:
            card = card_for(classifier, self.plan.meta)
            model = OnnxModel(onnx_bytes(classifier, card=card, opset=self._opset))
            found = measure_latency(model, self._val_data.images, (1,), _LATENCY_CALLS)[0].p50_ms
            with self._locked():
                if key not in self.study.user_attrs:
                    self.study.set_user_attr(key, round(found, 4))
        return float(self.study.user_attrs[key])

    @contextlib.contextmanager
    def _beating(self, trial_id: int) -> Iterator[None]:
        """Move the trial's counter now and then, for workers on other machines."""
        done = threading.Event()

        def beat() -> None:
            count = 0
            while not done.wait(BEAT_SECONDS):
                count += 1
                try:
                    self._storage.set_trial_user_attr(trial_id, "beat", count)
                except UpdateFinishedTrialError:
                    return
                except StorageInternalError:
                    continue  # the database is busy or away for a moment; the grace time covers some beats

        thread = threading.Thread(target=beat, name="beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _connect(self, url: str) -> optuna.storages.RDBStorage:
        if self._sqlite:
            try:
                self._sqlite.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.closing(sqlite3.connect(self._sqlite, timeout=60)) as connection:
                    connection.execute("PRAGMA journal_mode=WAL")  # readers and a writer do not wait for each other
            except (OSError, sqlite3.Error) as error:
                raise ConfigError(f"The study's database {self._sqlite} cannot be used ({error}); move it away.") from error
            with _flock(self._sqlite):
                return self._storage_of(url, {"connect_args": {"timeout": 60}})
        return self._storage_of(url, {"pool_pre_ping": True})

    def _storage_of(self, url: str, engine: dict[str, Any]) -> optuna.storages.RDBStorage:
        attempts = 3  # two workers that make the tables at once: one of them fails, and finds them the next time
        for attempt in range(1, attempts + 1):
            try:
                return optuna.storages.RDBStorage(url, engine_kwargs=engine)
            except ImportError as error:
                raise ConfigError(
                    f"tune.storage needs a driver that is not installed ({error.__cause__ or error}); "
                    "for postgresql+psycopg:// it is `pip install 'psycopg[binary]'`."
                ) from error
            except Exception as error:  # each database driver has errors of its own
                if attempt == attempts:
                    said = re.sub(r"://[^@\s]*@", "://", str(error).splitlines()[0])
                    raise ConfigError(
                        f"The study's database cannot be used ({said[:200]}); check tune.storage, and that it runs."
                    ) from error
                time.sleep(0.5)
        raise AssertionError("the last attempt returns or raises")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One worker at a time; the kernel, or PostgreSQL, gives the lock back however its holder ends."""
        if self._sqlite:
            with _flock(self._sqlite):
                yield
            return
        key = zlib.crc32(self.name.encode())
        with self._storage.engine.connect() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_lock({key})")
            try:
                yield
            finally:
                connection.exec_driver_sql(f"SELECT pg_advisory_unlock({key})")


def _pruner(plan: Plan) -> optuna.pruners.BasePruner:
    epochs = plan.train.of(plan.tune.family).epochs
    if plan.tune.pruner == "median":
        # The first third is warm-up and steep learning, whose order says little of the end.
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=epochs // 3)
    if plan.tune.pruner == "hyperband":
        # A ninth is two halvings by the paper's 3 (arXiv 1603.06560); less is within warm-up.
        return optuna.pruners.HyperbandPruner(min_resource=max(1, epochs // 9), max_resource=epochs, reduction_factor=3)
    return optuna.pruners.NopPruner()


def _sqlite_path(url: str | None, folder: Path) -> Path | None:
    """The database's file; None where it is no SQLite."""
    if url is None:
        return folder / "studies.db"
    return Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None


@contextlib.contextmanager
def _flock(database: Path) -> Iterator[None]:
    with database.with_name(f"{database.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _owner() -> dict[str, Any]:
    """This process, told apart from all others: containers may share a name and process numbers."""
    namespace = Path("/proc/self/ns/pid")
    machine = f"{platform.node()} {namespace.readlink() if namespace.exists() else ''}"
    return {"machine": machine, "pid": os.getpid(), "started": round(psutil.Process().create_time(), 2)}

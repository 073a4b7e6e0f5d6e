"""A study from start to report: workers started and awaited, the page written, the best values put into `params.yaml`.

Does not cover: trials (`visionloop.tuning.study`). Workers on other machines are started there, with the same command and a
`tune.storage` that all can reach.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline import process
from pipeline.params_text import with_values
from visionloop.config import parse_params, tuned_tree
from visionloop.data.packing import load_split
from visionloop.errors import PipelineError
from visionloop.files import write_json, write_text
from visionloop.paths import PACKED, PARAMS, TUNE_DIFF, TUNE_PAGE, TUNE_REPORT, TUNING
from visionloop.tuning import page
from visionloop.tuning.results import Results, TrialRow, collect
from visionloop.tuning.space import Plan, shown
from visionloop.tuning.study import Tuning


@dataclass(frozen=True)
class Job:
    """A plan, and what the sections of other stages say about it."""

    plan: Plan
    opset: int  # export.opset
    max_latency_ms: float  # select.max_latency_ms

    def open(self) -> Tuning:
        """The study, made if there is none."""
        sides = load_split(PACKED, "train"), load_split(PACKED, "val")
        return Tuning(self.plan, TUNING, *sides, opset=self.opset)


def run(job: Job, workers: int, say: Callable[[str], None]) -> Results:
    """Bring the study to its number of trials, and write its page, its diff and its numbers.

    Raises:
        ConfigError: something in `tune.space` cannot be trained; said before the first trial.
        TrainingError: no trial came to its end.
        PipelineError: every worker stopped before the study was done.
    """
    job.plan.check()
    with contextlib.closing(job.open()) as tuning:
        known = [trial for trial in tuning.trials() if trial.state.is_finished()]
        say(
            f"Study {tuning.name}: {len(known)} of {job.plan.tune.trials} trials are done, {job.plan.tune.sampler}, "
            f"{workers} worker{'s' if workers > 1 else ''}."
        )
        if workers == 1:
            tuning.work(say)
        else:
            _start(workers)
        results = collect(
            job.plan,
            tuning.study,
            tuning.trials(),
            val_images=len(load_split(PACKED, "val").labels),
            max_latency_ms=job.max_latency_ms,
        )
    _, diff = change(results, results.best)
    write_text(TUNE_PAGE, page.render(results, diff))
    write_text(TUNE_DIFF, diff)
    write_json(TUNE_REPORT, results.report())
    best = results.best
    gain = "" if results.baseline is None else f" ({results.baseline.accuracy:.2%} with params.yaml as it is)"
    say(f"{TUNE_PAGE}: trial {best.number} is the best, validation {best.accuracy:.2%}{gain}, {shown(best.values)}")
    return results


def change(results: Results, row: TrialRow) -> tuple[str, str]:
    """The text of `params.yaml` with a trial's values, and the unified diff to it, "" where nothing changes."""
    before = PARAMS.read_text(encoding="utf-8")
    changes = results.plan.changes(row.values)
    if not changes:
        return before, ""
    after = with_values(before, tuned_tree(results.plan.tune.family, changes))
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), after.splitlines(keepends=True), f"a/{PARAMS}", f"b/{PARAMS}"
    )
    return after, "".join(lines)


def apply(results: Results, row: TrialRow) -> str:
    """Write a trial's values into `params.yaml`, whole or not at all, after the result was checked; a sentence says which.

    Raises:
        ConfigError: the values are not allowed beside the rest; nothing is written.
    """
    after, diff = change(results, row)
    if not diff:
        return f"{PARAMS} has the values of trial {row.number} already."
    parse_params(after)
    write_text(PARAMS, after)
    said = shown(results.plan.changes(row.values))
    return f"{PARAMS} has the values of trial {row.number} now: {said}; `dvc repro` trains it."


def _start(workers: int) -> None:
    """Work in processes of their own, which share the cores; all end with this one."""
    threads = str(max(1, (os.cpu_count() or 1) // workers))
    environment = process.quiet_environment(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", threads))
    command = [sys.executable, "-m", "pipeline.stages.tune", "--worker"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        started += [process.spawn(command, env=environment, stdout=_own_output(), cwd=Path.cwd()) for _ in range(workers)]
        codes = [worker.wait() for worker in started]
    finally:
        for worker in started:
            if worker.poll() is None:
                worker.terminate()
                worker.wait()
    if all(codes):
        raise PipelineError(
            f"All {workers} workers stopped before the study was done (exit codes {', '.join(map(str, codes))}); their own "
            "words stand above. Finished trials are kept: run this again to go on."
        )


def _own_output() -> int:
    sys.stdout.flush()
    return 1

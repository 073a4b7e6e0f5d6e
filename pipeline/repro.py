"""The only caller of DVC: what the stages are, what is stale, and bringing it up to date.

DVC runs as a subprocess in a process group of its own, because a stage whose DVC was killed goes on writing as an
orphan (measured with DVC 3.67): Ctrl-C and SIGTERM end the whole group here, and leftovers of a killed run are ended before
the next. One run at a time holds `var/run/repro.lock`.

Does not cover: pushing to and pulling from a remote, which a user does with `dvc push` and `dvc pull`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from pipeline import process, watched
from visionloop.config import TrainParams, load_section
from visionloop.errors import ArtifactError, BlockedError, PipelineError
from visionloop.paths import DVC_YAML, GATE_REPORT, MODEL_REPOSITORY, PARAMS, RELEASE, RUN
from visionloop.promotion import is_outdated, read_report

LOCK = RUN / "repro.lock"
MARK = "VISIONLOOP_REPRO"  # environment variable of DVC and of every stage, so that orphans are found

_RUNNING = re.compile(r"^Running stage '(.+)':$")
_UNCHANGED = re.compile(r"^(?:Stage )?'(.+)' didn't change, skipping$")
_CACHED = re.compile(r"^Stage '(.+)' is cached - skipping run, checking out outputs$")
_FAILED = re.compile(r"^ERROR: failed to reproduce '(.+?)':")
_EXITED = re.compile(r"exited with (-?\d+)\s*$")
_EMPTY = re.compile(r"^WARNING: '.+' is empty\.$")  # the resume folder of a training that ended well
_REFUSAL = re.compile(r"^[A-Za-z_.]*(?:Error|Exception|Interrupt): \S")
# What DVC says around the stages, of no use here.
_CHATTER = (
    "To track the changes with git", "To enable auto staging", "Use `dvc push`", "\tgit add", "\tdvc config",
    "Data and pipelines are up to date", "Verifying data sources",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ReproResult:
    """Which stages ran and which were up to date or came from DVC's cache, each in the order in which DVC took them."""

    ran: tuple[str, ...]
    skipped: tuple[str, ...]
    seconds: dict[str, float]  # of each stage that ran, wall clock


def stage_names(root: Path = Path()) -> list[str]:
    """The stages in the order of `dvc.yaml`, as DVC resolves it ("train@cnn" for an item of a `foreach`), teachers first.

    Raises:
        PipelineError: DVC refuses `dvc.yaml`.
        ConfigError: `params.yaml` says something that is not allowed.
    """
    names = _literal_names(root / DVC_YAML) or _ask(["stage", "list", "--name-only"], root).split()
    if "train@cnn" in names and (root / PARAMS).is_file() and load_section(TrainParams, root / PARAMS).cnn.teacher == "vit":
        names.remove("train@cnn")  # dvc.yaml has the CNN first; here the ViT teaches it
        names.insert(names.index("train@vit") + 1, "train@cnn")
    return names


def status(root: Path = Path()) -> list[str]:
    """The stages whose own inputs or outputs changed since they ran last, in order; later ones follow when these differ.

    Raises:
        PipelineError: DVC refuses.
    """
    _refuse_obstacles(root)
    changed = json.loads(_ask(["status", "--json"], root) or "{}")
    return [name for name in stage_names(root) if name in changed]


def reproduce(
    targets: Sequence[str] | None = None,
    on_line: Callable[[str], None] = print,
    *,
    single: bool = False,
    root: Path = Path(),
) -> ReproResult:
    """Bring the stages up to date, all or `targets` and what they need (with `single` the targets alone).

    `on_line` receives one line at a time: "[3/13] split" when a stage starts, its own output, "[3/13] split: 1.2 s".

    Raises:
        BlockedError: a stage's gate or budget said no (its exit code is 2).
        PipelineError: a stage or DVC failed; the message is the stage's own sentence.
    """
    root = root.resolve()
    if not (root / DVC_YAML).exists():
        raise PipelineError(f"{root} has no dvc.yaml; run this in the project's folder.")
    _refuse_obstacles(root)
    total = len(targets) if targets and single else len(stage_names(root))
    with locked(root):
        if orphans := process.reap(MARK, str(root)):
            on_line(f"{orphans} processes of an earlier, killed run were still alive; they are stopped now.")
        if said := _forget_outdated_verdict(root):
            on_line(said)
        return _run(["repro", *(["--single-item"] if single else []), *(targets or [])], total, on_line, root)


def _refuse_obstacles(root: Path) -> None:
    """Say what DVC would fail on without naming the cure, or wait for without end."""
    if (root / PARAMS).is_file() and (found := watched.obstacles(root)):
        raise PipelineError(" ".join(found))


def _forget_outdated_verdict(root: Path) -> str:
    """Have the gate compare anew where another model is served than the one that it compared with; say so.

    DVC cannot know: what is served is written by the stage after the gate. A missing report makes it run again.
    """
    from serving.repository import read_release

    try:
        report = read_report(root / GATE_REPORT)
        if report is None or not (root / MODEL_REPOSITORY / RELEASE).exists():
            return ""
        if not is_outdated(report, read_release(root / MODEL_REPOSITORY).model_sha256):
            return ""
    except ArtifactError:
        return ""  # the stage says it
    (root / GATE_REPORT).unlink(missing_ok=True)
    return "Another model is served than the one that the gate compared with, so it compares anew."


def _literal_names(dvc_yaml: Path) -> list[str]:
    """The stages where `dvc.yaml` spells them out, which spares a second of starting DVC; else none."""
    names: list[str] = []
    try:
        stages = yaml.safe_load(dvc_yaml.read_text(encoding="utf-8"))["stages"]
        for name, entry in stages.items():
            items = entry.get("foreach")
            if "matrix" in entry or isinstance(items, str):
                return []
            names += [f"{name}@{item}" for item in items] if items else [name]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return []
    return [] if any("${" in name for name in names) else names


def _ask(arguments: list[str], root: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=root,
        env=process.quiet_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise PipelineError(_dvc_sentence(done.stderr.splitlines(), done.returncode))
    return done.stdout


@dataclass
class _Reader:
    """Turns DVC's output into lines for people, and remembers what happened."""

    total: int
    on_line: Callable[[str], None]
    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    current: str = ""
    failed: str = ""
    code: int | None = None
    since: float = 0.0
    output: list[str] = field(default_factory=list)  # of the current stage
    dvc: list[str] = field(default_factory=list)  # DVC's own complaints

    def read(self, line: str) -> None:
        if match := _RUNNING.match(line):
            self.finish()
            self.current, self.since, self.output = match[1], time.monotonic(), []
            self.on_line(f"{self._place()} {self.current}")
        elif match := _UNCHANGED.match(line):
            self.finish()
            self.skipped.append(match[1])
            self.on_line(f"{self._place(0)} {match[1]}: unchanged")
        elif match := _CACHED.match(line):
            self.finish()
            self.skipped.append(match[1])
            self.on_line(f"{self._place(0)} {match[1]}: taken from the cache")
        elif line.startswith("ERROR: "):
            self._error(line)
        elif line.startswith(("Updating lock file", "Generating lock file")):
            self.finish()
        elif not self._is_chatter(line):
            self.output.append(line)
            self.on_line(f"        {line}")

    def finish(self) -> None:
        """The current stage, if any, is done."""
        if self.current:
            seconds = time.monotonic() - self.since
            self.seconds[self.current] = round(seconds, 3)
            self.on_line(f"{self._place()} {self.current}: {seconds:.1f} s")
            self.ran.append(self.current)
            self.current, self.output = "", []

    def sentence(self, code: int) -> str:
        """Why it failed: the stage's own last words, or else DVC's."""
        if not self.failed or self.code is None:
            return _dvc_sentence(self.dvc or self.output, code)
        starts = [index for index, line in enumerate(self.output) if _REFUSAL.match(line)]
        words = " ".join(self.output[starts[-1] :]) if starts else f"its command exited with {self.code} and no sentence."
        if self.code == BlockedError.exit_code:  # an answer and no fault, so it needs no class of error
            return f"Stage {self.failed} says no: {words.removeprefix('BlockedError: ')}"
        return f"Stage {self.failed} stopped: {words}"

    def _is_chatter(self, line: str) -> bool:
        is_command = line.startswith("> ") and not self.output  # DVC repeats the command that it starts
        return not line.strip() or is_command or line.startswith(_CHATTER) or bool(_EMPTY.match(line))

    def _place(self, started: int = 1) -> str:
        return f"[{len(self.ran) + len(self.skipped) + started}/{self.total}]"

    def _error(self, line: str) -> None:
        self.dvc.append(line)
        if match := _FAILED.match(line):
            self.failed = match[1]
            self.current = ""
        if match := _EXITED.search(line):
            self.code = int(match[1])


def _run(arguments: list[str], total: int, on_line: Callable[[str], None], root: Path) -> ReproResult:
    reader = _Reader(total, on_line)
    command = [sys.executable, "-m", "dvc", *arguments]
    child = process.spawn(command, env=process.quiet_environment(**{MARK: str(root)}), stdout=subprocess.PIPE, cwd=root)
    assert child.stdout is not None
    try:
        for line in child.stdout:
            reader.read(line.decode("utf-8", "replace").rstrip("\n"))
        code = child.wait()
    finally:
        child.stdout.close()
        if child.poll() is None:  # Ctrl-C, SIGTERM, or `on_line` failed
            process.reap(MARK, str(root))
            child.wait()
    if code != 0:
        message = reader.sentence(code)
        raise BlockedError(message) if reader.code == BlockedError.exit_code else PipelineError(message)
    reader.finish()
    return ReproResult(tuple(reader.ran), tuple(reader.skipped), reader.seconds)


def _dvc_sentence(lines: Sequence[str], code: int) -> str:
    said = next((line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")), "")
    said = said or " ".join(line.strip() for line in lines if line.strip())[:300]
    if "is busy, it is being blocked by" in said or "Unable to acquire lock" in said:
        return "Another DVC command is working in this folder; wait for it to end, then run this again."
    if "not inside of a DVC repository" in said:
        return "This folder is no DVC project; run this in the project's folder, where .dvc lies."
    return f"DVC stopped: {said}" if said else f"DVC stopped with exit code {code}; `dvc repro -v` says more."


@contextlib.contextmanager
def locked(root: Path = Path()) -> Iterator[None]:
    """Hold the lock of the pipeline, under which its inputs stand still; the kernel gives it back however this process ends.

    Raises:
        PipelineError: another process holds it.
    """
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise PipelineError(
                f"The pipeline runs already (process {file.read().strip() or 'unknown'}); wait for it to end."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield

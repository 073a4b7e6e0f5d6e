"""The main job, `make run`: pipeline up to date, model served, images sent, drift judged, all summed up.

The live part works in `var/demo`, made anew each time, so that its traffic never stands among a real endpoint's.
A run that finds nothing changed shows the saved summary instead.

Does not cover: keeping the endpoint up (`visionloop up`).
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from pipeline import doctor, preflight, repro, summary, traffic
from pipeline.summary import Table
from pipeline.watching import watch
from serving.client import Client
from serving.server import TritonServer
from serving.store import Store
from visionloop.config import MonitorParams, PreprocessParams, ServeParams, load_section
from visionloop.errors import MonitoringError, PipelineError
from visionloop.files import sha256_file, write_json
from visionloop.paths import (
    CLEANING_PAGE,
    COMPRESSION_PAGE,
    CONTACT_SHEET,
    DVC_LOCK,
    EVALUATE_REPORTS,
    LOGS,
    MODEL_CARD,
    MODEL_REPOSITORY,
    OPERATIONS_SHEET,
    PARITY_PAGE,
    REPORT_PAGE,
    RUN_SUMMARY,
    VAR,
)

DEMO = VAR / "demo"
SHOWN_IMAGES = 3  # of each protocol
LOG_WIDTH = 120  # where there is no terminal whose width could be asked
# Severity 3 of 5 is what the drift tests were measured with; a user sees a clear case beside a quiet one.
SHIFTS: tuple[tuple[str, int], ...] = (("none", 1), ("blur", 3))
PROTOCOLS: tuple[Literal["http", "grpc"], ...] = ("http", "grpc")


@dataclass(frozen=True, slots=True)
class Summary:
    """What the run found, as it is saved."""

    lock: str  # sha256 of dvc.lock: the pipeline's state that this belongs to
    tables: tuple[Table, ...]
    pages: tuple[str, ...]
    seconds: float


def run() -> None:
    """Do the main job; progress and the summary go to standard output.

    Raises:
        PipelineError: a precondition or a stage failed.
        VisionloopError: the endpoint or the drift check failed.
    """
    begin = time.monotonic()
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=LOG_WIDTH)
    _check()
    result = repro.reproduce(on_line=lambda line: console.print(line, markup=False))
    saved = _load()
    if not result.ran and saved and saved.lock == sha256_file(DVC_LOCK):
        console.print("\n[bold]Nothing changed since the last run.[/bold] This is its summary.\n")
        show(saved, console)
        return
    console.print(f"\n{len(result.ran)} stages ran, {len(result.skipped)} were up to date. Now the endpoint.\n")
    live, pages = _live(console)
    found = Summary(
        lock=sha256_file(DVC_LOCK),
        tables=(*summary.tables(), *live),
        pages=(
            f"{REPORT_PAGE}: the whole run; {MODEL_CARD}: the model card",
            str(CLEANING_PAGE),
            f"{COMPRESSION_PAGE}: every form of the model, what it gains and loses, and why one is shipped",
            f"{PARITY_PAGE}: the same images through every form of the model",
            f"{CONTACT_SHEET} and {OPERATIONS_SHEET}",
            f"{EVALUATE_REPORTS}/cnn/ and {EVALUATE_REPORTS}/vit/: confusion.png, explanation.png, mistakes.png",
            *pages,
        ),
        seconds=round(time.monotonic() - begin, 1),
    )
    write_json(RUN_SUMMARY, asdict(found))
    show(found, console)


def show(found: Summary, console: Console) -> None:
    """Print a summary."""
    for table in found.tables:
        drawn = RichTable(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        for column in table.columns:
            drawn.add_column(column)
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
        for note in table.notes:
            console.print(note, markup=False)
        console.print()
    console.print("[bold]Pages to open in a browser[/bold]")
    for page in found.pages:
        console.print(f"  {page}", markup=False)
    console.print("\n[bold]What to do next[/bold]")
    console.print("  .venv/bin/visionloop up                            the endpoint, Prefect and the drift dashboard, live")
    console.print("  .venv/bin/visionloop predict <image> --offline     ask the deployed model about your own image")
    console.print(
        "  .venv/bin/dvc metrics show reports/select.json     numbers of a stage; `dvc stage list` names the stages"
    )
    console.print(f"\nThe run that built this took {found.seconds:.0f} s; its summary is {RUN_SUMMARY}.")


def _check() -> None:
    failed = [check for check in doctor.checks() if check.blocks and not check.ok]
    if failed:
        raise PipelineError("\n".join(f"{check.name}: {check.sentence}" for check in failed))
    preflight.note_passed()


def _live(console: Console) -> tuple[list[Table], list[str]]:
    """Serve, ask over both protocols, judge a quiet and a shifted window; return tables and pages."""
    from monitoring.simulator import simulate

    serve, monitor = load_section(ServeParams), load_section(MonitorParams)
    spec = load_section(PreprocessParams).spec
    shutil.rmtree(DEMO, ignore_errors=True)
    DEMO.mkdir(parents=True)
    images = traffic.held_out(serve)
    data, labels = [image.data for image in images], [image.label for image in images]
    store_url = f"sqlite:///{DEMO / 'store.db'}"
    server = TritonServer(
        MODEL_REPOSITORY,
        http_port=serve.http_port,
        grpc_port=serve.grpc_port,
        metrics_port=serve.metrics_port,
        store_url=store_url,
        spool=DEMO / "spool",
        run_dir=DEMO,
        log=LOGS / "triton-demo.log",
        max_image_megabytes=serve.max_image_megabytes,
        max_image_megapixels=serve.max_image_megapixels,
    )
    rows: list[tuple[str, ...]] = []
    reasons: list[str] = []
    pages: list[str] = []
    with server, Store(store_url) as store:
        store.create()
        console.print(f"Triton answers on {server.http_url} (HTTP) and {server.grpc_url} (gRPC).")
        answers = _ask(server, images)
        asked = len(answers.rows)
        title, heads = f"Drift, windows of {monitor.window_rows} images", ("window", "decision", "images/s sent")
        if 2 * len(images) < monitor.window_rows:
            note = f"Not judged: {len(images)} held-out images would fill a window with repetitions; live traffic will tell."
            return [answers, Table(title, heads, (), (note,))], []
        with Client(server.http_url) as client:
            for number, (shift, severity) in enumerate(SHIFTS, start=1):
                # The few images asked above are the first of the first window.
                count = monitor.window_rows - (asked if number == 1 else 0)
                sent = simulate(data, shift, severity, count, 0, labels=labels, spec=spec)
                begin = time.monotonic()
                for _ in traffic.send(client, sent, count, f"send {shift}"):
                    pass
                rate = count / (time.monotonic() - begin)
                traffic.wait_until_stored(store, number * monitor.window_rows)
                name = "the reference's own images" if shift == "none" else f"the same, {shift} {severity}"
                try:
                    watched = watch(
                        store, monitor, folder=DEMO / "drift", workspace=DEMO / "evidently", alerts=DEMO / "alerts.jsonl"
                    )
                except MonitoringError as error:  # too few held-out images to judge by; all else of the run stands
                    rows.append((name, "not judged", f"{rate:.0f}"))
                    reasons.append(str(error))
                    break
                rows.append((name, watched.decision.action, f"{rate:.0f}"))
                reasons.append(f"{name}: {watched.decision.reason}")
                if watched.page:
                    pages.append(f"{watched.page}: drift, {name}")
    return [answers, Table(title, heads, tuple(rows), tuple(reasons))], pages


def _ask(server: TritonServer, images: list[traffic.HeldOut]) -> Table:
    rows = []
    for protocol in PROTOCOLS:
        url = server.http_url if protocol == "http" else server.grpc_url
        with Client(url, protocol) as client:
            for image, answer in zip(images, client.predict_images([i.data for i in images[:SHOWN_IMAGES]]), strict=False):
                rows.append((protocol, image.path, image.label, answer.label, f"{answer.probability:.4f}"))
    return Table(
        "What the endpoint answers", ("protocol", "held-out image", "true label", "answer", "probability"), tuple(rows)
    )


def _load() -> Summary | None:
    try:
        found: dict[str, Any] = json.loads(RUN_SUMMARY.read_text(encoding="utf-8"))
        tables = tuple(
            Table(
                table["title"],
                tuple(table["columns"]),
                tuple(tuple(row) for row in table["rows"]),
                tuple(table["notes"]),
            )
            for table in found["tables"]
        )
        return Summary(found["lock"], tables, tuple(found["pages"]), found["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none yet, or of an earlier visionloop: the run is done again

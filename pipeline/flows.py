"""The flows `train`, `monitor` and `retrain` for Prefect. DVC decides what is stale; Prefect decides when, and tells people.

The tasks of `train` are the stages of `dvc.yaml`, one task run each, in its order. They keep no result cache, since DVC
keeps one. Retries sit on what touches the network or another process, never on a stage.
Does not cover: schedules (`prefect.yaml`) and the server and worker (`orchestrator.py`).
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed

from pipeline import endpoints, feedback, repro, summary
from pipeline.watching import Watched, watch
from visionloop.config import CollectParams, MonitorParams, ServeParams, load_section
from visionloop.errors import ArtifactError, BlockedError, PipelineError
from visionloop.paths import DVC_YAML, MODEL_REPOSITORY
from visionloop.records import Decision

RETRAIN_DEPLOYMENT = "retrain/on-drift"
METRICS_KEY, STAGES_KEY, DECISION_KEY = "model-metrics", "stages", "drift-decision"
BLOCKED = "Blocked"  # name of the state of a run that a gate or a budget ended: done, and nothing is published


def _named_by_time(kind: str) -> str:
    started = flow_run.scheduled_start_time or datetime.now(UTC)
    return f"{kind} {started:%Y-%m-%d %H:%M}"


def _train_name() -> str:
    return _named_by_time("train")


def _monitor_name() -> str:
    return _named_by_time("monitor")


def _retrain_name() -> str:
    return _named_by_time(f"retrain ({flow_run.parameters.get('reason', '')})")


@flow(name="train", flow_run_name=_train_name, log_prints=True)
def train(stages: list[str] | None = None) -> list[str] | State[list[str]]:
    """Bring the pipeline up to date, all stages or those named; return the stages that ran.

    A gate or a budget that says no ends the run in a state named Blocked, whose message is the reason.
    """
    ran: list[str] = []
    for stage in stages or repro.stage_names():
        did, blocked = run_stage(stage)
        if blocked:
            report(ran, blocked=stage)
            return Completed(name=BLOCKED, message=f"blocked: {blocked}", data=ran)
        ran += [stage] if did else []
    report(ran)
    return ran


@flow(name="monitor", flow_run_name=_monitor_name, log_prints=True)
def monitor() -> str:
    """Judge the newest window of predictions; a decision to retrain starts the deployment `retrain/on-drift` once."""
    watched = judge()
    show(watched)
    if watched.decision.action == "retrain":
        ask_for_retraining(watched.decision)
    return watched.decision.action


@flow(name="retrain", flow_run_name=_retrain_name, log_prints=True)
def retrain(reason: str = "schedule", window_id: str = "") -> str | State[str]:
    """Bring in what people labelled, train on the present data, and publish what the gates of the stages let through.

    `reason` stands in the run's name. A model that a gate holds back is a normal end: the state is named Blocked.
    """
    print(f"retraining because of {reason}{f', window {window_id}' if window_id else ''}")
    if load_section(CollectParams).feedback:
        pull_labels()
    trained = train(return_state=True)
    ran = trained.result()
    if trained.name == BLOCKED:
        print(trained.message)
        return Completed(name=BLOCKED, message=trained.message, data=trained.message or "")
    if "deploy" not in ran:
        print("No stage before `deploy` changed anything: the data are those of the last training, so the model stays.")
        return "unchanged"
    return f"version {confirm_served()} is served"


def run_stage(stage: str) -> tuple[bool, str]:
    """Run one stage of `dvc.yaml` as a task run of its own name; return whether there was anything to do, and why it is
    blocked ("": it is not)."""
    named = _stage.with_options(name=stage, task_run_name=stage)
    state = named(stage, return_state=True)
    did = state.result()
    return bool(did), (state.message or "") if state.name == BLOCKED else ""


@task(cache_policy=NO_CACHE, persist_result=False)
def _stage(stage: str) -> bool | State[bool]:
    try:
        return bool(repro.reproduce([stage], single=True, on_line=print).ran)
    except BlockedError as error:  # an answer, not a fault: no traceback, and no retry would change it
        return Completed(name=BLOCKED, message=str(error), data=False)


@task(cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=5)
def judge() -> Watched:
    """Judge the newest window; the store may be a database elsewhere, hence the retries."""
    from serving.store import Store

    with Store(load_section(ServeParams).store_url) as store:
        store.create()
        return watch(store, load_section(MonitorParams))


@task(cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=10)
def ask_for_retraining(decision: Decision) -> None:
    """Start the retraining of a window, once however often this is asked.

    The decision lies in the store before this is called, and the next hourly run asks again, so nothing is lost where the
    Prefect server is down now.
    """
    from prefect.client.schemas.objects import FlowRun
    from prefect.deployments import run_deployment

    parameters = {"reason": "drift", "window_id": decision.window_id}
    key = f"drift-{decision.window_id}"
    # Not a sub-flow of this run: the monitor ends now, the retraining in its own time.
    run = run_deployment(RETRAIN_DEPLOYMENT, parameters=parameters, timeout=0, idempotency_key=key, as_subflow=False)
    assert isinstance(run, FlowRun), "called from synchronous code"
    print(f"retraining for window {decision.window_id} is flow run {run.name}")


@task(cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=5)
def pull_labels() -> int:
    """Bring the images that people labelled into the training data; return how many are new."""
    from serving.store import Store

    with Store(load_section(ServeParams).store_url) as store:
        store.create()
        pulled = feedback.pull(store)
    for sentence in feedback.sentences(pulled):
        print(sentence)
    return pulled.images


@task(cache_policy=NO_CACHE, persist_result=False, retries=6, retry_delay_seconds=5)
def confirm_served() -> int:
    """Check that the running endpoint, if there is one, serves the champion that was published; return its version."""
    from serving.client import Client
    from serving.repository import read_release

    champion = read_release(MODEL_REPOSITORY).champion
    running = endpoints.find()
    if running is None:
        get_run_logger().warning("No endpoint runs here; version %s is served when one is started.", champion)
        return champion
    with Client(running.triton_http) as client:
        served = client.versions()
    if champion not in served:
        raise PipelineError(f"The endpoint serves versions {served}, not yet the champion {champion}.")
    return champion


def report(ran: list[str], blocked: str = "") -> None:
    """Put the stages and the measured figures into the run's artifacts; `blocked` is the stage that said no."""
    names = repro.stage_names()
    after = names[names.index(blocked) + 1 :] if blocked in names else []
    did = {**dict.fromkeys(ran, "ran"), **dict.fromkeys(after, "not run"), blocked: "blocked"}
    rows = [{"stage": name, "did": did.get(name, "up to date")} for name in names]
    create_table_artifact(key=STAGES_KEY, table=rows, description=f"Stages of {DVC_YAML}, in order")
    try:
        text = "\n".join(table.markdown() for table in summary.tables())
    except ArtifactError as error:
        if not blocked:
            raise
        text = str(error)  # the first run of all, blocked before its last report
    create_markdown_artifact(key=METRICS_KEY, markdown=text, description="What the stages measured")


def show(watched: Watched) -> None:
    """Put the decision into the run's artifacts, with a link to the page where there is one."""
    decision = watched.decision
    print(f"{decision.action}: {decision.reason}")
    running = endpoints.find()
    lines = [f"## {decision.action} (window {decision.window_id}, {decision.level})", "", decision.reason, ""]
    if watched.page:
        lines.append(f"Page of this window: `{watched.page}`")
    if running and running.evidently:
        lines.append(f"[Drift dashboard]({running.evidently})")
    if watched.result:
        drifted = {signal.signal: signal.p_value for signal in watched.result.signals if signal.drifted}
        lines.append(f"\nSignals under the threshold of {watched.result.threshold:.1e}: `{json.dumps(drifted)}`")
    create_markdown_artifact(key=DECISION_KEY, markdown="\n".join(lines), description="Drift decision")

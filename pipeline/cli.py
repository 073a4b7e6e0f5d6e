"""The `visionloop` command.

Exit codes: 0 all is well, 1 something failed or was refused (one sentence on standard error says what), 2 a gate, a budget
or a wrong command line said no. Commands run in the project's folder, found from the current one upwards. Heavy libraries
are imported by the command that needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline import feedback_cli
from pipeline.stages import spin_briefly
from visionloop.errors import ConfigError, ImageError, PipelineError, VisionloopError

if TYPE_CHECKING:
    from collections.abc import Callable

    from visionloop.records import Prediction

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(feedback_cli.app, name="feedback")
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}

Family = Annotated[Literal["cnn", "vit"], typer.Argument(help="Which model.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


@app.callback()
def in_project(context: typer.Context) -> None:
    """From a folder of images to a monitored Triton endpoint.

    Exit codes: 0 well, 1 failed or refused, 2 blocked by a gate or called with an unknown option.
    """
    context.obj = Path.cwd()  # what paths on the command line are relative to
    if "--help" not in sys.argv:
        os.chdir(project_root(Path.cwd()))


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check every precondition and say in one sentence each what to do."""
    from pipeline import doctor as doctors

    checks = doctors.checks()
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        for check in checks:
            print(f"{'✓' if check.ok else '✗'} {check.name:16} {check.sentence}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def recipe(
    name: Annotated[str | None, typer.Argument(help="The recipe to apply; without one they are listed.")] = None,
    small: Annotated[bool, typer.Option("--small", help="The variant that takes minutes.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite changes of params.yaml that git has not.")] = False,
) -> None:
    """List the recipes, or put one in the place of params.yaml."""
    from pipeline import recipes

    if name is None:
        if small or force:
            raise ConfigError(
                "--small and --force are of a recipe that is applied; name one, `visionloop recipe` lists them."
            )
        for known in recipes.names():
            print(f"{known:24} {recipes.read(known).notes.get('What', '')}")
        print("`visionloop recipe NAME` puts one in the place of params.yaml, --small its variant for minutes.")
        return
    for sentence in recipes.apply(name, small=small, force=force):
        print(sentence)
    notes = recipes.read(name).notes
    for word in recipes.NOTES:
        if word in notes:
            print(f"{word:9} {notes[word]}")


@app.command("find-rate")
def find_rate(
    family: Annotated[str, typer.Argument(help="cnn or vit.")],
    lowest: Annotated[float, typer.Option(help="The first learning rate.")] = 1e-6,
    highest: Annotated[float, typer.Option(help="The last one; it stops before where the loss diverges.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Steps from the first to the last.")] = 150,
    as_json: Json = False,
) -> None:
    """Suggest a learning rate: a short training with a rate that grows, and a picture of its losses."""
    if family not in ("cnn", "vit"):
        raise ConfigError(f"find-rate takes the family cnn or vit, got '{family}'.")
    spin_briefly()  # so torch is loaded below
    from visionloop.config import TrainParams, load_section
    from visionloop.data.packing import load_meta, load_split
    from visionloop.files import write_bytes
    from visionloop.paths import FIND_RATE_REPORTS, PACKED
    from visionloop.training import finder

    params = load_section(TrainParams)
    data, meta = load_split(PACKED, "train"), load_meta(PACKED)
    sweep = finder.find_rate(
        "cnn" if family == "cnn" else "vit", data, meta, params, lowest=lowest, highest=highest, steps=steps
    )
    file = FIND_RATE_REPORTS / f"{family}.png"
    write_bytes(file, finder.picture(sweep, f"{params.family(family).architecture} with {params.of(family).optimizer}"))
    if as_json:
        print(json.dumps({**asdict(sweep), "picture": str(file)}))
        return
    if sweep.suggestion is None:
        print(f"The loss of the {family} falls nowhere from {lowest:g} to {sweep.rates[-1]:g}; try more --steps.")
    else:
        print(
            f"The loss of the {family} falls fastest at a learning rate of {sweep.suggestion:.2g}; params.yaml has "
            f"{sweep.configured:g}."
        )
    print(f"The picture is {file}")


@app.command()
def run() -> None:
    """The main job: bring the pipeline up to date, serve the model, send it images, judge drift, sum up."""
    from pipeline import run as main_job
    from pipeline.supervisor import stopping_on_signals

    with stopping_on_signals():
        main_job.run()


@app.command()
def crossvalidate(
    family: Family = "cnn",
    accept: Annotated[bool, typer.Option("--accept", help="Let `clean` judge labels by the answers.")] = False,
) -> None:
    """Train once per fold of split.folds: the accuracy with its spread, and an answer to every image unseen."""
    from pipeline import experiments
    from pipeline.supervisor import stopping_on_signals

    with stopping_on_signals():
        experiments.crossvalidate(family, _say)
    for sentence in experiments.accept(family) if accept else experiments.shown(family):
        print(sentence)


@app.command("learning-curve")
def learning_curve(family: Family = "cnn") -> None:
    """Train on an eighth to all of the training images: would twice as many labelled images help?"""
    from pipeline import experiments
    from pipeline.supervisor import stopping_on_signals

    with stopping_on_signals():
        experiments.learning_curve(family, _say)
    for sentence in experiments.curve_shown(family):
        print(sentence)


@app.command()
def tune(
    workers: Annotated[int, typer.Option(help="Processes on this machine that share the study.", min=1, max=64)] = 1,
    apply: Annotated[bool, typer.Option("--apply", help="Write the best values into params.yaml afterwards.")] = False,
    trial: Annotated[int | None, typer.Option(help="With --apply: the values of this trial instead.", min=0)] = None,
) -> None:
    """Try settings of one family's training as tune.space describes them; an interrupted study goes on."""
    if trial is not None and not apply:
        raise ConfigError("--trial names the trial whose values --apply writes; add --apply.")
    from pipeline import tuning
    from pipeline.stages.tune import load_job
    from pipeline.supervisor import stopping_on_signals

    with stopping_on_signals():
        results = tuning.run(load_job(), workers, _say)
    if apply:
        _say(tuning.apply(results, results.best if trial is None else results.trial(trial)))
    else:
        _say("`visionloop tune --apply` writes the best values into params.yaml; reports/tune.diff shows them.")


@app.command()
def compare(
    revision: Annotated[str, typer.Argument(help="A git revision: a commit, a branch, a tag, HEAD~1.")],
    other: Annotated[str | None, typer.Argument(help="A second one; without it, what lies here now.")] = None,
) -> None:
    """Put two runs side by side: params, metrics with intervals, classes, and the verdict on the same images."""
    from pipeline import comparing

    comparing.compare(revision, other)


@app.command()
def report() -> None:
    """Make the report page and the model card of what the stages have written so far, as when one of them blocks."""
    from pipeline.stages.report import main as make

    make()


@app.command()
def promote(
    force: Annotated[bool, typer.Option("--force", help="Publish the shipped model whatever the gate says of it.")] = False,
    reason: Annotated[str, typer.Option(help="With --force: why. It is kept in data/promotions.csv.")] = "",
    who: Annotated[str | None, typer.Option(help="With --force: who decides; you unless given.")] = None,
) -> None:
    """Say what the gate says of the shipped model; with --force decide over its head, with a reason."""
    from pipeline import promoting

    for sentence in promoting.force(reason, who) if force else promoting.said():
        print(sentence)


@app.command()
def predict(  # noqa: PLR0917 - typer calls it by name
    context: typer.Context,
    paths: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    grpc: Annotated[bool, typer.Option("--grpc", help="Ask over gRPC instead of HTTP.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Use the deployed model in this process, no server.")] = False,
    url: Annotated[str | None, typer.Option(help="host:port of another endpoint.")] = None,
    as_json: Json = False,
) -> None:
    """Classify images; a bad one does not stop the rest, and the exit code is 1 at the end."""
    if offline and (grpc or url):
        raise ConfigError("--offline asks no server; leave out --grpc and --url.")
    from visionloop.progress import track

    files = _image_files([context.obj / path for path in paths])
    failures, answered = 0, 0
    with _predictor(grpc, offline, url) as ask:
        for path in track(files, "predict") if len(files) > 100 else files:
            try:
                answer = ask(path.read_bytes())
            except (ImageError, OSError) as refusal:
                failures += 1
                error = f"The file cannot be read ({refusal.strerror})." if isinstance(refusal, OSError) else str(refusal)
                if as_json:
                    print(json.dumps({"file": str(path), "error": error}, ensure_ascii=False))
                else:
                    print(f"{path}: {error}", file=sys.stderr)
                continue
            if as_json:
                print(json.dumps({"file": str(path), **asdict(answer)}, ensure_ascii=False))
            else:
                if not answered:
                    print(f"{'label':16} {'probability':>11}  {'doubt':15}  {'prediction id':36}  file")
                answered += 1
                doubt = ", ".join(name for name in ("unknown", "review") if getattr(answer, name))
                print(f"{answer.label:16} {answer.probability:11.4f}  {doubt:15}  {answer.prediction_id:36}  {path}")
    if failures:
        print(f"{failures} of {len(files)} images were refused.", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def explain(  # noqa: PLR0917 - typer calls it by name
    context: typer.Context,
    image: Annotated[Path | None, typer.Argument(help="An image file.")] = None,
    prediction_id: Annotated[str | None, typer.Option("--id", help="Instead: a prediction whose image was kept.")] = None,
    model: Annotated[
        Literal["shipped", "cnn", "vit"], typer.Option(help="Which network; shipped: the family that is served.")
    ] = "shipped",
    out: Annotated[Path | None, typer.Option(help="The picture; NAME.explained.png here unless given.")] = None,
    as_json: Json = False,
) -> None:
    """Show where the model sees its answer: a picture of one image with maps for the answer and the runner-up."""
    if (image is None) == (prediction_id is None):
        raise ConfigError("explain takes an image file or --id with a prediction, one of the two.")
    from pipeline import explaining

    asked = explaining.from_file(context.obj / image) if image else explaining.from_store(prediction_id or "")
    stem = Path(asked.name).stem if image else asked.name
    found = explaining.run(asked, model, context.obj / (out or f"{stem}.explained.png"))
    ranked = dict(zip(found.explained.labels, found.explained.probabilities, strict=True))
    if as_json:
        print(
            json.dumps(
                {
                    "image": asked.name,
                    "picture": str(found.picture),
                    "family": found.family,
                    "method": found.explained.method,
                    "probabilities": ranked,
                    "doubts": found.explained.doubts,
                    "notes": found.notes,
                },
                ensure_ascii=False,
            )
        )
        return
    print(", ".join(f"{label} {probability:.1%}" for label, probability in ranked.items()))
    for sentence in (*(f"The answer is marked: {doubt}." for doubt in found.explained.doubts), *found.notes):
        print(sentence)
    print(f"The picture is {found.picture}")


@app.command()
def serve() -> None:
    """Serve the deployed model with Triton alone, until Ctrl-C."""
    from pipeline import supervisor

    raise typer.Exit(supervisor.serve_alone())


@app.command()
def up() -> None:
    """Run Triton, Prefect and the Evidently UI together on this machine, until Ctrl-C."""
    from pipeline import supervisor

    raise typer.Exit(supervisor.up(_say))


@app.command()
def monitor(
    partial: Annotated[bool, typer.Option("--partial", help="Judge the open window too, once it has min_rows.")] = False,
    as_json: Json = False,
) -> None:
    """Judge the newest window of predictions: wait, alert or retrain, with the reason."""
    from pipeline.watching import watch
    from serving.store import Store
    from visionloop.config import MonitorParams, ServeParams, load_section

    with Store(load_section(ServeParams).store_url) as store:
        store.create()
        watched = watch(store, load_section(MonitorParams), partial=partial)
    decision, page = watched.decision, str(watched.page) if watched.page else None
    if as_json:
        print(json.dumps({**asdict(decision), "page": page, "new": watched.new}, ensure_ascii=False))
        return
    print(f"{decision.action}: {decision.reason}")
    if page:
        print(f"The page of window {decision.window_id} is {page}")
    if decision.action == "retrain":
        print("Under `visionloop up` the hourly monitor starts the retraining; at once: `make run`, or run the deployment")
        print("retrain/on-drift in Prefect.")


@app.command()
def simulate(
    shift: Annotated[str, typer.Option(help="none, prior, or a corruption: blur, noise, fog, ...")] = "none",
    severity: Annotated[int, typer.Option(help="1 (slight) to 5 (strong).")] = 3,
    count: Annotated[int | None, typer.Option(help="Images to send; one window unless given.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Another seed, other images.", min=0)] = 0,
    url: Annotated[str | None, typer.Option(help="host:port of another endpoint.")] = None,
) -> None:
    """Send held-out images to the running endpoint, as they are or shifted."""
    from monitoring import simulator
    from pipeline import endpoints, traffic
    from serving.client import Client
    from visionloop.config import MonitorParams, PreprocessParams, ServeParams, load_section

    total = count or load_section(MonitorParams).window_rows
    images = traffic.held_out(load_section(ServeParams))
    data, labels = [image.data for image in images], [image.label for image in images]
    spec = load_section(PreprocessParams).spec
    shifted = simulator.simulate(data, shift, severity, total, seed, labels=labels, spec=spec)
    with Client(url or endpoints.require().triton_http) as client:
        answered = sum(1 for _ in traffic.send(client, shifted, total, f"send {shift}"))
    print(f"{answered} images were sent and answered; `visionloop monitor` judges each full window of them.")


@app.command()
def status(as_json: Json = False) -> None:
    """What is stale, what runs, what the store holds and what was decided last."""
    from pipeline import endpoints, repro
    from serving.images import count_images
    from serving.repository import read_release
    from serving.store import Store
    from visionloop.config import ServeParams, load_section
    from visionloop.errors import PipelineError
    from visionloop.paths import LIVE_IMAGES, MODEL_REPOSITORY, RELEASE

    release = read_release(MODEL_REPOSITORY) if (MODEL_REPOSITORY / RELEASE).exists() else None
    running = endpoints.find()
    stale: list[str] | None
    try:
        stale, refused = repro.status(), ""
    except PipelineError as error:  # a run is under way; the rest can be told all the same
        stale, refused = None, str(error)
    with Store(load_section(ServeParams).store_url) as store:
        store.create()
        counts, decisions, unpulled = store.counts(), store.decisions(limit=1), len(store.unpulled_images())
    found = {
        "stale_stages": stale,
        "champion": release.model_dump(mode="json") if release else None,
        "endpoints": running.model_dump(mode="json") if running else None,
        "store": counts,
        "images": {"kept": (kept := count_images(LIVE_IMAGES)), "labelled_since_pull": unpulled},
        "last_decision": asdict(decisions[0]) if decisions else None,
    }
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    behind = f"stale: {', '.join(stale or [])}; `make run` or `dvc repro` brings it up to date"
    print(f"pipeline   {refused or (behind if stale else 'up to date')}")
    print(f"model      {f'version {release.champion}, {release.family}, {release.precision}' if release else 'none yet'}")
    if running:
        print(f"endpoint   {running.triton_http} HTTP, {running.triton_grpc} gRPC (process {running.pid})")
        for name, link in (("Prefect", running.prefect), ("Evidently", running.evidently)):
            if link:
                print(f"{name:10} {link}")
    else:
        print("endpoint   does not run; `visionloop up` starts it")
    print(f"store      {', '.join(f'{value:,} {name}' for name, value in counts.items())}")
    hint = "; `visionloop feedback pull` brings them into the data" if unpulled else ""
    print(f"images     {kept:,} kept, {unpulled:,} labelled since the last pull{hint}")
    last = [f"{found.action} (window {found.window_id}): {found.reason}" for found in decisions]
    print(f"decision   {last[0] if last else 'none yet'}")


def _image_files(paths: list[Path]) -> list[Path]:
    """Every image named, and those in the folders named, sorted; a file that is named is taken whatever its ending."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        else:
            files.append(path)
    if not files:
        known = ", ".join(sorted(IMAGE_SUFFIXES))
        raise ConfigError(f"There is no image in {', '.join(map(str, paths))}; images end in {known}.")
    return files


@contextlib.contextmanager
def _predictor(grpc: bool, offline: bool, url: str | None) -> Iterator[Callable[[bytes], Prediction]]:
    """A function from image bytes to an answer."""
    if offline:
        yield _offline()
        return
    from pipeline import endpoints
    from serving.client import Client

    if url is None:
        running = endpoints.require()
        url = running.triton_grpc if grpc else running.triton_http
    with Client(url, "grpc" if grpc else "http") as client:
        yield lambda data: client.predict_images([data])[0]


def _offline() -> Callable[[bytes], Prediction]:
    from serving.repository import champion_folder
    from visionloop import runtime
    from visionloop.features import softmax
    from visionloop.observe import Observer
    from visionloop.paths import MODEL_REPOSITORY
    from visionloop.preprocess import preprocess
    from visionloop.records import Prediction

    folder = champion_folder(MODEL_REPOSITORY)
    model, card = runtime.load(folder)
    observer = Observer.load(folder, card, model_version=folder.name)

    def answer(data: bytes) -> Prediction:
        logits, embedding = model.run(preprocess(data, card.preprocess)[None])
        probabilities = tuple(float(value) for value in softmax(logits)[0])
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        _, unknown, review = observer.doubt(logits[0], embedding[0])
        return Prediction(
            card.labels[best],
            probabilities[best],
            probabilities,
            model_version=folder.name,
            unknown=bool(unknown),
            review=bool(review),
        )

    return answer


def _say(text: str) -> None:
    print(text, flush=True)


def project_root(start: Path) -> Path:
    """The project's folder: the nearest one from `start` upwards with params.yaml and dvc.yaml.

    Raises:
        PipelineError: there is none.
    """
    for folder in (start, *start.parents):
        if (folder / "params.yaml").is_file() and (folder / "dvc.yaml").is_file():
            return folder
    raise PipelineError(f"{start} is in no visionloop project (params.yaml and dvc.yaml); change to the project's folder.")


def main() -> None:
    """Run the command line; a refusal is one sentence on standard error, and its exit code."""
    os.environ.update(DVC_NO_ANALYTICS="1", DO_NOT_TRACK="1")
    try:
        app()
    except VisionloopError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()

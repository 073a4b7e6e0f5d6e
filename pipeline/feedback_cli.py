"""`visionloop feedback`: give labels to live images, and bring the labelled ones back as training data.

Does not cover: what a label must be like (`serving.labels`) and what becomes of it (`pipeline.feedback`).
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from visionloop.errors import BlockedError

if TYPE_CHECKING:
    from serving.store import Store

app = typer.Typer(no_args_is_help=True, help="Label live images, and bring them back as training data.")
SHOWN_BAD_ROWS = 100

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Who = Annotated[str | None, typer.Option(help="Who labels; the user of this machine unless given.")]


@app.command()
def label(
    prediction_id: Annotated[str, typer.Argument(help="As `visionloop predict` or the endpoint answered it.")],
    label: Annotated[str, typer.Argument(help="The class that the image truly shows.")],
    who: Who = None,
    new_class: Annotated[bool, typer.Option("--new-class", help="Allow a class that the model does not know.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a live image truly shows; a second label replaces the first, which is kept beside it."""
    from pipeline import feedback

    with _store() as store:
        given = feedback.label(store, prediction_id, label, _who(who), new_class=new_class)
        odd = feedback.remarks(store.labelled())
    if as_json:
        print(json.dumps({**asdict(given), "remarks": odd}, ensure_ascii=False, default=str))
        return
    was = {"new": "", "changed": f", before {given.before}", "unchanged": ", as before"}[given.change]
    print(f"{given.prediction_id} is {given.label}{was}; the model said {given.predicted}.")
    if given.image is None:
        print("Its image is not kept, so the label counts in monitoring and cannot be trained on.")
    _warn(odd)


@app.command("import")
def import_(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="CSV with the columns prediction_id, label and, if you like, who.")],
    who: Who = None,
    new_class: Annotated[list[str] | None, typer.Option(help="Allow this class that the model does not know.")] = None,
    as_json: Json = False,
) -> None:
    """Give the labels of a CSV file; bad rows are listed with line and reason, good ones are taken, the exit code is 1."""
    from pipeline import feedback

    with _store() as store:
        done = feedback.import_file(store, context.obj / file, _who(who), new_class or [])
        odd = feedback.remarks(store.labelled())
    counts = {name: done.counts[name] for name in ("new", "changed", "unchanged")}
    if as_json:
        bad = [asdict(row) for row in done.bad]
        print(json.dumps({**counts, "bad": bad, "remarks": odd}, ensure_ascii=False))
    else:
        print(f"{', '.join(f'{count:,} {name}' for name, count in counts.items())}, {len(done.bad):,} not taken.")
        for row in done.bad[:SHOWN_BAD_ROWS]:
            print(f"line {row.line}: {row.sentence}", file=sys.stderr)
        if len(done.bad) > SHOWN_BAD_ROWS:
            print(f"and {len(done.bad) - SHOWN_BAD_ROWS:,} more lines; --json lists all.", file=sys.stderr)
        _warn(odd)
    if done.bad:
        raise typer.Exit(1)


@app.command()
def pull(
    anyway: Annotated[bool, typer.Option("--anyway", help="Take labels, too, that look like chance.")] = False,
    as_json: Json = False,
) -> None:
    """Write the labelled images that are new into data/feedback, where the next run of the pipeline finds them."""
    from pipeline import feedback

    with _store() as store:
        pulled = feedback.pull(store, anyway=anyway)
        odd = feedback.remarks(store.labelled())
    if as_json:
        print(json.dumps({**asdict(pulled), "remarks": odd}, ensure_ascii=False, default=str))
    else:
        for sentence in feedback.sentences(pulled):
            print(sentence)
        _warn(odd)
    if pulled.held_back:
        raise typer.Exit(BlockedError.exit_code)


@app.command("list")
def list_(
    context: typer.Context,
    limit: Annotated[int, typer.Option(help="How many.", min=1)] = 20,
    file: Annotated[Path | None, typer.Option("--csv", help="Write a CSV file to fill in and to import.")] = None,
    as_json: Json = False,
) -> None:
    """The kept images without a label of which the model is least sure, with their files: the ones to label first."""
    from pipeline import feedback
    from serving.labels import escaped
    from visionloop.files import atomic_open

    with _store() as store:
        found = feedback.candidates(store, limit)
    if file is not None:
        with atomic_open(context.obj / file) as out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(["prediction_id", "label", "predicted", "confidence", "image"])
            for row in found:
                confidence = f"{row.confidence:.4f}"
                writer.writerow([row.prediction_id, "", escaped(row.predicted), confidence, row.image.absolute()])
        print(f"{len(found)} images stand in {file}; fill in the column label, then `visionloop feedback import {file}`.")
    elif as_json:
        print(json.dumps([asdict(row) for row in found], indent=2, ensure_ascii=False, default=str))
    elif not found:
        print("No kept image is without a label; send some to the endpoint, and see serve.keep_images.")
    else:
        print(f"{'prediction id':36}  {'confidence':>10}  {'answer':16}  image")
        for row in found:
            print(f"{row.prediction_id:36}  {row.confidence:10.4f}  {row.predicted:16}  {row.image}")


@contextmanager
def _store() -> Iterator[Store]:
    from serving.store import Store
    from visionloop.config import ServeParams, load_section

    with Store(load_section(ServeParams).store_url) as store:
        store.create()
        yield store


def _who(given: str | None) -> str:
    from pipeline.feedback import default_who
    from serving.labels import check_who

    return (check_who(given) if given is not None else "") or default_who()


def _warn(sentences: list[str]) -> None:
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)

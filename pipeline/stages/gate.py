"""Stage `gate`: may the shipped model replace the served one? Exit code 2 when it may not, and the served one stays.

Which model is served is read from model_repository/release.json, which no dependency declares: it is what the later stage
`deploy` writes. The report names the model that was compared with; `deploy` refuses a report on another one, and
`pipeline.repro` has the gate run anew then. DVC's cache of earlier runs is kept out by `persist`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.stages import run_stage
from serving.repository import champion_folder, read_release
from visionloop.card import ModelCard
from visionloop.config import GateParams, load_section
from visionloop.data.packing import PackedSplit, decode_image, load_meta, load_split
from visionloop.data.seen import LEARNT, TEST, UNSEEN, read_seen
from visionloop.data.shards import read_bytes, read_images
from visionloop.errors import ArtifactError, BlockedError, DataError
from visionloop.evaluation.comparison import PairedAnswers
from visionloop.evaluation.gate import Champion, Evidence, judge
from visionloop.files import write_json
from visionloop.paths import (
    GATE_REPORT,
    IMAGES,
    MODEL_ONNX,
    MODEL_REPOSITORY,
    PACKED,
    PROMOTIONS,
    RELEASE,
    SEEN,
    SHARDS,
    SHIPPED,
)
from visionloop.promotion import promotion_of, read_promotions
from visionloop.runtime import OnnxModel, compare_latency, load, measure_latency

REPEATS = 50  # calls of each model
_MESSAGE = "To publish it all the same: `visionloop promote --force --reason '...'`."

Images = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Served:
    """The champion's files."""

    version: int
    sha256: str
    model: OnnxModel
    card: ModelCard


def main() -> None:
    """Read models/shipped, the test images and the champion; write reports/gate.json."""
    params = load_section(GateParams)
    model, card = load(SHIPPED)
    challenger = card.files[MODEL_ONNX]
    forced = promotion_of(read_promotions(PROMOTIONS), challenger)
    meta, test = load_meta(PACKED), load_split(PACKED, "test")
    if len(test.ids) == 0:
        raise DataError("There is no test image to judge a model on; raise split.test.")
    # The packed labels and the card's are of one data version, but their order is the card's own.
    place = np.array([card.labels.index(label) for label in meta.labels], dtype=np.int64)
    targets = place[test.labels]
    answers: npt.NDArray[np.int64] = model.run_all(test.images)[0].argmax(1)

    served, why = _served()
    latency, champion = 0.0, None
    if served and served.sha256 == challenger:
        why = f"Version {served.version}, which is served, is this model already"
    elif served:
        champion, latency = _compared(served, Challenger(model, card, answers, targets), test, params)
    decision = judge(Evidence(card.labels, answers == targets, latency, champion, why), params, forced)
    write_json(
        GATE_REPORT,
        decision.report(challenger, served.sha256 if served else "", served.version if served else 0),
    )
    for rule in decision.rules:
        print(f"{ {True: 'pass', False: 'BLOCK', None: '  - '}[rule.passed]:5} {rule.name}: {rule.reason}")
    if not decision.passed:
        raise BlockedError(f"{decision.verdict} {_MESSAGE}")
    print(f"{GATE_REPORT}: passed. {decision.verdict}")


@dataclass(frozen=True)
class Challenger:
    """The new model and what it says of the test images."""

    model: OnnxModel
    card: ModelCard
    answers: npt.NDArray[np.int64]  # [N] positions in its labels
    targets: npt.NDArray[np.int64]  # [N]


def _served() -> tuple[Served | None, str]:
    """The champion, or None and why there is none that could be worse."""
    if not (MODEL_REPOSITORY / RELEASE).exists():
        return None, "No model is served yet"
    release = read_release(MODEL_REPOSITORY)
    try:
        model, card = load(champion_folder(MODEL_REPOSITORY))
    except ArtifactError as error:
        return None, f"Version {release.champion} cannot be served any more ({str(error).rstrip('.')})"
    return Served(release.champion, card.files[MODEL_ONNX], model, card), ""


def _compared(served: Served, new: Challenger, test: PackedSplit, params: GateParams) -> tuple[Champion, float]:
    """Both models on the test images, and how long the new one takes for one."""
    images = test.images if served.card.preprocess == new.card.preprocess else _decoded(test.ids, served.card)
    logits, _ = served.model.run_all(images)
    names = {label: number for number, label in enumerate(new.card.labels)}
    known = np.array([names.get(label, -1) for label in served.card.labels], dtype=np.int64)
    both = PairedAnswers(new.targets, new.answers, known[logits.argmax(1)])
    # The champion cannot be right on a class that it does not know; that says nothing of the other classes.
    fair = np.isin(new.targets, known)
    seen = read_seen(champion_folder(MODEL_REPOSITORY) / SEEN)
    sides = seen.sides(test.ids) if seen else np.full(len(test.ids), TEST, dtype=np.int8)
    newest: npt.NDArray[np.bool_] | None = sides == UNSEEN if seen else None
    if params.newest == "feedback":
        live = {row.id for row in read_images(IMAGES) if row.source == "feedback"}
        newest = np.array([name in live for name in test.ids]) & (sides != LEARNT)
    elif params.newest == "none":
        newest = None
    sample = test.images[: min(32, len(test.ids))]
    if images is test.images:
        times = compare_latency({"new": new.model, "served": served.model}, sample, (1,), REPEATS)
        new_ms, served_ms = times["new"][0].p50_ms, times["served"][0].p50_ms
    else:  # inputs of two sizes, one model after the other
        new_ms = measure_latency(new.model, sample, (1,), REPEATS)[0].p50_ms
        served_ms = measure_latency(served.model, images[: len(sample)], (1,), REPEATS)[0].p50_ms
    champion = Champion(
        version=served.version,
        labels=served.card.labels,
        frozen=both.chosen(fair & (sides == TEST)),
        newest=None if newest is None else both.chosen(fair & newest),
        learnt=int((sides == LEARNT).sum()),
        latency_ms=served_ms,
    )
    return champion, new_ms


def _decoded(ids: list[str], card: ModelCard) -> Images:
    """The test images as a champion of another input size takes them, uint8 [N, H, W, 3]."""
    spec = card.preprocess
    places = {name: number for number, name in enumerate(ids)}
    rows = {row.id: row for row in read_images(IMAGES) if row.id in places}
    images = np.empty((len(ids), spec.height, spec.width, 3), dtype=np.uint8)
    for row, data in read_bytes(SHARDS, rows.values()):
        images[places[row.id]] = decode_image(row.id, data, spec)
    return images


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

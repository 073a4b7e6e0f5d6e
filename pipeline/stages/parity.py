"""Stage `parity`: the same images through every form of the model, up to a real Triton server; exit code 2 over a tolerance.

Held-out images as they came and odd files made of them go through torch, ONNX FP32 and the shipped form, then over HTTP and
gRPC, as tensors and as files. What is beyond a tolerance is on the page, and `deploy` publishes nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.stages import run_stage
from serving import pixels
from serving.trial import PROTOCOLS, Questions, Trial, serve
from visionloop.card import ModelCard
from visionloop.compression.contract import check_graph
from visionloop.compression.export import Calibrated, torch_answers
from visionloop.config import DeployParams, ParityParams, ServeParams, load_section
from visionloop.data.shards import read_bytes, read_images
from visionloop.data.splitting import read_split
from visionloop.errors import BlockedError, DataError, ImageError
from visionloop.evaluation import agreement, odd_images
from visionloop.evaluation.agreement import Pair
from visionloop.evaluation.agreement_page import MOST_SHOWN, Contract, Kind, Refusal, Shown, render
from visionloop.evaluation.budgets import OVER_BUDGET
from visionloop.features import softmax
from visionloop.files import sha256_file, write_json, write_text
from visionloop.models import load_model
from visionloop.paths import (
    CARD,
    EXPORTED,
    IMAGES,
    INTEGER,
    MODEL_ONNX,
    PARITY_PAGE,
    PARITY_REPORT,
    SHARDS,
    SHIPPED,
    SPLIT,
    family_folder,
)
from visionloop.preprocess import PreprocessSpec, decode, resize
from visionloop.runtime import Floats, Images, OnnxModel, load

AS_COLLECTED = "as collected"
_ROUNDED = ("shipped", agreement.LEARNT, agreement.TOLD)
_WORDS = {"http": "HTTP", "grpc": "gRPC"}


@dataclass(frozen=True)
class Form:
    """What one form of the model says of all images."""

    name: str  # in words
    logits: Floats  # [N, K]; of files that were served, logarithms of probabilities
    embedding: Floats | None  # [N, D]


@dataclass(frozen=True)
class Asked:
    """The images of one parity."""

    files: list[bytes]  # [N]: held-out ones as they were collected, then odd files made of the first of them
    kinds: list[str]  # [N]
    tensors: Images  # uint8 [N, H, W, 3]
    refused: list[odd_images.OddFile]  # what must not be answered
    collected: int  # of the N

    @classmethod
    def of(cls, params: ParityParams, limits: ServeParams, spec: PreprocessSpec) -> Asked:
        """Held-out images within the server's limits, and the odd files."""
        max_pixels = _max_pixels(limits)
        collected = _held_out(params.images, limits)
        pictures = [decode(data, max_pixels=max_pixels).image for data in collected[: params.odd_pictures]]
        odd = [file for picture in pictures for file in odd_images.answered(picture, spec)]
        files = [*collected, *(file.data for file in odd)]
        return cls(
            files,
            [AS_COLLECTED] * len(collected) + [file.kind for file in odd],
            np.stack([resize(decode(data, max_pixels=max_pixels).image, spec) for data in files]),
            list(odd_images.refused(decode(collected[0], max_pixels=max_pixels).image)),
            len(collected),
        )


@dataclass(frozen=True)
class Found:
    """What came of them."""

    pairs: list[Pair]
    refusals: list[Refusal]
    unread: list[int]  # places of the files that the server reads to other pixels
    decoders: tuple[dict[str, str], dict[str, str]]  # library -> version, of this process and of the served models
    over: list[str]  # what is beyond its tolerance, in sentences


def main() -> None:
    """Read the model in each of its forms and the test images; write reports/parity.json and reports/parity.html."""
    params, deploy, limits = load_section(ParityParams), load_section(DeployParams), load_section(ServeParams)
    models = {folder: load(folder) for folder in (EXPORTED, SHIPPED)}
    card = models[SHIPPED][1]
    if card.precision != "int8" and (INTEGER / CARD).is_file():
        models[INTEGER] = load(INTEGER)
    graphs = [_graph(folder, one) for folder, (_, one) in models.items()]
    asked = Asked.of(params, limits, card.preprocess)
    forms = _forms(models, asked.tensors)
    with tempfile.TemporaryDirectory(prefix="visionloop-trial-") as folder:
        questions = Questions(asked.files, asked.tensors, [file.data for file in asked.refused])
        trial = serve(SHIPPED, questions, Path(folder), deploy=deploy, limits=limits)
    found = _found(asked, forms, trial, card, params=params, limits=limits)
    contract = _contract(asked, forms, trial, card, found=found, graphs=graphs)
    write_text(PARITY_PAGE, render(contract, params.tolerances))
    write_json(PARITY_REPORT, _report(asked, trial, card, found, contract))
    print(f"{PARITY_REPORT}: {' '.join(contract.sentences)}")
    for pair in found.pairs:
        print(
            f"{pair.reference} and {pair.form}: {pair.distance.agreement:.2%} with the same first class, logits within "
            f"{pair.distance.max_logit_distance:.1e}, {pair.distance.mean_logit_distance:.1e} on average"
        )
    print(contract.decoder_sentence)
    if found.over:  # after the page, which shows where
        raise BlockedError(
            f"The forms of the model answer differently: {'; '.join(found.over)}. Look at {PARITY_PAGE}; rebuild with "
            "`dvc repro`, or change the tolerance with its reason."
        )


def _graph(folder: Path, card: ModelCard) -> tuple[str, dict[str, object]]:
    """A model file and what its graph is made of, after it was checked."""
    path = folder / MODEL_ONNX
    return str(path), _facts(asdict(check_graph(card.read_file(folder, MODEL_ONNX), card, str(path))))


def _forms(models: dict[Path, tuple[OnnxModel, ModelCard]], tensors: Images) -> dict[str, Form]:
    """What every form says offline."""
    card = models[EXPORTED][1]
    model, _ = load_model(family_folder(card.family))
    temperature = card.calibration.temperature if card.calibration else 1.0
    forms = {"torch": Form("torch", *torch_answers(Calibrated(model, temperature), tensors))}
    words = {
        EXPORTED: ("fp32", "ONNX FP32"),
        SHIPPED: ("offline", "the shipped form offline"),
        INTEGER: ("int8", "INT8, which is not shipped"),
    }
    for folder, (key, name) in words.items():
        if folder in models:
            forms[key] = Form(name, *models[folder][0].run_all(tensors))
    return forms


def _found(
    asked: Asked, forms: dict[str, Form], trial: Trial, card: ModelCard, *, params: ParityParams, limits: ServeParams
) -> Found:
    """Compare the forms, the pixels and the refusals."""
    refused = [file.data for file in asked.refused]
    here = pixels.read([*asked.files, *refused], card.preprocess, _max_pixels(limits))
    pairs = _pairs(forms, trial, card, params, asked.collected)
    count = len(asked.files)
    refusals = _refusals([file.kind for file in asked.refused], here.found[count:], trial)
    over = [sentence for pair in pairs for sentence in pair.over]
    over += [f"{one.name} is {one.served or 'answered'!r} when served and {one.offline!r} offline"
             for one in refusals if not one.same]  # fmt: skip
    unread = [index for index in range(count) if here.found[index] != trial.pixels.found[index]]
    return Found(pairs, refusals, unread, (here.decoder, trial.pixels.decoder), over)


def _contract(
    asked: Asked,
    forms: dict[str, Form],
    trial: Trial,
    card: ModelCard,
    *,
    found: Found,
    graphs: list[tuple[str, dict[str, object]]],
) -> Contract:
    """All that the page shows."""
    pairs, count, kinds = found.pairs, len(asked.files), asked.kinds
    by_kind = [pair for pair in pairs if pair.tolerance in ("shipped", agreement.LEARNT, "bytes")]
    disagreeing = _disagreeing(pairs)
    verdict = f"{len(pairs)} pairs of forms on {count} images are"
    here, served = found.decoders
    return Contract(
        title=f"Parity of the {card.architecture} from training to the endpoint",
        sentences=[
            f"{verdict} not all within their tolerances, so nothing is published." if found.over
            else f"{verdict} within their tolerances.",
            f"{asked.collected} held-out images as they were collected and {count - asked.collected} odd files made of "
            f"them; {card.precision.upper()} is shipped.",
        ],
        over=found.over,
        tiles=[
            (str(count), "images"), (str(len(set(kinds))), "kinds of files"),
            (str(len(disagreeing)), "named differently"),
            (f"{max(pair.distance.max_logit_distance for pair in pairs if pair.tolerance not in _ROUNDED):.0e}",
             "largest logit distance but for INT8"),
            (f"{trial.server_start_seconds:.1f} s", "to start the server"),
        ],
        pairs=pairs,
        by_kind=by_kind,
        kinds=_kinds(kinds, set(found.unread), by_kind),
        refusals=found.refusals,
        decoders=[(name, version, served.get(name, "none")) for name, version in here.items()],
        decoder_sentence=_decoder_sentence(found, kinds),
        graphs=graphs,
        shown=[
            Shown(f"{kinds[index]} (image {index + 1})", asked.tensors[index], _said(index, forms, trial, card))
            for index in disagreeing[:MOST_SHOWN]
        ],
        disagreeing=len(disagreeing),
    )  # fmt: skip


def _report(asked: Asked, trial: Trial, card: ModelCard, found: Found, contract: Contract) -> dict[str, Any]:
    """reports/parity.json."""
    return {
        "images": len(asked.files),
        "held_out_images": asked.collected,
        "odd_files": len(asked.files) - asked.collected,
        "kinds": len(set(asked.kinds)),
        "refused_files": len(asked.refused),
        "disagreeing_images": contract.disagreeing,
        "same_pixels": 1 - len(found.unread) / len(asked.files),
        **{f"{protocol}_p50_ms": trial.answers[protocol].p50_ms for protocol in PROTOCOLS},
        "server_start_seconds": trial.server_start_seconds,
        "pairs": agreement.flat(found.pairs),
        # In lists: `dvc metrics show` would make a column of each.
        "forms": [{pair.name: [pair.reference, pair.form] for pair in found.pairs}],
        "decoder": [found.decoders[0]],
        "served_decoder": [found.decoders[1]],
        "decoder_sentence": [contract.decoder_sentence],
        "model": [card.files[MODEL_ONNX]],
        "card": [sha256_file(SHIPPED / CARD)],
        "passed": int(not found.over),
        OVER_BUDGET: found.over,
    }


def _disagreeing(pairs: Sequence[Pair]) -> list[int]:
    return sorted({index for pair in pairs for index in pair.disagreeing})


def _decoder_sentence(found: Found, kinds: Sequence[str]) -> str:
    said = agreement.other_decoder(*found.decoders) or "Both have the same libraries."
    if not found.unread:
        return f"{said} They read all {len(kinds)} files to the same pixels."
    some = ", ".join(sorted({kinds[index] for index in found.unread})[:5])
    return f"{said} They read {len(found.unread)} of {len(kinds)} files to other pixels: {some}."


def _max_pixels(limits: ServeParams) -> int:
    return int(limits.max_image_megapixels * 1e6)


def _held_out(count: int, limits: ServeParams) -> list[bytes]:
    """Encoded test images, the same ones every time: those with the smallest ids, which are hashes and so a fair draw."""
    test = {row.id for row in read_split(SPLIT) if row.split == "test"}
    rows = {row.id: row for row in read_images(IMAGES) if row.id in test}
    chosen = [rows[image_id] for image_id in sorted(rows)[:count]]
    found = {row.id: data for row, data in read_bytes(SHARDS, chosen) if _is_served(data, limits)}
    if not found:
        raise DataError("No test image is within serve.max_image_megabytes and serve.max_image_megapixels; raise them.")
    return [found[image_id] for image_id in sorted(found)]


def _is_served(data: bytes, limits: ServeParams) -> bool:
    if len(data) > limits.max_image_megabytes * 1e6:
        return False
    try:
        decode(data, max_pixels=_max_pixels(limits))
    except ImageError:
        return False
    return True


def _pairs(forms: dict[str, Form], trial: Trial, card: ModelCard, params: ParityParams, collected: int) -> list[Pair]:
    torch, fp32, offline = forms["torch"], forms["fp32"], forms["offline"]

    def pair(name: str, key: str, one: Form, other: Form, answers: Sequence[int] | None = None) -> Pair:
        embeddings = None if one.embedding is None or other.embedding is None else (one.embedding, other.embedding)
        # INT8 moves the embedding as it moves the logits, which alone are judged.
        embeddings = None if key in _ROUNDED else embeddings
        tolerance = (key, getattr(params.tolerances, key, None))
        words = (one.name, other.name)
        return agreement.compare(
            name, words, one.logits, other.logits, tolerance=tolerance, embeddings=embeddings, answers=answers,
            judged=collected if key in _ROUNDED else None,
        )  # fmt: skip

    found = [pair("torch_onnx", "onnx", torch, fp32)]
    shipped = Form(f"the shipped {card.precision.upper()}", offline.logits, offline.embedding)
    found.append(pair("onnx_shipped", agreement.LEARNT if card.quantization_aware else "shipped", fp32, shipped))
    if "int8" in forms:
        found.append(pair("onnx_int8", agreement.TOLD, fp32, forms["int8"]))
    said = Form(offline.name, agreement.log_probabilities(softmax(offline.logits).astype(np.float32)), None)
    place = {label: number for number, label in enumerate(card.labels)}
    for protocol in PROTOCOLS:
        answers, words = trial.answers[protocol], _WORDS[protocol]
        served = Form(f"served by tensor over {words}", answers.logits, answers.embedding)
        found.append(pair(f"{protocol}_tensor", "tensor", offline, served))
        served = Form(f"served by file over {words}", agreement.log_probabilities(answers.probabilities), None)
        named = [place.get(label, -1) for label in answers.labels]
        found.append(pair(f"{protocol}_bytes", "bytes", said, served, named))
    return found


def _refusals(names: Sequence[str], offline: Sequence[str], trial: Trial) -> list[Refusal]:
    found = []
    for index, (name, sentence) in enumerate(zip(names, offline, strict=True)):
        served = {trial.answers[protocol].refusals[index] for protocol in PROTOCOLS}
        found.append(Refusal(name, sentence, " / ".join(sorted(served)), served == {sentence}))
    return found


def _kinds(kinds: Sequence[str], unread: set[int], pairs: Sequence[Pair]) -> list[Kind]:
    found = []
    for name in dict.fromkeys(kinds):
        places = [index for index, kind in enumerate(kinds) if kind == name]
        distances = tuple(float(pair.by_image[places].max()) for pair in pairs)
        found.append(Kind(name, len(places), sum(index not in unread for index in places), distances))
    return found


def _said(index: int, forms: dict[str, Form], trial: Trial, card: ModelCard) -> list[tuple[str, str]]:
    """What each form says of one image: its first class and how probable that is."""
    said = [(form.name, softmax(form.logits[index : index + 1])[0]) for form in forms.values()]
    said += [(f"by file over {_WORDS[protocol]}", trial.answers[protocol].probabilities[index]) for protocol in PROTOCOLS]
    return [(name, f"{card.labels[int(one.argmax())]}, {one.max():.3f}") for name, one in said]


def _facts(facts: dict[str, Any]) -> dict[str, object]:
    domains = ", ".join(name or "ai.onnx" for name in facts["domains"])
    return {**facts, "megabytes": f"{facts['megabytes']:.3f}", "domains": domains}


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

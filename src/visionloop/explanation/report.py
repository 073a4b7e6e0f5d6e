"""What the stage `evaluate` shows of explanations: the method that maps are made by, its proof, and pictures.

Reads no file and knows no stage: values in, files of one folder out. Does not cover: live images (`single`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from visionloop.data.packing import PackedSplit
from visionloop.evaluation.pictures import short
from visionloop.evaluation.predictions import SplitPredictions, spread, worst_mistakes
from visionloop.explanation import pictures
from visionloop.explanation.faithfulness import (
    LEAST_IMAGES,
    Curves,
    Placed,
    Test,
    count_for,
    hits,
    insertion_deletion,
    placed,
    random_maps,
)
from visionloop.explanation.gradient import gradient_maps
from visionloop.explanation.integrated import integrated_gradients
from visionloop.explanation.methods import METHODS, NAMES, Method, heat_maps, methods_of
from visionloop.files import write_bytes, write_json
from visionloop.models import Classifier
from visionloop.records import Split

Images = npt.NDArray[np.uint8]
Classes = npt.NDArray[np.int64]

FILES = (
    "explanation.json", "explanation_detail.json", "explanation.png", "explanation_mistakes.png", "explanation_pixels.png",
    "explanation_pointing.png", "explanation_proof.png",
)  # fmt: skip
SEED = 0  # of the placed images: the same data and model give the same files
FALLBACK: Method = "integrated_gradcam"  # every network has what it takes
_PIXELS_STEPS = 16  # of integrated gradients over the test images; 32 change no hit on the digits
_POOL = 8  # times as many images as a test takes are there to be placed
_MISTAKES = 12
_PIXEL_IMAGES = 6
_SHOWN_OF_A_TEST = 4


@dataclass(frozen=True)
class Faithfulness:
    """How well maps of one method do on one side of the data."""

    shares: Mapping[Test, float]  # of hits, for the tests that have enough images
    curves: Curves

    @property
    def score(self) -> float:
        """What methods are compared by, -1 to 2: the mean share of hits, and the area between insertion and deletion."""
        pointing = float(np.mean(list(self.shares.values()))) if self.shares else 0.0
        return pointing + self.curves.insertion_auc - self.curves.deletion_auc


@dataclass(frozen=True)
class Chosen:
    """The method that maps are made by, and the sentence that says why."""

    method: Method
    reason: str


def write(
    folder: Path,
    model: Classifier,
    labels: Sequence[str],
    sides: Mapping[Split, PackedSplit],
    splits: Mapping[Split, SplitPredictions],
    *,
    setting: Literal["auto"] | Method,
    explained_images: int,
    mistake_images: int,
    title: str,
) -> str:
    """Write `FILES` into `folder`; return the sentences that say which method was taken, and how well it does.

    `sides` and `splits` have the images of "val" and "test" and the answers to them. The method is chosen on the val images,
    its figures are of the test images. With no `explained_images` nothing is computed, and the files say so.
    """
    if explained_images == 0:
        return _write_nothing(folder, title)
    chosen = choose(model, sides["val"].images, splits["val"], setting)
    images, answers = sides["test"].images, splits["test"]
    targets = answers.targets
    sets, right = _material(model, images, answers)
    measured: dict[str, Faithfulness] = {
        method: measure(model, sets, images[right], targets[right], method) for method in methods_of(model)
    }
    measured["integrated_gradients"] = measure(model, sets, images[right], targets[right], "integrated_gradients")
    grid = gradient_maps(model, images[:1], targets[:1], "layercam").shape[1:]
    blind = insertion_deletion(model, images[right], targets[right], random_maps((grid[0], grid[1]), images[right], SEED))
    shown = spread(answers, explained_images)
    pixels = integrated_gradients(model, images[shown[:_PIXEL_IMAGES]], answers.predicted[shown[:_PIXEL_IMAGES]])

    name = NAMES[chosen.method]
    name = name[0].upper() + name[1:]
    numbers: dict[str, float] = {f"{test_name}_images": len(one) for test_name, one in sets.items()}
    numbers |= {"order_images": len(right), "chance": round(max(one.chance for one in sets.values()), 4)}
    for method, found in measured.items():
        numbers |= {f"{method}_{test_name}": round(share, 4) for test_name, share in found.shares.items()}
        numbers |= _areas(method, found.curves)
    numbers |= _areas("random", blind)
    accounted = np.abs(pixels.gaps) / np.maximum(np.abs(pixels.differences), 1e-6)
    numbers["completeness_gap"] = round(float(np.median(accounted)), 4) if len(accounted) else 0.0
    write_json(folder / "explanation.json", numbers)

    best = measured[chosen.method]
    proof = _sentence(name, best, blind, numbers["chance"], len(right))
    captions = {
        "explanation.png": f"{name} for the answered class; red words are wrong answers.",
        "explanation_mistakes.png": f"{name} of wrong answers: for what the image was called, and for what it is.",
        "explanation_pixels.png": "Integrated gradients: red pixels speak for the answered class, blue ones against it.",
        "explanation_pointing.png": f"{name} on images whose evidence was placed within the line; red words are misses.",
        "explanation_proof.png": proof,
    }
    write_json(
        folder / "explanation_detail.json",
        {"method": chosen.method, "name": name, "reason": chosen.reason, "proof": proof, "pictures": captions},
    )
    maps = heat_maps(model, images[shown], answers.predicted[shown], chosen.method)
    items = [
        pictures.map_item(
            images[one],
            heat,
            pictures.answer_caption(labels[targets[one]], labels[answers.predicted[one]]),
            bad=not answers.correct[one],
        )
        for one, heat in zip(shown, maps, strict=True)
    ]
    write_bytes(
        folder / "explanation.png",
        pictures.sheet_png(items, f"{name}, {title}", captions["explanation.png"], across=12),
    )
    write_bytes(
        folder / "explanation_mistakes.png",
        _mistakes(
            model,
            images,
            answers,
            labels,
            method=chosen.method,
            count=min(_MISTAKES, mistake_images),
            title=f"{name}, {title}",
        ),
    )
    rows = [
        pictures.Item(
            (images[one], pictures.signed_tile(values)),
            f"{short(labels[answers.predicted[one]])}: {total:+.1f} logits",
        )
        for one, values, total in zip(shown, pixels.values, pixels.differences, strict=False)
    ]
    note = captions["explanation_pixels.png"] + " The logits are what the image adds to a blank one."
    write_bytes(
        folder / "explanation_pixels.png", pictures.sheet_png(rows, f"Integrated gradients, {title}", note, across=12)
    )
    write_bytes(
        folder / "explanation_pointing.png",
        _pointing(
            model,
            sets,
            labels,
            method=chosen.method,
            title=f"{name}, {title}",
            note=captions["explanation_pointing.png"],
        ),
    )
    write_bytes(
        folder / "explanation_proof.png",
        pictures.proof_png(
            {method: found.shares for method, found in measured.items()},
            {chosen.method: best.curves, "random": blind},
            chosen.method,
            numbers["chance"],
            f"Maps on images whose evidence is known, {title}",
        ),
    )
    return f"{chosen.reason} {proof}"


def choose(model: Classifier, images: Images, answers: SplitPredictions, setting: Literal["auto"] | Method) -> Chosen:
    """The method of `setting`; for "auto" the one with the highest score on images uint8 [N, H, W, 3].

    Where the network lacks what the setting needs, as a CNN attention, the choice is made as for "auto".
    """
    able = methods_of(model)
    lacking = ""
    if setting != "auto":
        if setting in able:
            return Chosen(setting, f"Maps are made by {NAMES[setting]}, as evaluate.explanation says.")
        lacking = f"The {model.architecture} has no attention over the whole image to roll out. "
    if not answers.correct.any():
        return Chosen(
            FALLBACK, f"{lacking}Maps are made by {NAMES[FALLBACK]}: no val image is answered rightly to choose by."
        )
    sets, right = _material(model, images, answers)
    scores = {method: measure(model, sets, images[right], answers.targets[right], method).score for method in able}
    best = max(able, key=lambda method: (round(scores[method], 3), -METHODS.index(method)))
    others = ", ".join(f"{NAMES[method]} {scores[method]:.2f}" for method in able if method != best)
    return Chosen(
        best,
        f"{lacking}Maps are made by {NAMES[best]}, which does best on the val images: {scores[best]:.2f} of at most 2 "
        f"(share of hits, plus area between insertion and deletion); {others}.",
    )


def _material(model: Classifier, images: Images, answers: SplitPredictions) -> tuple[dict[Test, Placed], Classes]:
    """The placed images, and the positions of rightly answered ones for insertion and deletion, spread over the classes."""
    count = count_for(images.shape[1], images.shape[2])
    # Large data sets stay on the disk; a few hundred images are placed from.
    pool = np.sort(spread(answers, _POOL * count))
    order = spread(answers, len(answers.targets))
    return (
        placed(model, np.array(images[pool]), answers.targets[pool], count, SEED),
        np.sort(order[answers.correct[order]][:count]),
    )


def measure(
    model: Classifier,
    sets: Mapping[Test, Placed],
    images: Images,
    classes: Classes,
    method: Method | Literal["integrated_gradients"],
) -> Faithfulness:
    """The shares of hits on placed images, and insertion and deletion on `images` uint8 [N, H, W, 3] of the `classes`."""

    def maps(of: Images, asked: Classes) -> npt.NDArray[np.float32]:
        if method == "integrated_gradients":
            return np.maximum(integrated_gradients(model, of, asked, _PIXELS_STEPS).values, 0)
        return heat_maps(model, of, asked, method)

    shares: dict[Test, float] = {
        name: float(hits(maps(one.images, one.classes), one.boxes).mean())
        for name, one in sets.items()
        if len(one) >= LEAST_IMAGES
    }
    return Faithfulness(shares, insertion_deletion(model, images, classes, maps(images, classes)))


def _areas(method: str, curves: Curves) -> dict[str, float]:
    if not len(curves.insertion):
        return {}
    return {
        f"{method}_insertion": round(curves.insertion_auc, 4),
        f"{method}_deletion": round(curves.deletion_auc, 4),
    }


def _sentence(name: str, best: Faithfulness, blind: Curves, chance: float, count: int) -> str:
    pointing = ", ".join(f"{share:.0%} ({test})" for test, share in best.shares.items())
    pointed = (
        f"On test images whose evidence was placed in a quarter, its strongest place lies there in {pointing}; by chance it "
        f"would in {chance:.0%}."
        if pointing
        else "Too few test images are answered from a quarter for a pointing test."
    )
    if count == 0:
        return f"{pointed} No test image is answered rightly, so insertion and deletion have nothing to show."
    return (
        f"{pointed} Pixels that come back in its order reach an area of {best.curves.insertion_auc:.2f} (random order "
        f"{blind.insertion_auc:.2f}), pixels taken away leave {best.curves.deletion_auc:.2f} ({blind.deletion_auc:.2f}), "
        f"over {count} image{'' if count == 1 else 's'}."
    )


def _mistakes(
    model: Classifier,
    images: Images,
    answers: SplitPredictions,
    labels: Sequence[str],
    *,
    method: Method,
    count: int,
    title: str,
) -> bytes:
    """The worst mistakes: the image, the map for what it was called, and the map for what it is."""
    wrong = worst_mistakes(answers, count)
    if not len(wrong):
        none = "No mistake was asked for (evaluate.mistake_images is 0)."
        if answers.correct.all():
            none = f"There are no mistakes: all {len(answers.targets)} images are answered rightly."
        return pictures.sheet_png([], title, none, across=12)
    called = heat_maps(model, images[wrong], answers.predicted[wrong], method)
    true = heat_maps(model, images[wrong], answers.targets[wrong], method)
    items = [
        pictures.Item(
            (images[one], pictures.laid_over(images[one], first), pictures.laid_over(images[one], second)),
            f"called {short(labels[answers.predicted[one]])} ({answers.probabilities[one].max():.0%})\n"
            f"is {short(labels[answers.targets[one]])} ({answers.probabilities[one][answers.targets[one]]:.0%})",
            bad=True,
        )
        for one, first, second in zip(wrong, called, true, strict=True)
    ]
    note = "The image, the evidence for what it was called, and the evidence for what it is; the most confident first."
    return pictures.sheet_png(items, title, note, across=12)


def _pointing(
    model: Classifier, sets: Mapping[Test, Placed], labels: Sequence[str], *, method: Method, title: str, note: str
) -> bytes:
    """A few images of each test with the box of the evidence, and their maps."""
    items = []
    for name, one in sets.items():
        asked, boxes = one.classes[:_SHOWN_OF_A_TEST], one.boxes[:_SHOWN_OF_A_TEST]
        maps = heat_maps(model, one.images[:_SHOWN_OF_A_TEST], asked, method)
        for image, heat, box, number, hit in zip(one.images, maps, boxes, asked, hits(maps, boxes), strict=False):
            tiles = (pictures.boxed(image, box), pictures.boxed(pictures.map_tile(heat), box))
            items.append(pictures.Item(tiles, f"{name}: {short(labels[number])}", bad=hit < 1))
    if not items:
        note = "No test image is answered from a quarter of its pixels, so there is nothing to point at."
    return pictures.sheet_png(items, title, note, across=2 * _SHOWN_OF_A_TEST)


def _write_nothing(folder: Path, title: str) -> str:
    sentence = "No explanation was asked for (evaluate.explained_images is 0)."
    write_json(folder / "explanation.json", {})
    detail = {"method": FALLBACK, "name": NAMES[FALLBACK], "reason": sentence, "proof": "", "pictures": {}}
    write_json(folder / "explanation_detail.json", detail)
    for name in FILES:
        if name.endswith(".png"):
            write_bytes(folder / name, pictures.sheet_png([], title, sentence, across=12))
    return sentence

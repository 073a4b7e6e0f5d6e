"""How well trained models tell images of none of their classes: probability, energy and distance, side by side.

What:    projects that were run as far as `train`, each with its packed images. A model is calibrated as the stage
         `calibrate` does it (temperature on val, class means on train, threshold for 95 % of val), then asked for its test
         images and for foreign ones: the made kinds of `evaluation/unknowns.py`, of which one half chose the score and the
         other judges; where the known images are gray, capital letters of 8 x 8 pixels, light on black, as the digits are;
         and the photos of --photos, which are nothing of what the model knows.
         AUROC and FPR95 are of the test images against each kind; `found` is the share of the kind that the chosen score
         calls unknown at its threshold, `kept` the share of test images that it does not.
Command: python -m benchmarks.unknowns --project digits=FOLDER --photos clothing=FOLDER
         (several --project and --photos may be given; FOLDER of --photos holds JPEG or PNG files at any depth)
Result:  in the file below. Digits: the distance is chosen for both families. CNN: AUROC of 0.994 or more. ViT: 0.975
         to 0.986, but 0.919 on letters that are drawn as the digits are, of which it finds 62 %. CIFAR-10, a CNN of 85.4 %:
         energy is chosen, AUROC 0.825 to 0.967, 0.886 on clothing photos; distance is no better than chance.
Writes:  benchmarks/results/unknowns.json
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.digits_accuracy import machine
from visionloop.data.packing import load_sample, load_split
from visionloop.evaluation.calibration import fit_temperature
from visionloop.evaluation.predictions import Answers, answer
from visionloop.evaluation.unknowns import (
    CHOSEN_BY,
    IMAGES_OF_A_KIND,
    KINDS,
    choose,
    fit_means,
    folder_images,
    kept_threshold,
    made,
    means_sample,
    separation,
)
from visionloop.files import write_json
from visionloop.models import Family, load_model
from visionloop.models.devices import choose_device
from visionloop.paths import MODELS, PACKED
from visionloop.preprocess import PreprocessSpec, encode_png, preprocess
from visionloop.unknown import SCORES, Score, strangeness

OUTPUT = Path("benchmarks/results/unknowns.json")
FAMILIES: tuple[Family, ...] = ("cnn", "vit")
KEPT = 0.95
SMALL = "letters like digits"
Images = npt.NDArray[np.uint8]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--project", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--photos", action="append", default=[], metavar="NAME=FOLDER")
    arguments = parser.parse_args()
    photos = {name: Path(folder) for name, _, folder in (text.partition("=") for text in arguments.photos)}
    results = []
    for name, _, folder in (text.partition("=") for text in arguments.project):
        for family in FAMILIES:
            if (Path(folder) / MODELS / family / "model.pt").is_file():
                row = one(Path(folder), family, photos)
                results.append({"data": name, "family": family, **row})
                print(f"\n{name} {family}: {row['reason']} Keeps {row['kept']:.1%} of the test images.")
                print(f"{'kind':20} " + " ".join(f"{score:>12} AUROC, FPR95" for score in SCORES) + "   found")
                for kind, numbers in row["kinds"].items():
                    shown = " ".join(f"{numbers[s]['auroc']:18.3f}, {numbers[s]['fpr95']:5.3f}" for s in SCORES)
                    print(f"{kind:20} {shown} {numbers['found']:7.3f}", flush=True)
    write_json(OUTPUT, {"machine": machine(), "known_kept": KEPT, "models": results})
    print(f"written to {OUTPUT}")


def one(project: Path, family: Family, photos: Mapping[str, Path]) -> dict[str, Any]:
    """Calibrate one model and measure it against every kind."""
    model, card = load_model(project / MODELS / family)
    device = choose_device("auto")
    val, test, train = (
        load_split(project / PACKED, "val"),
        load_split(project / PACKED, "test"),
        load_sample(project / PACKED),
    )
    val_answers = answer(model, val.images, device, f"{family} val")
    temperature = fit_temperature(val_answers.logits, np.asarray(val.labels, np.int64))
    sample = means_sample(train.labels)
    means = fit_means(answer(model, train.images[sample], device, f"{family} means").embedding, train.labels[sample])

    def scores(found: Answers) -> dict[Score, npt.NDArray[np.float64]]:
        logits = found.logits.astype(np.float64) / temperature.value
        return {score: strangeness(score, logits, found.embedding, means) for score in SCORES}

    gray = bool((val.images[:100] == val.images[:100, :, :, :1]).all())
    foreign = foreign_images(card.preprocess, card.labels, gray, photos)
    strange = {kind: scores(answer(model, images, device, f"{family} {kind}")) for kind, images in foreign.items()}
    known, tested = scores(val_answers), scores(answer(model, test.images, device, f"{family} test"))
    measured = choose(known, {score: {kind: strange[kind][score] for kind in KINDS} for score in SCORES})
    threshold = kept_threshold(known[measured.score], KEPT)
    kinds: dict[str, Any] = {}
    for kind, found in strange.items():
        parts = {score: separation(tested[score], {kind: found[score]}) for score in SCORES}
        kinds[kind] = {
            "role": "chose" if kind in CHOSEN_BY else "judged",
            "images": len(foreign[kind]),
            "found": round(float((found[measured.score] > threshold).mean()), 4),
            **{
                score: {
                    "auroc": round(part.auroc, 4),
                    "auroc_low": round(part.low, 4),
                    "auroc_high": round(part.high, 4),
                    "fpr95": round(part.fpr95, 4),
                }
                for score, part in parts.items()
            },
        }
    return {
        "chosen": measured.score,
        "reason": measured.reason,
        "temperature": round(temperature.value, 4),
        "test_images": len(test.labels),
        "kept": round(float((tested[measured.score] <= threshold).mean()), 4),
        "kinds": kinds,
    }


def foreign_images(
    spec: PreprocessSpec, labels: tuple[str, ...], gray: bool, photos: Mapping[str, Path]
) -> dict[str, Images]:
    """Every kind of foreign image, as the model takes it."""
    found = {kind: made(kind, IMAGES_OF_A_KIND, spec.height, spec.width, gray=gray, known=labels) for kind in KINDS}
    if gray:
        small = made("capital letters", IMAGES_OF_A_KIND, 8, 8, gray=True, known=labels)
        found[SMALL] = np.stack([preprocess(encode_png(_light_on_black(image)), spec) for image in small])
    for name, folder in photos.items():
        found[name], _ = folder_images(folder, spec)
    return found


def _light_on_black(image: Images) -> Images:
    """The same letter from 0 to 255, its ground, which is in the corners, black."""
    levels = np.abs(image.astype(np.float64) - np.median(image[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0))
    return np.asarray(255 * levels / max(levels.max(), 1), np.uint8)


if __name__ == "__main__":
    main()

"""Planted wrong labels: visionloop's suspects and ranking against cleanlab used plainly, side by side.

What:    5 % of the labels of CIFAR-10 (a sample, since logistic regression on pixels is slow) and of clothing become
         another class at random, with several seeds. Methods:
           pixels    cleanlab's default filter on cross_val_predict of scikit-learn's LogisticRegression on 32 x 32 pixels
           features  the same on visionloop's features
           ours      `find_label_issues` of visionloop
         Suspects are judged by precision, recall and F1, the ranking by average precision.
         The sets' own wrong labels count as false alarms, so precision is a lower bound.
Command: python -m benchmarks.label_issues --folder cifar10=FOLDER --folder clothing=FOLDER   (<class>/*.jpg at any depth)
Writes:  benchmarks/results/label_issues.json
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from cleanlab.filter import find_label_issues as cleanlab_issues
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from visionloop.data.embedding import embed
from visionloop.data.label_issues import find_label_issues
from visionloop.data.thumbs import THUMB_SIDE, Thumbs
from visionloop.files import write_json

OUTPUT = Path("benchmarks/results/label_issues.json")
SHARE = 0.05
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Answer = tuple[npt.NDArray[np.bool_], Floats]  # suspects, quality


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--images", type=int, default=6000, help="a sample of this many where a set has more")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows: list[dict[str, float | str]] = []
    print(f"{machine()}\nset       seed  method    suspects precision recall     F1   rank AP  seconds")
    for argument in arguments.folder:
        name, _, folder = argument.partition("=")
        images, labels = load(Path(folder), arguments.images)
        for seed in range(arguments.seeds):
            given, wrong = plant(labels, seed)
            for method, run in (("pixels", pixels), ("features", features), ("ours", ours)):
                start = time.perf_counter()
                suspect, quality = run(images, given)
                row = {**figures(suspect, quality, wrong), "seconds": time.perf_counter() - start}
                rows.append({"set": name, "images": len(labels), "seed": seed, "method": method, **row})
                print(
                    f"{name:9} {seed:4}  {method:9} {row['suspects']:7.0f} {row['precision']:9.3f} {row['recall']:6.3f} "
                    f"{row['f1']:6.3f} {row['average_precision']:9.3f} {row['seconds']:8.1f}",
                    flush=True,
                )
    write_json(OUTPUT, {"machine": machine(), "planted_share": SHARE, "summary": summarize(rows), "rows": rows})
    print(f"written to {OUTPUT}")


def load(folder: Path, most: int) -> tuple[npt.NDArray[np.uint8], Ints]:
    """A sample of the images in a folder as small copies, and their classes by the name of the folder that holds them."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    paths = [paths[index] for index in np.sort(np.random.default_rng(0).permutation(len(paths))[:most])]
    names = sorted({path.parent.name for path in paths})
    images = np.empty((len(paths), THUMB_SIDE, THUMB_SIDE, 3), dtype=np.uint8)
    for index, path in enumerate(paths):
        with Image.open(path) as image:
            images[index] = np.asarray(image.convert("RGB").resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX))
    return images, np.array([names.index(path.parent.name) for path in paths], dtype=np.int64)


def plant(labels: Ints, seed: int) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Replace a share of the labels by another class, and say which."""
    rng = np.random.default_rng(seed)
    wrong = np.zeros(len(labels), dtype=bool)
    wrong[rng.permutation(len(labels))[: round(SHARE * len(labels))]] = True
    classes = int(labels.max()) + 1
    moved = (labels + rng.integers(1, classes, len(labels))) % classes
    return np.where(wrong, moved, labels), wrong


def pixels(images: npt.NDArray[np.uint8], given: Ints) -> Answer:
    """What one does first."""
    return plain(images.reshape(len(images), -1).astype(np.float32), given)


def features(images: npt.NDArray[np.uint8], given: Ints) -> Answer:
    """The same, given visionloop's features."""
    return plain(embedded(images), given)


def ours(images: npt.NDArray[np.uint8], given: Ints) -> Answer:
    """visionloop."""
    issues = find_label_issues(embedded(images), given, np.arange(len(given)), int(given.max()) + 1, seed=0)
    return issues.suspect, issues.quality


def plain(inputs: Floats, given: Ints) -> Answer:
    """Logistic regression out of fold and cleanlab's defaults."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=100))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as a user would at first; more rounds overfit pixels more
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        probabilities = cross_val_predict(model, inputs, given, cv=folds, method="predict_proba")
    suspect = cleanlab_issues(given, probabilities, n_jobs=1)
    return suspect, np.asarray(probabilities[np.arange(len(given)), given], dtype=np.float32)


def embedded(images: npt.NDArray[np.uint8]) -> Floats:
    """visionloop's features of small copies in memory."""
    with tempfile.TemporaryDirectory() as folder, Thumbs(len(images), Path(folder)) as thumbs:
        for index, image in enumerate(images):
            thumbs.put(index, image.tobytes())
        return embed(thumbs, np.arange(len(images)), seed=0)


def figures(suspect: npt.NDArray[np.bool_], quality: Floats, wrong: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Precision, recall and F1 of the suspects, average precision of the ranking by quality."""
    hits, found = int((suspect & wrong).sum()), int(suspect.sum())
    return {
        "suspects": found,
        "precision": hits / max(found, 1),
        "recall": hits / int(wrong.sum()),
        "f1": 2 * hits / (found + int(wrong.sum())),
        "average_precision": float(average_precision_score(wrong, -quality)),
    }


def summarize(rows: list[dict[str, float | str]]) -> dict[str, dict[str, float]]:
    """Means over the seeds."""
    keys: Callable[[dict[str, float | str]], str] = lambda row: f"{row['set']}/{row['method']}"  # noqa: E731
    return {
        name: {
            figure: statistics.mean(float(row[figure]) for row in rows if keys(row) == name)
            for figure in ("suspects", "precision", "recall", "f1", "average_precision", "seconds")
        }
        for name in dict.fromkeys(map(keys, rows))
    }


def machine() -> str:
    """What the figures were measured on."""
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}"
    )


if __name__ == "__main__":
    main()

"""What cleanvision, imagededup or cleanlab, used plainly, find in a folder of class sub-folders.

Runs in the environment of benchmarks/requirements.lock: `python find_faults.py TOOL FOLDER OUTPUT`. OUTPUT is JSON:
{"seconds": s, "flagged": {kind: [path below FOLDER]}, "pairs": {"exact" | "near": [[path, path]]}}; a kind that the tool
does not look for is absent. Imports nothing of visionloop.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def main() -> None:
    """Run one tool and write what it found."""
    tool, folder, output = sys.argv[1], Path(sys.argv[2]).resolve(), Path(sys.argv[3])
    start = time.perf_counter()
    found = {"cleanvision": cleanvision, "imagededup": imagededup, "cleanlab": cleanlab}[tool](folder)
    found["seconds"] = time.perf_counter() - start
    output.write_text(json.dumps(found), encoding="utf-8")


def readable(folder: Path) -> list[Path]:
    """The files that Pillow can decode: cleanvision and cleanlab have no answer to the others."""
    result = []
    for path in sorted(folder.rglob("*.jpg")):
        try:
            with Image.open(path) as image:
                image.load()
        except Exception:  # noqa: BLE001, S112 - whatever a damaged file raises
            continue
        result.append(path)
    return result


def cleanvision(folder: Path) -> dict[str, Any]:
    """Imagelab with its defaults."""
    from cleanvision import Imagelab

    paths = readable(folder)
    lab = Imagelab(filepaths=[str(path) for path in paths])
    lab.find_issues(n_jobs=2)
    issues = lab.issues

    def named(*columns: str) -> list[str]:
        hits = issues.index[issues[[f"is_{column}_issue" for column in columns]].any(axis=1)]
        return [str(Path(name).relative_to(folder)) for name in hits]

    def pairs(kind: str) -> list[tuple[str, str]]:
        groups = lab.info[kind]["sets"]
        return [
            pair
            for group in groups
            for pair in itertools.combinations(sorted(str(Path(name).relative_to(folder)) for name in group), 2)
        ]

    exact, near = pairs("exact_duplicates"), pairs("near_duplicates")
    return {
        "flagged": {
            "blank": named("low_information"),
            "blurred": named("blurry"),
            "dark": named("dark"),
            "wrong_size": named("odd_size", "odd_aspect_ratio"),
        },
        "pairs": {"exact": exact, "near": exact + near},
    }


def imagededup(folder: Path) -> dict[str, Any]:
    """PHash with its default distance of 10 bits; it passes over what it cannot decode."""
    from imagededup.methods import PHash

    found = PHash(verbose=False).find_duplicates(image_dir=folder, recursive=True)
    pairs = {tuple(sorted((name, other))) for name, others in found.items() for other in others}
    return {"flagged": {}, "pairs": {"exact": sorted(pairs), "near": sorted(pairs)}}


def cleanlab(folder: Path) -> dict[str, Any]:
    """Logistic regression on 32 x 32 pixels, out of fold; find_label_issues and Datalab's outliers."""
    from cleanlab import Datalab
    from cleanlab.filter import find_label_issues
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    paths = readable(folder)
    names = [str(path.relative_to(folder)) for path in paths]
    pixels = np.stack([np.asarray(Image.open(path).convert("RGB").resize((32, 32))).ravel() for path in paths]) / 255.0
    _, labels = np.unique([path.parent.name for path in paths], return_inverse=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=100))
    probabilities = cross_val_predict(model, pixels, labels, cv=5, method="predict_proba", n_jobs=2)
    suspects = find_label_issues(labels, probabilities)
    lab = Datalab({"label": labels.tolist()}, label_name="label")
    lab.find_issues(features=pixels, issue_types={"outlier": {}})
    outliers = lab.get_issues("outlier")["is_outlier_issue"].to_numpy()
    return {
        "flagged": {
            "wrong_label": [name for name, suspect in zip(names, suspects, strict=True) if suspect],
            "foreign": [name for name, outlier in zip(names, outliers, strict=True) if outlier],
        },
        "pairs": {},
    }


if __name__ == "__main__":
    main()

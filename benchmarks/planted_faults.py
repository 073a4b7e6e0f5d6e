"""Twelve kinds of fault planted into real images: what `clean` finds of each, beside cleanvision, imagededup and cleanlab.

What:    a sample of a folder of class sub-folders gets faults at known rates (`RATES`), each image one at most. Our stages
         collect and clean run on it with params.yaml as it is; the other tools run with their defaults in an environment of
         their own. Per kind: recall = planted ones found, precision = planted among all that the tool reports of this kind.
         An image that carries another planted fault counts neither way; a natural fault of an untouched image counts as a
         false alarm, for every tool alike. Of duplicates, pairs are counted; of a group, all its pairs. Pairs of untouched
         images that were looked at and show the same picture (natural_duplicates.json, by sha256) count neither way.
         The wrong labels and foreign images of "cleanlab" are cleanlab used plainly: scikit-learn's logistic regression on
         32 x 32 pixels, out of fold, then `find_label_issues`; and Datalab's outliers on the same pixels, by defaults.
Command: python -m benchmarks.planted_faults NAME FOLDER --foreign FOLDER --tools-python PYTHON [--images 10000] [--seed 0]
         (PYTHON: of an environment made from benchmarks/requirements.lock)
Writes:  benchmarks/results/planted_faults_<NAME>.json
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageEnhance, ImageFilter

from benchmarks.digits_accuracy import machine
from visionloop.data.cleaning import read_clean
from visionloop.files import sha256_file, write_json
from visionloop.paths import CLEAN, DECISIONS, FEEDBACK, PARAMS

# Shares of the sample. Copies and foreign images come on top of it; the others replace an image.
RATES = {
    "corrupt": 0.01, "exact_duplicate": 0.01, "near_reencoded": 0.01, "near_resized": 0.01, "near_mirrored": 0.01,
    "near_cropped": 0.01, "near_brighter": 0.01, "wrong_label": 0.05, "blank": 0.005, "blurred": 0.01, "dark": 0.01,
    "wrong_size": 0.01, "foreign": 0.01,
}  # fmt: skip
PAIRS = [kind for kind in RATES if kind.startswith(("exact", "near"))]
# What each tool calls a kind. For pairs: the names under which it reports them.
OURS = {
    "corrupt": {"unreadable", "truncated", "empty", "unsupported_format"},
    "wrong_label": {"suspect_label"}, "blank": {"blank"}, "blurred": {"blurred"}, "dark": {"dark"},
    "wrong_size": {"too_small", "odd_size", "odd_aspect"}, "foreign": {"outlier"},
}  # fmt: skip
TOOLS = Path(__file__).parent / "tools" / "find_faults.py"
NATURAL = Path(__file__).parent / "natural_duplicates.json"

Rng = np.random.Generator


@dataclass(frozen=True)
class Planted:
    """What was done: the kind of each changed or added file, and the original of each copy."""

    kinds: dict[str, str]
    originals: dict[str, str]
    files: list[str]
    natural: set[tuple[str, str]]  # pairs of untouched files that show the same picture


def main() -> None:
    """Plant, run every tool, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--foreign", type=Path, required=True, help="images of another data set")
    parser.add_argument("--tools-python", type=Path, help="python of the environment with the other tools")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder to work in, which stays")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="visionloop-faults-") as made:
        work = arguments.keep or Path(made)
        raw = work / "data" / "raw"
        planted = plant(arguments.folder, arguments.foreign, raw, arguments.images, np.random.default_rng(arguments.seed))
        reports = {"visionloop": ours(work)}
        if arguments.tools_python:
            for tool in ("cleanvision", "imagededup", "cleanlab"):
                reports[tool] = other(tool, raw, arguments.tools_python, work)
    rows = [
        {"kind": kind, "planted": sum(value == kind for value in planted.kinds.values()), "tool": tool, **found}
        for kind in RATES
        for tool, report in reports.items()
        if (found := judge(kind, report, planted)) is not None
    ]
    print(f"{machine()}\n{len(planted.files):,} files of {arguments.name}, seed {arguments.seed}")
    print(f"{'kind':17}{'planted':>8}  {'tool':12}{'precision':>10}{'recall':>8}{'F1':>7}")
    for row in rows:
        figures = f"{row['precision']:10.3f}{row['recall']:8.3f}{row['f1']:7.3f}"
        print(f"{row['kind']:17}{row['planted']:8}  {row['tool']:12}{figures}")
    seconds = {tool: report["seconds"] for tool, report in reports.items()}
    print("seconds: " + ", ".join(f"{tool} {value:.0f}" for tool, value in seconds.items()))
    output = Path(f"benchmarks/results/planted_faults_{arguments.name}.json")
    write_json(
        output,
        {"machine": machine(), "files": len(planted.files), "seed": arguments.seed, "seconds": seconds, "rows": rows},
    )
    print(f"written to {output}")


def plant(folder: Path, foreign: Path, target: Path, count: int, rng: Rng) -> Planted:
    """Copy a sample of `folder` to `target/<class>/` with the faults of `RATES`; names say nothing of them."""
    found = sorted(path for path in folder.rglob("*.jpg"))
    chosen = [found[index] for index in sorted(rng.permutation(len(found))[:count])]
    classes = sorted({path.parent.name for path in chosen})
    for name in classes:
        (target / name).mkdir(parents=True, exist_ok=True)
    order = rng.permutation(len(chosen)).tolist()
    total = len(chosen)
    kind_of: dict[int, str] = {}
    for kind, rate in RATES.items():
        if kind != "foreign":
            for _ in range(round(rate * total)):
                kind_of[order.pop()] = kind
    kinds: dict[str, str] = {}
    originals: dict[str, str] = {}
    files: list[str] = []

    def put(label: str, data: bytes, suffix: str = ".jpg") -> str:
        name = f"{label}/{rng.bytes(8).hex()}{suffix}"
        (target / name).write_bytes(data)
        files.append(name)
        return name

    for index, path in enumerate(chosen):
        data, label, fault = path.read_bytes(), path.parent.name, kind_of.get(index)
        if fault is None or fault in PAIRS:
            name = put(label, data)
            if fault is not None:
                copy = put(label, data if fault == "exact_duplicate" else NEAR[fault](load(data), rng))
                kinds[copy], originals[copy] = fault, name
        elif fault == "wrong_label":
            kinds[put(str(rng.choice([name for name in classes if name != label])), data)] = fault
        else:
            kinds[put(label, IN_PLACE[fault](data, rng))] = fault
    strangers = sorted(foreign.rglob("*.jpg"))
    size = np.median([Image.open(path).size for path in chosen[:200]], axis=0).astype(int)
    for index in rng.choice(len(strangers), round(RATES["foreign"] * total), replace=False):
        image = Image.open(strangers[index]).convert("RGB").resize((int(size[0]), int(size[1])), Image.Resampling.LANCZOS)
        kinds[put(str(rng.choice(classes)), jpeg(image, 92))] = "foreign"
    by_id: dict[str, list[str]] = defaultdict(list)
    for name in files:
        by_id[sha256_file(target / name)[:16]].append(name)
    same = [by_id[a] + by_id[b] for a, b in json.loads(NATURAL.read_text(encoding="utf-8")) if a in by_id and b in by_id]
    return Planted(kinds, originals, files, set(pairs_of(same)))


def load(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def resized(image: Image.Image, rng: Rng) -> bytes:
    factor = float(rng.choice([0.5, 0.75, 1.5, 2.0]))
    size = (round(image.width * factor), round(image.height * factor))
    return jpeg(image.resize(size, Image.Resampling.LANCZOS), 92)


def cropped(image: Image.Image, rng: Rng) -> bytes:
    """2 % of each side are cut in all, from either end by chance; of tiny images by interpolation."""
    wide, high = 0.98 * image.width, 0.98 * image.height
    left, top = rng.uniform(0, image.width - wide), rng.uniform(0, image.height - high)
    size = (max(1, round(wide)), max(1, round(high)))
    return jpeg(image.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + wide, top + high)), 92)


NEAR: dict[str, Callable[[Image.Image, Rng], bytes]] = {
    "near_reencoded": lambda image, rng: jpeg(image, int(rng.integers(50, 86))),
    "near_resized": resized,
    "near_mirrored": lambda image, rng: jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 92),
    "near_cropped": cropped,
    "near_brighter": lambda image, rng: jpeg(ImageEnhance.Brightness(image).enhance(rng.uniform(1.1, 1.25)), 92),
}


def corrupt(data: bytes, rng: Rng) -> bytes:
    """Cut in half, a header alone, nothing at all, or a text."""
    return [data[: len(data) // 2], data[:20], b"", b"<!doctype html><p>404"][int(rng.integers(4))]


def blank(data: bytes, rng: Rng) -> bytes:
    image = load(data)
    noise = rng.normal(0, rng.uniform(0, 1), (image.height, image.width, 3)) + rng.uniform(20, 235, 3)
    return jpeg(Image.fromarray(noise.clip(0, 255).astype(np.uint8)), 92)


def blurred(data: bytes, rng: Rng) -> bytes:
    image = load(data)
    return jpeg(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.03, 0.06) * min(image.size))), 92)


def dark(data: bytes, rng: Rng) -> bytes:
    return jpeg(ImageEnhance.Brightness(load(data)).enhance(rng.uniform(0.05, 0.2)), 92)


def wrong_size(data: bytes, rng: Rng) -> bytes:
    """Several times as large or as small, or a strip of it."""
    image = load(data)
    if rng.random() < 1 / 3:
        strip = (image.width, max(4, image.height // 6)) if rng.random() < 0.5 else (max(4, image.width // 6), image.height)
        return jpeg(image.crop((0, 0, *strip)), 92)
    factor = float(rng.choice([6, 8])) if min(image.size) < 100 else float(rng.choice([0.1, 0.12]))
    return jpeg(image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS), 92)


IN_PLACE: dict[str, Callable[[bytes, Rng], bytes]] = {
    "corrupt": corrupt, "blank": blank, "blurred": blurred, "dark": dark, "wrong_size": wrong_size,
}  # fmt: skip


def ours(work: Path) -> dict[str, object]:
    """What the stages collect and clean say of `work/data/raw`."""
    tree = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    tree["collect"].update(source="folder", path="data/raw", options={})
    tree["clean"]["max_rejected_share"] = 1.0
    (work / PARAMS).write_text(yaml.safe_dump(tree), encoding="utf-8")
    (work / FEEDBACK).mkdir(parents=True, exist_ok=True)
    (work / DECISIONS).write_bytes(DECISIONS.read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    seconds = 0.0
    for stage in ("collect", "clean"):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", f"pipeline.stages.{stage}"], cwd=work, env=environment, check=True)
        seconds += time.perf_counter() - start
    rows = read_clean(work / CLEAN)
    flagged = {kind: [row.path for row in rows if names & set(row.findings)] for kind, names in OURS.items()}
    clusters: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        clusters[row.cluster].append(row.path)
    groups = [paths for paths in clusters.values() if len(paths) > 1]
    same = defaultdict(list)
    for row in rows:
        same[row.id].append(row.path)
    exact = [paths for paths in same.values() if len(paths) > 1]
    return {"seconds": seconds, "flagged": flagged, "pairs": {"exact": pairs_of(exact), "near": pairs_of(groups)}}


def other(tool: str, raw: Path, python: Path, work: Path) -> dict[str, object]:
    """What another tool says, run by `tools/find_faults.py` in its own environment."""
    output = work / f"{tool}.json"
    subprocess.run([str(python), str(TOOLS), tool, str(raw), str(output)], check=True)
    found: dict[str, object] = json.loads(output.read_text(encoding="utf-8"))
    return found


def pairs_of(groups: Iterable[list[str]]) -> list[tuple[str, str]]:
    return [pair for group in groups for pair in itertools.combinations(sorted(group), 2)]


def judge(kind: str, report: dict[str, object], planted: Planted) -> dict[str, float] | None:
    """Precision and recall of one tool on one kind; None where the tool does not look for it."""
    if kind in PAIRS:
        pairs = report["pairs"]
        assert isinstance(pairs, dict)
        reported = pairs.get("exact" if kind == "exact_duplicate" else "near")
        if reported is None:
            return None
        found = {tuple(sorted(pair)) for pair in reported}
        wanted = {
            tuple(sorted((copy, original))) for copy, original in planted.originals.items() if planted.kinds[copy] == kind
        }
        # A pair that touches another planted file is neither right nor wrong of this kind.
        clean = {pair for pair in found - planted.natural if not any(name in planted.kinds for name in pair)}
        return scores(len(wanted & found), len(wanted), len(clean))
    flagged = report["flagged"]
    assert isinstance(flagged, dict)
    if kind not in flagged:
        return None
    names = set(flagged[kind])
    right = {name for name, value in planted.kinds.items() if value == kind}
    copies = {name for name, value in planted.kinds.items() if value in PAIRS}
    wrong = {name for name in names if name not in planted.kinds or name in copies}
    return scores(len(names & right), len(right), len(wrong))


def scores(hits: int, wanted: int, wrong: int) -> dict[str, float]:
    """Nothing reported has precision 1: it says nothing false."""
    precision = hits / (hits + wrong) if hits + wrong else 1.0
    recall = hits / wanted if wanted else 1.0
    return {
        "precision": round(precision, 4),
        "recall": round(recall, 4),
        "f1": round(2 * precision * recall / max(precision + recall, 1e-9), 4),
    }


if __name__ == "__main__":
    main()

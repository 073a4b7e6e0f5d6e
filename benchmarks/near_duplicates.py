"""Near duplicates beside imagededup's hashes: copies planted at a known rate, precision and recall per kind, and seconds.

What:    one image in ten gets one copy; the kinds take turns. Recall is the share of copies that are paired with their
         original. Precision is the share of the pairs with a copy that also hold its original; an original's own look-alikes
         count as false, for every tool. imagededup runs at its defaults. Its CNN is left out: it downloads its weights.
Command: python -m benchmarks.near_duplicates --tools-python PYTHON --images FOLDER [--limit 10000] [--runs 3]
         PYTHON belongs to an environment made from benchmarks/requirements.lock; FOLDER holds JPEG files at any depth.
Writes:  benchmarks/results/near_duplicates.json, an entry per FOLDER's name; the tools take turns, the seconds are medians.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from visionloop.config import load_params
from visionloop.data.duplicates import near_pairs
from visionloop.data.fingerprints import Fingerprint, fingerprint
from visionloop.data.thumbs import Thumbs
from visionloop.files import write_json
from visionloop.preprocess import decode

OUTPUT = Path("benchmarks/results/near_duplicates.json")
TOOL = Path("benchmarks/tools/find_duplicates.py")
METHODS = ("PHash", "DHash", "WHash")
EVERY = 10


def scaled(image: Image.Image, factor: float) -> Image.Image:
    """Resized by a factor."""
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)


def cropped(image: Image.Image, share: float) -> Image.Image:
    """This share, one pixel at least, cut off each side."""
    x, y = max(1, round(share * image.width)), max(1, round(share * image.height))
    return image.crop((x, y, image.width - x, image.height - y))


KINDS: dict[str, tuple[Callable[[Image.Image], Image.Image], int]] = {
    "re-encoded at 50": (lambda image: image, 50),
    "re-encoded at 75": (lambda image: image, 75),
    "half size": (lambda image: scaled(image, 0.5), 90),
    "double size": (lambda image: scaled(image, 2), 90),
    "mirrored": (ImageOps.mirror, 90),
    "cropped 2 %": (lambda image: cropped(image, 0.02), 90),
    "cropped 5 %": (lambda image: cropped(image, 0.05), 90),
    "brighter": (lambda image: ImageEnhance.Brightness(image).enhance(1.15), 90),
    "more contrast": (lambda image: ImageEnhance.Contrast(image).enhance(1.2), 90),
    "gray": (lambda image: image.convert("L").convert("RGB"), 90),
}


def main() -> None:
    """Plant, measure in turns, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tools-python", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="near-duplicates-") as work:
        folder = Path(work) / "images"
        planted = plant(arguments.images, folder, arguments.limit)
        runs: dict[str, list[dict[str, Any]]] = {}
        for _ in range(arguments.runs):
            runs.setdefault("visionloop", []).append(ours(folder, Path(work)))
            for method in METHODS:
                runs.setdefault(method, []).append(theirs(arguments.tools_python, method, folder, Path(work) / "found.json"))
        images = sum(1 for _ in folder.iterdir())
    tools = {name: judged(results, planted) for name, results in runs.items()}
    for name, numbers in tools.items():
        print(f"{name}: hashing {numbers['hash_seconds']:.1f} s, search {numbers['search_seconds']:.2f} s")
        for kind, (recall, precision) in numbers["recall_and_precision"].items():
            print(f"  {kind:18} recall {recall:.3f}  precision {'none' if precision is None else format(precision, '.3f')}")
    known = json.loads(OUTPUT.read_text(encoding="utf-8")) if OUTPUT.exists() else {}
    load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    known[arguments.images.name] = {"images": images, "copies": len(planted), "machine": load, "tools": tools}
    write_json(OUTPUT, known)


def plant(source: Path, folder: Path, limit: int) -> dict[str, tuple[str, str]]:
    """Copy images to a flat folder and add the planted ones; gives the original and the kind of each copy."""
    folder.mkdir()
    files = sorted(path for path in source.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg"})
    files = files[:: max(1, len(files) // limit)][:limit]
    planted: dict[str, tuple[str, str]] = {}
    for number, path in enumerate(files):
        name = f"image-{number:06}.jpg"
        shutil.copyfile(path, folder / name)
        if number % EVERY == 0:
            kind = list(KINDS)[number // EVERY % len(KINDS)]
            change, quality = KINDS[kind]
            copy = f"copy-{number:06}.jpg"
            change(decode(path.read_bytes()).image).save(folder / copy, "JPEG", quality=quality)
            planted[copy] = (name, kind)
    return planted


def ours(folder: Path, work: Path) -> dict[str, Any]:
    """The same through `fingerprint` in two processes, and `near_pairs`."""
    files = sorted(folder.iterdir())
    start = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        found, sides = zip(*pool.map(fingerprint_of, files, chunksize=256), strict=True)
    hashed = time.perf_counter()
    with Thumbs(len(files), work) as thumbs:
        for index, one in enumerate(found):
            thumbs.put(index, one.thumb)
        hashes = np.array([one.hash for one in found], dtype=np.uint64)
        mirrored = np.array([one.mirrored_hash for one in found], dtype=np.uint64)
        pairs = near_pairs(
            hashes, mirrored, thumbs, np.arange(len(files)), sides=np.array(sides), params=load_params().clean
        )
    searched = time.perf_counter()
    names = [sorted((files[a].name, files[b].name)) for a, b in zip(pairs.first, pairs.second, strict=True)]
    return {
        "hash_seconds": hashed - start,
        "search_seconds": searched - hashed,
        "pairs": len(names),
        "of_copies": [pair for pair in names if pair[0].startswith("copy")],
    }


def fingerprint_of(path: Path) -> tuple[Fingerprint, int]:
    """Decode and recognise one file; also its shorter side in pixels."""
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    return fingerprint(image), min(image.size)


def theirs(python: Path, method: str, folder: Path, output: Path) -> dict[str, Any]:
    """One of imagededup's hashes."""
    command = [str(python), str(TOOL), method, str(folder), str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    result: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return result


def judged(results: list[dict[str, Any]], planted: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """Medians of the seconds, and recall and precision per kind (precision None where nothing was paired)."""
    right = dict.fromkeys(KINDS, 0)
    pairs = dict.fromkeys(KINDS, 0)
    for pair in results[0]["of_copies"]:
        for copy, other in (pair, pair[::-1]):
            if copy in planted:
                pairs[planted[copy][1]] += 1
                right[planted[copy][1]] += planted[copy][0] == other
    counts = {kind: sum(found == kind for _, found in planted.values()) for kind in KINDS}
    return {
        "hash_seconds": statistics.median(result["hash_seconds"] for result in results),
        "search_seconds": statistics.median(result["search_seconds"] for result in results),
        "pairs": results[0]["pairs"],
        "recall_and_precision": {
            kind: (right[kind] / max(counts[kind], 1), right[kind] / pairs[kind] if pairs[kind] else None) for kind in KINDS
        },
    }


if __name__ == "__main__":
    main()

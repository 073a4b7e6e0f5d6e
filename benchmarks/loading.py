"""Loading alone: an epoch of our `train_batches` against ImageFolder with PIL, webdataset and litdata on the same photos.

What:    photo-like JPEGs of 256 pixels from a seed, in ten class folders, or a folder of photos. Every loader brings an
         epoch of shuffled uint8 batches of 256 images of 64 pixels, each shifted by up to 8 pixels and mirrored at random.
         The others decode in two worker processes; ours maps the arrays that stage `augment` packed, in this process. An
         epoch at a time, in turns; a figure is the median of the rounds. The files are in the page cache for all. Packing,
         in one thread, is not in our epoch: its seconds stand beside, with the number of epochs that pay for it.
Command: python -m benchmarks.loading --tools-python PYTHON [--folder FOLDER] [--images 3000] [--rounds 5]
         (PYTHON: of an environment made from benchmarks/requirements.lock)
Result:  in the file below.
Writes:  benchmarks/results/loading.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.digits_accuracy import machine
from visionloop.config import ComputeParams
from visionloop.data.executor import make_executor
from visionloop.data.packing import PackedSplit, load_split, pack
from visionloop.data.policy import AugmentPolicy
from visionloop.files import sha256_bytes, write_json
from visionloop.preprocess import PreprocessSpec
from visionloop.records import ImageRow, SplitRow
from visionloop.training.batches import train_batches

OUTPUT = Path("benchmarks/results/loading.json")
TOOLS = ("imagefolder", "webdataset", "litdata")
SIDE = 64
BATCH = 256
GOAL = 20.0  # times ImageFolder + PIL with two workers


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tools-python", type=Path, required=True, help="python of the environment with the other tools")
    parser.add_argument("--folder", type=Path, help="class sub-folders with photos; default: drawn from a seed")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(2)  # as training has them; the others have two processes of one thread each
    with tempfile.TemporaryDirectory(prefix="visionloop-loading-") as name:
        work = Path(name)
        folder = arguments.folder or draw(work / "photos", arguments.images)
        start = time.perf_counter()
        data = packed(folder, work / "packed")
        packing = time.perf_counter() - start
        with contextlib.ExitStack() as stack:
            others = {tool: stack.enter_context(served(tool, folder, work, arguments.tools_python)) for tool in TOOLS}
            rates: dict[str, list[float]] = {name: [] for name in ("ours", *TOOLS)}
            for number in range(arguments.rounds + 1):  # the first one starts workers and warms caches
                rates["ours"].append(ours(data, number))
                for tool, process in others.items():
                    rates[tool].append(epoch(tool, process, len(data.ids)))
    medians = {name: statistics.median(values[1:]) for name, values in rates.items()}
    ratios = {tool: medians["ours"] / medians[tool] for tool in TOOLS}
    # An epoch of ImageFolder less one of ours is what packing saves each time.
    saved = len(data.ids) / medians["imagefolder"] - len(data.ids) / medians["ours"]
    print(f"{machine()}, {len(data.ids):,} photos at {SIDE} pixels, images a second, medians of {arguments.rounds} epochs")
    for name, median in medians.items():
        print(f"{name:12} {median:10,.0f}" + (f"   ours is {ratios[name]:.1f} times as fast" if name in ratios else ""))
    print(f"packing took {packing:.1f} s, once: as long as {packing / saved:.1f} epochs of ImageFolder")
    print(f"goal {GOAL:g} times ImageFolder: {'holds' if ratios['imagefolder'] >= GOAL else 'DOES NOT HOLD'}")
    write_json(
        OUTPUT,
        {
            "machine": machine(),
            "photos": len(data.ids), "side": SIDE, "rounds": arguments.rounds,
            "packing_seconds": packing, "images_per_second": medians, "ratio": ratios,
            "all": {name: values[1:] for name, values in rates.items()},
        },
    )  # fmt: skip
    print(f"written to {OUTPUT}")


def ours(data: PackedSplit, number: int) -> float:
    """Images a second of one epoch."""
    policy = AugmentPolicy(horizontal_flip=True, crop_padding_pixels=SIDE // 8, padding="reflect")
    start = time.perf_counter()
    images = sum(len(batch.labels) for batch in train_batches(data, policy, batch_size=BATCH, seed=0, epoch=number))
    return images / (time.perf_counter() - start)


@contextlib.contextmanager
def served(tool: str, folder: Path, work: Path, python: Path) -> Iterator[subprocess.Popen[str]]:
    """Another loader, which waits in a process of its own for the word to run an epoch."""
    script = str(Path(__file__).parent / "tools" / "feed_images.py")
    command = [str(python), "-W", "ignore", script]
    places = [tool, str(folder), str(work / tool), "--side", str(SIDE)]
    subprocess.run([*command, "prepare", *places], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with subprocess.Popen(
        [*command, "serve", *places], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def epoch(tool: str, process: subprocess.Popen[str], images: int) -> float:
    """Images a second of one epoch of another loader."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    while not (line := process.stdout.readline()).startswith("{"):
        if not line:
            raise SystemExit(f"{tool} stopped; run benchmarks/tools/feed_images.py by hand to see why.")
    said = json.loads(line)
    if said["images"] != images:
        raise SystemExit(f"{tool} brought {said['images']} of {images} images.")
    return images / float(said["seconds"])


def packed(folder: Path, target: Path) -> PackedSplit:
    """The folder's images as our packed training array, by the code that stage `augment` runs."""
    paths = sorted(folder.glob("*/*"))
    time_ = datetime(2026, 1, 1, tzinfo=UTC)
    ids = {path: sha256_bytes(path.read_bytes()) for path in paths}
    images = [
        ImageRow(ids[path], path.parent.name, "folder", "", "folder", str(path), 0, time_, None, "", 0) for path in paths
    ]
    rows = [SplitRow(row.id, row.label, "train", row.id) for row in {row.id: row for row in images}.values()]

    with make_executor(ComputeParams(workers=1, dask=None), len(rows)) as executor:
        pack(
            rows,
            images,
            lambda wanted: ((row, Path(row.path).read_bytes()) for row in wanted),
            target,
            spec=PreprocessSpec(SIDE, SIDE),
            policy=AugmentPolicy(),
            executor=executor,
        )
    return load_split(target, "train")


def draw(folder: Path, count: int) -> Path:
    """Photo-like JPEGs of 256 x 256 pixels, quality 90: soft shapes in several sizes with fine noise, in ten folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        layers = []
        for size, share in ((4, 0.5), (16, 0.3), (64, 0.15)):
            coarse = Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
            layers.append(np.asarray(coarse.resize((256, 256), Image.Resampling.BICUBIC), dtype=np.float32) * share)
        pixels = np.clip(sum(layers) + rng.normal(0, 4, (256, 256, 1)), 0, 255).astype(np.uint8)
        path = folder / f"class{number % 10}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
    return folder


if __name__ == "__main__":
    main()

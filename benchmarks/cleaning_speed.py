"""Cleaning against cleanvision's default run and against the bare decoding of the same files.

What:    N JPEGs of 256 pixels with detail at every scale, quality 90, made from a seed; `--rounds` times, in turn:
         decode      torchvision.io.decode_jpeg in two threads on bytes in memory: libjpeg-turbo, and nothing else
         pillow      the same by Pillow
         measure     `cleaning.measure_all`, from the Parquet shards: read, sha256, the way to two processes, decode,
                     numbers, hashes; this process, which reads and hands out, shares the two cores with them
         clean       the same, then duplicates and every verdict; without outliers and suspected labels, which cleanvision
                     does not look for
         cleanvision Imagelab(...).find_issues(n_jobs=2) on the files
         Medians and ratios of one run; absolute figures change with the machine's other work. Starting the processes and
         importing libraries is not counted for any of them. CPU seconds are those of this process and its workers together;
         their ratio is the one to trust where other work runs, since three processes then get more of the cores than two
         threads.
Command: python -m benchmarks.cleaning_speed --tools-python PYTHON [--images 4000] [--rounds 3]
         (PYTHON: of an environment made from benchmarks/requirements.lock)
Writes:  benchmarks/results/cleaning_speed.json
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch
import torchvision
from PIL import Image

from benchmarks.digits_accuracy import machine
from visionloop.config import CleanParams, CollectParams, ComputeParams, load_params
from visionloop.data import cleaning
from visionloop.data.decisions import Resolved
from visionloop.data.executor import IMAGES_PER_PROCESS, make_executor, map_batches
from visionloop.data.measures import MeasureBatch, Measures
from visionloop.data.shards import append, read_bytes, read_images
from visionloop.data.sources import open_sources
from visionloop.data.thumbs import Thumbs
from visionloop.files import write_json
from visionloop.preprocess import load

OUTPUT = Path("benchmarks/results/cleaning_speed.json")
TOOL = Path(__file__).parent / "tools" / "time_cleanvision.py"
PROCESSES = 2
SIDE = 256
GOALS = {"measure_by_decode": 0.6, "clean_by_cleanvision": 5.0}


def main() -> None:
    """Make the files, time the five in turn, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tools-python", type=Path, help="python of the environment with cleanvision")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    params = load_params().clean.model_copy(update={"outliers": False, "suspect_labels": False})
    with tempfile.TemporaryDirectory(prefix="visionloop-speed-") as made:
        work = Path(made)
        files = make_files(work / "raw", arguments.images, arguments.seed)
        collect = CollectParams(
            source="folder", path=str(work / "raw"), options={}, feedback=False, images_per_shard=4096, max_skipped_share=0
        )
        append(open_sources(collect), work / "shards", work / "images.parquet", 4096, 0.0)
        # As many processes as asked for, however few images there are.
        with make_executor(ComputeParams(workers=PROCESSES, dask=None), PROCESSES * IMAGES_PER_PROCESS) as executor:
            first = [(0, next(iter(files.values())))]
            for _ in map_batches(executor, MeasureBatch(10**7), [first] * 16):
                """Wake every process."""
            tasks: dict[str, Callable[[], float]] = {
                "decode": lambda: decode(list(files.values())),
                "pillow": lambda: decode_with_pillow(list(files.values())),
                "measure": lambda: clean(work, executor, None),
                "clean": lambda: clean(work, executor, params),
            }
            if arguments.tools_python:
                tasks["cleanvision"] = lambda: cleanvision(arguments.tools_python, work / "raw")
            for number in range(arguments.rounds):
                for name, task in tasks.items():
                    before = cpu_seconds()
                    seconds.setdefault(name, []).append(task())
                    if name != "cleanvision":  # its processes have ended, and their times with them
                        cpu.setdefault(name, []).append(cpu_seconds() - before)
                    print(f"round {number + 1}: {name} {arguments.images / seconds[name][-1]:,.0f} images/s", flush=True)
    report(arguments.images, sum(map(len, files.values())) / len(files), seconds, cpu)


def cpu_seconds() -> float:
    """What this process and those that it started have used so far."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def report(images: int, mean_bytes: float, seconds: dict[str, list[float]], cpu: dict[str, list[float]]) -> None:
    """Print and write the medians and their ratios."""
    rates = {name: images / statistics.median(values) for name, values in seconds.items()}
    ratios = {
        f"{ours}_by_{limit}": rates[ours] / rates[limit] for limit in ("decode", "pillow") for ours in ("measure", "clean")
    }
    spent = {name: statistics.median(values) / images for name, values in cpu.items()}
    ratios["measure_by_decode_cpu"] = spent["decode"] / spent["measure"]
    if "cleanvision" in rates:
        ratios["clean_by_cleanvision"] = rates["clean"] / rates["cleanvision"]
    for name, rate in rates.items():
        print(f"{name:12} {rate:8,.0f} images/s, {spent.get(name, 0) * 1e6:,.0f} µs of CPU an image")
    for name, ratio in ratios.items():
        goal = f", goal {GOALS[name]:g}" if name in GOALS else ""
        print(f"{name:20} {ratio:6.2f}{goal}")
    write_json(
        OUTPUT,
        {
            "machine": machine(),
            "images": images,
            "side_pixels": SIDE,
            "mean_bytes": round(mean_bytes),
            "processes": PROCESSES,
            "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
            "cpu_seconds": {name: [round(value, 3) for value in values] for name, values in cpu.items()},
            "images_per_second": {name: round(rate) for name, rate in rates.items()},
            "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
            "goals": GOALS,
        },
    )
    print(f"written to {OUTPUT}")


def make_files(folder: Path, count: int, seed: int) -> dict[str, bytes]:
    """JPEGs in two class folders, by name."""
    rng = np.random.default_rng(seed)
    files: dict[str, bytes] = {}
    for number in range(count):
        name = f"{'odd' if number % 2 else 'even'}/{number:05}.jpg"
        buffer = io.BytesIO()
        Image.fromarray(picture(rng)).save(buffer, "JPEG", quality=90)
        files[name] = buffer.getvalue()
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(files[name])
    return files


def picture(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """A colour picture, uint8 [SIDE, SIDE, 3], whose contrast falls with the frequency as that of photos does."""
    total = np.zeros((SIDE, SIDE, 3), dtype=np.float32)
    for cells in (4, 8, 16, 32, 64, 128, 256):
        for channel in range(3):
            coarse = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
            total[..., channel] += np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) * 70 / cells**0.6
    return np.asarray(np.clip(128 + total, 0, 255), dtype=np.uint8)


def decode(files: list[bytes]) -> float:
    """Seconds to decode all files in threads."""
    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]

    def part(start: int) -> int:
        return sum(torchvision.io.decode_jpeg(one).numel() for one in tensors[start::PROCESSES])

    start = time.perf_counter()
    with ThreadPoolExecutor(PROCESSES) as pool:
        total = sum(pool.map(part, range(PROCESSES)))
    assert total == len(files) * SIDE * SIDE * 3
    return time.perf_counter() - start


def decode_with_pillow(files: list[bytes]) -> float:
    """Seconds to decode all files in threads."""

    def part(start: int) -> int:
        return sum(math.prod(load(data).image.size) for data in files[start::PROCESSES])

    start = time.perf_counter()
    with ThreadPoolExecutor(PROCESSES) as pool:
        total = sum(pool.map(part, range(PROCESSES)))
    assert total == len(files) * SIDE * SIDE
    return time.perf_counter() - start


def clean(work: Path, executor: Executor, params: CleanParams | None) -> float:
    """Seconds to measure, and with `params` to score and judge too."""
    rows = read_images(work / "images.parquet")
    start = time.perf_counter()
    with Thumbs(len(rows), work) as thumbs:
        measures: Measures = cleaning.measure_all(rows, read_bytes(work / "shards", rows), executor, 50_000_000, thumbs)
        if params:
            scores = cleaning.score(rows, measures, thumbs, Resolved.none(), params)
            assert sum(1 for _ in cleaning.judge(rows, measures, scores, params)) == len(rows)
    return time.perf_counter() - start


def cleanvision(python: Path, folder: Path) -> float:
    """Seconds of cleanvision's default run."""
    done = subprocess.run([str(python), str(TOOL), str(folder)], check=True, capture_output=True, text=True)
    return float(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    main()

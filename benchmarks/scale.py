"""Whether a million images go through the data stages in bounded memory, and whether the time grows like their number.

What:    N JPEGs of 32 pixels from a seed, as Parquet files of the Hugging Face layout: 100 classes, each picture a mix of
         its class's pattern and of its own one; every fiftieth is the one before it, encoded anew. Then collect, clean,
         split and augment as the processes that DVC starts, in a temporary project with the shipped params but for the
         source and 32 pixels. A stage's memory is the sum over its process tree, four times a second, the largest sum:
           gb_rss  resident pages; a page that two processes share, or a part of a mapped file, counts in each
           gb_pss  the same with a shared page divided among those that share it: what the stage takes from the machine
         Page cache that no process maps is in neither. `cpu_seconds` are those of a stage's processes together; where other
         work shares the cores, their growth is the one to trust.
Command: python -m benchmarks.scale --images 100000 300000 1000000 [--folder FOLDER with 12 GB of room]
Writes:  benchmarks/results/scale.json, a run per number of images; runs of other numbers stay in it
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from benchmarks.digits_accuracy import machine
from visionloop.files import write_json

OUTPUT = Path("benchmarks/results/scale.json")
ROOT = Path(__file__).parents[1]
STAGES = ("collect", "clean", "split", "augment")
SIDE = 32
CLASSES = 100
IMAGES_PER_FILE = 25_000
GOAL_GB = 4.0
SECONDS_BETWEEN_SAMPLES = 0.25


def main() -> None:
    """Make the images, run the stages, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[100_000])
    parser.add_argument("--folder", type=Path, help="where the temporary project lies; the system's temporary folder")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for images in arguments.images:
        with tempfile.TemporaryDirectory(prefix="visionloop-scale-", dir=arguments.folder) as name:
            project = Path(name)
            start = time.perf_counter()
            make_project(project, images, arguments.seed)
            print(f"{images:,} images made in {time.perf_counter() - start:.0f} s", flush=True)
            stages = {}
            for stage in STAGES:
                stages[stage] = run(stage, project)
                print(f"{images:,} {stage}: {stages[stage]}", flush=True)
            record(images, stages, json.loads((project / "reports/split.json").read_text())["images"])


def make_project(project: Path, images: int, seed: int) -> None:
    """Params and images of a project in an empty folder."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["collect"].update(source="huggingface", path="data/raw", options={})
    params["preprocess"].update(height=SIDE, width=SIDE)
    (project / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    raw = project / "data" / "raw"
    raw.mkdir(parents=True)
    (project / "data" / "feedback").mkdir()
    decisions = ROOT / "data" / "decisions.csv"
    (project / "data" / "decisions.csv").write_text(decisions.read_text().partition("\n")[0] + "\n")
    starts = range(0, images, IMAGES_PER_FILE)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as executor:
        files = [raw / f"{number:05d}.parquet" for number in range(len(starts))]
        counts = [min(IMAGES_PER_FILE, images - start) for start in starts]
        list(executor.map(make_file, files, starts, counts, [seed] * len(files)))


def make_file(path: Path, start: int, count: int, seed: int) -> None:
    """One Parquet file of images `start` to `start + count`."""
    patterns = np.random.default_rng(seed).integers(0, 256, (CLASSES, 8, 8, 3))
    rng = np.random.default_rng([seed, start])
    data: list[bytes] = []
    labels = []
    image = Image.new("RGB", (SIDE, SIDE))
    for number in range(start, start + count):
        again = number % 50 == 1
        if not again:
            coarse = (0.35 * patterns[number % CLASSES] + 0.65 * rng.integers(0, 256, (8, 8, 3))).astype(np.uint8)
            image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=70 if again else 90)
        data.append(buffer.getvalue())
        labels.append(f"class{(number - again) % CLASSES:02d}")
    encoded = pa.StructArray.from_arrays([pa.array(data, pa.binary()), pa.nulls(count, pa.string())], ["bytes", "path"])
    pq.write_table(pa.table({"image": encoded, "label": labels}), path, row_group_size=1000, compression="none")


def run(stage: str, project: Path) -> dict[str, float]:
    """Run one stage's script in the project; its seconds and the largest memory of its processes together."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    log = project / f"{stage}.log"
    start, spent = time.perf_counter(), _children_cpu()
    rss = pss = 0
    with log.open("w") as file:
        process = psutil.Popen(
            [sys.executable, "-m", f"pipeline.stages.{stage}"],
            cwd=project,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None:
            found = _memory(process)
            rss, pss = max(rss, found[0]), max(pss, found[1])
            time.sleep(SECONDS_BETWEEN_SAMPLES)
    seconds, spent = time.perf_counter() - start, _children_cpu() - spent
    if process.returncode:
        raise SystemExit(f"{stage} failed:\n{log.read_text()[-3000:]}")
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(spent, 1),
        "gb_rss": round(rss / 1e9, 2),
        "gb_pss": round(pss / 1e9, 2),
    }


def _children_cpu() -> float:
    """Seconds of CPU of all processes that this one has started and that have ended, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _memory(parent: psutil.Process) -> tuple[int, int]:
    """Resident and proportional bytes of a process and its descendants; one that ends meanwhile counts nothing."""
    rss = pss = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                found = process.memory_full_info()
                rss, pss = rss + found.rss, pss + found.pss
    return rss, pss


def record(images: int, stages: dict[str, dict[str, float]], kept: int) -> None:
    """Put a run into the results, in place of an earlier one of as many images."""
    found = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {"runs": []}
    runs = {one["images"]: one for one in found["runs"]}
    runs[images] = {
        "images": images,
        "kept": kept,
        "stages": stages,
        "seconds_per_100k": {
            stage: round(one["seconds"] * 1e5 / images, 1) for stage, one in stages.items()
        },
        "cpu_seconds_per_100k": {
            stage: round(one["cpu_seconds"] * 1e5 / images, 1) for stage, one in stages.items()
        },
        "within_goal": max(one["gb_rss"] for one in stages.values()) < GOAL_GB,
        "machine": machine(),
    }  # fmt: skip
    write_json(OUTPUT, {"goal_gb": GOAL_GB, "runs": [runs[number] for number in sorted(runs)]})


if __name__ == "__main__":
    main()

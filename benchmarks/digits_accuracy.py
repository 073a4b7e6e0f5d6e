"""Test accuracy on the bundled digits over several splits and several training seeds, in FP32 and in INT8.

What:    the parameters of recipes/digits.yaml. For each split seed the stages collect, clean, split and augment run in a
         folder of their own; then both families are trained with several seeds, exported, quantized, and measured on the
         test side.
         One test side has about 180 images, so that one image is 0.56 points: the mean over the grid is the figure to read.
         The seconds are wall time of one training; its CPU seconds stand beside and say what idle cores would take.
Command: GOMP_SPINCOUNT=1000 python -m benchmarks.digits_accuracy                      (3 splits x 5 seeds)
         GOMP_SPINCOUNT=1000 python -m benchmarks.digits_accuracy --splits 1 --seeds 1 (a look)
Result:  in the file below.
Writes:  benchmarks/results/digits_accuracy.json
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import yaml

from visionloop.compression import graph
from visionloop.compression.export import onnx_bytes
from visionloop.compression.parity import accuracy
from visionloop.compression.quantize import Quantizer, Recipe, calibration_indices, chained
from visionloop.compression.targets import profile
from visionloop.config import Params, load_params
from visionloop.data.packing import load_meta, load_split
from visionloop.files import write_json
from visionloop.models import Family
from visionloop.paths import DECISIONS, PACKED, PARAMS
from visionloop.records import SPLITS
from visionloop.runtime import OnnxModel
from visionloop.training import train
from visionloop.training.building import card_for

RECIPE = Path("recipes/digits.yaml")
OUTPUT = Path("benchmarks/results/digits_accuracy.json")
FAMILIES: tuple[Family, ...] = ("cnn", "vit")
GOALS = {"cnn": 0.99, "vit": 0.98}
MOST_SECONDS = 30.0  # of one training, on two cores that are otherwise idle
MOST_LOST = 0.005  # by INT8, on the mean


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    params = load_params(RECIPE)
    rows: list[dict[str, float | str]] = []
    print(f"{machine()}\nsplit seed  family  FP32 test  INT8 test  FP32 val  seconds  CPU seconds")
    with tempfile.TemporaryDirectory(prefix="visionloop-digits-") as folder:
        for split_seed in range(arguments.splits):
            packed = prepare(Path(folder) / f"split-{split_seed}", split_seed)
            for seed in range(arguments.seeds):
                for family in FAMILIES:
                    row = one(family, seed, params, packed, Path(folder) / f"resume-{split_seed}-{seed}-{family}")
                    rows.append({"split": split_seed, "seed": seed, "family": family, **row})
                    print(
                        f"{split_seed:5} {seed:4}  {family:6}  {row['fp32_test']:9.4f}  {row['int8_test']:9.4f}  "
                        f"{row['val']:8.4f}  {row['train_seconds']:7.1f}  {row['train_cpu_seconds']:11.1f}",
                        flush=True,
                    )
    summary = {family: summarize([row for row in rows if row["family"] == family]) for family in FAMILIES}
    for family, numbers in summary.items():
        held = (
            numbers["fp32_mean"] >= GOALS[family]
            and numbers["int8_lost"] <= MOST_LOST
            and numbers["train_seconds_longest"] < MOST_SECONDS
        )
        print(
            f"{family}: FP32 {numbers['fp32_mean']:.4f} (lowest {numbers['fp32_lowest']:.4f}, goal {GOALS[family]}), "
            f"INT8 {numbers['int8_mean']:.4f}, lost {numbers['int8_lost']:.4f} (at most {MOST_LOST}), "
            f"{numbers['train_seconds']:.0f} s a training, the longest {numbers['train_seconds_longest']:.0f} s (below "
            f"{MOST_SECONDS:g}): {'holds' if held else 'DOES NOT HOLD'}"
        )
    write_json(OUTPUT, {"machine": machine(), "recipe": str(RECIPE), "summary": summary, "rows": rows})
    print(f"written to {OUTPUT}")


def prepare(folder: Path, split_seed: int) -> Path:
    """Run the data stages on the digits with this split seed, in a folder of its own; gives the packed arrays' folder."""
    tree = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    tree["split"]["seed"] = split_seed
    folder.mkdir(parents=True)
    (folder / PARAMS).write_text(yaml.safe_dump(tree), encoding="utf-8")
    run_data_stages(folder, quiet=True)
    return folder / PACKED


def run_data_stages(folder: Path, *, quiet: bool = False) -> None:
    """Run collect, clean, split and augment in a folder that has params.yaml and what its source reads."""
    (folder / load_params(folder / PARAMS).collect.path).mkdir(parents=True, exist_ok=True)
    (folder / DECISIONS).write_text("id,decision,label,who,why\n", encoding="utf-8")
    here = Path.cwd()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here / "src"), str(here)])}
    where = subprocess.DEVNULL if quiet else None
    for stage in ("collect", "clean", "split", "augment"):
        command = [sys.executable, "-m", f"pipeline.stages.{stage}"]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=where, stderr=where)


def one(family: Family, seed: int, params: Params, packed: Path, resume: Path) -> dict[str, float]:
    """Train, export, quantize and measure once."""
    meta = load_meta(packed)
    training, val, test = (load_split(packed, side) for side in SPLITS)
    start, cpu_start = time.perf_counter(), time.process_time()
    settings = params.train.model_copy(update={"seed": seed})
    result = train(family, training, val, meta, settings, resume=resume)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    fp32 = onnx_bytes(result.classifier, card=card_for(result.classifier, meta), opset=params.export.opset)
    chosen = calibration_indices(training.labels, params.quantize.calibration_images)
    quantizer = Quantizer(graph.prepare(fp32), training.images[chosen])
    saturates = profile(params.quantize.target).saturates
    int8 = quantizer.static(Recipe(chained(quantizer.graph.graph), seven_bits=saturates))
    return {
        "fp32_test": accuracy(OnnxModel(fp32).run_all(test.images)[0], test.labels),
        "int8_test": accuracy(OnnxModel(int8).run_all(test.images)[0], test.labels),
        "val": result.best.val_accuracy,
        "train_seconds": seconds,
        "train_cpu_seconds": cpu_seconds,
    }


def summarize(rows: list[dict[str, float | str]]) -> dict[str, float]:
    """Means over the grid, and the lowest single run."""
    fp32, int8 = ([float(row[name]) for row in rows] for name in ("fp32_test", "int8_test"))
    return {
        "runs": len(rows),
        "fp32_mean": statistics.mean(fp32),
        "fp32_lowest": min(fp32),
        "fp32_standard_deviation": float(np.std(fp32)),
        "int8_mean": statistics.mean(int8),
        "int8_lost": statistics.mean(fp32) - statistics.mean(int8),
        "train_seconds": statistics.mean(float(row["train_seconds"]) for row in rows),
        "train_seconds_longest": max(float(row["train_seconds"]) for row in rows),
        "train_cpu_seconds": statistics.mean(float(row["train_cpu_seconds"]) for row in rows),
    }


def machine() -> str:
    """What the figures were measured on."""
    names = [
        line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return (
        f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()

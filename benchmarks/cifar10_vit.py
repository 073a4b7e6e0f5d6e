"""The compact transformer on CIFAR-10: accuracy against seconds and arithmetic, epoch by epoch.

What:    the recipe recipes/cifar10-vit.yaml, through the stages collect, clean, split and augment and the training that the
         stage train runs. The curve is of the val images, which the split cut from the 50,000; the 10,000 test images are
         looked at once, after the last epoch. Seconds are wall time from the start of the training with all that it does,
         evaluation and checkpoints too; CPU seconds are those of the process on both cores, and stay what they are where
         others use the machine too. Arithmetic is counted by torch's FlopCounterMode on one training step (products and
         convolutions, two for a multiplication with an addition).
Command: GOMP_SPINCOUNT=1000 python -m benchmarks.cifar10_vit --archive cifar10-jpeg.tar.gz            (90 minutes)
         GOMP_SPINCOUNT=1000 python -m benchmarks.cifar10_vit --archive cifar10-jpeg.tar.gz --epochs 1 (a look)
         The same command goes on where a killed run ended. --folder names where data and checkpoint lie.
Result:  in the file below.
Writes:  benchmarks/results/cifar10_vit.json, after each epoch; the network in --folder, as `model`
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.digits_accuracy import machine, run_data_stages
from visionloop.config import Params, TrainParams, load_params
from visionloop.data.packing import PackedMeta, PackedSplit, load_meta, load_split
from visionloop.evaluation.metrics import wilson
from visionloop.files import write_bytes, write_json
from visionloop.models import Family
from visionloop.paths import MODEL_TORCH, PACKED, PARAMS
from visionloop.records import SPLITS
from visionloop.training import EpochRecord, TrainResult, train
from visionloop.training.building import card_for, classifier_for
from visionloop.training.resizing import sizes

RECIPE = Path("recipes/cifar10-vit.yaml")
OUTPUT = Path("benchmarks/results/cifar10_vit.json")
FAMILY: Family = "vit"
MARKS = (0.80, 0.85, 0.88, 0.90, 0.91, 0.92)
GOAL_ACCURACY, GOAL_MINUTES = 0.90, 90.0

Right = npt.NDArray[np.bool_]  # [N], whether each image is answered rightly


def main() -> None:
    """Prepare once, train or go on, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--archive", type=Path, required=True, help="cifar10-jpeg.tar.gz: train/ and test/, a folder a class"
    )
    parser.add_argument("--folder", type=Path, default=Path("var/benchmarks/cifar10_vit"))
    parser.add_argument("--epochs", type=int, default=0, help="in place of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    params = load_params(RECIPE)
    changes: dict[str, Any] = {"seed": arguments.seed}
    if arguments.epochs:  # a look, of which no epoch may be left for images of full size
        changes |= {"epochs": arguments.epochs, "initial_scale": 1.0}
    settings = params.train.model_copy(update=changes)
    packed = prepared(RECIPE, arguments.archive, arguments.folder)
    meta = load_meta(packed)
    training, validation, test = (load_split(packed, side) for side in SPLITS)
    curve = Curve(arguments.output, settings, meta)
    resume = arguments.folder / f"resume-{arguments.seed}-{settings.of(FAMILY).epochs}"
    resume.mkdir(parents=True, exist_ok=True)
    print(
        f"{machine()}, {len(training.labels):,} training images, {curve.flops_per_image / 1e9:.2f} GFLOP an image and step"
    )
    result = train(
        FAMILY,
        training,
        validation,
        meta,
        settings,
        resume=resume,
        on_epoch=curve.add,
        say=lambda text: print(text, flush=True),
    )
    keep(result, meta, arguments.folder / "model")
    curve.finish(right_answers(result.classifier, test))


def keep(result: TrainResult, meta: PackedMeta, folder: Path) -> None:
    """The network with its card, as stage `train` writes them, for `benchmarks/int8.py --model`."""
    buffer = io.BytesIO()
    torch.save(result.classifier.state_dict(), buffer)
    write_bytes(folder / MODEL_TORCH, buffer.getvalue())
    card = card_for(result.classifier, meta, architecture_options=dict(result.settings.options))
    card.with_files(folder, (MODEL_TORCH,)).write(folder)


@dataclass
class Curve:
    """The lines of the finished epochs, written after each."""

    output: Path
    settings: TrainParams
    meta: PackedMeta
    rows: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Count, and take the seconds of epochs that an interrupted run has done."""
        own = self.settings.of(FAMILY)
        self.flops_per_image = flops_per_image(self.settings, self.meta, FAMILY)
        self.sides = own_sizes(self.settings, self.meta)
        self.flops = {size: flops_per_image(self.settings, self.meta, FAMILY, size=size) for size in set(self.sides)}
        self.name = {"seed": own.seed, "epochs": own.epochs, "data": self.meta.data_id, "scale": own.initial_scale}
        self.before = earlier_rows(self.output, self.name)
        self.since, self.cpu_since = time.perf_counter(), time.process_time()

    def add(self, record: EpochRecord) -> None:
        """One more epoch."""
        now, cpu_now = time.perf_counter(), time.process_time()
        if record.restored:
            # An epoch whose line was lost with the process counts as long as the longest of the others.
            lost = max(self.before.values(), key=lambda row: row["epoch_seconds"], default={})
            held = self.before.get(record.epoch, lost)
            seconds, cpu = (held.get(name, float("nan")) for name in ("epoch_seconds", "epoch_cpu_seconds"))
        else:
            seconds, cpu = now - self.since, cpu_now - self.cpu_since
        self.since, self.cpu_since = now, cpu_now
        of_images = sum(self.flops[size] for size in self.sides[: record.epoch])
        total = seconds + (self.rows[-1]["seconds"] if self.rows else 0.0)
        self.rows.append(
            {
                "epoch": record.epoch,
                "height": self.sides[record.epoch - 1][0],
                "epoch_seconds": round(seconds, 2),
                "epoch_cpu_seconds": round(cpu, 2),
                "seconds": round(total, 1),
                "cpu_seconds": round(cpu + (self.rows[-1]["cpu_seconds"] if self.rows else 0.0), 1),
                "pflop": round(of_images * self.meta.counts["train"] / 1e15, 5),
                "train_loss": round(record.train_loss, 4),
                "val_accuracy": round(record.val_accuracy, 4),
                "load": round(os.getloadavg()[0], 1),
            }
        )
        row = self.rows[-1]
        if not record.restored:
            print(
                f"epoch {record.epoch:3} of {record.epochs}: val {row['val_accuracy']:.4f}, loss {row['train_loss']:.4f}, "
                f"{row['seconds'] / 60:.1f} min, {row['cpu_seconds'] / 60:.1f} CPU min, {row['pflop']:.4f} PFLOP, "
                f"load {row['load']}",
                flush=True,
            )
        self.write()

    def write(self, **more: object) -> None:
        """The whole file anew."""
        last = self.rows[-1]
        reached = {
            f"{mark:.2f}": next(
                (
                    {key: row[key] for key in ("seconds", "cpu_seconds", "pflop")}
                    for row in self.rows
                    if row["val_accuracy"] >= mark
                ),
                None,
            )
            for mark in MARKS
        }
        value = {
            "machine": machine(),
            "recipe": str(RECIPE),
            "run": self.name,
            "images": self.meta.counts,
            "gflop_per_image": round(self.flops_per_image / 1e9, 4),
            "minutes": round(last["seconds"] / 60, 1),
            "cpu_minutes": round(last["cpu_seconds"] / 60, 1),
            "pflop": last["pflop"],
            **more,
            "val_first_reached": reached,
            "rows": self.rows,
        }
        write_json(self.output, value)

    def finish(self, right: Right) -> None:
        """The verdict on the goal, from the test images."""
        accuracy, last = float(right.mean()), self.rows[-1]
        low, high = wilson(int(right.sum()), len(right), 0.95)
        minutes = last["seconds"] / 60
        self.write(test_accuracy=round(accuracy, 4), test_interval_95=[round(low, 4), round(high, 4)])
        held = accuracy >= GOAL_ACCURACY and minutes <= GOAL_MINUTES
        print(
            f"{accuracy:.2%} of {len(right):,} test images after {minutes:.1f} minutes, {last['cpu_seconds'] / 60:.1f} CPU "
            f"minutes and {last['pflop']:.3f} PFLOP "
            f"(goal {GOAL_ACCURACY:.0%} in {GOAL_MINUTES:g} minutes): {'holds' if held else 'DOES NOT HOLD'}; "
            f"written to {self.output}"
        )


def prepared(recipe: Path, archive: Path, folder: Path) -> Path:
    """Run the recipe's data stages on the archive in a folder, unless they have run; gives the packed arrays' folder."""
    wanted = recipe.read_text(encoding="utf-8")
    done = folder / PARAMS
    if not (folder / PACKED / "meta.json").is_file() or not done.is_file() or data_params(done) != data_params(recipe):
        shutil.rmtree(folder, ignore_errors=True)
        raw = folder / "data" / "raw"
        raw.mkdir(parents=True)
        shutil.copyfile(archive, raw / archive.name)
        start = time.perf_counter()
        done.write_text(wanted, encoding="utf-8")
        run_data_stages(folder)
        print(f"the data stages took {time.perf_counter() - start:.0f} s", flush=True)
    return folder / PACKED


def data_params(path: Path) -> dict[str, Any]:
    """What the packed arrays depend on."""
    params: Params = load_params(path)
    sections = ("collect", "clean", "split", "preprocess", "augment")
    return {name: getattr(params, name).model_dump(mode="json") for name in sections}


def own_sizes(settings: TrainParams, meta: PackedMeta) -> list[tuple[int, int]]:
    """The images' height and width in each epoch."""
    network = classifier_for(settings.family(FAMILY), meta).network
    return sizes((meta.preprocess.height, meta.preprocess.width), network.side_multiple, settings.of(FAMILY))


def earlier_rows(output: Path, name: dict[str, Any]) -> dict[int, dict[str, float]]:
    """The lines of the same run in a file of before, by epoch."""
    if not output.is_file():
        return {}
    held = json.loads(output.read_text(encoding="utf-8"))
    return {int(row["epoch"]): row for row in held["rows"]} if held.get("run") == name else {}


def flops_per_image(
    settings: TrainParams, meta: PackedMeta, family: Family, images: int = 16, size: tuple[int, int] | None = None
) -> float:
    """Floating-point operations of one image's way forwards and backwards, products and convolutions.

    `size` is its height and width where it is another than the packed images'.
    """
    height, width = size or (meta.preprocess.height, meta.preprocess.width)
    with torch.random.fork_rng(devices=[]):
        model = classifier_for(settings.family(family), meta)
    pixels = torch.zeros(images, height, width, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        torch.autograd.backward(F.cross_entropy(model(pixels)[0], torch.zeros(images, dtype=torch.int64)))
    return float(counter.get_total_flops()) / images


def right_answers(model: torch.nn.Module, data: PackedSplit, batch_size: int = 250) -> Right:
    """Whether each image's strongest logit is its label's."""
    parts = []
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(data.labels), batch_size):
            images = torch.from_numpy(np.array(data.images[start : start + batch_size]))
            parts.append(model(images)[0].argmax(1).numpy() == data.labels[start : start + batch_size])
    return np.concatenate(parts)


if __name__ == "__main__":
    main()

"""The speed recipe on CIFAR-10: test accuracy after each epoch, seconds and arithmetic, over several seeds.

What:    the recipe recipes/cifar10-speed.yaml, through the stages collect, clean, split and augment and the training that
         the stage train runs, once for each seed. The 10,000 test images stand where the training expects val, so that its
         line after each epoch is the curve; the recipe keeps the last epoch and stops at none, so that they choose nothing.
         The final accuracy is that of the returned model, in fp32. Seconds are those between the starts of two epochs, with
         evaluation and checkpoint. Arithmetic is counted by torch's FlopCounterMode (two for a multiplication with an
         addition; products and convolutions, forwards and backwards) on one training step, with what the optimizer
         multiplies; elementwise work and evaluation are left out, as in the figures of the anchor: airbench94 of Jordan 2024
         (arXiv:2404.00498, the variant with Muon), 94.0 % with 0.29 PFLOP.
Command: GOMP_SPINCOUNT=1000 python -m benchmarks.cifar10_speed --archive cifar10-jpeg.tar.gz             (3 seeds)
         GOMP_SPINCOUNT=1000 python -m benchmarks.cifar10_speed --archive cifar10-jpeg.tar.gz --seeds 1   (a look)
         The same command goes on where a killed run ended. --folder names where data and checkpoints lie.
Result:  in the file below.
Writes:  benchmarks/results/cifar10_speed.json, after each epoch
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cifar10_vit import flops_per_image, prepared, right_answers
from benchmarks.digits_accuracy import machine
from visionloop.config import TrainParams, load_params
from visionloop.data.packing import PackedMeta, PackedSplit, load_meta, load_split
from visionloop.evaluation.metrics import wilson
from visionloop.files import write_json
from visionloop.models import Family
from visionloop.training import EpochRecord, clear_resume, train
from visionloop.training.batches import count
from visionloop.training.building import classifier_for
from visionloop.training.optimizers import Optimizer

RECIPE = Path("recipes/cifar10-speed.yaml")
OUTPUT = Path("benchmarks/results/cifar10_speed.json")
FAMILY: Family = "cnn"
MARKS = (0.90, 0.92, 0.94)
GOAL_ACCURACY = 0.94
ANCHOR_PFLOP, MOST_TIMES = 0.29, 1.25


def main() -> None:
    """Prepare once, train each seed or go on with it, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--archive", type=Path, required=True, help="cifar10-jpeg.tar.gz: train/ and test/, a folder a class"
    )
    parser.add_argument("--folder", type=Path, default=Path("var/benchmarks/cifar10_speed"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    params = load_params(RECIPE).train
    own = params.of(FAMILY)
    if own.keep != "last" or own.early_stopping_epochs or own.schedule == "plateau":
        raise SystemExit(f"{RECIPE} chooses an epoch by its val images, which are the test images here; set keep: last.")
    packed = prepared(RECIPE, arguments.archive, arguments.folder)
    meta = load_meta(packed)
    training, test = load_split(packed, "train"), load_split(packed, "test")
    of_image, of_step = flops_per_image(params, meta, FAMILY), flops_per_step(params, meta)
    steps = count(count(len(training.labels), own.batch_size), own.accumulate)
    pflop_of_epoch = (of_image * len(training.labels) + of_step * steps) / 1e15
    print(
        f"{machine()}, {len(training.labels):,} training images, {of_image / 1e9:.3f} GFLOP an image, "
        f"{of_step / 1e9:.1f} GFLOP an update, {pflop_of_epoch:.4f} PFLOP an epoch",
        flush=True,
    )
    results = Results(
        arguments.output,
        meta.data_id,
        own=own,
        pflop_of_epoch=pflop_of_epoch,
        test_images=len(test.labels),
        flops_of_image=of_image,
        flops_of_step=of_step,
    )
    for seed in range(arguments.seeds):
        if not results.has(seed):
            one(
                seed,
                params=params,
                meta=meta,
                training=training,
                test=test,
                resume=arguments.folder / f"resume-{seed}",
                results=results,
            )
    results.tell()


def one(
    seed: int,
    *,
    params: TrainParams,
    meta: PackedMeta,
    training: PackedSplit,
    test: PackedSplit,
    resume: Path,
    results: Results,
) -> None:
    """Train with one seed and measure the model that comes back."""
    resume.mkdir(parents=True, exist_ok=True)
    results.begin(seed)
    settings = params.model_copy(update={"seed": seed})
    done = train(
        FAMILY,
        training,
        test,
        meta,
        settings,
        resume=resume,
        on_epoch=results.add,
        say=lambda text: print(text, flush=True),
    )
    results.finish(float(right_answers(done.classifier, test).mean()), str(done.execution))
    clear_resume(resume)


class Results:
    """The file of results: seeds that are done, and the epochs of the one that is on its way."""

    def __init__(
        self,
        output: Path,
        data_id: str,
        *,
        own: TrainParams,
        pflop_of_epoch: float,
        test_images: int,
        flops_of_image: float,
        flops_of_step: float,
    ) -> None:
        self.output, self.pflop_of_epoch, self.test_images = output, pflop_of_epoch, test_images
        self.fixed = {
            "recipe": str(RECIPE),
            "gflop_per_image": round(flops_of_image / 1e9, 4),
            "gflop_per_update": round(flops_of_step / 1e9, 3),
            "anchor": {"name": "airbench94 (Muon), published", "accuracy": 0.94, "pflop": ANCHOR_PFLOP},
        }
        # What decides the speed alone may differ from seed to seed: each says on which machine it ran, and how.
        left_out: Any = {"seed": True, "vit": True, "precision": True, "layout": True, "compile": True, "cnn": {"smaller"}}
        run = {"data": data_id, "params": own.model_dump(mode="json", exclude=left_out)}
        # As JSON gives it back, so that it compares with what an earlier run has written.
        self.run: dict[str, Any] = json.loads(json.dumps(run))
        held = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
        self.seeds: list[dict[str, Any]] = held["seeds"] if held.get("run") == self.run else []
        self.current: dict[str, Any] = {}
        self.since = 0.0

    def has(self, seed: int) -> bool:
        """Whether this seed was trained to its end."""
        return any(row["seed"] == seed and "test_accuracy" in row for row in self.seeds)

    def begin(self, seed: int) -> None:
        """Start or go on with a seed; the seconds of epochs that an interrupted run has done are taken from the file."""
        self.before = {
            int(row["epoch"]): row["epoch_seconds"] for held in self.seeds if held["seed"] == seed for row in held["rows"]
        }
        self.seeds = [held for held in self.seeds if held["seed"] != seed]
        self.current = {"seed": seed, "machine": machine(), "rows": []}
        self.seeds.append(self.current)
        self.since = time.perf_counter()

    def add(self, record: EpochRecord) -> None:
        """One more epoch."""
        rows = self.current["rows"]
        now = time.perf_counter()
        # An epoch whose line was lost with the process counts as long as the longest of the others.
        lost = max(self.before.values(), default=float("nan"))
        seconds = self.before.get(record.epoch, lost) if record.restored else now - self.since
        self.since = now
        row = {
            "epoch": record.epoch,
            "epoch_seconds": round(seconds, 2),
            "seconds": round(seconds + (rows[-1]["seconds"] if rows else 0.0), 1),
            "pflop": round(self.pflop_of_epoch * record.epoch, 5),
            "train_loss": round(record.train_loss, 4),
            "test_accuracy": round(record.val_accuracy, 4),
            "load": round(os.getloadavg()[0], 1),
        }
        rows.append(row)
        if not record.restored:
            print(
                f"seed {self.current['seed']}, epoch {record.epoch:2} of {record.epochs}: test {row['test_accuracy']:.4f}, "
                f"loss {row['train_loss']:.4f}, {row['seconds']:.0f} s, {row['pflop']:.4f} PFLOP, load {row['load']}",
                flush=True,
            )
        self.write()

    def finish(self, accuracy: float, execution: str) -> None:
        """A seed is done; `accuracy` is of its model in fp32, its steps ran as `execution` says."""
        low, high = wilson(round(accuracy * self.test_images), self.test_images, 0.95)
        last = self.current["rows"][-1]
        self.current |= {
            "execution": execution,
            "test_accuracy": round(accuracy, 4),
            "interval_95": [round(low, 4), round(high, 4)],
            "seconds": last["seconds"],
            "pflop": last["pflop"],
            "first_reached": {
                f"{mark:.2f}": next(
                    (
                        {"epoch": row["epoch"], "seconds": row["seconds"], "pflop": row["pflop"]}
                        for row in self.current["rows"]
                        if row["test_accuracy"] >= mark
                    ),
                    None,
                )
                for mark in MARKS
            },
        }
        print(f"seed {self.current['seed']}: {accuracy:.2%} in {last['seconds']:.0f} s", flush=True)
        self.write()

    def write(self) -> None:
        """The whole file anew."""
        done = [row for row in self.seeds if "test_accuracy" in row]
        summary: dict[str, Any] = {"seeds": len(done)}
        if done:
            accuracies = [row["test_accuracy"] for row in done]
            summary |= {
                "mean": round(statistics.mean(accuracies), 5),
                "lowest": min(accuracies),
                "highest": max(accuracies),
                "standard_deviation": round(statistics.stdev(accuracies), 5) if len(done) > 1 else None,
                "pflop": done[0]["pflop"],
                "times_anchor": round(done[0]["pflop"] / ANCHOR_PFLOP, 3),
                "median_seconds": statistics.median(row["seconds"] for row in done),
            }
        write_json(self.output, {**self.fixed, "summary": summary, "run": self.run, "seeds": sorted(self.seeds, key=_seed)})

    def tell(self) -> None:
        """The verdict on the goal."""
        done = [row for row in self.seeds if "test_accuracy" in row]
        mean = statistics.mean(row["test_accuracy"] for row in done)
        times = done[0]["pflop"] / ANCHOR_PFLOP
        print(
            f"mean {mean:.2%} over {len(done)} seeds (goal {GOAL_ACCURACY:.0%}: "
            f"{'holds' if mean >= GOAL_ACCURACY else 'FAILS'}), "
            f"{done[0]['pflop']:.3f} PFLOP, {times:.2f} times the anchor's (at most {MOST_TIMES}: "
            f"{'holds' if times <= MOST_TIMES else 'FAILS'}); written to {self.output}"
        )


def _seed(row: dict[str, Any]) -> int:
    return int(row["seed"])


def flops_per_step(params: TrainParams, meta: PackedMeta) -> float:
    """Floating-point operations of one update of the optimizer, products alone."""
    own = params.family(FAMILY)
    with torch.random.fork_rng(devices=[]):
        model = classifier_for(own, meta)
    settings = params.of(FAMILY)
    optimizer = Optimizer(model, settings, own, steps_images=settings.batch_size * settings.accumulate)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    with FlopCounterMode(display=False) as counter:
        optimizer.step(0.0)
    return float(counter.get_total_flops())


if __name__ == "__main__":
    main()

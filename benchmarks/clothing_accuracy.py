"""Ten kinds of clothes from 3,781 photos, from scratch: our recipe against the usual script, given the same time.

What:    the clothing photos, pre-split into 3,068 for training, 341 for validation and 372 for test, ten classes of unequal
         size. Ours is recipes/clothing.yaml through the stages collect, clean, split and augment and the training of stage
         train. The usual script is ResNet-18 of torchvision with fresh weights on ImageFolder and a DataLoader of two
         workers, RandomResizedCrop, mirror and normalisation, in float32 and channels-last, with what torchvision's own
         reference script for classification sets: SGD 0.1 with momentum 0.9 and decay 1e-4 at 32 images a step, and a tenth
         of the rate after each third of the epochs. It has as many epochs as fit in the time that ours took, by its first.
         Both are judged on the same 372 images, resized as the model wants them, ours by its stage, theirs by Resize and
         CenterCrop. The difference comes with McNemar's exact test. Each runs alone, one after the other.
Command: GOMP_SPINCOUNT=1000 python -m benchmarks.clothing_accuracy --archive clothing.tar.gz      (40 + 40 minutes)
         GOMP_SPINCOUNT=1000 python -m benchmarks.clothing_accuracy --archive clothing.tar.gz --epochs 1  (a look)
         The same command goes on where a killed run ended; --only ours or --only usual runs one.
Result:  in the file below.
Writes:  benchmarks/results/clothing_accuracy.json, after each epoch
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from scipy.stats import binomtest
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets, transforms

from benchmarks.cifar10_vit import Right, flops_per_image, prepared, right_answers
from benchmarks.digits_accuracy import machine
from visionloop.config import TrainParams, load_params
from visionloop.data.packing import PackedMeta, load_meta, load_split
from visionloop.evaluation.metrics import wilson
from visionloop.files import sha256_bytes, write_bytes, write_json
from visionloop.models import Family
from visionloop.training import EpochRecord, train

RECIPE = Path("recipes/clothing.yaml")
OUTPUT = Path("benchmarks/results/clothing_accuracy.json")
FAMILY: Family = "cnn"
GOAL_MINUTES = 40.0
# torchvision/references/classification/train.py, its defaults.
RATE, MOMENTUM, DECAY, BATCH, WORKERS = 0.1, 0.9, 1e-4, 32, 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Prepare once, train both or go on, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--archive", type=Path, required=True, help="clothing.tar.gz: train/, validation/ and test/")
    parser.add_argument("--folder", type=Path, default=Path("var/benchmarks/clothing"))
    parser.add_argument("--epochs", type=int, default=0, help="of ours, in place of the recipe's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("ours", "usual"))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    params = load_params(RECIPE)
    changes = {"seed": arguments.seed} | ({"epochs": arguments.epochs} if arguments.epochs else {})
    settings = params.train.model_copy(update=changes)
    packed = prepared(RECIPE, arguments.archive, arguments.folder)
    meta = load_meta(packed)
    name = {"seed": arguments.seed, "epochs": settings.of(FAMILY).epochs, "data": meta.data_id}
    results = held(arguments.output, name)
    resume = arguments.folder / f"resume-{arguments.seed}-{name['epochs']}"
    print(machine(), flush=True)

    def keep(side: str, value: dict[str, Any]) -> None:
        results[side] = value
        write_json(
            arguments.output, {"machine": machine(), "recipe": str(RECIPE), "run": name, **verdict(results), **results}
        )

    if arguments.only != "usual":
        ours(packed, settings, resume, results.get("ours", {}), lambda value: keep("ours", value))
    if arguments.only != "ours":
        minutes = results.get("ours", {}).get("minutes", GOAL_MINUTES)
        photos = unpacked(arguments.archive, arguments.folder / "photos")
        usual(photos, minutes, meta, resume / "usual.pt", lambda value: keep("usual", value))
    for side in ("ours", "usual"):
        if side in results and "test_accuracy" in results[side]:
            told = results[side]
            print(
                f"{side:6} {told['test_accuracy']:.2%} ({told['interval_95'][0]:.1%} to {told['interval_95'][1]:.1%}) of "
                f"{told['test_images']} in {told['minutes']:.1f} minutes, {told['pflop']:.3f} PFLOP"
            )
    for key, value in verdict(results).items():
        print(f"{key}: {value}")


def ours(
    packed: Path,
    settings: TrainParams,
    resume: Path,
    before: dict[str, Any],
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Train by the recipe and judge on the test images once."""
    if before.get("finished"):
        return
    meta = load_meta(packed)
    training, validation, test = (load_split(packed, side) for side in ("train", "val", "test"))
    flops = flops_per_image(settings, meta, FAMILY)
    resume.mkdir(parents=True, exist_ok=True)
    earlier = {row["epoch"]: row["epoch_seconds"] for row in before.get("rows", [])}
    rows: list[dict[str, float]] = []
    since = time.perf_counter()

    def add(record: EpochRecord) -> None:
        nonlocal since
        now = time.perf_counter()
        # An epoch whose line was lost with the process counts as long as the longest of the others.
        seconds = earlier.get(record.epoch, max(earlier.values(), default=0.0)) if record.restored else now - since
        since = now
        total = seconds + (rows[-1]["seconds"] if rows else 0.0)
        rows.append(
            {
                "epoch": record.epoch, "epoch_seconds": round(seconds, 2), "seconds": round(total, 1),
                "train_loss": round(record.train_loss, 4), "val_accuracy": round(record.val_accuracy, 4),
            }
        )  # fmt: skip
        if not record.restored:
            print(
                f"ours epoch {record.epoch} of {record.epochs}: loss {record.train_loss:.3f}, "
                f"val {record.val_accuracy:.4f}, {total / 60:.1f} min",
                flush=True,
            )
        keep({"finished": False, "rows": rows})

    result = train(
        FAMILY, training, validation, meta, settings, resume=resume, on_epoch=add, say=lambda text: print(text, flush=True)
    )
    seen = flops * len(training.labels) * len(rows)
    keep({**judged(right_answers(result.classifier, test), test.ids, rows, seen), "rows": rows})


def usual(photos: Path, minutes: float, meta: PackedMeta, saved: Path, keep: Callable[[dict[str, Any]], None]) -> None:
    """Train the usual way for so many minutes, or go on from `saved`, and judge on the test images once."""
    side = meta.preprocess.height
    normal = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    changed = [transforms.RandomResizedCrop(side), transforms.RandomHorizontalFlip(), *normal]
    plain = [transforms.Resize(round(side * 256 / 224)), transforms.CenterCrop(side), *normal]
    training = datasets.ImageFolder(photos / "train", transforms.Compose(changed))
    test = datasets.ImageFolder(photos / "test", transforms.Compose(plain))
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None, num_classes=len(meta.labels)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), RATE, MOMENTUM, weight_decay=DECAY)
    loader = torch.utils.data.DataLoader(training, BATCH, shuffle=True, num_workers=WORKERS, drop_last=True)
    rows: list[dict[str, float]] = []
    epochs = 0
    if saved.is_file():
        state = torch.load(io.BytesIO(saved.read_bytes()), weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        rows, epochs = state["rows"], state["epochs"]
    while not epochs or len(rows) < epochs:
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.1 ** (len(rows) * 3 // epochs if epochs else 0)
        losses = []
        model.train()
        for images, labels in loader:
            loss = F.cross_entropy(model(images.to(memory_format=torch.channels_last)), labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(float(loss.detach()))
        seconds = time.perf_counter() - start
        epochs = epochs or max(1, int(minutes * 60 / seconds))
        total = seconds + (rows[-1]["seconds"] if rows else 0.0)
        rows.append(
            {
                "epoch": len(rows) + 1, "epoch_seconds": round(seconds, 2), "seconds": round(total, 1),
                "train_loss": round(float(np.mean(losses)), 4),
            }
        )  # fmt: skip
        print(f"usual epoch {len(rows)} of {epochs}: loss {rows[-1]['train_loss']}, {total / 60:.1f} min", flush=True)
        buffer = io.BytesIO()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rows": rows, "epochs": epochs}
        torch.save(state, buffer)
        write_bytes(saved, buffer.getvalue())
        keep({"finished": False, "rows": rows})
    right = []
    model.eval()
    with torch.inference_mode():
        for images, labels in torch.utils.data.DataLoader(test, 64, num_workers=WORKERS):
            right.append((model(images).argmax(1) == labels).numpy())
    ids = [sha256_bytes(Path(path).read_bytes()) for path, _ in test.samples]
    with FlopCounterMode(display=False) as counter:
        logits = model.train()(torch.zeros(2, 3, side, side))
        torch.autograd.backward(F.cross_entropy(logits, torch.zeros(2, dtype=torch.int64)))
    seen = counter.get_total_flops() / 2 * len(rows) * len(loader) * BATCH
    keep({**judged(np.concatenate(right), ids, rows, seen), "rows": rows})


def judged(right: Right, ids: list[str], rows: list[dict[str, float]], flops: float) -> dict[str, Any]:
    """What one side is worth; `right` says of the photos `ids` whether they were answered rightly."""
    low, high = wilson(int(right.sum()), len(right), 0.95)
    return {
        "finished": True,
        "test_accuracy": round(float(right.mean()), 4),
        "interval_95": [round(low, 4), round(high, 4)],
        "test_images": len(right),
        "epochs": len(rows),
        "minutes": round(rows[-1]["seconds"] / 60, 2),
        "pflop": round(flops / 1e15, 4),
        "answers": {name[:16]: bool(fine) for name, fine in sorted(zip(ids, right, strict=True))},
    }


def verdict(results: dict[str, Any]) -> dict[str, Any]:
    """How far ahead ours is, and whether it keeps to its time."""
    if not all(results.get(side, {}).get("finished") for side in ("ours", "usual")):
        return {}
    own, other = (results[side]["answers"] for side in ("ours", "usual"))
    both = own.keys() & other.keys()  # a photo that `clean` rejects is not judged
    only_ours = sum(own[name] and not other[name] for name in both)
    only_usual = sum(other[name] and not own[name] for name in both)
    p_value = float(binomtest(only_ours, only_ours + only_usual).pvalue) if only_ours + only_usual else 1.0
    return {
        "compared_photos": len(both),
        "only_ours_right": only_ours,
        "only_usual_right": only_usual,
        "ahead_points": round(100 * (only_ours - only_usual) / len(both), 2),
        "mcnemar_p": round(p_value, 5),
        "within_time": results["ours"]["minutes"] <= GOAL_MINUTES,
    }


def unpacked(archive: Path, folder: Path) -> Path:
    """The photos as ImageFolder wants them."""
    if not (folder / "train").is_dir():
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    return folder


def held(output: Path, name: dict[str, Any]) -> dict[str, Any]:
    """What the file says of the same run."""
    if not output.is_file():
        return {}
    value = json.loads(output.read_text(encoding="utf-8"))
    return {side: value[side] for side in ("ours", "usual") if side in value} if value.get("run") == name else {}


if __name__ == "__main__":
    main()

"""Feeding: an epoch's wall time against its steps alone, and our images a second against ImageFolder with a DataLoader.

What:    photo-like JPEGs of 256 pixels from a seed, in ten class folders, or a folder of photos; images of 64 pixels in
         batches of 64, shifted by up to 8 pixels and mirrored at random. Three loops of the same network in this process;
         a step fed and a step held in turns, then an epoch of the usual loop; a figure is the median of the rounds.
         fed:   batches from the packed arrays through `train_batches` and `Monitor`, steps in the precision and layout that
                `measure_execution` chose before the first round.
         held:  the same steps on batches that were made before the clock started.
         usual: ImageFolder, PIL, torchvision's v2 transforms, a DataLoader of two workers, torchvision's network in fp32.
                Its own network for `small_resnet` and `small_vit`, which torchvision has not, is ours in fp32.
         Fed and held keep the memory that they free, as a training does; usual keeps what glibc does by itself.
         All take AdamW and cross-entropy: fed and held as a training makes it, usual torch's as it comes. The files are in
         the page cache. Packing is not in an epoch.
Command: GOMP_SPINCOUNT=1000 python -m benchmarks.feeding                        (four networks)
         GOMP_SPINCOUNT=1000 python -m benchmarks.feeding --networks resnet18    (one); --folder FOLDER takes your photos
Result:  in the file below.
Writes:  benchmarks/results/feeding.json; networks that are not measured keep their figures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.digits_accuracy import machine
from benchmarks.loading import draw, packed
from visionloop.config import TrainParams, load_section
from visionloop.data.packing import PackedSplit
from visionloop.data.policy import AugmentPolicy
from visionloop.files import write_json
from visionloop.memory import keep_freed_memory
from visionloop.models import Classifier, build
from visionloop.training.batches import train_batches
from visionloop.training.execution import measure_execution
from visionloop.training.monitor import Monitor
from visionloop.training.optimizers import Optimizer

OUTPUT = Path("benchmarks/results/feeding.json")
SIDE = 64
BATCH = 64
CLASSES = 10
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
POLICY = AugmentPolicy(horizontal_flip=True, crop_padding_pixels=SIDE // 8, padding="reflect")
RATE = 1e-4
MOST = 1.05  # seconds of fed over those of held
NETWORKS: Mapping[str, Mapping[str, int | str]] = {
    "small_resnet": {"width": 32, "blocks": 2, "stages": 4},
    "resnet18": {},
    "small_vit": {"patch": 8, "width": 192, "depth": 6, "heads": 3},
    "mobilenet_v3_small": {},
}
# Of freed memory, for `keep_freed_memory`: what a training keeps, and what glibc comes to keep by itself.
KEPT, GLIBC = (1 << 31, 1 << 30), (64 << 20, 32 << 20)
LEAST = {"resnet18": 1.4, "mobilenet_v3_small": 3.0}  # times the images a second of usual


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="class sub-folders with photos; default: drawn from a seed")
    parser.add_argument("--images", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(OUTPUT.read_text(encoding="utf-8"))["networks"] if OUTPUT.is_file() else {}
    with tempfile.TemporaryDirectory(prefix="visionloop-feeding-") as name:
        folder = arguments.folder or draw(Path(name, "photos"), arguments.images)
        data = packed(folder, Path(name, "packed"))
        for network in arguments.networks:
            results[network] = measured(network, folder, data, arguments.rounds)
            report(network, results[network])
    write_json(
        OUTPUT, {"side": SIDE, "batch": BATCH, "networks": {name: results[name] for name in NETWORKS if name in results}}
    )
    print(f"written to {OUTPUT}")


def measured(network: str, folder: Path, data: PackedSplit, rounds: int) -> dict[str, Any]:
    """Seconds of an epoch of the three loops of one network."""
    torch.manual_seed(0)
    ours = classifier(network)
    batches = list(epoch(data, 0))
    params = load_section(TrainParams).model_copy(update={"precision": "auto", "layout": "auto", "compile": "never"})
    execution, said = measure_execution(ours, batches[0].images, batches[0].labels, params, steps=1)
    forward = execution.prepare(ours)
    monitor = Monitor(torch.device("cpu"))  # its own cost is part of an epoch
    settings = load_section(TrainParams).cnn.model_copy(update={"layer_decay": 1.0})
    optimizer = Optimizer(ours, params.model_copy(update={"optimizer": "adamw"}), settings, steps_images=BATCH)
    our_step = stepper(lambda images: forward(images)[0], ours, lambda: optimizer.step(RATE))
    theirs = usual_network(network)
    their_step = stepper(theirs, theirs, torch.optim.AdamW(theirs.parameters(), lr=RATE).step)
    loader = usual_loader(folder)

    def ours_alternating(number: int) -> tuple[float, float]:
        """Seconds of an epoch fed and of one held, a step of each in turns."""
        made = monitor.batches(iter(epoch(data, number)))
        fed = held = 0.0
        for turn, batch in enumerate(batches):
            for kind in ("fed", "held") if turn % 2 else ("held", "fed"):
                start = time.perf_counter()
                given = next(made) if kind == "fed" else batch
                our_step(given.images, given.labels)
                taken = time.perf_counter() - start
                fed, held = (fed + taken, held) if kind == "fed" else (fed, held + taken)
        return fed, held

    def usual() -> float:
        start = time.perf_counter()
        for images, labels in loader:
            their_step(images, labels)
        return time.perf_counter() - start

    every: dict[str, list[float]] = {"fed": [], "held": [], "usual": []}
    for number in range(rounds + 1):  # the first one starts workers and warms caches
        keep_freed_memory(*KEPT)
        fed, held = ours_alternating(number)
        keep_freed_memory(*GLIBC)
        theirs_seconds = usual()
        if number:
            for name, value in (("fed", fed), ("held", held), ("usual", theirs_seconds)):
                every[name].append(value)
    images = len(data.labels)
    medians = {name: statistics.median(values) for name, values in every.items()}
    ratios = [one / other for one, other in zip(every["fed"], every["held"], strict=True)]
    return {
        "machine": machine(), "load": round(os.getloadavg()[0], 1), "images": images, "rounds": rounds,
        "execution": str(execution), "chosen": said,
        "images_per_second": {name: images / value for name, value in medians.items()},
        "fed_over_held": statistics.median(ratios),
        "times_usual": medians["usual"] / medians["fed"],
        "seconds": every,
    }  # fmt: skip


def epoch(data: PackedSplit, number: int) -> Iterable[Any]:
    """Our batches of one epoch."""
    return train_batches(data, POLICY, batch_size=BATCH, seed=0, epoch=number)


def classifier(network: str) -> Classifier:
    """Ours, in training mode."""
    size = (SIDE, SIDE)
    return build(network, num_classes=CLASSES, image_size=size, mean=MEAN, std=STD, options=NETWORKS[network]).train()


def usual_network(network: str) -> nn.Module:
    """From normalised floats [N, 3, H, W] to logits, in the layout that torch gives unasked."""
    if network in ("small_resnet", "small_vit"):
        inner = classifier(network).network
        return nn.Sequential(_Embed(inner), inner.head)
    made: nn.Module = torchvision.models.get_model(network, weights=None, num_classes=CLASSES)
    return made.train()


class _Embed(nn.Module):
    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        embedding: Tensor = self.network.embed(images)
        return embedding


def usual_loader(folder: Path) -> Any:
    """As torchvision's and torch's documentation show it."""
    change = v2.Compose([
        v2.Resize((SIDE, SIDE)), v2.RandomCrop(SIDE, padding=SIDE // 8, padding_mode="reflect"), v2.RandomHorizontalFlip(),
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
    ])  # fmt: skip
    return DataLoader(ImageFolder(str(folder), change), BATCH, shuffle=True, num_workers=2, persistent_workers=True)


def stepper(
    forward: Callable[[Tensor], Tensor], model: nn.Module, update: Callable[[], object]
) -> Callable[[Tensor, Tensor], None]:
    """One training step."""

    def step(images: Tensor, labels: Tensor) -> None:
        model.zero_grad()
        F.cross_entropy(forward(images), labels).backward()  # type: ignore[no-untyped-call]
        update()

    return step


def report(network: str, result: Mapping[str, Any]) -> None:
    """Print what was measured, and whether the goals hold."""
    rates = ", ".join(f"{name} {value:,.0f}" for name, value in result["images_per_second"].items())
    print(f"{network} ({result['execution']}, load {result['load']}): images a second: {rates}")
    over, times = result["fed_over_held"], result["times_usual"]
    print(f"  an epoch takes {over:.3f} of its steps: goal {MOST} {'holds' if over <= MOST else 'DOES NOT HOLD'}")
    goal = LEAST.get(network)
    words = "" if goal is None else f": goal {goal} {'holds' if times >= goal else 'DOES NOT HOLD'}"
    print(f"  {times:.2f} times the usual loop{words}", flush=True)


if __name__ == "__main__":
    main()

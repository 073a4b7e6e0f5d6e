"""A CNN on CIFAR-10, then pruned, then INT8: how much faster than FP32 of the network it began as, and what it loses.

What:    small_resnet (32 channels in the first of three stages, a block each, 49 million multiply-adds) trained by the
         settings of params.yaml but for epochs, batch size and rate, then pruned by `--share` of its multiply-adds and
         trained for `--smaller-epochs` more, as the key `smaller` does it. Both networks are then searched for integer
         forms as the stage `quantize` does, and all forms are timed call by call in turn, with one thread, at
         batch sizes 1 and 32. Speed-ups are over FP32 of the first network in ONNX Runtime, by medians; accuracy is of the
         10,000 test images, which nothing was chosen by.
Command: python -m benchmarks.pruning --packed data/packed
         (of a project that ran `visionloop recipe cifar10-speed` and `dvc repro augment`; a killed run goes on)
Writes:  benchmarks/results/pruning.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.digits_accuracy import machine
from visionloop.compression import targets
from visionloop.compression.choice import measure_speed
from visionloop.compression.export import onnx_bytes
from visionloop.compression.parity import accuracy
from visionloop.compression.search import Network, Space, search
from visionloop.compression.variants import one_thread
from visionloop.config import SmallerParams, load_params
from visionloop.data.packing import load_meta, load_split
from visionloop.evaluation.metrics import wilson
from visionloop.files import write_json
from visionloop.models import Classifier
from visionloop.runtime import Answers
from visionloop.training import EpochRecord, train
from visionloop.training.building import card_for

OUTPUT = Path("benchmarks/results/pruning.json")
RECIPE = Path("params.yaml")
GOAL = (6.0, 0.01)  # times FP32 at batch 32, and the accuracy that may be lost for it


def main() -> None:
    """Train, prune, quantize, measure, write, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--packed", type=Path, required=True, help="data/packed of CIFAR-10")
    parser.add_argument("--folder", type=Path, default=Path("var/benchmarks/pruning"), help="of the checkpoints")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--smaller-epochs", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--search-seconds", type=float, default=120.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, a batch size")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    meta = load_meta(arguments.packed)
    training, val, test = (load_split(arguments.packed, side) for side in ("train", "val", "test"))
    params = load_params(RECIPE).train
    smaller = SmallerParams(
        by="pruning", share=arguments.share, architecture=None, options={}, epochs=arguments.smaller_epochs, rate=0.5,
        max_accuracy_drop=1.0,
    )  # fmt: skip
    cnn = params.cnn.model_copy(
        update={"options": {"width": 32, "blocks": 1, "stages": 3}, "learning_rate": 0.004, "smaller": smaller}
    )
    settings = params.model_copy(
        update={"cnn": cnn, "epochs": arguments.epochs, "warmup_epochs": 1, "batch_size": 128, "keep": "last"}
    )

    def tell(record: EpochRecord) -> None:
        print(
            f"epoch {record.epoch} of {record.epochs}: loss {record.train_loss:.3f}, val {record.val_accuracy:.4f}",
            flush=True,
        )

    arguments.folder.mkdir(parents=True, exist_ok=True)
    result = train("cnn", training, val, meta, settings, resume=arguments.folder, on_epoch=tell, say=print)
    assert result.smaller is not None and result.first is not None

    def exported(model: Classifier) -> bytes:
        return onnx_bytes(model, card=card_for(model, meta), opset=20)

    space = Space(targets.profile("auto"), ("onnxruntime", "openvino"), "uint8", 256, arguments.search_seconds)
    networks = {"first": exported(result.first), "pruned": exported(result.classifier)}
    forms = {
        f"{name} {form.name}": form
        for name, data in networks.items()
        for form in search([Network("", data)], training.images, training.labels, space).forms
    }
    models: dict[str, Answers] = {name: form.load(1) for name, form in forms.items()}
    with one_thread():
        speeds = measure_speed(models, val.images, arguments.seconds, (1, 32))
    base = speeds["first fp32"]
    rows: dict[str, dict[str, Any]] = {}
    for name, form in forms.items():
        logits = form.load(0).run_all(test.images)[0]
        right = int((logits.argmax(1) == test.labels).sum())
        rows[name] = {
            "speedup_batch_1": round(base[0].p50_ms / speeds[name][0].p50_ms, 3),
            "speedup_batch_32": round(base[1].p50_ms / speeds[name][1].p50_ms, 3),
            "megabytes": round(len(form.data) / 1e6, 3),
            "test_accuracy": accuracy(logits, test.labels),
            "interval_95": [round(value, 4) for value in wilson(right, len(test.labels), 0.95)],
        }
        print(name, rows[name], flush=True)
    before = rows["first fp32"]["test_accuracy"]
    kept = [row["speedup_batch_32"] for row in rows.values() if before - row["test_accuracy"] <= GOAL[1]]
    write_json(
        arguments.output,
        {
            "machine": machine(),
            "target": targets.processor(),
            "torch": torch.__version__,
            "run": {"epochs": arguments.epochs, "smaller_epochs": arguments.smaller_epochs, "share": arguments.share},
            "multiply_adds": [result.smaller.multiply_adds, result.smaller.multiply_adds_after],
            "fastest_within_a_point": max(kept),
            "goal": GOAL[0],
            "forms": rows,
        },
    )
    print(f"the fastest form that loses at most a point: {max(kept):.2f} times FP32 of the first network (goal {GOAL[0]:g})")


if __name__ == "__main__":
    main()

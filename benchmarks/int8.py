"""INT8 against FP32, side by side: what this project ships, OpenVINO with NNCF's INT8, and torch.

What:    ResNet-18 and MobileNetV3-small (torchvision) at 64 pixels, the project's CNN and ViT at 32, on CIFAR-10. Each is
         searched as the stage `quantize` does it (20 s for the digits' network, here `--search-seconds`), and its forms are
         timed call by call in turn with one thread, at batch sizes 1 and 32, beside torch eager and, where NNCF is installed
         (`pip install nncf` in an environment of its own; no lock has it), NNCF's INT8 in OpenVINO. Speed-ups are over FP32
         in ONNX Runtime, by medians. Accuracy is of networks trained for `--steps` steps of 128 images; without an archive
         the weights are random, and then nothing is said of accuracy: `error` is the distance of the logits from FP32's as a
         share of their spread. With `--model` one trained network is measured in their place, the folder of card.json and
         model.pt that stage `train` or `benchmarks/cifar10_vit.py` leaves.
Command: OMP_NUM_THREADS=1 python -m benchmarks.int8 --archive cifar10-jpeg.tar.gz
         OMP_NUM_THREADS=1 python -m benchmarks.int8                                (random weights, speed alone)
         OMP_NUM_THREADS=1 python -m benchmarks.int8 --archive cifar10-jpeg.tar.gz --model var/benchmarks/cifar10_vit/model
Writes:  benchmarks/results/int8.json, after each network
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.digits_accuracy import machine
from visionloop.card import ModelCard
from visionloop.compression import targets
from visionloop.compression.choice import measure_speed
from visionloop.compression.export import onnx_bytes
from visionloop.compression.parity import logit_error
from visionloop.compression.search import Network, Space, search
from visionloop.compression.variants import TorchForm, one_thread
from visionloop.data.packing import PackedMeta
from visionloop.data.policy import AugmentPolicy
from visionloop.files import write_json
from visionloop.models import Classifier, build, load_model
from visionloop.preprocess import PreprocessSpec
from visionloop.progress import track
from visionloop.records import Split
from visionloop.runtime import Answers, Floats, Images
from visionloop.training.building import card_for

OUTPUT = Path("benchmarks/results/int8.json")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training pixels
VAL_IMAGES = 5_000


@dataclass(frozen=True)
class Case:
    """One network."""

    architecture: str
    side: int
    options: dict[str, Any]
    rate: float  # AdamW's, at its peak


CASES = {
    "resnet18": Case("resnet18", 64, {}, 0.003),
    "cnn": Case("small_resnet", 32, {"width": 32, "blocks": 2, "stages": 3}, 0.005),
    "vit": Case("small_vit", 32, {"patch": 4, "width": 192, "depth": 6, "heads": 3, "mlp_ratio": 4, "stem": "conv"}, 0.001),
    "mobilenet_v3_small": Case("mobilenet_v3_small", 64, {}, 0.003),
}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--archive", type=Path, help="cifar10-jpeg.tar.gz: train/ and test/, a folder a class")
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--search-seconds", type=float, default=120.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing, a batch size")
    parser.add_argument("--networks", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--model", type=Path, help="a folder with a trained network, in place of --networks")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    if arguments.model and not arguments.archive:
        parser.error("--model is judged on the images of --archive; name it")
    data = read(arguments.archive) if arguments.archive else noise()
    results: dict[str, Any] = {"machine": machine(), "target": targets.processor(), "trained": arguments.archive is not None}
    for name in [arguments.model.name] if arguments.model else arguments.networks:
        model, card = load_model(arguments.model) if arguments.model else fitted(CASES[name], data, arguments)
        results[name] = one(model, card, data, arguments)
        write_json(arguments.output, results)
        for form, row in results[name].items():
            print(name, form, row, flush=True)


def fitted(case: Case, data: Data, arguments: argparse.Namespace) -> tuple[Classifier, ModelCard]:
    """One of the networks after its short training."""
    torch.manual_seed(0)
    size = (case.side, case.side)
    model = build(case.architecture, num_classes=10, image_size=size, mean=MEAN, std=STD, options=case.options)
    fit(model, sized(data.train, case.side), data.train_labels, case.rate, arguments.steps if arguments.archive else 3)
    counts: dict[Split, int] = {"train": len(data.train), "val": len(data.val), "test": len(data.test)}
    meta = PackedMeta(
        labels=tuple("0123456789"),
        preprocess=PreprocessSpec(*size),
        mean=MEAN,
        std=STD,
        counts=counts,
        policy=AugmentPolicy(),
        data_id="0" * 64,
    )
    return model, card_for(model, meta)


def one(model: Classifier, card: ModelCard, data: Data, arguments: argparse.Namespace) -> dict[str, Any]:
    """Speed, size and accuracy of every form of one network."""
    train, val, test = (sized(images, card.preprocess.height) for images in (data.train, data.val, data.test))
    began = time.perf_counter()
    fp32 = onnx_bytes(model, card=card, opset=20)
    export_seconds = time.perf_counter() - began
    space = Space(targets.profile("auto"), ("onnxruntime", "openvino"), "uint8", 256, arguments.search_seconds)
    found = search([Network("", fp32)], train, data.train_labels, space)
    models: dict[str, Answers] = {form.name: form.load(1) for form in found.forms}
    errors = {form.name: form.error for form in found.forms}
    sizes = {form.name: len(form.data) / 1e6 for form in found.forms}
    if importlib.util.find_spec("nncf"):
        models["NNCF int8, openvino"] = nncf_int8(fp32, train[:256], card.architecture)
    with one_thread():
        models["torch, eager"] = TorchForm(model)
        speeds = measure_speed(models, val, arguments.seconds, (1, 32))
    base = speeds["fp32"]
    rows: dict[str, Any] = {}
    models |= {form.name: form.load(0) for form in found.forms}  # with all cores: answers do not depend on them
    of_fp32 = run_all(models["fp32"], test)
    for name, (single, full) in track(speeds.items(), "judge"):
        answers = run_all(models[name], test)
        rows[name] = {
            "speedup_batch_1": round(base[0].p50_ms / single.p50_ms, 3),
            "speedup_batch_32": round(base[1].p50_ms / full.p50_ms, 3),
            "images_per_second_batch_32": round(full.images_per_second, 1),
            "megabytes": round(sizes.get(name, 0.0), 3) or None,
            "training_error": errors.get(name),
            "error": round(logit_error(of_fp32, answers), 4),
            "agreement": float((answers.argmax(1) == of_fp32.argmax(1)).mean()),
            "accuracy": float((answers.argmax(1) == data.test_labels).mean()) if arguments.archive else None,
        }
    rows["search"] = {
        "export_seconds": round(export_seconds, 1),
        "search_seconds": round(found.seconds, 1),
        "ended_early": found.timed_out,
        "trials": [(trial.name, trial.error, trial.taken) for trial in found.trials],
    }
    return rows


class NncfForm:
    """A model of OpenVINO's own making behind the call that the others have."""

    def __init__(self, model: Any) -> None:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        self._request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()

    def run(self, images: Images) -> tuple[Floats, Floats]:
        """Logits and embedding."""
        self._request.infer({"images": images}, share_inputs=True)
        return tuple(np.array(self._request.get_tensor(name).data) for name in ("logits", "embedding"))  # type: ignore[return-value]


def nncf_int8(fp32: bytes, images: Images, architecture: str) -> NncfForm:
    """NNCF's post-training INT8 as its manual does it, with the model type that it wants to be told of a transformer."""
    import nncf
    import openvino

    kind = nncf.ModelType.TRANSFORMER if architecture == "small_vit" else None
    batches = [images[start : start + 1] for start in range(len(images))]
    return NncfForm(
        nncf.quantize(openvino.Core().read_model(fp32), nncf.Dataset(batches), subset_size=len(batches), model_type=kind)
    )


@dataclass(frozen=True)
class Data:
    """CIFAR-10, or noise, at 32 pixels: uint8 [N, 32, 32, 3] and labels [N]."""

    train: Images
    train_labels: npt.NDArray[np.int64]
    val: Images
    test: Images
    test_labels: npt.NDArray[np.int64]


def read(archive: Path) -> Data:
    """Of the 50,000 the first 5,000 of a fixed order are val."""
    sides: dict[str, tuple[list[Any], list[str]]] = {"train": ([], []), "test": ([], [])}
    with tarfile.open(archive) as opened:
        for member in track(opened, "read"):
            if member.isfile():
                file = opened.extractfile(member)
                assert file is not None
                parts = Path(member.name).parts
                pixels, names = sides["train" if "train" in parts else "test"]
                pixels.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
                names.append(parts[-2])
    classes = sorted(set(sides["train"][1]))
    order = np.random.default_rng(0).permutation(len(sides["train"][1]))
    images = np.stack(sides["train"][0])[order]
    labels = np.array([classes.index(name) for name in sides["train"][1]])[order]
    test_labels = np.array([classes.index(name) for name in sides["test"][1]])
    return Data(images[VAL_IMAGES:], labels[VAL_IMAGES:], images[:VAL_IMAGES], np.stack(sides["test"][0]), test_labels)


def noise() -> Data:
    """Smooth patterns in place of photos."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (1024, 4, 4, 3), dtype=np.uint8)
    images = np.stack([np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC)) for one in coarse])
    labels = rng.integers(0, 10, 1024)
    return Data(images[:768], labels[:768], images[768:896], images[896:], labels[896:])


def sized(images: Images, side: int) -> Images:
    """Images at another size."""
    if side == images.shape[1]:
        return images
    return np.stack([np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BILINEAR)) for one in images])


def fit(model: Classifier, images: Images, labels: npt.NDArray[np.int64], rate: float, steps: int) -> None:
    """A short training: enough for a loss of accuracy by rounding to mean something, or to set the norms."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    rng = np.random.default_rng(0)
    model.train()
    for _ in track(range(steps), "train"):
        rows = rng.integers(0, len(images), 128)
        batch = images[rows] if rng.random() < 0.5 else images[rows][:, :, ::-1]
        loss = F.cross_entropy(model(torch.from_numpy(np.ascontiguousarray(batch)))[0], torch.from_numpy(labels[rows]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def run_all(model: Any, images: Images) -> Floats:
    """Logits of all images."""
    return np.concatenate([model.run(np.ascontiguousarray(images[at : at + 64]))[0] for at in range(0, len(images), 64)])


if __name__ == "__main__":
    main()

"""An ONNX model as two arrays in, two arrays out, and how fast it is. Needs only numpy and ONNX Runtime or OpenVINO.

The model server, the reference, quantization and `visionloop predict` all run models through `OnnxModel`, so an offline
answer and a served one come from the same code. Bytes are hashed before they are loaded, and the hashed bytes are the loaded
ones. Does not cover: making models (`visionloop.compression`) and turning logits into a `Prediction` (`visionloop.observe`).
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime

from visionloop.card import EMBEDDING_NAME, INPUT_NAME, LOGITS_NAME, Compute, ModelCard, Runtime, load_card
from visionloop.errors import ArtifactError, ImageError
from visionloop.onnx_file import check_onnx
from visionloop.paths import MODEL_ONNX

Images = npt.NDArray[np.uint8]  # [N, H, W, 3]
Floats = npt.NDArray[np.float32]

LABELS_KEY = "labels"  # in the ONNX metadata: JSON list of class names, in the order of the logits
PREPROCESS_KEY = "preprocess"  # in the ONNX metadata: JSON object, the fields of PreprocessSpec and `preprocess.RULES`
_FATAL = 4  # ONNX Runtime's severity; its errors arrive as exceptions, so the log would only say them twice


class OnnxModel:
    """A loaded ONNX classifier with uint8 images [N, H, W, 3] in, logits [N, K] and embedding [N, D] out.

    One model may be used from several threads at once. Sends no telemetry.

    >>> model = OnnxModel(Path("model.onnx").read_bytes(), threads=1)
    >>> logits, embedding = model.run(np.zeros((2, 16, 16, 3), np.uint8))

    Raises:
        ArtifactError: the bytes are no ONNX model, one that `onnx_file` refuses, or one with other inputs and outputs; or
            the runtime is not installed.
    """

    def __init__(
        self,
        data: bytes,
        threads: int = 0,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        runtime: Runtime = "onnxruntime",
        compute: Compute = "fp32",
    ) -> None:
        """Load `data` into `runtime`. `threads` 0 means one per physical core.

        `providers` are ONNX Runtime's names, best first; `compute` is what OpenVINO calculates the float parts in.
        """
        check_onnx(data)
        self.runtime = runtime
        self._session: _Session
        if runtime == "openvino":
            self._session = _OpenVino(data, threads, compute)
        else:
            self._session = _OnnxRuntime(data, threads, providers)
        self.metadata: Mapping[str, str] = self._session.metadata
        inputs, outputs = self._session.inputs, self._session.outputs
        kind, shape = inputs.get(INPUT_NAME, ("", []))
        is_input = kind == "tensor(uint8)" and len(shape) == 4 and not _is_fixed(shape[:1]) and _is_fixed(shape[1:])
        if len(inputs) != 1 or not is_input or shape[3] != 3:
            raise ArtifactError(
                f"The ONNX model takes {inputs}; a classifier takes '{INPUT_NAME}' as uint8 [batch, H, W, 3] of any batch. "
                "Export it with `dvc repro export`."
            )
        if not all(_is_output(outputs.get(name)) for name in (LOGITS_NAME, EMBEDDING_NAME)):
            raise ArtifactError(
                f"The ONNX model gives {outputs}; a classifier gives '{LOGITS_NAME}' and '{EMBEDDING_NAME}' as float32 "
                "[batch, K] and [batch, D]. Export it with `dvc repro export`."
            )
        self.height: int = shape[1]
        self.width: int = shape[2]
        self.num_classes: int = outputs[LOGITS_NAME][1][1]
        self.embedding_size: int = outputs[EMBEDDING_NAME][1][1]

    def run(self, images: Images) -> tuple[Floats, Floats]:
        """Logits float32 [N, K] and embedding float32 [N, D] of uint8 images [N, H, W, 3], N at least 1.

        Raises:
            ImageError: reason "wrong_input": another dtype or shape.
            ArtifactError: the model fails, or answers with NaN or infinity (weights that are not finite).
        """
        expected = (self.height, self.width, 3)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected or len(images) == 0:
            raise ImageError(
                "wrong_input",
                f"The model takes uint8 [N, {self.height}, {self.width}, 3] with N at least 1, "
                f"not {images.dtype} {list(images.shape)}; make it with visionloop.preprocess.",
            )
        try:
            logits, embedding = self._session.run(images)
        except Exception as error:  # both runtimes raise classes of their own below Exception
            raise ArtifactError(f"The ONNX model fails on {len(images)} images ({_first_line(error)}).") from error
        if not (np.isfinite(logits).all() and np.isfinite(embedding).all()):
            raise ArtifactError(
                "The ONNX model answers with NaN or infinity, so its weights are not finite; roll back to an earlier "
                "version, or train again with a lower learning rate."
            )
        return logits, embedding

    def run_all(self, images: Images, batch_size: int = 64) -> tuple[Floats, Floats]:
        """As `run`, for any number of images (none, too), in batches, so that memory stays bounded."""
        logits = np.empty((len(images), self.num_classes), np.float32)
        embedding = np.empty((len(images), self.embedding_size), np.float32)
        for start in range(0, len(images), batch_size):
            stop = start + batch_size
            logits[start:stop], embedding[start:stop] = self.run(np.ascontiguousarray(images[start:stop]))
        return logits, embedding


def load(
    folder: Path, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> tuple[OnnxModel, ModelCard]:
    """The model in the runtime that its card names, and the card, after the file's hash and their agreement were checked.

    Raises:
        ArtifactError: a file is missing or damaged, or card and model differ in size, classes or their order.
    """
    card = load_card(folder)
    model = OnnxModel(card.read_file(folder, MODEL_ONNX), threads, providers, card.runtime, card.compute)
    check_agreement(model, card, folder)
    return model, card


def check_agreement(model: OnnxModel, card: ModelCard, folder: Path) -> None:
    """Check that a model is the one that its card describes.

    Raises:
        ArtifactError: they differ in input size, number or order of the classes, embedding size, or preprocessing.
    """
    said: dict[str, object] = {
        "input size": (card.preprocess.height, card.preprocess.width),
        "number of classes": len(card.labels),
        "embedding size": card.embedding_size,
        "classes": card.labels,
    }
    has: dict[str, object] = {
        "input size": (model.height, model.width),
        "number of classes": model.num_classes,
        "embedding size": model.embedding_size,
        "classes": _labels(model.metadata),
    }
    if PREPROCESS_KEY in model.metadata:
        found = _parsed(model.metadata[PREPROCESS_KEY])
        spec = asdict(card.preprocess)
        said["preprocessing"] = {"rules": card.preprocess_rules["rules"], **spec}
        # A file of an earlier visionloop has the spec without the rules, which were the first.
        has["preprocessing"] = (
            {"rules": found.get("rules", 1), **{key: found.get(key) for key in spec}} if isinstance(found, dict) else None
        )
    for what, value in said.items():
        if has[what] != value:
            raise ArtifactError(
                f"{folder}: the card says {what} {value}, {MODEL_ONNX} has {has[what]}; they are of two models. "
                "Rebuild both with `dvc repro`."
            )


def is_installed(runtime: Runtime) -> bool:
    """Whether a runtime's package is here; asks without importing it."""
    return importlib.util.find_spec(runtime) is not None


def openvino_computes_bf16() -> bool:
    """Whether OpenVINO multiplies in bfloat16 on this processor (AVX512-BF16, AMX); else it ignores the hint."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class Answers(Protocol):
    """Whatever answers images: an `OnnxModel`, or another form of a model that is timed beside one."""

    def run(self, images: Images, /) -> object:
        """Answer uint8 images [N, H, W, 3]."""
        ...


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one call takes, on this machine, as it was loaded at that moment."""

    batch_size: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    calls: int  # that were timed; of fewer than 100, the slowest is the 99th percentile or near it

    @property
    def images_per_second(self) -> float:
        """At the median call."""
        return self.batch_size / self.p50_ms * 1000


def measure_latency(model: OnnxModel, images: Images, batch_sizes: Sequence[int], repeats: int) -> tuple[Latency, ...]:
    """Time `repeats` calls at each batch size after a warm-up; one `Latency` per batch size, in their order.

    `images` uint8 [M, H, W, 3] with M at least 1 are repeated to fill a batch.

    >>> measure_latency(model, images, (1, 32), repeats=50)[0].p50_ms
    0.41
    """
    return compare_latency({"model": model}, images, batch_sizes, repeats)["model"]


def compare_latency(
    models: Mapping[str, Answers], images: Images, batch_sizes: Sequence[int], repeats: int
) -> dict[str, tuple[Latency, ...]]:
    """As `measure_latency`, for several models call by call in turn, each of them first equally often.

    Another load on the machine then slows them alike, so that their ratio holds where the single figures do not. Before each
    timed call the same model answers once untimed: a small model would otherwise pay for the caches that a large one, called
    before it, has filled.
    """
    results: dict[str, list[Latency]] = {name: [] for name in models}
    for batch_size in batch_sizes:
        batch = np.ascontiguousarray(images[np.arange(batch_size) % len(images)])
        for model in models.values():
            for _ in range(3):  # the first calls allocate
                model.run(batch)
        times: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(repeats):
            first = turn % len(models)
            for name, model in [*models.items()][first:] + [*models.items()][:first]:
                model.run(batch)
                start = time.perf_counter()
                model.run(batch)
                times[name].append((time.perf_counter() - start) * 1000)
        for name, values in times.items():
            p95, p99 = (float(value) for value in np.percentile(values, (95, 99)))
            results[name].append(Latency(batch_size, statistics.median(values), p95, p99, len(values)))
    return {name: tuple(values) for name, values in results.items()}


_Ports = Mapping[str, tuple[str, list[Any]]]  # name -> (ONNX Runtime's name of the type, sizes)


class _Session(Protocol):
    """A loaded graph, whoever runs it."""

    metadata: Mapping[str, str]
    inputs: _Ports
    outputs: _Ports

    def run(self, images: Images, /) -> Sequence[Floats]:
        """Logits and embedding."""
        ...


class _OnnxRuntime:
    def __init__(self, data: bytes, threads: int, providers: Sequence[str]) -> None:
        missing = [name for name in providers if name not in onnxruntime.get_available_providers()]
        if missing:
            raise ArtifactError(
                f"ONNX Runtime here has no {missing[0]}, only {', '.join(onnxruntime.get_available_providers())}; "
                "install the onnxruntime package that carries it, or ask for CPUExecutionProvider."
            )
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _FATAL
        try:
            self._session = onnxruntime.InferenceSession(data, options, providers=list(providers))
        except Exception as error:  # onnxruntime raises a dozen classes of its own below Exception
            raise _unloadable(error) from error
        self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        self.inputs: _Ports = {item.name: (item.type, item.shape) for item in self._session.get_inputs()}
        self.outputs: _Ports = {item.name: (item.type, item.shape) for item in self._session.get_outputs()}

    def run(self, images: Images) -> Sequence[Floats]:
        found: Sequence[Floats] = self._session.run([LOGITS_NAME, EMBEDDING_NAME], {INPUT_NAME: images})
        return found


class _OpenVino:
    """OpenVINO's CPU plugin; `compute` is settled here, since by itself it takes bfloat16 wherever the processor has it."""

    def __init__(self, data: bytes, threads: int, compute: Compute) -> None:
        if not is_installed("openvino"):
            raise ArtifactError(
                "This model was chosen for OpenVINO, which is not installed here; install the package openvino, or build "
                "the model with `quantize.runtimes: [onnxruntime]`."
            )
        import openvino

        core = openvino.Core()
        # One request at a time takes all threads, as in ONNX Runtime; several streams pay where many callers come at once.
        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": _OPENVINO_TYPES[compute]}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            model = core.read_model(data)
            self.inputs: _Ports = {name: _described(port) for port in model.inputs for name in port.get_names()}
            self.outputs: _Ports = {name: _described(port) for port in model.outputs for name in port.get_names()}
            kept = model.get_rt_info("framework").value if model.has_rt_info("framework") else {}
            self.metadata: Mapping[str, str] = {str(name): str(value) for name, value in kept.items()}
            compiled = core.compile_model(model, "CPU", settings)
            self._request = compiled.create_infer_request()
        except Exception as error:  # RuntimeError and classes of its own
            raise _unloadable(error) from error
        # One stream answers one caller at a time anyway. OpenVINO 2026.4.1 crashes or stands still where a thread makes a
        # request while another answers.
        self._one_at_a_time = threading.Lock()

    def run(self, images: Images) -> Sequence[Floats]:
        with self._one_at_a_time:
            self._request.infer({INPUT_NAME: images}, share_inputs=True)
            # Copies: the next call writes into the same memory.
            return [np.array(self._request.get_tensor(name).data) for name in (LOGITS_NAME, EMBEDDING_NAME)]


_OPENVINO_TYPES: Mapping[Compute, str] = {"fp32": "f32", "bf16": "bf16"}
_TYPE_NAMES = {"u8": "tensor(uint8)", "f32": "tensor(float)"}


def _described(port: Any) -> tuple[str, list[Any]]:
    sizes = [size.get_length() if size.is_static else None for size in port.get_partial_shape()]
    kind = port.get_element_type().get_type_name()
    return _TYPE_NAMES.get(kind, kind), sizes


def _unloadable(error: Exception) -> ArtifactError:
    return ArtifactError(f"The ONNX model cannot be loaded ({_first_line(error)}); rebuild it with `dvc repro`.")


def _labels(metadata: Mapping[str, str]) -> tuple[str, ...]:
    labels = _parsed(metadata.get(LABELS_KEY, "[]"))
    return tuple(str(label) for label in labels) if isinstance(labels, list) else ()


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _is_fixed(shape: Sequence[object]) -> bool:
    return all(isinstance(size, int) and size > 0 for size in shape)


def _is_output(output: tuple[str, list[object]] | None) -> bool:
    return output is not None and output[0] == "tensor(float)" and len(output[1]) == 2 and _is_fixed(output[1][1:])


def _first_line(error: BaseException) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.removeprefix("[ONNXRuntimeError] : ")[:160]

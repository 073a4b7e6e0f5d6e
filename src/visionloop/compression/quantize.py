"""INT8 for an ONNX classifier, and the verdict whether it has earned its place.

Static quantization in the QDQ form: activations uint8, weights int8 (on x86 signed activations are slower than float),
ranges from training images. Outputs of MatMul and Gemm stay float32: what follows them (bias, LayerNorm, GELU, softmax) is
float anyway, and rounding them first costs more than the integer product saves. Cast and normalisation of the input stay
float too.

The integer kernels need VNNI (x86 since about 2019) or the dot product of ARM to be exact and fast. Without, pairs of
uint8 x int8 are added in 16 bits, which saturate, so weights get 7 bits there: all pairs then fit (2 x 255 x 64 < 2^15). The
golden answers show on a serving machine whether its kernels are those of the machine that measured.

Does not cover: dynamic and weight-only quantization, quantization-aware training.
"""

from __future__ import annotations

import contextlib
import io
import math
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from visionloop.card import INPUT_NAME
from visionloop.compression.parity import accuracy
from visionloop.errors import ArtifactError
from visionloop.evaluation.calibration import calibration_error
from visionloop.features import softmax
from visionloop.runtime import Answers, Images, Latency, OnnxModel, compare_latency

Precision = Literal["fp32", "int8"]
Calibration = Literal["minmax", "entropy", "percentile"]

BATCH_SIZES = (1, 8, 32)  # one image as it comes, a batch half filled by waiting, and a full dynamic batch
_JUDGED = (1, 32)  # by these the verdict is made
_CALIBRATION_BATCH = 32
_WEIGHTED = ("Conv", "MatMul", "Gemm")  # before the first of these lies the normalisation of the input
_EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}  # as Linux names them in /proc/cpuinfo
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to quantize."""

    operators: tuple[str, ...]  # ONNX operator types
    calibration: Calibration = "minmax"
    per_channel: bool = True
    weight_bits: Literal[7, 8] = 8


def weight_bits() -> Literal[7, 8]:
    """How many bits of a weight the integer kernels of this machine multiply exactly: 8 with VNNI or on ARM, else 7.

    ONNX Runtime's words on it: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return 8
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return 7
    return 8 if flags & _EXACT else 7


def calibration_indices(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Which training images set the ranges: about `count` of them, from each class its share and at least one.

    The first of each class are taken. Packed images stand in the order of their hash, so this is a random choice that stays
    the same while data is added elsewhere.

    >>> calibration_indices(np.array([0, 1, 0, 0]), 2).tolist()
    [0, 1]
    """
    chosen = []
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        chosen.append(positions[: max(1, round(count * len(positions) / len(labels)))])
    return np.sort(np.concatenate(chosen))


def quantize(data: bytes, images: Images, recipe: Recipe) -> bytes:
    """The INT8 form of an FP32 ONNX classifier; ranges come from `images` uint8 [N, H, W, 3].

    The same model, images and recipe give the same bytes. Metadata is kept.

    Raises:
        ArtifactError: ONNX Runtime's quantizer cannot handle the graph, or nothing in it has one of the operators.
    """
    with tempfile.TemporaryDirectory(prefix="visionloop-int8-") as folder, _quiet():
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        try:
            quant_pre_process(onnx.load_from_string(data), prepared)
            graph = onnx.load(prepared).graph
            quantize_static(
                prepared,
                quantized,
                _Reader(images),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                op_types_to_quantize=list(recipe.operators),
                per_channel=recipe.per_channel,
                reduce_range=recipe.weight_bits == 7,
                nodes_to_exclude=normalisation_nodes(graph),
                calibrate_method=_METHODS[recipe.calibration],
                extra_options={
                    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                    "CalibStridedMinMax": 1,  # one batch after another, so that memory stays bounded
                },
            )
        except Exception as error:  # the quantizer raises whatever its parts raise
            raise ArtifactError(
                f"INT8 cannot be made ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}); "
                "change `quantize.operators` or `quantize.calibration`."
            ) from error
        proto = onnx.load(quantized)
    if not any(node.op_type == "QuantizeLinear" for node in proto.graph.node):
        raise ArtifactError(
            f"INT8 cannot be made (the graph has none of {', '.join(recipe.operators)} to quantize); "
            "change `quantize.operators`."
        )
    used = {node.domain for node in proto.graph.node}
    opsets = [item for item in proto.opset_import if item.domain in used]  # the optimiser adds all it knows
    del proto.opset_import[:]
    proto.opset_import.extend(opsets)
    return bytes(proto.SerializeToString(deterministic=True))


def normalisation_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes between the input and the first weighted operators: layout, cast, scale, mean and deviation."""
    reached = {INPUT_NAME}
    names = []
    for node in graph.node:  # ONNX keeps nodes in topological order
        if node.op_type not in _WEIGHTED and reached.intersection(node.input):
            reached.update(node.output)
            names.append(node.name)
    return names


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured of one form of the model. Times are medians with one thread, alternating with the other form."""

    megabytes: float
    val_accuracy: float
    test_accuracy: float
    latency_ms_batch_1: float
    latency_p95_ms_batch_1: float
    images_per_second_batch_32: float
    test_calibration_error: float  # the temperature was fitted before any rounding to INT8


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which form is shipped, and why. The reason holds no measured time, so equal answers give equal cards."""

    precision: Precision
    reason: str


@dataclass(frozen=True)
class HeldOut:
    """The images that both forms answer."""

    val_images: Images
    val_labels: npt.NDArray[np.int64]
    test_images: Images
    test_labels: npt.NDArray[np.int64]


Speeds = Mapping[str, tuple[Latency, ...]]  # name of a form -> a `Latency` per batch size


@dataclass(frozen=True)
class Comparison:
    """FP32 against INT8, measured in one process."""

    fp32: Figures
    int8: Figures
    agreement: float  # share of val and test images with the same first class
    speedup_batch_1: float
    speedup_batch_32: float
    speeds: Speeds = field(default_factory=dict)  # of both, and of what was timed beside them

    @property
    def speedup(self) -> float:
        """The geometric mean of both: a tie at one batch size does not toss a coin over the verdict."""
        return math.sqrt(self.speedup_batch_1 * self.speedup_batch_32)

    @property
    def least_speedup(self) -> float:
        """The smaller of both."""
        return min(self.speedup_batch_1, self.speedup_batch_32)


def measure_speed(forms: Mapping[str, Answers], images: Images, seconds: float = 1.0) -> Speeds:
    """Time the forms of a model call by call in turn at each of `BATCH_SIZES`, about `seconds` per batch size.

    `images` uint8 [M, H, W, 3] with M at least 1 fill the batches.
    """
    speeds: dict[str, tuple[Latency, ...]] = dict.fromkeys(forms, ())
    for batch_size in BATCH_SIZES:
        repeats = _repeats(forms, images, batch_size, seconds)
        for name, found in compare_latency(forms, images, [batch_size], repeats).items():
            speeds[name] += found
    return speeds


def measure(
    fp32: bytes, int8: bytes, held_out: HeldOut, *, beside: Mapping[str, Answers] | None = None, seconds: float = 1.0
) -> Comparison:
    """Measure both forms: accuracy on val and test, then latency call by call in turn, about `seconds` per batch size.

    One thread each, because a server under load runs several calls side by side and the ratio then holds. What stands
    `beside` is timed in the same turns; who gives it sees to its threads.

    Raises:
        ArtifactError: a form cannot be loaded, or answers with NaN.
    """
    models = {"fp32": OnnxModel(fp32, threads=1), "int8": OnnxModel(int8, threads=1)}
    answers = {
        name: (model.run_all(held_out.val_images)[0], model.run_all(held_out.test_images)[0])
        for name, model in models.items()
    }
    speeds = measure_speed({**(beside or {}), **models}, held_out.val_images, seconds)
    one, full = ({name: speeds[name][BATCH_SIZES.index(size)] for name in models} for size in _JUDGED)
    figures = {
        name: Figures(
            megabytes=len(data) / 1e6,
            val_accuracy=accuracy(answers[name][0], held_out.val_labels),
            test_accuracy=accuracy(answers[name][1], held_out.test_labels),
            test_calibration_error=calibration_error(softmax(answers[name][1]), held_out.test_labels),
            latency_ms_batch_1=one[name].p50_ms,
            latency_p95_ms_batch_1=one[name].p95_ms,
            images_per_second_batch_32=full[name].images_per_second,
        )
        for name, data in (("fp32", fp32), ("int8", int8))
    }
    first = {name: np.concatenate(pair).argmax(axis=1) for name, pair in answers.items()}
    return Comparison(
        fp32=figures["fp32"],
        int8=figures["int8"],
        agreement=float((first["fp32"] == first["int8"]).mean()),
        speedup_batch_1=figures["fp32"].latency_ms_batch_1 / figures["int8"].latency_ms_batch_1,
        speedup_batch_32=figures["int8"].images_per_second_batch_32 / figures["fp32"].images_per_second_batch_32,
        speeds=speeds,
    )


def judge(comparison: Comparison, *, max_accuracy_drop: float, min_speedup: float) -> Verdict:
    """INT8 where it keeps the accuracy budget on val and is fast enough, else FP32.

    Fast enough is `min_speedup` over both batch sizes, and at neither below it by more than a tenth, which is what medians
    scatter by on a busy machine. The test images do not decide, so that their accuracy stays an honest figure.
    """
    drop = comparison.fp32.val_accuracy - comparison.int8.val_accuracy
    lost = f"{drop * 100:.2f} points of accuracy on val" if drop > 0 else "no accuracy on val"
    # No measured figure: the sentence stands in the card, and the card of an unchanged model must not change.
    speed = f"{min_speedup:g} x the speed of FP32 over batch sizes {_JUDGED[0]} and {_JUDGED[1]}"
    if drop > max_accuracy_drop + 1e-9:
        return Verdict("fp32", f"FP32 is shipped: INT8 loses {lost}, more than the {max_accuracy_drop * 100:g} allowed.")
    if comparison.speedup < min_speedup or comparison.least_speedup < 0.9 * min_speedup:
        return Verdict("fp32", f"FP32 is shipped: INT8 loses {lost}, but ran here at less than {speed}.")
    allowed = f"{max_accuracy_drop * 100:g} points allowed"
    return Verdict("int8", f"INT8 is shipped: it loses {lost} ({allowed}) and ran here at {speed} or more.")


@dataclass(frozen=True)
class Choice:
    """The model to ship, with the verdict and what was measured."""

    data: bytes
    verdict: Verdict
    comparison: Comparison | None  # None where INT8 cannot be made or run at all
    int8: bytes | None  # shipped or not; None where it cannot be made
    speeds: Speeds


def choose(
    fp32: bytes,
    calibration: Images,
    held_out: HeldOut,
    recipe: Recipe,
    *,
    max_accuracy_drop: float,
    min_speedup: float,
    beside: Mapping[str, Answers] | None = None,
) -> Choice:
    """Make INT8, measure both forms, and what stands `beside` them for comparison, and choose.

    >>> choose(fp32, images, held_out, recipe, max_accuracy_drop=0.005, min_speedup=1.0).verdict.precision
    'int8'
    """
    int8 = None
    try:
        int8 = quantize(fp32, calibration, recipe)
        comparison = measure(fp32, int8, held_out, beside=beside)
    except ArtifactError as error:
        speeds = measure_speed({**(beside or {}), "fp32": OnnxModel(fp32, threads=1)}, held_out.val_images)
        return Choice(fp32, Verdict("fp32", f"FP32 is shipped: {error}"), None, int8, speeds)
    verdict = judge(comparison, max_accuracy_drop=max_accuracy_drop, min_speedup=min_speedup)
    return Choice(int8 if verdict.precision == "int8" else fp32, verdict, comparison, int8, comparison.speeds)


def flat(comparison: Comparison) -> dict[str, float]:
    """A comparison as flat numbers, for `dvc metrics`: "int8_latency_ms_batch_1", "speedup_batch_32", ..."""
    numbers = {
        f"{name}_{figure}": value
        for name, form in (("fp32", comparison.fp32), ("int8", comparison.int8))
        for figure, value in asdict(form).items()
    }
    numbers["int8_agreement"] = comparison.agreement
    numbers["speedup_batch_1"] = comparison.speedup_batch_1
    numbers["speedup_batch_32"] = comparison.speedup_batch_32
    return numbers


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds images to the calibrator in batches; `set_range` counts batches."""

    def __init__(self, images: Images) -> None:
        self._batches = [images[start : start + _CALIBRATION_BATCH] for start in range(0, len(images), _CALIBRATION_BATCH)]
        self._left: Iterator[Images] = iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._left = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, Images] | None:
        batch = next(self._left, None)
        return None if batch is None else {INPUT_NAME: np.ascontiguousarray(batch)}


def _repeats(forms: Mapping[str, Answers], images: Images, batch_size: int, seconds: float) -> int:
    """How many rounds take about `seconds`, by the fastest of a few: a call that the machine interrupts must not decide."""
    batch = np.ascontiguousarray(images[np.arange(batch_size) % len(images)])
    rounds = []
    for _ in range(6):
        start = time.perf_counter()
        for form in forms.values():
            form.run(batch)
        rounds.append(time.perf_counter() - start)
    return int(np.clip(seconds / (2 * min(rounds)), 10, 2000))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the histogram calibrators print of themselves for every batch; their errors are exceptions."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield

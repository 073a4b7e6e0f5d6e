"""INT8 and FP16 forms of an ONNX classifier.

Static quantization in the QDQ form: activations uint8, weights int8 (on x86 signed activations are slower than float),
ranges from training images. Outputs of MatMul and Gemm stay float32: what follows them (bias, LayerNorm, GELU, softmax) is
float anyway, and rounding them first costs more than the integer product saves. Cast and normalisation of the input stay
float too. Dynamic quantization sets the ranges of activations at each call, and takes no images.

The integer kernels need VNNI (x86 since about 2019) or the dot product of ARM to be exact and fast; without, sums of
uint8 x int8 saturate (`targets`). The accuracy measured here shows that for this machine, the golden answers for a serving
machine.

Does not cover: which recipe is best (`search`), what is shipped (`choice`), training with the rounding (`qat`).
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from onnxruntime.transformers.float16 import convert_float_to_float16

from visionloop.card import INPUT_NAME
from visionloop.compression.graph import WEIGHTED, finish, normalisation_nodes, operators, prepare
from visionloop.compression.targets import Activations
from visionloop.errors import ArtifactError
from visionloop.runtime import Images

Calibration = Literal["minmax", "entropy", "percentile"]

# What may carry integers from one product to the next without a turn through float, where the graph has it.
_CARRIERS = ("Add", "Relu", "Clip", "Mul", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")
_CALIBRATION_BATCH = 32
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to quantize."""

    operators: tuple[str, ...]  # ONNX operator types
    calibration: Calibration = "minmax"
    per_channel: bool = True  # one scale per output channel of a weight
    activations: Activations = "uint8"
    seven_bits: bool = False  # of each weight, so that sums do not saturate without VNNI
    excluded: tuple[str, ...] = ()  # names of nodes that stay float


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


def products(graph: onnx.GraphProto) -> tuple[str, ...]:
    """The types of the weighted operators that a graph has: their products become integer, all between them stays float."""
    return tuple(name for name in WEIGHTED if operators(graph)[name])


def chained(graph: onnx.GraphProto) -> tuple[str, ...]:
    """As `products`, with what may carry integers from one product to the next."""
    return (*products(graph), *(name for name in _CARRIERS if operators(graph)[name]))


class Quantizer:
    """INT8 forms of one prepared graph; each kind of ranges is set once, from the first of `images` uint8 [N, H, W, 3].

    >>> Quantizer(prepare(data), images).static(Recipe(("Conv", "Gemm")))

    Raises:
        ArtifactError: ONNX Runtime's quantizer cannot handle the graph, or nothing in it has one of the operators.
    """

    def __init__(self, graph: onnx.ModelProto, images: Images) -> None:
        self.graph = graph
        self.images = images
        self._ranges: dict[tuple[Calibration, int, tuple[str, ...]], Any] = {}

    def static(self, recipe: Recipe, *, count: int = 0, only: Sequence[str] = ()) -> bytes:
        """The QDQ form; ranges come from the first `count` images, 0 meaning all; `only` these nodes, if any are named.

        The same graph, images and recipe give the same bytes. Metadata is kept.
        """
        with _quiet(), _translated():
            ranges = self._of(recipe, count or len(self.images))
            quantizer = QDQQuantizer(
                _loaded(self.graph),
                recipe.per_channel,
                recipe.seven_bits,
                QuantType.QInt8,
                _TYPES[recipe.activations],
                ranges,
                list(only),
                [*normalisation_nodes(self.graph.graph), *recipe.excluded],
                list(recipe.operators),
                {
                    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                    "ActivationSymmetric": recipe.activations == "int8",  # as TensorRT wants it
                },
            )
            quantizer.quantize_model()
            proto = quantizer.model.model
        if not any(node.op_type == "QuantizeLinear" for node in proto.graph.node):
            raise ArtifactError(
                f"INT8 cannot be made (the graph has none of {', '.join(recipe.operators)} to quantize); "
                "take FP32, or another architecture."
            )
        return _with_metadata(proto, self.graph)

    def dynamic(self, *, seven_bits: bool = False) -> bytes:
        """Weights of MatMul and Gemm in int8, ranges of their inputs set at each call.

        Convolutions stay float: ONNX Runtime's dynamic ones are slower than FP32.
        """
        with tempfile.TemporaryDirectory(prefix="visionloop-int8-") as folder, _quiet(), _translated():
            source, made = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
            source.write_bytes(self.graph.SerializeToString())
            quantize_dynamic(
                source, made, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=seven_bits,
                weight_type=QuantType.QInt8,
            )  # fmt: skip
            proto = onnx.load(made)
        if not any(node.op_type == "DynamicQuantizeLinear" for node in proto.graph.node):
            raise ArtifactError("INT8 with dynamic ranges cannot be made (the graph has no MatMul and no Gemm of weights).")
        return _with_metadata(proto, self.graph)

    def _of(self, recipe: Recipe, count: int) -> Any:
        key = (recipe.calibration, count, recipe.operators)
        if key not in self._ranges:
            with tempfile.TemporaryDirectory(prefix="visionloop-ranges-") as folder:
                source = Path(folder) / "prepared.onnx"
                source.write_bytes(self.graph.SerializeToString())
                calibrator = create_calibrator(
                    source,
                    list(recipe.operators),
                    augmented_model_path=str(Path(folder) / "watched.onnx"),
                    calibrate_method=_METHODS[recipe.calibration],
                )
                for start in range(0, count, _CALIBRATION_BATCH):  # batch by batch, so that memory stays bounded
                    calibrator.collect_data(_Reader(self.images[start : min(start + _CALIBRATION_BATCH, count)]))
                self._ranges[key] = calibrator.compute_data()
        return self._ranges[key]


def quantize(data: bytes, images: Images, recipe: Recipe) -> bytes:
    """The INT8 form of an FP32 ONNX classifier by one recipe; ranges come from `images` uint8 [N, H, W, 3].

    Raises:
        ArtifactError: see `Quantizer`; or `data` is no ONNX graph.
    """
    with _quiet(), _translated():
        graph = prepare(data)
    return Quantizer(graph, images).static(recipe)


def half(graph: onnx.ModelProto) -> bytes:
    """The FP16 form for GPUs: weights and maps in 16 bits, inputs, outputs and the normalisation of the input as they were.

    Raises:
        ArtifactError: the graph has an operator that ONNX Runtime's converter cannot handle.
    """
    with _quiet(), _translated("FP16"):
        proto = convert_float_to_float16(
            _loaded(graph), keep_io_types=True, node_block_list=normalisation_nodes(graph.graph)
        )
    return _with_metadata(proto, graph)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds one batch to the calibrator."""

    def __init__(self, images: Images) -> None:
        self._left: Iterator[dict[str, Images]] = iter([{INPUT_NAME: np.ascontiguousarray(images)}])

    def get_next(self) -> dict[str, Images] | None:
        return next(self._left, None)


def _loaded(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with the shapes that the quantizer looks for; it reads them from a file only."""
    with tempfile.TemporaryDirectory(prefix="visionloop-graph-") as folder:
        path = Path(folder) / "prepared.onnx"
        path.write_bytes(graph.SerializeToString())
        loaded: onnx.ModelProto = load_model_with_shape_infer(path)
        return loaded


def _with_metadata(proto: onnx.ModelProto, source: onnx.ModelProto) -> bytes:
    onnx.helper.set_model_props(proto, {item.key: item.value for item in source.metadata_props})
    return finish(proto)


@contextlib.contextmanager
def _translated(form: str = "INT8") -> Iterator[None]:
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:  # the quantizer raises whatever its parts raise
        raise ArtifactError(
            f"{form} cannot be made ({type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}); "
            "take FP32, or another architecture."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the calibrators and the converter print and log of themselves; their errors are exceptions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)

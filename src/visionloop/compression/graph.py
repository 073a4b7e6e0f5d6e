"""An ONNX graph as something to look into and change: its tensors, its weighted nodes, what flows through it.

Does not cover: what integers to put into it (`quantize`), and which changes help (`search`).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.shape_inference import quant_pre_process

from visionloop.card import INPUT_NAME
from visionloop.runtime import Images

Array = npt.NDArray[np.float32]

WEIGHTED = ("Conv", "MatMul", "Gemm")
_BATCH = 32
_QUIET = 3  # ONNX Runtime's severity; below are remarks on initializers that nothing reads


def prepare(data: bytes) -> onnx.ModelProto:
    """The graph as quantization wants it: optimised, with shapes, a name for every node, and no batch norm left alone.

    A batch norm behind a convolution is folded into it. One behind a sum (pre-activation residual blocks) cannot be; it
    becomes a depthwise 1x1 convolution, which is the same in float and can be an integer one, where a batch norm would
    send the map through float at every block.
    """
    # Sessions that its quantizer opens have the default severity, and remark on each initializer that they fold away.
    onnxruntime.set_default_logger_severity(_QUIET)
    source = onnx.load_from_string(data)
    with tempfile.TemporaryDirectory(prefix="visionloop-graph-") as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared)
        proto = onnx.load(prepared)
    helper.set_model_props(proto, {item.key: item.value for item in source.metadata_props})  # without the optimiser's mark
    _norms_to_convolutions(proto.graph)
    finish(proto)
    return proto


def finish(proto: onnx.ModelProto) -> bytes:
    """Drop initializers and opsets that nothing uses, order the nodes, and give the bytes; equal graphs give equal bytes.

    ONNX wants every node behind those that it reads from, which quantizers leave to whoever saves the file.
    """
    graph = proto.graph
    ONNXModel(proto).topological_sort()
    read = {name for node in graph.node for name in node.input} | {item.name for item in graph.output}
    kept = [item for item in graph.initializer if item.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    used = {node.domain for node in graph.node}
    opsets = [item for item in proto.opset_import if item.domain in used]  # the optimiser adds all it knows
    del proto.opset_import[:]
    proto.opset_import.extend(opsets)
    return bytes(proto.SerializeToString(deterministic=True))


def tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The initializers by name."""
    return {item.name: item for item in graph.initializer}


def array(tensor: onnx.TensorProto) -> Array:
    """An initializer's numbers."""
    return np.asarray(numpy_helper.to_array(tensor))


def readers(graph: onnx.GraphProto, name: str) -> list[onnx.NodeProto]:
    """The nodes that read a tensor."""
    return [node for node in graph.node if name in node.input]


def weighted_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Nodes that multiply by weights, or two activations with each other, in the order of the data."""
    return [node for node in graph.node if node.op_type in WEIGHTED]


def weights_of(graph: onnx.GraphProto, node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The initializer that a weighted node multiplies by; None where it multiplies two activations."""
    return tensors(graph).get(node.input[1]) if len(node.input) > 1 else None


def output_axis(node: onnx.NodeProto) -> int:
    """The axis of a node's weights that counts its outputs: 0 of Conv [O, I, h, w] and Gemm [O, I], the last of [I, O]."""
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and any(item.name == "transB" and item.i for item in node.attribute) else -1


def own_initializer(graph: onnx.GraphProto, node: onnx.NodeProto, place: int, values: npt.NDArray[np.floating]) -> None:
    """Give a node's input `place` these values, under a name of its own: exporters share equal initializers among nodes."""
    name = f"{node.name}_{place}_own"
    for item in graph.initializer:
        if item.name == name:
            item.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
            return
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), name))
    if place < len(node.input):
        node.input[place] = name
    else:
        node.input.append(name)


def normalisation_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the nodes between the input and the first weighted operators: layout, cast, scale, mean and deviation."""
    reached = {INPUT_NAME}
    names = []
    for node in graph.node:  # ONNX keeps nodes in topological order
        if node.op_type not in WEIGHTED and reached.intersection(node.input):
            reached.update(node.output)
            names.append(node.name)
    return names


def operators(graph: onnx.GraphProto) -> Counter[str]:
    """How many nodes of each type there are."""
    return Counter(node.op_type for node in graph.node)


def channel_statistics(
    proto: onnx.ModelProto, names: Sequence[str], images: Images
) -> dict[str, tuple[npt.NDArray[np.float64], Array]]:
    """Mean and largest magnitude of each channel of these tensors over `images` uint8 [N, H, W, 3].

    Channels are axis 1 of maps [N, C, H, W] and the last axis of all others.
    """
    wanted = sorted(set(names))
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    known = {item.name for item in watched.graph.output}
    watched.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted if name not in known)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    total: dict[str, npt.NDArray[np.float64]] = {}
    most: dict[str, Array] = {}
    rows: Counter[str] = Counter()
    for start in range(0, len(images), _BATCH):
        batch = np.ascontiguousarray(images[start : start + _BATCH])
        for name, values in zip(wanted, session.run(wanted, {INPUT_NAME: batch}), strict=True):
            flat = np.moveaxis(values, 1, -1) if values.ndim == 4 else values
            flat = flat.reshape(-1, flat.shape[-1])
            total[name] = total.get(name, 0) + flat.sum(axis=0, dtype=np.float64)
            most[name] = np.maximum(most.get(name, 0), np.abs(flat).max(axis=0))
            rows[name] += len(flat)
    return {name: (total[name] / rows[name], most[name]) for name in wanted}


def _norms_to_convolutions(graph: onnx.GraphProto) -> None:
    known = tensors(graph)
    for node in graph.node:
        if node.op_type != "BatchNormalization" or not all(name in known for name in node.input[1:5]):
            continue
        scale, shift, mean, variance = (array(known[name]).astype(np.float64) for name in node.input[1:5])
        epsilon = next((item.f for item in node.attribute if item.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        made = helper.make_node(
            "Conv", [node.input[0]], [node.output[0]], name=node.name, group=len(factor), kernel_shape=[1, 1]
        )
        own_initializer(graph, made, 1, factor.reshape(-1, 1, 1, 1))
        own_initializer(graph, made, 2, shift - mean * factor)
        node.CopyFrom(made)


def names_of(nodes: Iterable[onnx.NodeProto]) -> tuple[str, ...]:
    """Their names."""
    return tuple(node.name for node in nodes)

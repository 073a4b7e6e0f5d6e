"""Changes to a float graph that keep its answers and ease rounding: equalisation, smoothing, bias correction.

- Cross-layer equalisation (Nagel et al. 2019, arXiv:1906.04721, section 4.1) moves a factor per channel from one
  convolution over a ReLU into the next, so that the channels of both have like ranges.
- SmoothQuant (Xiao et al. 2023, arXiv:2211.10438) moves a factor per channel from what a LayerNorm puts out into the
  weights that read it, so that a channel with large activations does not take the whole range.
- Bias correction (Nagel et al. 2019, section 4.2, with means of real images) takes from each bias what rounding the weights
  adds to the mean of its channel; this one does change the float answers.

Does not cover: whether they help, which `search` measures.
"""

from __future__ import annotations

import numpy as np
import onnx

from visionloop.compression.graph import (
    Array,
    array,
    channel_statistics,
    output_axis,
    own_initializer,
    readers,
    tensors,
    weighted_nodes,
    weights_of,
)
from visionloop.runtime import Images

_LEAST = 1e-8
# Factors beyond would move a dead channel's noise into the next layer; the paper's own code has a like bound.
_FACTORS = (1e-2, 1e2)
_ALPHA = 0.5  # of SmoothQuant: half of the difficulty goes into the weights, as in the paper


def equalised(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy with equalised pairs of convolutions, and how many pairs there were."""
    proto = _copy(graph)
    found = 0
    for first in list(proto.graph.node):
        second = _next_convolution(proto.graph, first) if first.op_type == "Conv" else None
        if second is None:
            continue
        known = tensors(proto.graph)
        before, after = array(known[first.input[1]]), array(known[second.input[1]])
        if before.shape[0] != after.shape[1] * _groups(second):
            continue
        depthwise = _groups(second) > 1
        if depthwise and after.shape[1] != 1:
            continue  # grouped, but not one channel a group: its rows belong to several inputs
        into = np.abs(after).max(axis=(1, 2, 3) if depthwise else (0, 2, 3))
        out = np.abs(before).max(axis=(1, 2, 3))
        # s = sqrt(r1 r2) / r2: the first is divided by it, the second multiplied.
        factor = np.clip(np.sqrt(np.maximum(out, _LEAST) / np.maximum(into, _LEAST)), *_FACTORS)
        factor = np.where((out < _LEAST) | (into < _LEAST), 1.0, factor).astype(np.float32)
        own_initializer(proto.graph, first, 1, before / factor[:, None, None, None])
        if len(first.input) > 2:
            own_initializer(proto.graph, first, 2, array(known[first.input[2]]) / factor)
        shape = (-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)
        own_initializer(proto.graph, second, 1, after * factor.reshape(shape))
        found += 1
    return proto, found


def smoothed(graph: onnx.ModelProto, images: Images) -> tuple[onnx.ModelProto, int]:
    """A copy whose LayerNorms hand over smoothed channels, and how many; `images` uint8 [N, H, W, 3] are training's."""
    proto = _copy(graph)
    places = []
    for norm in proto.graph.node:
        if norm.op_type != "LayerNormalization" or len(norm.input) < 2 or norm.input[1] not in tensors(proto.graph):
            continue
        reading = readers(proto.graph, norm.output[0])
        if reading and all(_takes_rows(proto.graph, node, norm.output[0]) for node in reading):
            places.append((norm, reading))
    if not places:
        return proto, 0
    statistics = channel_statistics(proto, [norm.output[0] for norm, _ in places], images)
    for norm, reading in places:
        known = tensors(proto.graph)
        largest = statistics[norm.output[0]][1]
        rows = np.max([np.abs(_rows_first(array(known[node.input[1]]), node)).max(axis=1) for node in reading], axis=0)
        factor = np.maximum(largest, _LEAST) ** _ALPHA / np.maximum(rows, _LEAST) ** (1 - _ALPHA)
        factor = np.where((largest < _LEAST) | (rows < _LEAST), 1.0, np.clip(factor, *_FACTORS)).astype(np.float32)
        for place in range(1, len(norm.input)):
            own_initializer(proto.graph, norm, place, array(known[norm.input[place]]) / factor)
        for node in reading:
            weights = _rows_first(array(known[node.input[1]]), node) * factor[:, None]
            own_initializer(proto.graph, node, 1, _rows_first(weights, node))
    return proto, len(places)


def bias_corrected(graph: onnx.ModelProto, quantized: bytes, images: Images) -> tuple[onnx.ModelProto, int]:
    """A copy of a float graph that, quantized again as `quantized` was, has the float means; and how many biases changed.

    `images` uint8 [N, H, W, 3] are training's; the graph's weights stay, so they are rounded as before.
    """
    proto = _copy(graph)
    rounded = _rounded_weights(quantized)
    places = []
    for node in weighted_nodes(proto.graph):
        bias = _bias_place(proto.graph, node)
        if node.name in rounded and bias is not None:
            places.append((node, *bias))
    if not places:
        return proto, 0
    means = channel_statistics(proto, [node.input[0] for node, *_ in places], images)
    for node, holder, place in places:
        weights = weights_of(proto.graph, node)
        assert weights is not None  # `rounded` holds those with weights only
        error = rounded[node.name] - array(weights)
        added = _mean_output(error, node, means[node.input[0]][0].astype(np.float32))
        old = tensors(proto.graph).get(holder.input[place]) if place < len(holder.input) else None
        own_initializer(proto.graph, holder, place, (array(old) if old is not None else 0) - added)
    return proto, len(places)


def _mean_output(weights: Array, node: onnx.NodeProto, mean_input: Array) -> Array:
    """The mean of each output channel for the mean of each input channel; at the rim of a map it is a little less."""
    if node.op_type != "Conv":
        rows: Array = mean_input @ _rows_first(weights, node)
        return rows
    kernel = weights.sum(axis=(2, 3))  # [O, I / groups]
    groups = _groups(node)
    per_group = mean_input.reshape(groups, -1)
    found = np.einsum("goi,gi->go", kernel.reshape(groups, -1, kernel.shape[1]), per_group)
    return np.asarray(found.reshape(-1), np.float32)


def _rounded_weights(quantized: bytes) -> dict[str, Array]:
    """Of each weighted node of a QDQ graph, the weights that its integers stand for."""
    graph = onnx.load_from_string(quantized).graph
    known = tensors(graph)
    makers = {name: node for node in graph.node for name in node.output}
    found = {}
    for node in weighted_nodes(graph):
        maker = makers.get(node.input[1])
        if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in known:
            continue
        integers, scale = (array(known[name]).astype(np.float32) for name in maker.input[:2])
        zero = array(known[maker.input[2]]).astype(np.float32) if len(maker.input) > 2 else np.zeros_like(scale)
        axis = next((item.i for item in maker.attribute if item.name == "axis"), output_axis(node))
        shape = [1] * integers.ndim
        if scale.ndim:
            shape[axis] = -1
        found[node.name] = (integers - zero.reshape(shape)) * scale.reshape(shape)
    return found


def _bias_place(graph: onnx.GraphProto, node: onnx.NodeProto) -> tuple[onnx.NodeProto, int] | None:
    """Where a node's bias stands: its own third input, or an Add of weights [O] that alone reads it."""
    if node.op_type in ("Conv", "Gemm"):
        return node, 2
    following = readers(graph, node.output[0])
    if len(following) == 1 and following[0].op_type == "Add":
        place = 1 - list(following[0].input).index(node.output[0])
        tensor = tensors(graph).get(following[0].input[place])
        if tensor is not None and len(tensor.dims) == 1:
            return following[0], place
    return None


def _next_convolution(graph: onnx.GraphProto, first: onnx.NodeProto) -> onnx.NodeProto | None:
    """The one convolution that reads a convolution's output, at most over a ReLU, which a positive factor passes."""
    node = first
    outputs = {item.name for item in graph.output}
    for _ in range(2):
        following = readers(graph, node.output[0])
        if len(following) != 1 or node.output[0] in outputs:
            return None
        node = following[0]
        if node.op_type == "Conv":
            known = tensors(graph)
            is_fixed = node.input[0] not in known and node.input[1] in known and first.input[1] in known
            biases = all(len(one.input) < 3 or one.input[2] in known for one in (first, node))
            return node if is_fixed and biases else None
        if node.op_type != "Relu":
            return None
    return None


def _takes_rows(graph: onnx.GraphProto, node: onnx.NodeProto, name: str) -> bool:
    """Whether a node multiplies a tensor's last axis by weights of its own."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[0] != name:
        return False
    weights = tensors(graph).get(node.input[1])
    is_transposed = any(item.name == "transA" and item.i for item in node.attribute)
    return weights is not None and len(weights.dims) == 2 and not is_transposed


def _rows_first(weights: Array, node: onnx.NodeProto) -> Array:
    """Weights as [I, O]; twice gives them back."""
    return weights.T if output_axis(node) == 0 and node.op_type != "Conv" else weights


def _groups(node: onnx.NodeProto) -> int:
    return next((item.i for item in node.attribute if item.name == "group"), 1)


def _copy(graph: onnx.ModelProto) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(graph)
    return proto

"""How much each layer's rounding alone moves the answers: one layer is quantized at a time, the others stay float.

Does not cover: errors that only two layers together make; `search` measures what leaving layers out brings.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from visionloop.compression.graph import normalisation_nodes, weighted_nodes
from visionloop.compression.parity import logit_error
from visionloop.compression.quantize import Quantizer, Recipe
from visionloop.errors import ArtifactError
from visionloop.progress import track
from visionloop.runtime import Floats, Images, OnnxModel


@dataclass(frozen=True, slots=True)
class LayerError:
    """What one layer's rounding does to the logits."""

    name: str  # of the node
    operator: str
    error: float  # see `parity.logit_error`


def layer_errors(
    quantizer: Quantizer, recipe: Recipe, images: Images, expected: Floats, *, deadline: float = float("inf")
) -> tuple[LayerError, ...]:
    """The error of each weighted layer on training `images` uint8 [N, H, W, 3], the largest first.

    `expected` are the float logits [N, K] of the same images. At `deadline` (of `time.monotonic`) it ends with those that it
    has, in the order of the data.
    """
    nodes = _quantizable(quantizer.graph.graph, recipe)
    found = []
    for node in track(nodes, "sensitivity of layers"):
        if time.monotonic() > deadline:
            break
        try:
            data = quantizer.static(recipe, only=[node.name])
            got = OnnxModel(data, threads=1).run_all(images)[0]
        except ArtifactError:
            continue  # a product of two activations that the quantizer leaves alone
        found.append(LayerError(node.name, node.op_type, logit_error(expected, got)))
    return tuple(sorted(found, key=lambda one: (-one.error, one.name)))


def _quantizable(graph: onnx.GraphProto, recipe: Recipe) -> Sequence[onnx.NodeProto]:
    left = {*normalisation_nodes(graph), *recipe.excluded}
    return [node for node in weighted_nodes(graph) if node.op_type in recipe.operators and node.name not in left]

"""What every ONNX file of the project keeps to, FP32 or INT8, whoever wrote it: checked before it is proved and published.

Valid ONNX with strict shape inference, one input and two outputs with their names and an open batch, operators of ONNX and
ONNX Runtime alone, weights inside, and metadata that say what the card says.

Does not cover: damage and evil, which `onnx_file` refuses before anything is loaded, and what the graph answers (`parity`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import onnx

from visionloop.card import EMBEDDING_NAME, INPUT_NAME, LOGITS_NAME, ModelCard
from visionloop.errors import ArtifactError
from visionloop.onnx_file import MAX_ONNX_BYTES, check_onnx
from visionloop.runtime import LABELS_KEY, PREPROCESS_KEY


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What an ONNX file is, for the report."""

    megabytes: float
    opset: int
    ir_version: int
    nodes: int
    domains: tuple[str, ...]  # of the operators used, "" for ONNX's own
    metadata: int  # entries


def check_graph(data: bytes, card: ModelCard, name: str) -> GraphFacts:
    """Check an ONNX file against the rules above and against its card; `name` is how messages call it.

    >>> check_graph(card.read_file(folder, MODEL_ONNX), card, "models/shipped/model.onnx").opset
    20

    Raises:
        ArtifactError: it breaks one.
    """
    check_onnx(data)
    proto = onnx.load_from_string(data)
    try:
        onnx.checker.check_model(proto, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"{name} is not valid ONNX ({str(error).splitlines()[0][:200]}); export it again.") from error
    problems = [*_signature(inferred, card), *_contents(proto), *_metadata(proto, card)]
    if problems:
        raise ArtifactError(f"{name}: {'; '.join(problems)}. Rebuild it with `dvc repro export`.")
    opsets = {item.domain: item.version for item in proto.opset_import}
    return GraphFacts(
        len(data) / 1e6,
        opsets.get("", opsets.get("ai.onnx", 0)),
        proto.ir_version,
        len(proto.graph.node),
        tuple(sorted({node.domain for node in proto.graph.node})),
        len(proto.metadata_props),
    )


def _signature(proto: onnx.ModelProto, card: ModelCard) -> list[str]:
    """What is wrong with names, types and shapes of input and outputs."""
    uint8, float32 = onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT
    weights = {item.name for item in proto.graph.initializer}
    wanted = {
        "inputs": [(INPUT_NAME, uint8, [card.preprocess.height, card.preprocess.width, 3])],
        "outputs": [
            (LOGITS_NAME, float32, [len(card.labels)]),
            (EMBEDDING_NAME, float32, [card.embedding_size]),
        ],
    }
    found = {"inputs": [item for item in proto.graph.input if item.name not in weights], "outputs": proto.graph.output}
    said = []
    for what, expected in wanted.items():
        has = [_tensor(item) for item in found[what]]
        if [(name, kind, shape[1:]) for name, kind, shape in has] != expected:
            said.append(f"its {what} are {has}, not {expected} after the batch")
        elif any(isinstance(shape[0], int) for _, _, shape in has):
            said.append(f"its {what} have a fixed batch, {has}")
    return said


def _tensor(item: onnx.ValueInfoProto) -> tuple[str, int, Sequence[int | str]]:
    kind = item.type.tensor_type
    return item.name, kind.elem_type, [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim
    ]  # fmt: skip


def _contents(proto: onnx.ModelProto) -> list[str]:
    size = proto.ByteSize()
    return [f"it has {size / 1e9:.1f} GB, more than the 2 GB of one file"] if size > MAX_ONNX_BYTES else []


def _metadata(proto: onnx.ModelProto, card: ModelCard) -> list[str]:
    """What the file says of itself otherwise than its card, or not at all."""
    has = {item.key: item.value for item in proto.metadata_props}
    wanted = {
        LABELS_KEY: list(card.labels),
        PREPROCESS_KEY: {**asdict(card.preprocess), **card.preprocess_rules},
        "mean": list(card.mean),
        "std": list(card.std),
    }
    said = []
    for key, value in wanted.items():
        try:
            same = json.loads(has.get(key, "null")) == value
        except ValueError:
            same = False
        if not same:
            said.append(f"its metadata say {has.get(key, 'nothing')[:120]!r} of {key}, its card {json.dumps(value)[:120]}")
    return said

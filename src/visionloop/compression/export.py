"""A torch classifier as one ONNX file that answers like it, with everything a reader of the file needs inside.

Input `images` uint8 [batch, H, W, 3]; cast, scale, mean, standard deviation and layout are in the graph; outputs `logits`
[batch, K] and `embedding` [batch, D], float32. The file carries no path of the machine that wrote it, and the same weights
give the same bytes. Does not cover: quantization (`quantize.py`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch

from visionloop.card import EMBEDDING_NAME, INPUT_NAME, LOGITS_NAME, ModelCard
from visionloop.errors import ArtifactError
from visionloop.files import write_bytes
from visionloop.models import build
from visionloop.onnx_file import MAX_ONNX_BYTES
from visionloop.runtime import LABELS_KEY, PREPROCESS_KEY, Floats, Images


class Calibrated(torch.nn.Module):
    """A classifier whose logits are divided by a temperature, so that their softmax is calibrated; the embedding stays."""

    def __init__(self, model: torch.nn.Module, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 [N, H, W, 3] to (logits float32 [N, K], embedding float32 [N, D])."""
        logits, embedding = self.model(images)
        return logits / self.temperature, embedding


def export_onnx(model: torch.nn.Module, path: Path, *, card: ModelCard, opset: int) -> None:
    """Write `model` as ONNX to `path`, whole or not at all.

    `model` maps uint8 [N, H, W, 3] to logits float32 [N, K] and embedding float32 [N, D]; it is put into evaluation mode on
    the CPU for the export and left so.

    >>> export_onnx(model, Path("model.onnx"), card=card, opset=20)

    Raises:
        ArtifactError: the network has an operation without an ONNX form at this opset, or is over 2 GB.
    """
    write_bytes(path, onnx_bytes(model, card=card, opset=opset))


def onnx_bytes(model: torch.nn.Module, *, card: ModelCard, opset: int) -> bytes:
    """The content of the file that `export_onnx` writes."""
    model = model.cpu().eval()
    example = torch.zeros(2, card.preprocess.height, card.preprocess.width, 3, dtype=torch.uint8)
    try:
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=[LOGITS_NAME, EMBEDDING_NAME],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            optimize=True,
            verbose=False,
        )
        assert program is not None  # with dynamo=True and no path the exporter returns the program
        proto = program.model_proto
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ArtifactError(
            f"{card.architecture} cannot be exported at opset {opset} ({str(error).splitlines()[0][:200]}); try another "
            "`export.opset`, or another architecture."
        ) from error
    if proto.ByteSize() > MAX_ONNX_BYTES:
        raise ArtifactError(
            f"{card.architecture} has {proto.ByteSize() / 1e9:.1f} GB as ONNX; the limit of one file is 2 GB."
        )
    strip(proto)
    onnx.helper.set_model_props(proto, metadata(card, opset))
    check(proto)
    return bytes(proto.SerializeToString(deterministic=True))


def onnx_before(card: ModelCard, opset: int) -> bytes | None:
    """FP32 of the network that a smaller one took the place of, with fresh weights: good for its speed and size alone.

    None where the card names no such network.
    """
    if card.smaller is None:
        return None
    with torch.random.fork_rng(devices=[]):
        first = build(
            card.smaller.architecture,
            num_classes=len(card.labels),
            image_size=(card.preprocess.height, card.preprocess.width),
            mean=card.mean,
            std=card.std,
            options=card.smaller.architecture_options,
        )
    about = card.model_copy(update={"architecture": card.smaller.architecture, "embedding_size": first.embedding_size})
    return onnx_bytes(Calibrated(first, 1.0), card=about, opset=opset)


def opset_of(data: bytes) -> int:
    """The version of ONNX's own operators that a file of `onnx_bytes` is of."""
    opsets = onnx.load_from_string(data).opset_import
    return int(next(item.version for item in opsets if item.domain in ("", "ai.onnx")))


def metadata(card: ModelCard, opset: int) -> dict[str, str]:
    """What the ONNX file says of itself, as text: enough to use it without the card."""
    return {
        LABELS_KEY: json.dumps(card.labels, ensure_ascii=False),
        PREPROCESS_KEY: json.dumps({**asdict(card.preprocess), **card.preprocess_rules}, sort_keys=True),
        "preprocess_version": card.preprocess.version,
        "mean": json.dumps(card.mean),
        "std": json.dumps(card.std),
        "architecture": card.architecture,
        "embedding_size": str(card.embedding_size),
        "data": card.lineage.get("data", ""),
        "visionloop": card.lineage.get("visionloop", ""),
        "opset": str(opset),
        "temperature": repr(card.calibration.temperature if card.calibration else 1.0),  # already inside the graph
    }


def strip(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes for its own debugging: stack traces with paths, class names, doc strings."""
    proto.doc_string = ""
    graph = proto.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for items in (graph.node, graph.input, graph.output, graph.value_info, graph.initializer):
        for item in items:
            item.doc_string = ""
            del item.metadata_props[:]
    for function in proto.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


def check(proto: onnx.ModelProto) -> None:
    """Run ONNX's full check with shape inference.

    Raises:
        ArtifactError: the graph is not valid ONNX.
    """
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(f"The exported graph is not valid ONNX ({str(error).splitlines()[0][:200]}).") from error


def torch_answers(model: torch.nn.Module, images: Images) -> tuple[Floats, Floats]:
    """Logits [N, K] and embedding [N, D] of uint8 images [N, H, W, 3] by torch on the CPU, in evaluation mode."""
    model = model.cpu().eval()
    with torch.inference_mode():
        logits, embedding = model(torch.from_numpy(np.array(images)))
    return logits.float().numpy(), embedding.float().numpy()

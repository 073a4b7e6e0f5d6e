"""A torch classifier as one ONNX file that answers like it, with everything a reader of the file needs inside.

Input `images` uint8 [batch, H, W, 3]; cast, scale, mean, standard deviation and layout are in the graph; outputs `logits`
[batch, K] and `embedding` [batch, D], float32. The file carries no path of the machine that wrote it, and the same weights
give the same bytes. Does not cover: quantization (`quantize.py`).
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch

from visionloop.card import EMBEDDING_NAME, INPUT_NAME, LOGITS_NAME, ModelCard
from visionloop.errors import ArtifactError, ParityError
from visionloop.files import write_bytes
from visionloop.runtime import LABELS_KEY, Floats, Images, OnnxModel

MAX_ONNX_BYTES = (1 << 31) - 1  # protobuf's own limit on one message


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


def metadata(card: ModelCard, opset: int) -> dict[str, str]:
    """What the ONNX file says of itself, as text: enough to use it without the card."""
    return {
        LABELS_KEY: json.dumps(card.labels, ensure_ascii=False),
        "preprocess": json.dumps(asdict(card.preprocess), sort_keys=True),
        "preprocess_version": card.preprocess.version,
        "mean": json.dumps(card.mean),
        "std": json.dumps(card.std),
        "architecture": card.architecture,
        "embedding_size": str(card.embedding_size),
        "data": card.lineage.get("data", ""),
        "visionloop": card.lineage.get("visionloop", ""),
        "opset": str(opset),
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


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two forms of one model are apart on the same images."""

    max_logit_difference: float
    max_embedding_difference: float
    top1_agreement: float  # share of images with the same first class


def torch_answers(model: torch.nn.Module, images: Images) -> tuple[Floats, Floats]:
    """Logits [N, K] and embedding [N, D] of uint8 images [N, H, W, 3] by torch on the CPU, in evaluation mode."""
    model = model.cpu().eval()
    with torch.inference_mode():
        logits, embedding = model(torch.from_numpy(np.array(images)))
    return logits.float().numpy(), embedding.float().numpy()


def prove_parity(
    expected: tuple[Floats, Floats], model: OnnxModel, images: Images, *, tolerance: float, name: str = "ONNX"
) -> Parity:
    """Compare `model` with the expected logits and embedding, with all images in one batch and one by one.

    Both are asked because a graph with a batch size baked in, or a kernel chosen by batch size, is right in one only.

    Raises:
        ParityError: a logit differs by more than `tolerance`, or an image gets another first class.
    """
    logits, embedding = expected
    worst = Parity(0.0, 0.0, 1.0)
    for batch_size in (len(images), 1):
        answers = [model.run(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
        got_logits = np.concatenate([answer[0] for answer in answers])
        got_embedding = np.concatenate([answer[1] for answer in answers])
        parity = compare((logits, embedding), (got_logits, got_embedding))
        where = f"{name} against torch on {len(images)} golden images at batch size {batch_size}"
        if parity.max_logit_difference > tolerance:
            raise ParityError(
                f"{where}: a logit differs by {parity.max_logit_difference:.3g}, more than the {tolerance:g} allowed; the "
                "export is not the trained model. Try another `export.opset`, and report the architecture."
            )
        if parity.top1_agreement < 1:
            wrong = round((1 - parity.top1_agreement) * len(images))
            raise ParityError(f"{where}: {wrong} images get another first class, though no logit is beyond {tolerance:g}.")
        worst = Parity(
            max(worst.max_logit_difference, parity.max_logit_difference),
            max(worst.max_embedding_difference, parity.max_embedding_difference),
            1.0,
        )
    return worst


def compare(expected: tuple[Floats, Floats], got: tuple[Floats, Floats]) -> Parity:
    """Largest differences and the agreement of the first class between two answers to the same images."""
    return Parity(
        max_logit_difference=_difference(expected[0], got[0]),
        max_embedding_difference=_difference(expected[1], got[1]),
        top1_agreement=float((expected[0].argmax(axis=1) == got[0].argmax(axis=1)).mean()),
    )


def golden_bytes(images: Images, ids: list[str], answers: tuple[Floats, Floats]) -> bytes:
    """The content of `golden.npz`: images uint8 [N, H, W, 3], their ids, and the logits and embedding of the model."""
    buffer = io.BytesIO()
    np.savez(buffer, images=images, ids=np.array(ids), logits=answers[0], embedding=answers[1])
    return buffer.getvalue()


def _difference(expected: npt.NDArray[np.float32], got: npt.NDArray[np.float32]) -> float:
    return float(np.abs(expected.astype(np.float64) - got).max(initial=0.0))

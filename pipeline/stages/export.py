"""Stage `export`: the selected model as ONNX, proved equal to torch on golden images."""

from __future__ import annotations

import json

from pipeline.stages import run_stage
from visionloop.compression.export import onnx_bytes, torch_answers
from visionloop.compression.parity import Golden, prove_parity
from visionloop.config import ExportParams, load_section
from visionloop.data.packing import load_split
from visionloop.files import write_bytes, write_json
from visionloop.models import load_model
from visionloop.paths import EXPORT_REPORT, EXPORTED, GOLDEN, MODEL_ONNX, PACKED, SELECTED, family_folder
from visionloop.runtime import OnnxModel, check_agreement


def main() -> None:
    """Read models/selected.json, models/<family> and the packed test images; write models/exported and its report."""
    params = load_section(ExportParams)
    family = json.loads(SELECTED.read_text(encoding="utf-8"))["family"]
    model, card = load_model(family_folder(family))
    test = load_split(PACKED, "test")
    images, ids = test.images[: params.golden_images], tuple(test.ids[: params.golden_images])
    golden = Golden(images, ids, *torch_answers(model, images))

    data = onnx_bytes(model, card=card, opset=params.opset)
    onnx_model = OnnxModel(data)
    check_agreement(onnx_model, card, EXPORTED)
    parity = prove_parity(onnx_model, golden, tolerance=params.max_logit_difference, name=f"The exported {family}")

    write_bytes(EXPORTED / MODEL_ONNX, data)
    write_bytes(EXPORTED / GOLDEN, golden.to_bytes())
    card.with_files(EXPORTED, (MODEL_ONNX, GOLDEN)).write(EXPORTED)
    write_json(
        EXPORT_REPORT,
        {
            "opset": params.opset,
            "megabytes": len(data) / 1e6,
            "golden_images": len(ids),
            "max_logit_difference": parity.max_logit_difference,
            "max_embedding_difference": parity.max_embedding_difference,
        },
    )
    print(
        f"{EXPORTED}: {card.architecture}, {len(data) / 1e6:.2f} MB; on {len(ids)} golden images no logit differs from "
        f"torch's by more than {parity.max_logit_difference:.1e}"
    )


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

"""Stage `export`: the selected model as ONNX, proved equal to torch on golden images."""

from __future__ import annotations

import json

import numpy as np

from pipeline.stages import run_stage, seconds_so_far
from visionloop.card import load_calibration
from visionloop.compression.export import Calibrated, onnx_bytes, torch_answers
from visionloop.compression.parity import Golden, prove_parity
from visionloop.config import ExportParams, load_section
from visionloop.data.packing import load_split
from visionloop.features import softmax
from visionloop.files import write_bytes, write_json
from visionloop.models import load_model
from visionloop.paths import CLASS_MEANS, EXPORT_REPORT, EXPORTED, GOLDEN, MODEL_ONNX, PACKED, SELECTED, family_folder
from visionloop.runtime import OnnxModel, check_agreement


def main() -> None:
    """Read models/selected.json, models/<family> and the packed test images; write models/exported and its report."""
    params = load_section(ExportParams)
    family = json.loads(SELECTED.read_text(encoding="utf-8"))["family"]
    model, card = load_model(family_folder(family))
    calibration = load_calibration(family_folder(family))
    card = card.model_copy(update={"calibration": calibration})
    by_distance = calibration.unknown is not None and calibration.unknown.score == "distance"
    test = load_split(PACKED, "test")
    images, ids = test.images[: params.golden_images], tuple(test.ids[: params.golden_images])
    raw, _ = torch_answers(model, images)
    calibrated = Calibrated(model, calibration.temperature)
    golden = Golden(images, ids, *torch_answers(calibrated, images))

    data = onnx_bytes(calibrated, card=card, opset=params.opset)
    onnx_model = OnnxModel(data)
    check_agreement(onnx_model, card, EXPORTED)
    parity = prove_parity(onnx_model, golden, tolerance=params.max_logit_difference, name=f"The exported {family}")

    write_bytes(EXPORTED / MODEL_ONNX, data)
    write_bytes(EXPORTED / GOLDEN, golden.to_bytes())
    if by_distance:
        write_bytes(EXPORTED / CLASS_MEANS, (family_folder(family) / CLASS_MEANS).read_bytes())
    card.with_files(EXPORTED, (MODEL_ONNX, GOLDEN, *((CLASS_MEANS,) if by_distance else ()))).write(EXPORTED)
    write_json(
        EXPORT_REPORT,
        {
            "opset": params.opset,
            "seconds": seconds_so_far(),
            "megabytes": len(data) / 1e6,
            "golden_images": len(ids),
            "temperature": calibration.temperature,
            # Of what the file answers to what the calibration was measured as, torch's logits divided outside of any graph.
            "max_probability_difference": float(
                np.abs(softmax(onnx_model.run_all(images)[0]) - calibration.apply(raw)).max()
            ),
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

"""Stage `select`: the CNN or the ViT, by a paired test on the test images and a latency budget, with the reason."""

from __future__ import annotations

from pipeline.stages import run_stage
from visionloop.compression.export import onnx_bytes
from visionloop.config import ExportParams, SelectParams, load_section
from visionloop.data.packing import load_split
from visionloop.evaluation.comparison import compare
from visionloop.evaluation.predictions import read_correct
from visionloop.evaluation.selection import Candidate, choose
from visionloop.files import write_json
from visionloop.models import Family, load_model
from visionloop.paths import PACKED, SELECT_REPORT, SELECTED, evaluate_report, family_folder
from visionloop.runtime import OnnxModel, compare_latency

REPEATS = 100
FAMILIES: tuple[Family, ...] = ("cnn", "vit")


def main() -> None:
    """Read both models and their predictions; write models/selected.json and reports/select.json."""
    params, export = load_section(SelectParams), load_section(ExportParams)
    graphs: dict[str, bytes] = {}
    architectures: dict[str, str] = {}
    for family in FAMILIES:
        print(f"{family} to ONNX, to measure its latency", flush=True)
        model, card = load_model(family_folder(family))
        graphs[family], architectures[family] = onnx_bytes(model, card=card, opset=export.opset), card.architecture
    sessions = {family: OnnxModel(data) for family, data in graphs.items()}
    latency = compare_latency(sessions, load_split(PACKED, "test").images, (1,), REPEATS)
    cnn, vit = (
        Candidate(
            family=family,
            architecture=architectures[family],
            correct=read_correct(evaluate_report(family) / "predictions.parquet", "test"),
            latency_ms=latency[family][0].p50_ms,
            megabytes=len(graphs[family]) / 1e6,
        )
        for family in FAMILIES
    )
    comparison = compare(cnn.correct, vit.correct, 1 - params.alpha)
    selection = choose(cnn, vit, comparison, alpha=params.alpha, max_latency_ms=params.max_latency_ms)
    write_json(
        SELECT_REPORT,
        {
            "selected": selection.family,
            "cnn_accuracy": round(cnn.accuracy, 4),
            "vit_accuracy": round(vit.accuracy, 4),
            "cnn_minus_vit": round(comparison.difference, 4),
            "cnn_minus_vit_low": round(comparison.low, 4),
            "cnn_minus_vit_high": round(comparison.high, 4),
            "mcnemar_p": float(f"{comparison.p_value:.3g}"),
            "cnn_latency_ms": round(cnn.latency_ms, 4),
            "vit_latency_ms": round(vit.latency_ms, 4),
            "cnn_megabytes": round(cnn.megabytes, 4),
            "vit_megabytes": round(vit.megabytes, 4),
            # In a list, because `dvc metrics show` would make a column of the sentence.
            "reason": [selection.reason],
        },
    )
    write_json(
        SELECTED,
        {"family": selection.family, "architecture": architectures[selection.family], "reason": selection.reason},
    )
    print(f"{SELECTED}: {selection.family}. {selection.reason}")


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

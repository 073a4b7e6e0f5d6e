"""Stage `quantize`: INT8 against FP32 on this machine; ships the one that earned it, and tells what each form costs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.stages import run_stage
from visionloop.card import load_card
from visionloop.compression import variants
from visionloop.compression.memory import measure_memory
from visionloop.compression.parity import Golden, accuracy
from visionloop.compression.quantize import (
    BATCH_SIZES,
    Choice,
    HeldOut,
    Recipe,
    calibration_indices,
    choose,
    flat,
    weight_bits,
)
from visionloop.config import QuantizeParams, load_section
from visionloop.data.packing import load_sample, load_split
from visionloop.evaluation.budgets import refuse_over_budget
from visionloop.evaluation.calibration import calibration_error
from visionloop.features import EmbeddingPCA, softmax
from visionloop.files import write_bytes, write_json, write_text
from visionloop.models import load_model
from visionloop.paths import (
    CLASS_MEANS,
    EMBEDDING_PCA,
    EXPORTED,
    GOLDEN,
    MODEL_ONNX,
    MODEL_TORCH,
    PACKED,
    QUANTIZE_REPORT,
    ROBUSTNESS_REPORT,
    SHIPPED,
    VARIANTS,
    family_folder,
)
from visionloop.runtime import OnnxModel, check_agreement
from visionloop.unknown import ClassMeans, judge

# Of the comparison, what does not depend on the machine's load: only this goes into the card, so that an unchanged model
# keeps an unchanged card.
_LASTING = ("megabytes", "accuracy", "calibration_error", "agreement")


def main() -> None:
    """Read models/exported, models/<family>, the packed images; write models/shipped, its report and the table of forms."""
    refuse_over_budget(ROBUSTNESS_REPORT)
    params = load_section(QuantizeParams)
    card = load_card(EXPORTED)
    fp32 = card.read_file(EXPORTED, MODEL_ONNX)
    golden = Golden.from_bytes(card.read_file(EXPORTED, GOLDEN))
    val, test = load_split(PACKED, "val"), load_split(PACKED, "test")
    train = load_sample(PACKED)  # without stored variants: ranges are set on images that the world sent
    recipe = Recipe(params.operators.of(card.family), params.calibration, params.per_channel, weight_bits())

    with variants.one_thread():
        choice = choose(
            fp32,
            train.images[calibration_indices(train.labels, params.calibration_images)],
            HeldOut(val.images, val.labels, test.images, test.labels),
            recipe,
            max_accuracy_drop=params.max_accuracy_drop,
            min_speedup=params.min_speedup,
            beside={variants.TORCH: variants.TorchForm(load_model(family_folder(card.family))[0])},
        )
    data, verdict, comparison = choice.data, choice.verdict, choice.comparison
    forms = _forms(choice, family_folder(card.family))
    figures = (flat(comparison) if comparison else {}) | variants.flat(forms)

    model = OnnxModel(data)
    check_agreement(model, card, SHIPPED)
    val_logits, val_embedding = model.run_all(val.images)
    test_logits, test_embedding = model.run_all(test.images)
    shipped = {
        "val_accuracy": accuracy(val_logits, val.labels),
        "test_accuracy": accuracy(test_logits, test.labels),
        "test_calibration_error": calibration_error(softmax(test_logits), test.labels),
    }
    means = ClassMeans.from_bytes(card.read_file(EXPORTED, CLASS_MEANS)) if CLASS_MEANS in card.files else None
    if card.calibration is not None and len(test.labels):
        doubt = judge(card.calibration, test_logits, test_embedding, means)
        if doubt.unknown is not None:
            shipped["test_known_kept"] = float((~doubt.unknown).mean())
    logits, embedding = model.run_all(golden.images)

    write_bytes(SHIPPED / MODEL_ONNX, data)
    write_bytes(SHIPPED / EMBEDDING_PCA, EmbeddingPCA.fit(val_embedding, params.embedding_components).to_bytes())
    if means is not None:
        write_bytes(SHIPPED / CLASS_MEANS, means.to_bytes())
    write_bytes(SHIPPED / GOLDEN, Golden(golden.images, golden.ids, logits, embedding).to_bytes())
    lasting = {name: value for name, value in (flat(comparison) if comparison else {}).items() if name.endswith(_LASTING)}
    card.model_copy(
        update={
            "precision": verdict.precision,
            "metrics": {**card.metrics, **lasting, **shipped},
            "notes": (*card.notes, verdict.reason),
        }
    ).with_files(SHIPPED, (MODEL_ONNX, EMBEDDING_PCA, GOLDEN, *((CLASS_MEANS,) if means else ()))).write(SHIPPED)
    machine = [variants.machine()]  # in a list, as the reason: `dvc metrics show` would make a column of it
    report = {"shipped": verdict.precision, "reason": [verdict.reason], "machine": machine, **shipped, **figures}
    write_json(QUANTIZE_REPORT, report)
    write_text(VARIANTS, variants.variants_csv(forms))

    if comparison:
        for name, form in (("FP32", comparison.fp32), ("INT8", comparison.int8)):
            print(
                f"{name}: {form.megabytes:.2f} MB, accuracy {form.val_accuracy:.4f} on val, {form.test_accuracy:.4f} on "
                f"test, {form.latency_ms_batch_1:.3f} ms an image, {form.images_per_second_batch_32:,.0f}/s in batches of 32"
            )
        print(
            f"INT8 is {comparison.speedup_batch_1:.2f} and {comparison.speedup_batch_32:.2f} times as fast at batch sizes 1 "
            f"and 32; the two agree on {comparison.agreement * 100:.1f} % of the held-out images"
        )
    for one in forms:
        print(
            f"{one.name}: {one.megabytes:.2f} MB on disk, {one.memory.growth_mb:.1f} MB of memory; one image takes "
            f"{one.latencies[0].p50_ms:.3f} ms, of a hundred calls 99 at most {one.latencies[0].p99_ms:.3f} ms"
        )
    print(f"{SHIPPED}: {verdict.reason}")


def _forms(choice: Choice, torch_folder: Path) -> list[variants.Variant]:
    """Size, speed and memory of each form, INT8 too where it is not shipped."""
    found = []
    with tempfile.TemporaryDirectory(prefix="visionloop-forms-") as folder:
        int8 = Path(folder) / MODEL_ONNX
        if choice.int8:
            int8.write_bytes(choice.int8)
        for name, latencies in choice.speeds.items():
            file = {"fp32": EXPORTED / MODEL_ONNX, "int8": int8}.get(name, torch_folder / MODEL_TORCH)
            if name == variants.TORCH:
                memory = measure_memory("torch", torch_folder, BATCH_SIZES[-1])
            else:
                memory = measure_memory("onnx", file, BATCH_SIZES[-1])
            found.append(
                variants.Variant(name, name == choice.verdict.precision, file.stat().st_size / 1e6, memory, latencies)
            )
    return found


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

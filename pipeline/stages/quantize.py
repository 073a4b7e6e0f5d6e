"""Stage `quantize`: search INT8 forms and runtimes, measure them against FP32 here, and ship the one that earned it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipeline.stages import run_stage, seconds_so_far
from visionloop.card import ModelCard, load_card
from visionloop.compression import page, variants
from visionloop.compression.choice import BATCH_SIZES, BEFORE, QAT, Budgets, Choice, HeldOut, choose, flat, worth_training
from visionloop.compression.export import Calibrated, onnx_before, onnx_bytes, opset_of
from visionloop.compression.memory import measure_memory
from visionloop.compression.parity import PROCESSOR, Golden, accuracy
from visionloop.compression.qat import Rounding, fine_tune
from visionloop.compression.quantize import calibration_indices
from visionloop.compression.search import Found, Network, Space, Trial, search
from visionloop.compression.targets import lack_of, processor, profile, warnings
from visionloop.config import QuantizeParams, load_section
from visionloop.data.packing import PackedSplit, load_meta, load_sample, load_split
from visionloop.errors import ConfigError
from visionloop.evaluation.budgets import refuse_over_budget
from visionloop.evaluation.calibration import calibration_error
from visionloop.features import EmbeddingPCA, softmax
from visionloop.files import write_bytes, write_json, write_text
from visionloop.models import load_model
from visionloop.models.devices import choose_device
from visionloop.paths import (
    CLASS_MEANS,
    COMPRESSION_PAGE,
    COMPRESSION_REPORT,
    COMPRESSION_TABLE,
    EMBEDDING_PCA,
    EXPORTED,
    GOLDEN,
    INTEGER,
    MODEL_ONNX,
    MODEL_TORCH,
    PACKED,
    QUANTIZE_REPORT,
    ROBUSTNESS_REPORT,
    SHIPPED,
    VARIANTS,
    family_folder,
)
from visionloop.runtime import Answers, OnnxModel, check_agreement, is_installed
from visionloop.unknown import ClassMeans, judge

_TRAINING = "quantization-aware training"
# Of the comparison, what does not depend on the machine's load: only this goes into the card, so that an unchanged model
# keeps an unchanged card.
_LASTING = ("megabytes", "accuracy", "calibration_error", "agreement")


def main() -> None:
    """Read models/exported, models/<family>, the packed images; write models/shipped and its reports."""
    refuse_over_budget(ROBUSTNESS_REPORT)
    params = load_section(QuantizeParams)
    for runtime in params.runtimes:
        if not is_installed(runtime):
            raise ConfigError(
                f"quantize.runtimes asks for {runtime}, which is not installed here; install it, or take it off the list."
            )
    target = profile(params.target)
    if lack := lack_of(params.target):
        raise ConfigError(lack)
    activations = target.activations if params.activations == "auto" else params.activations
    warned = warnings(target, activations, params.runtimes)
    for sentence in warned:
        print(f"Warning: {sentence}")
    card = load_card(EXPORTED)
    fp32 = card.read_file(EXPORTED, MODEL_ONNX)
    golden = Golden.from_bytes(card.read_file(EXPORTED, GOLDEN))
    val, test = load_split(PACKED, "val"), load_split(PACKED, "test")
    space = Space(target, params.runtimes, activations, params.calibration_images, params.search_seconds)
    found, choice = _found_and_chosen(card, fp32, val, test, space=space, params=params)
    chosen = choice.shipped.form
    forms = _forms(choice, family_folder(card.family))
    figures = flat(choice) | variants.flat(forms)

    model = chosen.load(0)
    check_agreement(model, card, SHIPPED)
    val_embedding = model.run_all(val.images)[1]
    test_logits, test_embedding = model.run_all(test.images)
    shipped = {
        "val_accuracy": choice.shipped.val_accuracy,
        "test_accuracy": accuracy(test_logits, test.labels),
        "test_calibration_error": calibration_error(softmax(test_logits), test.labels),
    }
    means = ClassMeans.from_bytes(card.read_file(EXPORTED, CLASS_MEANS)) if CLASS_MEANS in card.files else None
    if card.calibration is not None and len(test.labels):
        doubt = judge(card.calibration, test_logits, test_embedding, means)
        if doubt.unknown is not None:
            shipped["test_known_kept"] = float((~doubt.unknown).mean())
    logits, embedding = model.run_all(golden.images)

    write_bytes(SHIPPED / MODEL_ONNX, chosen.data)
    write_bytes(SHIPPED / EMBEDDING_PCA, EmbeddingPCA.fit(val_embedding, params.embedding_components).to_bytes())
    if means is not None:
        write_bytes(SHIPPED / CLASS_MEANS, means.to_bytes())
    write_bytes(SHIPPED / GOLDEN, Golden(golden.images, golden.ids, logits, embedding).to_bytes())
    lasting = {name: value for name, value in flat(choice).items() if name.endswith(_LASTING)}
    card.model_copy(
        update={
            "precision": chosen.precision,
            "runtime": chosen.runtime,
            "compute": chosen.compute,
            "quantization_aware": chosen.network == QAT,
            "metrics": {**card.metrics, **lasting, **shipped},
            "notes": (*card.notes, choice.reason),
            "lineage": {**card.lineage, PROCESSOR: processor()},
        }
    ).with_files(SHIPPED, (MODEL_ONNX, EMBEDDING_PCA, GOLDEN, *((CLASS_MEANS,) if means else ()))).write(SHIPPED)
    _write_integer(choice, card)
    machine = variants.machine()
    about = page.About(target.target, machine, warned, _over_first(choice, card))
    # Sentences in lists: `dvc metrics show` would make columns of them.
    words = {"shipped": chosen.precision, "reason": [choice.reason], "runtime": [chosen.runtime], "machine": [machine]}
    write_json(QUANTIZE_REPORT, {**words, "seconds": seconds_so_far(), **shipped, **figures})
    write_text(VARIANTS, variants.variants_csv(forms))
    write_json(COMPRESSION_REPORT, page.as_json(choice, found, about))
    write_text(COMPRESSION_TABLE, page.as_csv(choice))
    write_text(COMPRESSION_PAGE, page.as_page(choice, found, about))

    _tell(choice, forms)
    for note in about.notes:
        print(note)
    print(f"{SHIPPED}: {choice.reason}")


def _write_integer(choice: Choice, card: ModelCard) -> None:
    """The best INT8 form and its card in models/integer, for the parity of all forms; or why there is none."""
    one = choice.int8
    for file in INTEGER.glob("*"):
        file.unlink()
    if one is None:
        write_text(INTEGER / "none.txt", "No integer form could be made and run; reports/compression.html says why.\n")
        return
    write_bytes(INTEGER / MODEL_ONNX, one.form.data)
    changes = {"precision": "int8", "runtime": one.form.runtime, "compute": one.form.compute}
    card.model_copy(update=changes).with_files(INTEGER, (MODEL_ONNX,)).write(INTEGER)


def _tell(choice: Choice, forms: Sequence[variants.Variant]) -> None:
    for one, verdict in choice.forms:
        print(
            f"{one.form.name}: {one.megabytes:.2f} MB, val accuracy {one.val_accuracy:.4f}, {one.latency(1).p50_ms:.3f} "
            f"ms an image, {one.latency(32).images_per_second:,.0f}/s in batches of 32; {verdict.reason}"
        )
    for one_form in forms:
        print(
            f"{one_form.name}: {one_form.megabytes:.2f} MB on disk, {one_form.memory.growth_mb:.1f} MB of memory; of a "
            f"hundred calls with one image 99 take at most {one_form.latencies[0].p99_ms:.3f} ms"
        )


def _over_first(choice: Choice, card: ModelCard) -> list[str]:
    """What a pruned network or a student has gained over the network whose place it took."""
    over = choice.over(BEFORE)
    if card.smaller is None or over is None:
        return []
    before = card.smaller
    drop = (before.val_accuracy - choice.shipped.val_accuracy) * 100
    return [
        f"By {before.by}, this network has {before.multiply_adds_after / before.multiply_adds:.0%} of the multiply-adds of "
        f"the {before.architecture} that it learnt from. As shipped it ran here at {over[0]:.2f} times that network's speed "
        f"for one image and {over[1]:.2f} times in batches of 32 (FP32, ONNX Runtime, one thread), and has "
        f"{drop:.2f} points less accuracy on val."
    ]


def _found_and_chosen(
    card: ModelCard, fp32: bytes, val: PackedSplit, test: PackedSplit, *, space: Space, params: QuantizeParams
) -> tuple[Found, Choice]:
    """Search and measure; where no INT8 form is good enough and training could change that, train and do both again."""
    train = load_sample(PACKED)  # without stored variants: ranges are set on images that the world sent
    classifier = load_model(family_folder(card.family))[0]
    budgets = Budgets(params.max_accuracy_drop, params.max_class_drop, params.min_speedup)
    beside: dict[str, Answers] = {variants.TORCH: variants.TorchForm(classifier)}
    if (first := onnx_before(card, opset_of(fp32))) is not None:
        beside[BEFORE] = OnnxModel(first, threads=1)

    def choice_of(found: Found) -> Choice:
        with variants.one_thread():
            return choose(
                found.forms,
                HeldOut(val.images, val.labels, test.images, test.labels),
                card.labels,
                budgets,
                beside=beside,
                seconds=params.measure_seconds,
                judge_speed=space.profile.measured_here,
            )

    found = search([Network("", fp32)], train.images, train.labels, space)
    choice = choice_of(found)
    is_wanted, why = worth_training(choice, budgets, judge_speed=space.profile.measured_here)
    if not is_wanted or not params.qat_epochs:
        found.trials.append(
            Trial(_TRAINING, None, taken=False, reason=f"quantize.qat_epochs is 0, {why}" if is_wanted else why)
        )
        return found, choice
    meta = load_meta(PACKED)
    tuned = fine_tune(
        Calibrated(classifier, card.calibration.temperature if card.calibration else 1.0),
        train if meta.store == "stream" else load_split(PACKED, "train"),
        val,
        meta.policy,
        train.images[calibration_indices(train.labels, params.calibration_images)],
        rounding=Rounding.of(space.profile, space.activations),
        epochs=params.qat_epochs,
        rate=params.qat_rate,
        device=choose_device("auto"),
    )
    found.trials.append(Trial(_TRAINING, None, taken=tuned.best_epoch > 0, reason=f"{tuned}; {why}"))
    if not tuned.best_epoch:
        return found, choice
    data = onnx_bytes(tuned.model, card=card, opset=opset_of(fp32))
    search([Network(QAT, data, learnt_from=fp32)], train.images, train.labels, space, found)
    return found, choice_of(found)


def _forms(choice: Choice, torch_folder: Path) -> list[variants.Variant]:
    """Size, speed and memory of torch, FP32 in ONNX Runtime, the integer form if any, and what else is shipped."""
    path = torch_folder / MODEL_TORCH
    memory = measure_memory("torch", torch_folder, BATCH_SIZES[-1])
    found = [variants.Variant(variants.TORCH, False, path.stat().st_size / 1e6, memory, choice.beside[variants.TORCH])]
    told = {"fp32": choice.reference} | ({"int8": choice.int8} if choice.int8 else {})
    if not any(choice.shipped is one for one in told.values()):
        told[choice.shipped.form.name] = choice.shipped
    with tempfile.TemporaryDirectory(prefix="visionloop-forms-") as folder:
        for name, one in told.items():
            file = Path(folder) / MODEL_ONNX
            file.write_bytes(one.form.data)
            memory = measure_memory(one.form.runtime, file, BATCH_SIZES[-1])
            found.append(variants.Variant(name, one is choice.shipped, one.megabytes, memory, one.speeds[1]))
    return found


if __name__ == "__main__":
    raise SystemExit(run_stage(main))

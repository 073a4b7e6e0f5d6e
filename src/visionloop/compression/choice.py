"""The forms of a model side by side on this machine, and which of them is shipped: budgets decide, on val, never on test.

A form is a graph and the runtime that runs it. All are measured in one process, call by call in turn, so that another load
on the machine slows them alike.

Does not cover: making forms (`quantize`, `search`) and memory (`memory`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from visionloop.card import Compute, Precision, Runtime
from visionloop.compression.parity import accuracy
from visionloop.errors import ArtifactError
from visionloop.evaluation.calibration import calibration_error
from visionloop.evaluation.metrics import wilson
from visionloop.features import softmax
from visionloop.progress import track
from visionloop.runtime import Answers, Floats, Images, Latency, OnnxModel, compare_latency

BATCH_SIZES = (1, 8, 32)  # one image as it comes, a batch half filled by waiting, and a full dynamic batch
BEFORE = "before, fp32"  # what a pruned network or a student took the place of, in ONNX Runtime
_JUDGED = (1, 32)  # by these the verdict is made
THREADS = (1, 2)  # with one the verdict is made: a server under load runs several calls side by side, and the ratio holds
_CONFIDENCE = 0.95
# What medians of ratios scatter by on a busy machine: a form of another runtime, or one with more rounding, must gain more.
_SCATTER = 1.1
_RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
QAT = "qat"  # the name of the network that was trained with INT8's rounding


@dataclass(frozen=True)
class Form:
    """One way to ship the model."""

    name: str  # as "int8 equalised, openvino"
    data: bytes
    precision: Precision = "fp32"
    runtime: Runtime = "onnxruntime"
    compute: Compute = "fp32"
    error: float = 0.0  # of its logits on training images, see `parity.logit_error`
    says: str = ""  # how it was made
    never: str = ""  # why it is measured and not shipped; "" where it may be
    network: str = ""  # which of the float networks it is made of

    @property
    def kind(self) -> str:
        """What it is, as the card's sentence says it: "INT8", "INT8 after quantization-aware training"."""
        made = {"": "", QAT: " after quantization-aware training"}.get(self.network, f" of the network '{self.network}'")
        return f"{self.precision.upper()}{made}"

    def load(self, threads: int) -> OnnxModel:
        """The form in its runtime."""
        return OnnxModel(self.data, threads=threads, runtime=self.runtime, compute=self.compute)


@dataclass(frozen=True)
class HeldOut:
    """The images that all forms answer."""

    val_images: Images
    val_labels: npt.NDArray[np.int64]
    test_images: Images
    test_labels: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Budgets:
    """What a form may lose and has to gain against FP32 in ONNX Runtime."""

    max_accuracy_drop: float  # on val
    max_class_drop: float  # of any class's recall on val
    min_speedup: float  # at batch size 1 and at 32


@dataclass(frozen=True)
class Measured:
    """A form and what was measured of it. Times are medians of calls in turn."""

    form: Form
    val_accuracy: float
    val_accuracy_low: float  # Wilson's interval, 95 %
    val_accuracy_high: float
    worst_class: str  # of the lowest recall on val
    worst_class_recall: float
    most_dropped_class: str  # whose recall on val falls most against FP32
    class_drop: float
    test_accuracy: float
    test_calibration_error: float  # the temperature was fitted before any rounding
    agreement: float  # share of val and test images with the same first class as FP32
    speeds: Mapping[int, Sequence[Latency]]  # by threads; a `Latency` per batch size
    speedup_batch_1: float
    speedup_batch_32: float

    @property
    def megabytes(self) -> float:
        """Of its file; 10^6 bytes."""
        return len(self.form.data) / 1e6

    @property
    def speedup(self) -> float:
        """The geometric mean of both, by which forms that pass are compared."""
        return math.sqrt(self.speedup_batch_1 * self.speedup_batch_32)

    @property
    def least_speedup(self) -> float:
        """The smaller of both."""
        return min(self.speedup_batch_1, self.speedup_batch_32)

    def latency(self, batch_size: int, threads: int = 1) -> Latency:
        """Of one batch size."""
        return next(one for one in self.speeds[threads] if one.batch_size == batch_size)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a form may be shipped, and why. The reason holds no measured time, so equal answers give equal cards."""

    passes: bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """Every form with its verdict, the one that is shipped, and the sentence for the card."""

    forms: Sequence[tuple[Measured, Verdict]]  # the first is FP32 in ONNX Runtime, which always may be shipped
    shipped: Measured
    reason: str
    beside: Mapping[str, Sequence[Latency]]  # what was only timed, with one thread
    failed: Mapping[str, str]  # form -> why it could not be loaded or run

    @property
    def reference(self) -> Measured:
        """FP32 in ONNX Runtime."""
        return self.forms[0][0]

    def over(self, name: str) -> tuple[float, float] | None:
        """How many times as fast the shipped form is as what stands beside, by batch sizes 1 and 32 and with one thread."""
        if name not in self.beside:
            return None
        one, full = (_at(self.beside[name], size).p50_ms / self.shipped.latency(size).p50_ms for size in _JUDGED)
        return one, full

    @property
    def int8(self) -> Measured | None:
        """The integer form to speak of: the shipped one, else the fastest that keeps the budgets, else the most accurate."""
        found = [(one, verdict) for one, verdict in self.forms if one.form.precision == "int8" and not one.form.never]
        if self.shipped.form.precision == "int8" or not found:
            return self.shipped if found else None
        return max(found, key=lambda item: (item[1].passes, item[0].val_accuracy, item[0].speedup))[0]


def choose(
    forms: Sequence[Form],
    held_out: HeldOut,
    labels: Sequence[str],
    budgets: Budgets,
    *,
    beside: Mapping[str, Answers] | None = None,
    seconds: float = 2.0,
    judge_speed: bool = True,
) -> Choice:
    """Measure `forms`, of which the first is FP32 in ONNX Runtime, about `seconds` a batch size, and choose.

    What stands `beside` them is timed in the same turns; who gives it sees to its threads. Without `judge_speed` (a target
    that is not this machine) times decide nothing.

    >>> choose(forms, held_out, labels, budgets).shipped.form.precision
    'int8'
    """
    answers: dict[str, tuple[Floats, Floats]] = {}
    failed = {}
    for form in track(forms, "accuracy of forms"):
        try:
            model = form.load(0)
            answers[form.name] = (model.run_all(held_out.val_images)[0], model.run_all(held_out.test_images)[0])
        except ArtifactError as error:
            failed[form.name] = str(error)
            if form is forms[0]:
                raise
    forms = [form for form in forms if form.name in answers]
    speeds: dict[str, dict[int, tuple[Latency, ...]]] = {}
    for threads in THREADS:
        models: dict[str, Answers] = {form.name: form.load(threads) for form in forms}
        if threads == THREADS[0]:
            models = {**(beside or {}), **models}
        sizes = BATCH_SIZES if threads == THREADS[0] else _JUDGED
        for name, found in measure_speed(models, held_out.val_images, seconds, sizes).items():
            speeds.setdefault(name, {})[threads] = found
    measured = [
        _measured(
            form,
            answers=answers[form.name],
            reference=answers[forms[0].name],
            held_out=held_out,
            labels=labels,
            speeds=speeds[form.name],
            reference_speeds=speeds[forms[0].name],
        )
        for form in forms
    ]
    judged = [(measured[0], Verdict(True, "it is what the others are compared with"))]
    judged += [(one, judge(one, measured[0], budgets, judge_speed=judge_speed)) for one in measured[1:]]
    shipped, reason = pick(judged, judge_speed=judge_speed and budgets.min_speedup > 0)
    return Choice(judged, shipped, reason, {name: speeds[name][THREADS[0]] for name in beside or {}}, failed)


def judge(one: Measured, reference: Measured, budgets: Budgets, *, judge_speed: bool = True) -> Verdict:
    """Whether a form keeps the budgets against FP32.

    Fast enough is `min_speedup` at each of both batch sizes: what is slower with one image is not made good by a batch. The
    test images do not decide, so that their accuracy stays an honest figure.
    """
    drop = reference.val_accuracy - one.val_accuracy
    lost = f"{drop * 100:.2f} points of accuracy on val" if drop > 0 else "no accuracy on val"
    speed = f"{_least_speedup(one, budgets):g} x the speed of FP32"
    if one.form.never:
        return Verdict(False, one.form.never)
    if too_much := _loses_too_much(one, reference, budgets):
        return Verdict(False, too_much)
    if not judge_speed:
        return Verdict(
            True, f"it loses {lost} ({budgets.max_accuracy_drop * 100:g} points allowed); its speed is not measured"
        )
    if _is_slow(one, budgets):
        return Verdict(
            False, f"it loses {lost}, but ran here at less than {speed} at batch size {_JUDGED[0]} or {_JUDGED[1]}"
        )
    allowed = f"{budgets.max_accuracy_drop * 100:g} points allowed"
    return Verdict(
        True, f"it loses {lost} ({allowed}) and ran here at {speed} or more at batch sizes {_JUDGED[0]} and {_JUDGED[1]}"
    )


def worth_training(choice: Choice, budgets: Budgets, *, judge_speed: bool = True) -> tuple[bool, str]:
    """Whether training with INT8's rounding could give an INT8 form to ship where there is none, and why.

    Training changes what a form answers and not how fast: it can help where no INT8 form is good enough, and one that loses
    too much would be shipped if it did not.

    >>> worth_training(choice, budgets)
    (False, 'not needed: int8 as is keeps the budgets')
    """
    integers = [(one, verdict) for one, verdict in choice.forms if one.form.precision == "int8" and not one.form.never]
    if not integers:
        return False, "of no use: no INT8 form could be made that may be shipped"
    for one, verdict in integers:
        if verdict.passes:
            return False, f"not needed: {one.form.name} keeps the budgets"
    wrong = [
        (one, verdict)
        for one, verdict in integers
        if _loses_too_much(one, choice.reference, budgets) and not (judge_speed and _is_slow(one, budgets))
    ]
    if not wrong:
        return False, "of no use: no INT8 form is fast enough, and training makes none faster"
    nearest, verdict = max(wrong, key=lambda item: item[0].val_accuracy)
    return True, f"of {nearest.form.name}: {verdict.reason}"


def _loses_too_much(one: Measured, reference: Measured, budgets: Budgets) -> str:
    """The budget of accuracy that a form misses, as a sentence; "" where it keeps both."""
    drop = reference.val_accuracy - one.val_accuracy
    if drop > budgets.max_accuracy_drop + 1e-9:
        return (
            f"it loses {drop * 100:.2f} points of accuracy on val, more than the {budgets.max_accuracy_drop * 100:g} allowed"
        )
    if one.class_drop > budgets.max_class_drop + 1e-9:
        return (
            f"it loses {one.class_drop * 100:.1f} points of the recall of {one.most_dropped_class!r} on val, more than the "
            f"{budgets.max_class_drop * 100:g} allowed of one class"
        )
    return ""


def _least_speedup(one: Measured, budgets: Budgets) -> float:
    # Of the same bits in another runtime nothing is gained but speed, so scatter must not decide.
    return max(budgets.min_speedup, _SCATTER if one.form.precision == "fp32" else 0)


def _is_slow(one: Measured, budgets: Budgets) -> bool:
    return one.least_speedup < _least_speedup(one, budgets)


def pick(judged: Sequence[tuple[Measured, Verdict]], *, judge_speed: bool = True) -> tuple[Measured, str]:
    """The form to ship and the sentence for the card; `judged[0]` is FP32 in ONNX Runtime.

    Of those that keep the budgets the fastest (without `judge_speed` the smallest); of those within a tenth of it, one that
    ONNX Runtime runs, and then the one with the least error on training images.
    """
    passing = [(one, verdict) for one, verdict in judged[1:] if verdict.passes]
    if passing:
        if judge_speed:
            fastest = max(one.speedup for one, _ in passing)
            passing = [(one, verdict) for one, verdict in passing if one.speedup * _SCATTER >= fastest]
        else:
            smallest = min(one.megabytes for one, _ in passing)
            passing = [(one, verdict) for one, verdict in passing if one.megabytes <= smallest * _SCATTER]
        one, verdict = min(passing, key=lambda item: (item[0].form.runtime != "onnxruntime", item[0].form.error))
        return one, f"{one.form.kind} is shipped, for {_RUNTIMES[one.form.runtime]}: {verdict.reason}."
    reference = judged[0][0]
    others = [(one, verdict) for one, verdict in judged[1:] if one.form.precision != "fp32" and not one.form.never]
    if not others:
        return reference, "FP32 is shipped: no other form could be made and run."
    nearest, verdict = max(others, key=lambda item: (item[0].val_accuracy, -item[0].class_drop, -item[0].form.error))
    return (
        reference,
        f"FP32 is shipped: of {len(others)} other forms none keeps the budgets; the nearest is {nearest.form.kind}: "
        f"{verdict.reason}.",
    )


def measure_speed(
    forms: Mapping[str, Answers], images: Images, seconds: float = 2.0, batch_sizes: Sequence[int] = BATCH_SIZES
) -> dict[str, tuple[Latency, ...]]:
    """Time the forms of a model call by call in turn at each batch size, about `seconds` a batch size.

    `images` uint8 [M, H, W, 3] with M at least 1 fill the batches.
    """
    speeds: dict[str, tuple[Latency, ...]] = dict.fromkeys(forms, ())
    for batch_size in track(batch_sizes, "speed by batch size"):
        repeats = _repeats(forms, images, batch_size, seconds)
        for name, found in compare_latency(forms, images, [batch_size], repeats).items():
            speeds[name] += found
    return speeds


def flat(choice: Choice) -> dict[str, float]:
    """FP32 and the integer form as flat numbers, for `dvc metrics`: "int8_val_accuracy", "speedup_batch_32", ..."""
    numbers: dict[str, float] = {}
    int8 = choice.int8
    for name, one in (("fp32", choice.reference), ("int8", int8)):
        if one is None:
            continue
        numbers |= {
            f"{name}_megabytes": one.megabytes,
            f"{name}_val_accuracy": one.val_accuracy,
            f"{name}_test_accuracy": one.test_accuracy,
            f"{name}_test_calibration_error": one.test_calibration_error,
        }
    if int8:
        numbers["int8_agreement"] = int8.agreement
        numbers["speedup_batch_1"] = int8.speedup_batch_1
        numbers["speedup_batch_32"] = int8.speedup_batch_32
    over = choice.over(BEFORE)
    if over is not None:
        numbers["speedup_over_first_network_batch_1"], numbers["speedup_over_first_network_batch_32"] = over
    return numbers


def _measured(
    form: Form,
    *,
    answers: tuple[Floats, Floats],
    reference: tuple[Floats, Floats],
    held_out: HeldOut,
    labels: Sequence[str],
    speeds: Mapping[int, Sequence[Latency]],
    reference_speeds: Mapping[int, Sequence[Latency]],
) -> Measured:
    right = answers[0].argmax(axis=1) == held_out.val_labels
    recalls, before = (_recalls(values[0], held_out.val_labels, len(labels)) for values in (answers, reference))
    drops = before - recalls
    worst, dropped = int(np.nanargmin(recalls)), int(np.nanargmax(drops))
    low, high = wilson(int(right.sum()), len(right), _CONFIDENCE)
    first = [np.concatenate(pair).argmax(axis=1) for pair in (answers, reference)]
    one, full = (_at(reference_speeds[THREADS[0]], size).p50_ms / _at(speeds[THREADS[0]], size).p50_ms for size in _JUDGED)
    return Measured(
        form=form,
        val_accuracy=float(right.mean()),
        val_accuracy_low=low,
        val_accuracy_high=high,
        worst_class=labels[worst],
        worst_class_recall=float(recalls[worst]),
        most_dropped_class=labels[dropped],
        class_drop=float(drops[dropped]),
        test_accuracy=accuracy(answers[1], held_out.test_labels),
        test_calibration_error=calibration_error(softmax(answers[1]), held_out.test_labels),
        agreement=float((first[0] == first[1]).mean()),
        speeds=speeds,
        speedup_batch_1=one,
        speedup_batch_32=full,
    )


def _recalls(logits: Floats, targets: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.float64]:
    """[K]; NaN where a class has no image."""
    count = np.bincount(targets, minlength=num_classes).astype(np.float64)
    right = np.bincount(targets[logits.argmax(axis=1) == targets], minlength=num_classes)
    recalls: npt.NDArray[np.float64] = np.divide(right, count, out=np.full(num_classes, np.nan), where=count > 0)
    return recalls


def _at(latencies: Sequence[Latency], batch_size: int) -> Latency:
    return next(one for one in latencies if one.batch_size == batch_size)


def _repeats(forms: Mapping[str, Answers], images: Images, batch_size: int, seconds: float) -> int:
    """How many rounds take about `seconds`, by the fastest of a few: an interrupted call must not decide."""
    batch = np.ascontiguousarray(images[np.arange(batch_size) % len(images)])
    rounds: list[float] = []
    start = time.perf_counter()
    while len(rounds) < 2 or (len(rounds) < 6 and time.perf_counter() - start < seconds):
        begun = time.perf_counter()
        for form in forms.values():
            form.run(batch)
        rounds.append(time.perf_counter() - begun)
    return int(np.clip(seconds / (2 * min(rounds)), 7, 2000))

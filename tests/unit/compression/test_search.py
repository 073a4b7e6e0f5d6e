"""visionloop.compression.search, targets and page: what is tried in which order, what a target takes, what the page says."""

from __future__ import annotations

import copy
import csv
import io
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.onnx_models import TEST, TRAIN, VAL, digits
from tests.torch_models import OPSET, Family, fresh, fresh_onnx
from visionloop.compression.choice import Budgets, Choice, HeldOut, choose
from visionloop.compression.contract import check_graph
from visionloop.compression.export import onnx_bytes
from visionloop.compression.graph import weighted_nodes
from visionloop.compression.page import COLUMNS, About, as_csv, as_json, as_page
from visionloop.compression.search import Found, Network, Space, search
from visionloop.compression.targets import Target, processor, profile, warnings

DATA = digits()
IMAGES, LABELS = DATA.images[TRAIN][:200], DATA.labels[TRAIN][:200]


def found(target: Target = "cpu", seconds: float = 60, here: Target = "cpu", **changes: object) -> Found:
    """A search for `target` as on a processor `here`: what is tried for a processor without VNNI depends on both."""
    space = {"runtimes": ("onnxruntime", "openvino"), "activations": "uint8", "calibration_images": 64, **changes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("visionloop.compression.search.processor", lambda: here)
        return search(
            [Network("", fresh_onnx("cnn"))],
            IMAGES,
            LABELS,
            Space(profile(target), seconds=seconds, **space),  # type: ignore[arg-type]
        )


@pytest.fixture(scope="module")
def whole() -> Found:
    return found()


@pytest.fixture(scope="module")
def choice(whole: Found) -> Choice:
    held_out = HeldOut(DATA.images[VAL][:100], DATA.labels[VAL][:100], DATA.images[TEST][:50], DATA.labels[TEST][:50])
    return choose(whole.forms, held_out, tuple("0123456789"), Budgets(1, 1, 0), seconds=0.05)


def test_every_kind_of_change_is_tried_and_the_forms_run_in_both_runtimes(whole: Found) -> None:
    names = [trial.name for trial in whole.trials]
    order = [
        "optimised graph", "int8 as is", "7-bit weights", "only products in integers", "one scale for all channels",
        "8 calibration images", "16 calibration images", "64 calibration images", "ranges by entropy",
        "ranges by percentile", "equalised convolutions", "SmoothQuant", "bias correction of int8",
        "1 most sensitive layer in float",
    ]  # fmt: skip
    assert names[: len(order)] == order
    assert "dynamic ranges" in names and names[-1].endswith(", openvino")
    forms = {form.name: form.runtime for form in whole.forms}
    assert list(forms)[:3] == ["fp32", "int8 as is", "int8"]
    assert forms["fp32, openvino"] == forms["int8, openvino"] == "openvino"
    assert not whole.timed_out and len(whole.layers) > 5
    never = {form.name: form.never for form in whole.forms if form.never}
    assert list(never) == ["int8 dynamic"] and "depends on the images" in never["int8 dynamic"]
    # What is kept never has a larger error than what the search began with.
    assert next(form.error for form in whole.forms if form.name == "int8") <= whole.trials[1].error  # type: ignore[operator]


def test_the_first_layer_stays_float_in_openvino_where_that_lowers_its_error(whole: Found) -> None:
    ending = ", first layer in float, openvino"
    trials = {trial.name: trial for trial in whole.trials if trial.name.endswith(ending)}
    forms = {form.name: form for form in whole.forms}
    assert trials
    for name, trial in trials.items():
        in_integers = forms[f"{name.removesuffix(ending)}, openvino"]
        assert trial.error is not None
        assert trial.taken == (name in forms) == (trial.error < 0.97 * in_integers.error)
        if trial.taken:
            first = weighted_nodes(onnx.load_from_string(whole.forms[0].data).graph)[0].name
            assert first in forms[name].says and forms[name].runtime == "openvino"


def test_a_search_without_time_has_the_forms_that_are_needed_and_says_what_was_left_out() -> None:
    short = found(seconds=0)
    names = [form.name for form in short.forms if "first layer" not in form.name]
    # Where sums are exact here, 7-bit weights are no better, and the form that the search began with stays alone.
    refined = ["int8"] if "int8" in names else []
    assert names == ["fp32", "int8 as is", *refined, "fp32, openvino", f"{'int8' if refined else 'int8 as is'}, openvino"]
    assert short.timed_out and short.layers == []
    left = {trial.name for trial in short.trials if trial.reason == "no time was left; raise quantize.search_seconds"}
    assert {"only products in integers", "SmoothQuant", "dynamic ranges"} <= left


@pytest.mark.parametrize("family", ["cnn", "vit"])
def test_every_form_keeps_to_the_rules_of_an_onnx_file(family: Family) -> None:
    """Shape inference and order of the nodes too: a form that parity would refuse must not be shipped before it."""
    card = fresh(family)[1]
    found = search(
        [Network("", fresh_onnx(family))], IMAGES, LABELS, Space(profile("cpu"), ("onnxruntime",), "uint8", 64, 60)
    )
    assert len(found.forms) >= 3
    for form in found.forms:
        assert check_graph(form.data, card, form.name).nodes > 10


def test_a_network_that_learnt_to_be_rounded_gives_integers_only_and_is_judged_by_what_it_learnt_from() -> None:
    model, card = fresh("cnn")
    other = copy.deepcopy(model)
    with torch.no_grad():  # the opposite answers: by its own it would be nearly right, by the first network's it is not
        other.network.head.weight.neg_()
        other.network.head.bias.neg_()
    space = Space(profile("cpu"), ("onnxruntime",), "uint8", 64, 0)
    first = search([Network("", fresh_onnx("cnn"))], IMAGES, LABELS, space)
    names, layers, seconds = [form.name for form in first.forms], list(first.layers), first.seconds
    learnt = Network("qat", onnx_bytes(other, card=card, opset=OPSET), learnt_from=fresh_onnx("cnn"))
    both = search([learnt], IMAGES, LABELS, space, first)
    assert both is first and both.layers == layers and both.seconds > seconds
    assert [form.name for form in both.forms[: len(names)]] == names
    trained = both.forms[len(names) :]
    assert {form.precision for form in trained} == {"int8"} and {form.network for form in trained} == {"qat"}
    assert trained[0].name == "qat int8 as is"
    assert min(form.error for form in trained) > 1.5
    assert max(form.error for form in both.forms[: len(names)]) < 1
    assert {trial.network for trial in both.trials} == {"", "qat"}


def test_a_gpu_gets_half_precision_and_no_openvino() -> None:
    gpu = found("cuda", seconds=0, activations="int8")
    assert [form.name for form in gpu.forms] == ["fp32", "fp16", "int8 as is"]
    assert {form.never for form in gpu.forms} == {""}
    assert found("cpu", seconds=0, activations="int8").forms[1].never.startswith("signed activations are known to be slow")


def test_tensorrt_is_shipped_no_unsigned_activations() -> None:
    assert found("tensorrt", seconds=0, activations="uint8").forms[-1].never == "TensorRT takes no uint8 activations"
    assert found("tensorrt", seconds=0, activations="int8").forms[-1].never == ""


def test_seven_bits_need_no_proof_where_the_cut_sums_of_the_target_cannot_be_seen() -> None:
    elsewhere, here = found("cpu", seconds=0, here="cpu-vnni"), found("cpu-vnni", seconds=0, here="cpu-vnni")
    assert "7-bit weights" in next(form.says for form in elsewhere.forms if form.precision == "int8")
    assert all("8-bit weights" not in form.says for form in elsewhere.forms)
    assert "8-bit weights" in next(form.says for form in here.forms if form.precision == "int8")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("flags\t\t: fpu avx2 fma\n", "cpu"),
        ("flags\t\t: fpu avx512f avx512_vnni\nflags\t\t: fpu avx512f avx512_vnni\n", "cpu-vnni"),
        ("flags\t\t: fpu avx_vnni\nflags\t\t: fpu avx2\n", "cpu"),  # cores of two kinds: the weaker one counts
        ("Features\t: fp asimd asimddp\n", "cpu-vnni"),
        ("", "cpu"),
    ],
)
def test_the_processor_is_known_by_its_flags(text: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert processor(tmp_path / "cpuinfo") == profile("auto", tmp_path / "cpuinfo").target == target
    assert processor(tmp_path / "none") == "cpu"


def test_what_is_slow_on_a_target_is_said() -> None:
    assert warnings(profile("cpu-vnni"), "uint8", ["onnxruntime"]) == []
    assert warnings(profile("cpu-vnni"), "int8", ["onnxruntime"])[0].startswith("quantize.activations is int8: signed ")
    assert "weights of 7 bits are tried too" in warnings(profile("cpu"), "uint8", ["onnxruntime"])[0]
    gpu = warnings(profile("tensorrt"), "uint8", ["onnxruntime", "openvino"])
    assert [sentence.split(",")[0].split(":")[0] for sentence in gpu] == [
        "quantize.activations is uint8",
        "The target tensorrt is not this machine's processor",
        "OpenVINO does not run on tensorrt; quantize.runtimes is read as [onnxruntime].",
    ]


def test_the_page_the_table_and_the_data_say_the_same(whole: Found, choice: Choice) -> None:
    about = About("cpu", "a machine", ["A <warning>."], ["A note on a first network."])
    said = as_json(choice, whole, about)
    rows = list(csv.DictReader(io.StringIO(as_csv(choice))))
    assert tuple(rows[0]) == COLUMNS
    assert [row["form"] for row in rows] == [form["form"] for form in said["forms"]]
    assert [row["form"] for row in rows if row["shipped"] == "1"] == [said["shipped"]]
    assert float(rows[0]["speedup_batch_32"]) == 1
    assert all(0 <= float(row["val_accuracy_low"]) <= float(row["val_accuracy"]) <= 1 for row in rows)
    page = as_page(choice, whole, about)
    for text in (
        choice.reason,
        "A &lt;warning&gt;.",
        "A note on a first network.",
        "bias correction of int8",
        whole.layers[0].name,
        "95th percentile",
    ):
        assert text in page, text
    assert "<script" not in page and "http://" not in page and "https://" not in page
    assert np.isfinite([form["p95_ms_batch_1_2_threads"] for form in said["forms"]]).all()

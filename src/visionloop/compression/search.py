"""Which forms of a network are worth measuring: a search over recipes that ends on time and looks at training images only.

A recipe is judged by how far it moves the logits of training images that set no ranges. One thing is changed at a time, and
kept where it lowers that error; what leaves speed to gain or to lose (layers left out, another runtime) becomes a form of
its own, which `choice` measures. The order is that of what usually helps most, so a search cut short has the better part.

Does not cover: accuracy, speed and the verdict (`choice`), networks that were changed by training (give them as `Network`s).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import onnx

from visionloop.card import Compute, Precision, Runtime
from visionloop.compression.choice import Form
from visionloop.compression.graph import WEIGHTED, finish, prepare, weighted_nodes
from visionloop.compression.parity import logit_error
from visionloop.compression.quantize import Calibration, Quantizer, Recipe, calibration_indices, chained, half, products
from visionloop.compression.repairs import bias_corrected, equalised, smoothed
from visionloop.compression.sensitivity import LayerError, layer_errors
from visionloop.compression.targets import Activations, Profile, processor
from visionloop.errors import ArtifactError
from visionloop.progress import note
from visionloop.runtime import Floats, Images, OnnxModel, compare_latency, openvino_computes_bf16

_PROBES = 128  # training images by which recipes are judged
_HELPS = 0.97  # of the error before; less is scatter of the images that happened to be there
_SAME_RANGES = 1.05  # of the least error: fewer calibration images that come so near are enough
_FLOAT_SUMS = 1e-4  # what float sums in another order may move
_OTHER_METHODS: tuple[Calibration, ...] = ("entropy", "percentile")  # beside the largest and least value
_DYNAMIC = "int8 dynamic"
_OTHERS_COUNT = "its ranges are those of a whole batch, so an answer depends on the images that a server puts beside it"
_NO_TIME = "no time was left; raise quantize.search_seconds"
Change = Callable[[onnx.ModelProto], tuple[onnx.ModelProto, int]]  # a changed copy, and at how many places
_CHAIN_GAIN = 1.05  # a sum in integers costs accuracy, so it must gain this much speed


@dataclass(frozen=True, slots=True)
class Network:
    """A float network to make forms of; of several, the first is what the others are compared with."""

    name: str  # "" of the trained network itself, "qat" of one that learnt to be rounded
    data: bytes  # ONNX, FP32
    # The float network whose answers it learnt to give once it is rounded. Not rounded it gives others, so it is offered as
    # integers only, and these are judged by that network's answers.
    learnt_from: bytes | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One thing that was tried, and what came of it."""

    name: str
    error: float | None  # None: it could not be made, or there was no time
    taken: bool
    reason: str
    network: str = ""


@dataclass
class Found:
    """What a search came to."""

    forms: list[Form] = field(default_factory=list)  # the first is FP32 of the first network in ONNX Runtime
    trials: list[Trial] = field(default_factory=list)
    layers: list[LayerError] = field(default_factory=list)  # of the first network, the most sensitive first
    seconds: float = 0.0
    timed_out: bool = False


@dataclass(frozen=True)
class Space:
    """What may be tried."""

    profile: Profile
    runtimes: Sequence[Runtime]
    activations: Activations
    calibration_images: int  # at most
    seconds: float  # after these nothing new is begun

    @property
    def saturates_unseen(self) -> bool:
        """Whether sums are cut on the target and not here, where nothing then tells that 8-bit weights are wrong."""
        return self.profile.saturates and processor() == "cpu-vnni"


def search(
    networks: Sequence[Network],
    images: Images,
    labels: npt.NDArray[np.int64],
    space: Space,
    found: Found | None = None,
) -> Found:
    """Find forms of `networks`; `images` uint8 [N, H, W, 3] and `labels` [N] are of the training side.

    With `found` of an earlier search it goes on from there, with time of its own; these networks come after those of it.

    >>> search([Network("", fp32)], images, labels, space).forms[0].name
    'fp32'

    Raises:
        ArtifactError: the first network cannot be loaded.
    """
    began = time.monotonic()
    deadline = began + space.seconds
    calibration, probes = _divided(labels, space.calibration_images)
    found = found or Found()
    for network in networks:
        _One(network, images[calibration], images[probes], space, found).run(deadline, is_first=not found.forms)
    found.seconds += time.monotonic() - began
    found.timed_out = any(trial.reason == _NO_TIME for trial in found.trials)
    return found


class _One:
    """The search on one network: where it stands, and what it has found so far."""

    def __init__(self, network: Network, images: Images, probes: Images, space: Space, found: Found) -> None:
        self.network = network
        self.images = images
        self.probes = probes
        self.space = space
        self.found = found
        self.expected: Floats = OnnxModel(network.learnt_from or network.data, threads=1).run_all(probes)[0]
        self.count = len(images)  # that set the ranges
        self.made: dict[str, tuple[Quantizer, Recipe]] = {}  # name of an integer form -> how it can be made otherwise

    def run(self, deadline: float, *, is_first: bool) -> None:
        """Add forms, trials and, of the first network, the layers; after `deadline` (monotonic) nothing new is begun."""
        self.deadline = deadline
        floats = self.network.learnt_from is None
        if floats:
            self._form("fp32", self.network.data, "as exported; the runtime optimises it when it loads it")
        try:
            graph = prepare(self.network.data)
            if floats:
                self._optimised(graph)
            if floats and self.space.profile.half:
                self._form("fp16", half(graph), "weights and maps in 16 bits", precision="fp16")
            self._integers(Quantizer(graph, self.images), is_first=is_first)
        except ArtifactError as error:
            self._trial("int8", None, taken=False, reason=str(error))
        if "openvino" in self.space.runtimes and self.space.profile.measured_here:
            self._openvino()

    def _optimised(self, graph: onnx.ModelProto) -> None:
        """The float graph with folded norms and constants, in place of the exported one where it answers the same."""
        data = finish(graph)
        error = self._error(data)
        same = error < _FLOAT_SUMS
        self._trial("optimised graph", error, taken=same, reason="saved as the FP32 form" if same else "its answers differ")
        if same:
            self.found.forms[-1] = replace(self.found.forms[-1], data=data, says="the graph optimised and saved")

    def _integers(self, quantizer: Quantizer, *, is_first: bool) -> None:
        self.quantizer = quantizer
        graph = quantizer.graph.graph
        self.best = Recipe(chained(graph), activations=self.space.activations, seven_bits=self.space.saturates_unseen)
        data = quantizer.static(self.best)
        self.error = self._error(data)
        self.made["int8 as is"] = (quantizer, self.best)
        self._form("int8 as is", data, self._words(self.best), precision="int8", error=self.error)
        self._trial("int8 as is", self.error, taken=True, reason="where the search begins")
        if self.space.profile.saturates and not self.space.saturates_unseen:
            # Whatever the time is: without, INT8 is often wrong there.
            self._better("7-bit weights", replace(self.best, seven_bits=True), is_needed=True)
        if self._in_time("only products in integers"):
            self._operators(replace(self.best, operators=products(graph)))
        self._better("one scale for all channels", replace(self.best, per_channel=False))
        self._calibration_images()
        for method in _OTHER_METHODS:
            self._better(f"ranges by {method}", replace(self.best, calibration=method))
        self._repair("equalised convolutions", equalised)
        self._repair("SmoothQuant", lambda graph: smoothed(graph, self.images[: self.count]))
        self._finished("int8", self.best, self.error)
        self._leave_out(is_first=is_first)
        if self._in_time("dynamic ranges"):
            self._dynamic()

    def _operators(self, alone: Recipe) -> None:
        """Sums and activations in integers too, where that gains more speed than it may scatter by."""
        if alone.operators == self.best.operators:
            return
        chain, apart = (self.quantizer.static(recipe) for recipe in (self.best, alone))
        error = self._error(apart)
        forms = {"chain": OnnxModel(chain, threads=1), "apart": OnnxModel(apart, threads=1)}
        times = {name: found[0].p50_ms for name, found in compare_latency(forms, self.probes, (32,), 9).items()}
        gain = times["apart"] / times["chain"]
        taken = (gain < _CHAIN_GAIN and error <= self.error) or error < 0.5 * self.error
        said = f"sums and activations in integers too: {gain:.2f} times the speed, error {self.error:.3f}"
        self._trial("only products in integers", error, taken=taken, reason=said)
        if taken:
            self.best, self.error = alone, error

    def _calibration_images(self) -> None:
        """The fewest whose error is within a twentieth of the least."""
        tried = {self.count: self.error}
        for count in sorted({max(8, self.count // 16), max(8, self.count // 4)}):
            if count < self.count and self._in_time(f"{count} calibration images"):
                tried[count] = self._error(self.quantizer.static(self.best, count=count))
        chosen = min(count for count, error in tried.items() if error <= _SAME_RANGES * min(tried.values()))
        for count, error in sorted(tried.items()):
            reason = "the fewest within a twentieth of the least error" if count == chosen else f"{chosen} were taken"
            self._trial(f"{count} calibration images", error, taken=count == chosen, reason=reason)
        self.count, self.error = chosen, tried[chosen]

    def _better(self, name: str, other: Recipe, *, is_needed: bool = False) -> None:
        """Go on with another recipe where it lowers the error."""
        if not is_needed and not self._in_time(name):
            return
        try:
            error = self._error(self.quantizer.static(other, count=self.count))
        except ArtifactError as problem:
            self._trial(name, None, taken=False, reason=str(problem))
            return
        taken = error < _HELPS * self.error
        self._trial(name, error, taken=taken, reason=f"{self.error:.4f} without")
        if taken:
            self.best, self.error = other, error

    def _repair(self, name: str, change: Change) -> None:
        """Go on with a changed graph where it lowers the error."""
        changed = self._changed(name, change, self.best, self.error)
        if changed:
            self.quantizer, self.error = changed

    def _changed(self, name: str, change: Change, recipe: Recipe, error: float) -> tuple[Quantizer, float] | None:
        """A changed graph's quantizer and error, where that is lower than `error`."""
        if not self._in_time(name):
            return None
        try:
            graph, places = change(self.quantizer.graph)
            if not places:
                self._trial(name, None, taken=False, reason="the graph has no place for it")
                return None
            quantizer = Quantizer(graph, self.images)
            after = self._error(quantizer.static(recipe, count=self.count))
        except ArtifactError as problem:
            self._trial(name, None, taken=False, reason=str(problem))
            return None
        taken = after < _HELPS * error
        self._trial(name, after, taken=taken, reason=f"at {places} places; {error:.4f} without")
        return (quantizer, after) if taken else None

    def _leave_out(self, *, is_first: bool) -> None:
        """A form with the most sensitive layers in float: as many as halve the error, of 1, 2, 4, ... at most a third."""
        # What is left of the time is shared, so that the layers left out can still be tried.
        until = time.monotonic() + max(0.0, (self.deadline - time.monotonic()) * 0.7)
        layers = layer_errors(self.quantizer, self.best, self.probes[:64], self.expected[:64], deadline=until)
        if is_first:
            self.found.layers = list(layers)
        most = min(max(1, len(layers) // 3), len(layers) - 1)
        for number in (2**power for power in range(10)):
            name = f"{number} most sensitive layer{'s' if number > 1 else ''} in float"
            if number > most or not self._in_time(name):
                return
            recipe = replace(self.best, excluded=tuple(layer.name for layer in layers[:number]))
            error = self._error(self.quantizer.static(recipe, count=self.count))
            is_last = error <= 0.5 * self.error or 2 * number > most
            taken = is_last and error < _HELPS * self.error
            self._trial(name, error, taken=taken, reason=f"{self.error:.4f} with all in integers")
            if taken:
                self._finished(f"int8, {number} in float", recipe, error)
            if is_last:
                return

    def _finished(self, name: str, recipe: Recipe, error: float) -> None:
        """A form, its biases corrected where that helps."""
        quantizer = self.quantizer
        data = quantizer.static(recipe, count=self.count)
        images = self.images[: self.count]
        better = self._changed(
            f"bias correction of {name}", lambda graph: bias_corrected(graph, data, images), recipe, error
        )
        words = self._words(recipe)
        if better:
            quantizer, error = better
            data, words = quantizer.static(recipe, count=self.count), f"{words}, biases corrected"
        self.made[name] = (quantizer, recipe)
        self._form(name, data, words, precision="int8", error=error)

    def _dynamic(self) -> None:
        try:
            data = self.quantizer.dynamic(seven_bits=self.best.seven_bits)
        except ArtifactError as problem:
            self._trial("dynamic ranges", None, taken=False, reason=str(problem))
            return
        error = self._error(data)
        self._form(_DYNAMIC, data, "MatMul and Gemm, ranges set at each call", precision="int8", error=error)
        self._trial("dynamic ranges", error, taken=True, reason="a form of its own")

    def _openvino(self) -> None:
        """The graphs that came out best, in OpenVINO."""
        own = [form for form in self.found.forms if form.network == self.network.name]
        is_refined = any(form.name.endswith("int8") for form in own)
        for form in own:
            best = form.name.endswith(("fp32", "int8", "in float")) or (form.name.endswith("as is") and not is_refined)
            if not best:
                continue
            error = self._in_openvino(form, f"{form.name}, openvino", "fp32")
            if error is not None and form.precision == "int8":
                self._first_layer_in_float(form, below=_HELPS * error)
            if form.precision == "fp32" and openvino_computes_bf16():
                self._in_openvino(form, f"{form.name}, openvino bf16", "bf16")

    def _first_layer_in_float(self, form: Form, *, below: float) -> None:
        """An integer form whose first layer, of three channels, stays float in OpenVINO, where that lowers the error there.

        OpenVINO answered a ResNet-18 of random weights with 0.26 of the logits' spread of error with that layer in integers
        and with 0.04 without, a trained one with 0.030 and 0.007 (AVX2); ONNX Runtime's error was the same either way.
        """
        made = self.made.get(form.name.removeprefix(f"{self.network.name} "))
        if made is None:
            return
        quantizer, recipe = made
        first = weighted_nodes(quantizer.graph.graph)[0].name
        if first in recipe.excluded:
            return
        other = replace(recipe, excluded=(*recipe.excluded, first))
        try:
            data = quantizer.static(other, count=self.count)
        except ArtifactError:
            return  # it is the only one
        moved = replace(form, data=data, says=self._words(other))
        self._in_openvino(moved, f"{form.name}, first layer in float, openvino", "fp32", below=below)

    def _in_openvino(self, form: Form, name: str, compute: Compute, below: float = float("inf")) -> float | None:
        """A form with the error that it has there, where that is `below`; the same integers are not rounded alike."""
        moved = replace(form, name=name, runtime="openvino", compute=compute)
        try:
            error = logit_error(self.expected, moved.load(1).run_all(self.probes)[0])
        except ArtifactError as problem:
            self._trial(name, None, taken=False, reason=str(problem))
            return None
        taken = error < below
        said = f"a form of its own; {form.error:.4f} in ONNX Runtime" if taken else "no better than with all in integers"
        self._trial(name, error, taken=taken, reason=said)
        if taken:
            self.found.forms.append(replace(moved, error=error))
        return error

    def _error(self, data: bytes) -> float:
        return logit_error(self.expected, OnnxModel(data, threads=1).run_all(self.probes)[0])

    def _in_time(self, name: str) -> bool:
        if time.monotonic() < self.deadline:
            return True
        self._trial(name, None, taken=False, reason=_NO_TIME)
        return False

    def _words(self, recipe: Recipe) -> str:
        scales = "a scale per channel" if recipe.per_channel else "one scale per tensor"
        alone = set(recipe.operators) <= set(WEIGHTED)
        carried = "only products in integers" if alone else "sums and activations in integers too"
        left = f"; in float: {', '.join(recipe.excluded)}" if recipe.excluded else ""
        return (
            f"{recipe.activations} activations, {7 if recipe.seven_bits else 8}-bit weights, {scales}, ranges by "
            f"{recipe.calibration} of {self.count} images, {carried}{left}"
        )

    def _form(self, name: str, data: bytes, says: str, *, precision: Precision = "fp32", error: float = 0.0) -> None:
        if any(data == form.data for form in self.found.forms):
            return  # nothing that was tried was better
        never = _OTHERS_COUNT if name == _DYNAMIC else ""
        if precision == "int8" and self.space.activations == "int8" and self.space.profile.activations == "uint8":
            never = "signed activations are known to be slow on x86 and are not shipped"
        if precision == "int8" and self.space.activations == "uint8" and self.space.profile.target == "tensorrt":
            never = "TensorRT takes no uint8 activations"
        full = f"{self.network.name} {name}".strip()
        self.found.forms.append(Form(full, data, precision, error=error, says=says, never=never, network=self.network.name))

    def _trial(self, name: str, error: float | None, *, taken: bool, reason: str) -> None:
        self.found.trials.append(Trial(name, error, taken, reason, self.network.name))
        said = "" if error is None else f", error {error:.4f}"
        note(f"search: {name}{said}{', taken' if taken else ''}")


def _divided(labels: npt.NDArray[np.int64], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which images set ranges and which judge recipes; the same where there are too few for both."""
    calibration = calibration_indices(labels, count)
    left = np.setdiff1d(np.arange(len(labels)), calibration)
    if len(left) < _PROBES // 4:
        return calibration, calibration[:_PROBES]
    return calibration, left[calibration_indices(labels[left], _PROBES)]

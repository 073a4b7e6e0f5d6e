"""Which processor a model is made for, and what is known to be slow there.

`cpu-vnni` multiplies uint8 by int8 in one exact instruction (x86 since about 2019, ARM with dot product). `cpu` does not:
sums of two products are cut at 16 bits, so weights of 7 bits are tried too, and INT8 gains less. `cuda` and `tensorrt` take
FP16 and signed INT8; their speed cannot be measured here.

Does not cover: choosing among the forms (`choice`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Target = Literal["cpu-vnni", "cpu", "cuda", "tensorrt"]
Activations = Literal["uint8", "int8"]

# As Linux names them in /proc/cpuinfo: Intel and AMD with AVX512 or AVX, ARM's dot product.
_EXACT = ("avx512_vnni", "avx_vnni", "asimddp")


@dataclass(frozen=True, slots=True)
class Profile:
    """What a target takes."""

    target: Target
    activations: Activations  # type of the quantized activations that is fast there
    saturates: bool  # sums of uint8 x int8 are cut at 16 bits, unless weights have 7 bits
    half: bool  # FP16 is a form to ship
    measured_here: bool  # times on this machine say something about the target


_PROFILES: dict[Target, Profile] = {
    "cpu-vnni": Profile("cpu-vnni", "uint8", saturates=False, half=False, measured_here=True),
    "cpu": Profile("cpu", "uint8", saturates=True, half=False, measured_here=True),
    "cuda": Profile("cuda", "int8", saturates=False, half=True, measured_here=False),
    "tensorrt": Profile("tensorrt", "int8", saturates=False, half=True, measured_here=False),
}


def profile(asked: Literal["auto"] | Target, cpuinfo: Path = Path("/proc/cpuinfo")) -> Profile:
    """The profile of a target; `auto` is this machine's processor."""
    return _PROFILES[processor(cpuinfo) if asked == "auto" else asked]


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Target:
    """`cpu-vnni` where every processor has an exact integer product, else `cpu`."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return "cpu"  # the cautious one: 7 bits are then tried, and taken only where they help
    flags = [line.partition(":")[2].split() for line in lines if line.lower().startswith(("flags", "features"))]
    return "cpu-vnni" if flags and all(any(name in found for name in _EXACT) for found in flags) else "cpu"


def lack_of(asked: Literal["auto"] | Target, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Why a target cannot be measured by this processor, as a sentence; "" where it can, or need not be."""
    if asked != "cpu-vnni" or processor(cpuinfo) == "cpu-vnni":
        return ""
    return (
        "quantize.target is cpu-vnni, and this processor has no VNNI: it cuts the sums of 8-bit weights, so what is "
        "measured here would not be true there; run the stage on such a processor, or set target to auto."
    )


def warnings(chosen: Profile, activations: Activations, runtimes: Sequence[str]) -> list[str]:
    """Sentences on choices that are known to be slow or wrong on a target."""
    said = []
    if activations == "int8" and chosen.activations == "uint8":
        said.append(
            "quantize.activations is int8: signed activations ran at 0.2 to 1.1 times FP32 on x86, so they are measured "
            "and not shipped; take uint8."
        )
    if activations == "uint8" and chosen.target == "tensorrt":
        said.append("quantize.activations is uint8, which TensorRT does not take; take int8.")
    if chosen.saturates:
        said.append(
            "This target has no exact product of integers (VNNI or ARM's dot product): INT8 gains less there, and sums of "
            "8-bit weights may saturate, so weights of 7 bits are tried too."
        )
    if not chosen.measured_here:
        said.append(
            f"The target {chosen.target} is not this machine's processor: accuracy and size are measured, speed is not. The "
            "server of this project runs models on the processor; the file is for a server of yours."
        )
        if "openvino" in runtimes:
            said.append(f"OpenVINO does not run on {chosen.target}; quantize.runtimes is read as [onnxruntime].")
    return said

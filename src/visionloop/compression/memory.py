"""How much memory one form of a model takes, measured in a process that does nothing else.

`python -m visionloop.compression.memory onnxruntime|openvino|torch PATH BATCH_SIZE` imports what the form needs, notes the
resident memory, loads the form, answers a batch three times with one thread, and prints both figures as JSON. The peak is
the kernel's (VmHWM), set back before the loading, so a short-lived copy counts too.

Does not cover: memory of a GPU.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from visionloop.errors import ArtifactError

Kind = Literal["onnxruntime", "openvino", "torch"]
_CALLS = 3  # the first ones allocate
_KIBIBYTE = 1024 / 1e6


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process, in megabytes (10^6 bytes)."""

    growth_mb: float  # peak while loading and answering, above what the interpreter with its libraries held before
    process_mb: float  # peak of the whole process, interpreter and libraries included


def measure_memory(kind: Kind, path: Path, batch_size: int) -> Memory:
    """Load and run a form in a fresh process: a file for a runtime, a model folder for "torch".

    Raises:
        ArtifactError: the process fails, as it does where the form cannot be loaded.
    """
    command = [sys.executable, "-m", __name__, kind, str(path), str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise ArtifactError(f"The memory of {path} cannot be measured ({last[:200]}); rebuild it with `dvc repro`.")
    return Memory(**json.loads(done.stdout))


def main() -> None:
    """Measure the form that the command line names, in this process."""
    kind, path, batch_size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if kind == "torch":
        import torch

        from visionloop.compression.variants import TorchForm
        from visionloop.models import load_model

        torch.set_num_threads(1)
        before = _start()
        model, card = load_model(path)
        form, side = TorchForm(model), (card.preprocess.height, card.preprocess.width)
        for _ in range(_CALLS):
            form.run(np.zeros((batch_size, *side, 3), np.uint8))
    else:
        from visionloop.runtime import OnnxModel

        if kind == "openvino":
            import openvino  # noqa: F401 - a library is held before the form is loaded
        before = _start()
        onnx_model = OnnxModel(path.read_bytes(), threads=1, runtime="openvino" if kind == "openvino" else "onnxruntime")
        for _ in range(_CALLS):
            onnx_model.run(np.zeros((batch_size, onnx_model.height, onnx_model.width, 3), np.uint8))
    peak = _status("VmHWM")
    sys.stdout.write(json.dumps(asdict(Memory(round(peak - before, 2), round(peak, 2)))))


def _start() -> float:
    """Resident megabytes now, after the kernel's peak was set back to them (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _status(name: str) -> float:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.M)
    assert found, f"/proc/self/status has no {name}"
    return int(found[1]) * _KIBIBYTE


if __name__ == "__main__":
    main()

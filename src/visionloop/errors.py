"""One small tree of errors. Each message says what is wrong, what was got, and what to do next, in one sentence or two.

A foreign error (Pillow, onnxruntime, pydantic, OSError) is translated into one of these in the module that meets it, so
callers catch `VisionloopError` and print it; a traceback always means a fault of visionloop itself.
"""

from __future__ import annotations

from typing import ClassVar


class VisionloopError(Exception):
    """The root: anything that visionloop refuses or cannot do, said in a sentence for the user."""

    exit_code: ClassVar[int] = 1


class ConfigError(VisionloopError):
    """`params.yaml` or a command-line value is wrong; the message names the key, the value and what is allowed."""


class DataError(VisionloopError):
    """The data set as a whole cannot be used: no image, a class too small, a leak between the splits."""


class ImageError(VisionloopError):
    """One image cannot be used. `reason` is a short code that is counted in reports, metrics and the store."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class LabelError(VisionloopError):
    """A person's label cannot be taken. `reason` is a short code that stands beside the sentence in JSON."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ArtifactError(VisionloopError):
    """A model file, card or packed array is missing, damaged, or not the one that its card names."""


class ParityError(VisionloopError):
    """Two forms of one model (torch, ONNX, INT8, served) answer differently by more than the stated tolerance."""


class TrainingError(VisionloopError):
    """Training cannot go on: a loss that is not finite, a device that is not there, a checkpoint of other data."""


class PeerError(TrainingError):
    """Another of the processes that train together has ended; the exit code tells this from a fault of the process's own."""

    exit_code: ClassVar[int] = 3


class ServingError(VisionloopError):
    """Triton, a client or the store cannot do what was asked."""


class MonitoringError(VisionloopError):
    """A drift window or a reference cannot be used."""


class PipelineError(VisionloopError):
    """A stage, DVC, Prefect or another part of the running system failed."""


class BlockedError(VisionloopError):
    """A gate or a budget said no. Not a fault: the exit code is 2, so that scripts can tell it from one."""

    exit_code: ClassVar[int] = 2

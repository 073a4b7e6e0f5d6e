"""Files through the preprocessing, in whatever Python runs this: what it reads, and with which libraries.

`run` starts it in the interpreter of the served models, which has a Pillow of its own, so that the two can be compared pixel
by pixel. Does not cover: what a model says of the pixels (`serving.trial`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from visionloop.errors import ImageError, ServingError
from visionloop.files import sha256_bytes
from visionloop.preprocess import PreprocessSpec, decoder_versions, preprocess

_TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Pixels:
    """What one Python made of files."""

    decoder: dict[str, str]  # library -> version
    found: tuple[str, ...]  # per file the sha256 of its pixels, uint8 [H, W, 3], or the sentence that refuses it


def read(images: Sequence[bytes], spec: PreprocessSpec, max_pixels: int) -> Pixels:
    """Preprocess encoded images in this process."""
    found = []
    for data in images:
        try:
            found.append(sha256_bytes(preprocess(data, spec, max_pixels=max_pixels).tobytes()))
        except ImageError as error:
            found.append(str(error))
    return Pixels(decoder_versions(), tuple(found))


def run(python: Path, images: Sequence[bytes], spec: PreprocessSpec, max_pixels: int) -> Pixels:
    """As `read`, in the interpreter `python`, which can import `serving` and `visionloop`.

    Raises:
        ServingError: it fails; the message has its last line.
    """
    head = {"spec": asdict(spec), "max_pixels": max_pixels, "sizes": [len(data) for data in images]}
    try:
        done = subprocess.run(
            [python, "-m", "serving.pixels"], input=json.dumps(head).encode() + b"\n" + b"".join(images),
            capture_output=True, timeout=_TIMEOUT_SECONDS, check=True,
        )  # fmt: skip
        answer = json.loads(done.stdout)
        return Pixels(answer["decoder"], tuple(answer["found"]))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        last = (said.decode("utf-8", "replace").strip().splitlines() or ["without a word"])[-1]
        raise ServingError(
            f"The Python of the served models, {python}, does not read images ({last[:200]}); run `make setup` to set it up "
            "anew."
        ) from error


def main() -> None:
    """Read a line of JSON and the files after it from standard input; write what was found as JSON."""
    head = json.loads(sys.stdin.buffer.readline())
    images = [sys.stdin.buffer.read(size) for size in head["sizes"]]
    json.dump(asdict(read(images, PreprocessSpec(**head["spec"]), head["max_pixels"])), sys.stdout)


if __name__ == "__main__":
    main()

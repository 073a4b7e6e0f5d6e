"""What no value of params.yaml shows by itself: whether networks can be built, and weights, teacher and device are there.

`visionloop doctor` and `visionloop run` ask `problems`. Under DVC the first stage of a run asks, in a process of its own and
once for each params.yaml, so that a wrong architecture stops `dvc repro` before hours of `collect` and `clean`, and
no stage depends on the files of the networks for it.

Does not cover: whether the images suit the networks; stages say that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from pipeline.stages import PASSED, fingerprints
from visionloop.config import Params, load_params
from visionloop.errors import VisionloopError
from visionloop.files import write_text
from visionloop.paths import CARD, FEEDBACK, IMAGES, MODELS

_DIGITS = 1797  # known before they are collected


def problems(params: Params) -> Iterator[str]:
    """Everything that could be known before any stage runs and would stop one, in sentences."""
    yield from file_problems(params)
    # torch takes seconds to load.
    from visionloop import compiler
    from visionloop.compression.targets import lack_of
    from visionloop.models import build, check_buildable
    from visionloop.models.devices import choose_device
    from visionloop.training.resizing import check_settings

    size = (params.preprocess.height, params.preprocess.width)
    for name in ("cnn", "vit"):
        settings, merged = params.train.family(name), params.train.of(name)
        try:
            family = check_buildable(
                settings.architecture,
                size,
                settings.options,
                freeze=settings.freeze,
                weights=settings.weights,
                weights_sha256=settings.weights_sha256,
            )
            if family != name:
                yield (
                    f"train.{name}.architecture is '{settings.architecture}', which is of the family '{family}'; name it "
                    f"under train.{family}."
                )
            check_settings(settings, size, merged)
            student = settings.smaller
            if student.by == "student":
                assert student.architecture is not None
                if (found := check_buildable(student.architecture, size, student.options)) != name:
                    yield (
                        f"train.{name}.smaller.architecture is '{student.architecture}', which is of the family '{found}'; "
                        f"name one of the family '{name}'."
                    )
            if settings.weights not in (None, "torchvision"):  # which is not downloaded before it is needed
                build(
                    settings.architecture, num_classes=2, image_size=size, mean=(0.5,) * 3, std=(0.25,) * 3,
                    options=settings.options, weights=settings.weights, weights_sha256=settings.weights_sha256,
                )  # fmt: skip
            choose_device(merged.device)
        except VisionloopError as error:
            yield f"train.{name}: {error}"
        if merged.compile == "always" and (lack := compiler.missing()):
            yield f"train.compile is 'always', but {lack}; or set it to 'never'."

    if lack := lack_of(params.quantize.target):
        yield lack


def file_problems(params: Params) -> Iterator[str]:
    """What comes and goes with files: a batch larger than the data set, where it is counted already; a missing teacher.

    DVC would name the teacher too, but only after all the stages before the training.
    """
    count = _images(params)
    for name in ("cnn", "vit"):
        teacher, card = params.train.family(name).teacher, MODELS / params.train.family(name).teacher / CARD
        if teacher not in ("none", "cnn", "vit") and not card.is_file():
            yield (
                f"train.{name}.teacher is '{teacher}', but there is no {card}; put a trained model there (its model.pt and "
                "card.json), or set teacher to none."
            )
        size = params.train.of(name).batch_size
        if count is not None and size > count:
            yield f"train.batch_size of the {name} is {size:,}, and the data set has {count:,} images; lower it."


def _images(params: Params) -> int | None:
    """How many images this run has: those collected, once `collect` is done; the digits are known before; else None."""
    if os.environ.get("DVC_STAGE", "collect") != "collect" and IMAGES.is_file():
        import pyarrow.parquet as pq

        return int(pq.read_metadata(IMAGES).num_rows)
    more = params.collect.feedback and any(FEEDBACK.glob("*.parquet"))
    return _DIGITS if params.collect.source == "digits" and not more else None


def note_passed() -> None:
    """Spare the stages of the run that begins now the check that was made."""
    write_text(PASSED, " ".join(fingerprints()))


def main() -> int:
    """Print what is wrong, one sentence a line, and return 1; else note that this params.yaml passed, and return 0."""
    known = PASSED.read_text(encoding="utf-8").split() if PASSED.is_file() else []
    try:
        params = load_params()
        same = known[:1] == [fingerprints()[0]]
        found = list(file_problems(params)) if same else list(problems(params))
    except VisionloopError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    for sentence in found:
        print(f"ConfigError: {sentence}", file=sys.stderr)
    if not found:
        note_passed()
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())

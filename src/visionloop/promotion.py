"""What the gate said last (`reports/gate.json`), and what people decided over its head (`data/promotions.csv`).

`gate` writes the first and reads the second; `deploy` asks here before it publishes, so that a model which the gate has
blocked, or has compared with another champion than the present one, or whose parity is not proved, does not go out by
`dvc repro --single-item` either.

Does not cover: the rules of the gate (`evaluation.gate`) and of the parity (`evaluation.agreement`).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from visionloop.errors import ArtifactError, BlockedError, DataError
from visionloop.evaluation.budgets import refuse_over_budget
from visionloop.files import write_text

HEADER = ("model_sha256", "who", "why", "when")
_MAX_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{12,64}")


@dataclass(frozen=True, slots=True)
class Promotion:
    """A person publishes one model whatever the gate says of it."""

    model_sha256: str  # of model.onnx, 12 digits or more
    who: str
    why: str
    when: str  # ISO 8601, UTC


@dataclass(frozen=True, slots=True)
class GateReport:
    """What `deploy` and people need of `reports/gate.json`."""

    passed: bool
    forced: bool
    challenger: str  # sha256 of model.onnx
    champion: str  # sha256; "" where nothing was served
    champion_version: int  # 0 where nothing was served
    verdict: str


def read_report(path: Path) -> GateReport | None:
    """Read `reports/gate.json`; None where there is none.

    Raises:
        ArtifactError: it is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return GateReport(
            bool(found["passed"]),
            bool(found["forced"]),
            str(found["challenger"][0]),
            str(found["champion"][0]) if found["champion"] else "",
            int(found["champion_version"]),
            str(found["verdict"][0]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ArtifactError(
            f"{path} is no report of the gate ({type(error).__name__}); remove it and run `dvc repro gate`."
        ) from error


def check_publishable(report: GateReport | None, challenger: str, champion: str) -> None:
    """Check that the gate let the model `challenger` pass, against the model `champion` that is served now ("": none).

    Raises:
        BlockedError: it did not, or it compared with another model.
    """
    if report is None or report.challenger != challenger:
        raise BlockedError(
            f"The gate did not judge the model {challenger[:12]}… that is to be published; run `dvc repro` without "
            "--single-item, or `visionloop run`."
        )
    if not report.passed:
        raise BlockedError(f"The gate blocks this model. {report.verdict}")
    # With nothing served there is nothing to be worse than; the model itself is there after a run that was killed here.
    if champion not in ("", challenger, report.champion):
        raise BlockedError(
            f"The served model is {champion[:12]}… now, and the gate compared with {report.champion[:12] or 'none'}"
            f"{'…' if report.champion else ''}: someone rolled back or published in between. `visionloop run` compares "
            "anew; with DVC alone: `dvc repro --force --single-item gate`, then `dvc repro`."
        )


def check_proved(report: Path, model_sha256: str, card_sha256: str) -> dict[str, str]:
    """Check that the stage `parity` proved this model with this card; return which libraries decode on both sides, by name.

    Raises:
        BlockedError: it proved another one, or found it beyond a tolerance.
        ArtifactError: its report is missing or damaged.
    """
    refuse_over_budget(report)
    try:
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        proved = (str(found["model"][0]), str(found["card"][0]))
        here, there = ({str(k): str(v) for k, v in found[key][0].items()} for key in ("decoder", "served_decoder"))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ArtifactError(
            f"{report} is no report of the parity of a model ({type(error).__name__}); remove it and run `dvc repro parity`."
        ) from error
    if proved != (model_sha256, card_sha256):
        raise BlockedError(
            f"The parity of the model {model_sha256[:12]}… that is to be published is not proved; run `dvc repro` without "
            "--single-item, or `visionloop run`."
        )
    return {**here, **{f"served_{name}": version for name, version in there.items()}}


def is_outdated(report: GateReport, champion: str) -> bool:
    """Whether the served model ("": none) is neither the one that the gate compared with nor the one that it let pass."""
    return champion not in ("", report.champion, report.challenger)


def read_promotions(path: Path) -> list[Promotion]:
    """Read `data/promotions.csv`, the oldest first.

    Raises:
        DataError: it is missing or a line is not understood.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path} has over {_MAX_BYTES >> 20} MiB; keep the lines of models that may still be published.")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8; save it as UTF-8.") from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); bring it back from git, or write a file with the one line "
            f"{','.join(HEADER)}."
        ) from error
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if not rows or tuple(rows[0]) != HEADER:
        raise DataError(f"{path}, line 1: the header is {','.join(rows[0])[:80] if rows else ''!r}; it must be "
                        f"{','.join(HEADER)}.")  # fmt: skip
    found = []
    for line, cells in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in cells):
            continue
        values = [cell.strip() for cell in cells]
        if len(values) != len(HEADER) or not _SHA256.fullmatch(values[0]) or not values[1] or not values[2]:
            raise DataError(
                f"{path}, line {line}: {','.join(values)[:80]!r} is not understood; a line is the first 12 or more digits "
                "of a model's sha256, who decided, why, and when."
            )
        found.append(Promotion(*values))
    return found


def promotion_of(promotions: Sequence[Promotion], model_sha256: str) -> Promotion | None:
    """The newest decision about one model."""
    return next((one for one in reversed(promotions) if model_sha256.startswith(one.model_sha256)), None)


def add_promotion(path: Path, model_sha256: str, who: str, why: str) -> Promotion:
    """Append a decision; whole or not at all.

    Raises:
        DataError: a reason or a name is empty, or the file cannot be read.
    """
    who, why = (" ".join(text.split()) for text in (who, why))
    if not who or not why:
        raise DataError("A forced promotion needs a reason and a name: `visionloop promote --force --reason '...'`.")
    new = Promotion(model_sha256, who, why, datetime.now(UTC).isoformat(timespec="seconds"))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(asdict(one).values() for one in (*read_promotions(path), new))
    write_text(path, buffer.getvalue())
    return new
